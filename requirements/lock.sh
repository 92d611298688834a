#!/usr/bin/env bash
# Resolve every *.in file to a *.lock file with hashes, for Python 3.10 to 3.13. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")"

lock() {
    local name=$1
    shift
    uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
        --custom-compile-command requirements/lock.sh "$@" "$name.in" --output-file "$name.lock"
}

lock installer "$@"
lock controller "$@"
lock test --excludes test.excludes "$@"
lock cmake "$@"
lock report "$@"
lock kubernetes "$@"
lock tensorflow-stock --override tensorflow.override "$@"
lock tensorflow-itex --override tensorflow.override "$@"
lock tensorflow-zentf --override tensorflow-zentf.override "$@"
lock tensorflow-quantizer --override tensorflow.override --only-binary :all: "$@"
lock openvino-cpu "$@"
lock onnxruntime-cpu "$@"
lock mpi-ranks "$@"
lock triton-server --no-deps "$@"
lock triton-client "$@"
lock perf-analyzer --no-deps "$@"
lock loadgen "$@"
lock pytorch-cuda --override pytorch-cpu.override "$@"
lock pytorch-zentorch --override pytorch-cpu.override "$@" # it and the next need
lock pytorch-cpu --override pytorch-cpu.override "$@" # UV_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
