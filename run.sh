#!/usr/bin/env bash
# From a fresh clone to a table of KPIs for this machine. Arguments go to the workload's ctest.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$root/script/setup.sh"
"$root/script/setup.sh" report || echo "run.sh: the page at the end will have tables and no charts" >&2
export CNNBENCH_SETUP_S=$SECONDS # for --timings
exec "$root/.venv/bin/python" -I -m cnnbench quickstart "$@"
