#!/usr/bin/env bash
# Measure a few real runs, some ten minutes, and draw the pictures of doc/ of them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/script/setup.sh" report
logs=$(mktemp --directory)
trap 'rm -rf "$logs"' EXIT

measure() {
    "$root/.venv/bin/cnnbench" case --workload "$root/workload/$1" --case "$2" --logs-root "$logs" "${@:3}" ||
        echo "pictures.sh: $2 ${*:3}: not measured" >&2 # the page shows it as invalid, or has one run less
}

[[ -x $root/build/cnnbench-peak ]] && export CNNBENCH_PEAK=$root/build/cnnbench-peak
network=test_cnn_pytorch_public_inference
for engine in onnxruntime openvino; do
    for batch in 1 4 16; do
        measure CNN-PyTorch-Public "${network}_throughput_avx_fp32_mobilenet_v3_small" --engine="$engine" \
            --cores_per_instance=1 --batch_size="$batch"
    done
    measure CNN-PyTorch-Public "${network}_latency_avx_fp32_mobilenet_v3_small" --engine="$engine" \
        --cores_per_instance=1 --instances=1
done
for precision in avx_fp32 avx_bfloat16 avx_int8; do
    measure ResNet50-TensorFlow-Xeon-Public "test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_${precision}_pkm" \
        --cores_per_instance=1 --batch_size=8 --onednn_verbose=True
done
"$root/.venv/bin/cnnbench" report "$logs"/logs-* -o "$logs/report.html" --pictures "$logs/pictures"
mkdir -p "$root/doc/pictures"
for name in throughput-latency latency-distribution roofline time-by-kind; do
    cp "$logs/pictures/$name.svg" "$root/doc/pictures/"
done
