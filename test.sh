#!/usr/bin/env bash
# Run every check: ruff, mypy, import-linter, shellcheck, hadolint, pytest, the ctest cases of label "gated", and, where a
# container engine answers, the images and cases in containers of them. Arguments go to pytest. CNNBENCH_BASE_IMAGE is
# what the images are made from, CONTAINER_CLI the engine's command line.
set -euo pipefail
unset PYTHONHOME PYTHONPATH PYTHONUSERBASE # the checks see .venv alone; the tests set what they need
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
script/setup.sh test report kubernetes
bin=$root/.venv/bin
read -ra cli <<<"${CONTAINER_CLI:-docker}"

echo "== ruff, mypy, import-linter, shellcheck, hadolint"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" src/cnnbench benchmarks
"$bin/lint-imports" --no-logo
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
"$bin/shellcheck" "${scripts[@]}"
"$bin/hadolint" Dockerfile.* workload/*/Dockerfile

echo "== container images"
if answer=$("${cli[@]}" version 2>&1); then
    no_engine=
    cmake=$(PATH=$bin:$PATH command -v cmake)
    "$cmake" -S . -B build-container -DBACKEND=docker -DCONTAINER_CLI="${cli[*]}" -DRELEASE=test \
        -DBASE_IMAGE="${CNNBENCH_BASE_IMAGE-}" -DCNNBENCH_PYTHON="$bin/python"
    "$cmake" --build build-container --target ResNet50-TensorFlow-Xeon-Public # the other's: tests/container
    "${cli[@]}" images '*resnet50v1_5-tensorflow*'
else
    no_engine="NOT RUN: no container engine answers to \`${cli[*]} version\`: ${answer##*$'\n'} (see doc/containers.md)"
    echo "$no_engine"
fi

echo "== pytest"
"$bin/pytest" --numprocesses 3 --no-loadscope-reorder --durations 20 "$@"

echo "== ctest -L gated"
./run.sh -L gated

echo "== ctest -R gated, in containers"
if [[ $no_engine ]]; then
    echo "$no_engine"
else
    cd build-container/workload/ResNet50-TensorFlow-Xeon-Public
    ./ctest.sh -R "throughput_avx_(fp32|int8)_gated" --set "DATA_TYPE=dummy real"
    ./list-kpi.sh logs-*
fi
