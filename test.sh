#!/usr/bin/env bash
# Run every check: ruff, mypy, shellcheck, pytest, the ctest cases of label "gated", and two of them in containers where
# an engine answers. Arguments go to pytest. CNNBENCH_BASE_IMAGE is what the images are made from, CONTAINER_CLI the
# engine's command line.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
script/setup.sh test
bin=$root/.venv/bin

echo "== ruff, mypy, shellcheck"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" src/cnnbench
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
"$bin/shellcheck" "${scripts[@]}"

echo "== pytest"
"$bin/pytest" "$@"

echo "== ctest -L gated"
./run.sh -L gated

echo "== ctest -R gated in containers"
read -ra cli <<<"${CONTAINER_CLI:-docker}"
if answer=$("${cli[@]}" version 2>&1); then
    cmake=$(PATH=$bin:$PATH command -v cmake)
    "$cmake" -S . -B build-container -DBACKEND=docker -DCONTAINER_CLI="${cli[*]}" -DRELEASE=test \
        -DBASE_IMAGE="${CNNBENCH_BASE_IMAGE-}" -DCNNBENCH_PYTHON="$bin/python"
    "$cmake" --build build-container
    cd build-container/workload/ResNet50-TensorFlow-Xeon-Public
    "${cli[@]}" images '*resnet50v1_5-tensorflow*'
    ./ctest.sh -R throughput_avx_fp32_gated --set "DATA_TYPE=dummy real"
    ./list-kpi.sh logs-*
else
    echo "NOT RUN: no container engine answers to \`${cli[*]} version\`: ${answer##*$'\n'}"
    echo "pytest's container tests were skipped for the same reason; doc/containers.md tells how to get an engine."
fi
