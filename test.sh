#!/usr/bin/env bash
# Run every check: ruff, mypy, shellcheck, pytest, and the ctest cases of label "gated". Arguments go to pytest.
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
