#!/usr/bin/env bash
# Measure a sweep of one network, some ten minutes: three engines, their precisions, three batch sizes, two layouts; and
# draw the pictures of doc/ of it: charts, and the page in Chromium.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/script/setup.sh" test report
bin=$root/.venv/bin
logs=$(mktemp --directory)
trap 'rm -rf "$logs"' EXIT

measure() {
    "$bin/cnnbench" case --workload "$root/workload/CNN-PyTorch-Public" --logs-root "$logs" --min_time=4 --max_time=10 \
        --case "test_cnn_pytorch_public_inference_${1}_resnet18" "${@:2}" >>"$logs/log" 2>&1 ||
        echo "not measured: $* ($(tail -n 1 "$logs/log"))" # the page shows it as invalid, or has one run less
}

[[ -x $root/build/cnnbench-peak ]] && export CNNBENCH_PEAK=$root/build/cnnbench-peak
cores=$(nproc)
for pair in onnxruntime/avx_{fp32,int8} openvino/avx_{fp32,bfloat16,int8} pytorch/avx_{fp32,bfloat16}; do
    engine=${pair%/*} precision=${pair#*/}
    trace=()
    [[ $engine == pytorch ]] && trace=(--onednn_verbose=True) # it tells of layers; the others do not bear it
    for batch in 1 4 16; do
        for each in 1 "$cores"; do # the cores of an instance: as many instances as fit, and one
            measure "throughput_$precision" --engine="$engine" --batch_size="$batch" --cores_per_instance="$each" \
                "${trace[@]}"
        done
    done
    measure "latency_$precision" --engine="$engine" --cores_per_instance="$cores"
    measure "accuracy_$precision" --engine="$engine"
done

"$bin/cnnbench" report "$logs"/logs-* -o "$logs/report.html" --pictures "$logs/pictures"
for name in throughput-latency latency-distribution roofline time-by-kind accuracy-throughput; do
    cp "$logs/pictures/$name.svg" "$root/doc/pictures/"
done
"$bin/python" - "$logs/report.html" "$root/doc/pictures" <<'PYTHON'
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

page_file, pictures = Path(sys.argv[1]), Path(sys.argv[2])
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
    for name, width, height, scheme in (
        ("report", 1280, 1600, "light"),
        ("report-dark", 1280, 1600, "dark"),
        ("report-phone", 400, 1600, "light"),
    ):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(page_file.as_uri())
        page.wait_for_selector("svg, canvas")
        page.screenshot(path=pictures / f"{name}.png")
    browser.close()
PYTHON
