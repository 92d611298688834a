#!/usr/bin/env bash
# Run one test case on the chosen backend: what ctest calls, and what ends with it. Arguments: those of `cnnbench case`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${CNNBENCH_PYTHON:-$here/.venv/bin/python}" -I -m cnnbench case "$@" --end-with "$PPID"
