#!/usr/bin/env bash
# Print the KPIs of one run from its exported logs: kpi.sh [DIR]. Needs only bash and awk.
# DIR: a worker directory, or an itr-N or logs-<case> directory, of which it takes the worker of the last run.
# Exit codes: 0 a valid KPI was printed, 2 bad usage, 3 there is none (the reason is on the last line).
set -euo pipefail

if [[ $# -gt 1 || ${1-} == -* ]]; then
    echo "usage: kpi.sh [DIR]   prints the KPIs of the last run whose logs are in DIR (default: here)" >&2
    exit 2
fi
dir=${1:-.}

invalid() {
    echo "#INVALID RESULT: $1"
    exit 3
}

# From inside, because awk takes an operand such as `a=b/kpi.log` for an assignment.
CDPATH='' cd -- "$dir" 2>/dev/null || invalid "$dir: no such directory"
enter() {
    dir=${dir%/}/$1
    cd "./$1" 2>/dev/null || invalid "$dir: no such directory"
}

shopt -s nullglob
given=$dir runs=0 last=0
for iteration in itr-*/; do
    [[ $iteration =~ ^itr-([1-9][0-9]*)/$ ]] || continue
    runs=$((runs + 1))
    if ((BASH_REMATCH[1] > last)); then last=${BASH_REMATCH[1]}; fi
done
if ((runs)); then enter "itr-$last"; fi
if [[ -d worker-0 ]]; then enter worker-0; fi
if ((runs > 1)); then
    echo "# $dir, the last of $runs runs"
elif [[ $dir != "$given" ]]; then
    echo "# $dir"
fi

[[ -f kpi.log && -s kpi.log ]] || invalid "$dir: kpi.log is missing or empty; the run did not end"
[[ -f status && -s status ]] || invalid "$dir: status is missing or empty; the run did not end"

results=(instance-*/result.json)

# The first file is kpi.log; then come the status and the instances' results, which must be of the same run.
LC_ALL=C awk '
function fail(reason) { if (!failed) { failed = 1; why = reason } }
FNR == 1 { file++ }
file == 1 && FNR == 1 {
    if ($0 !~ /^# cnnbench kpi log, schema 1, run [0-9a-zA-Z-]+$/) fail("kpi.log is not a kpi log of schema 1")
    run = $NF
    next
}
file == 1 {
    if (ended) fail("kpi.log goes on after its end: logs of several runs are mixed")
    if ($0 == "# end of run " run ": " kept " lines") { ended = 1; next }
    if ($0 ~ /^# (end of run|cnnbench kpi log)/) fail("kpi.log is cut off, or logs of several runs are mixed")
    line[kept++] = $0
    if ($0 ~ /^#INVALID RESULT: /) { invalid = 1; why = substr($0, 18) }
    else if ($0 ~ /^## INSTANCES: [0-9]+$/) planned = $3
    else if ($0 !~ /^#/) {
        if ($0 !~ /^\*?[^:,*]+ \([^)]+\): -?[0-9]+(\.[0-9]+)?$/) fail("kpi.log has a line that is no KPI: " $0)
        if ($0 ~ /^\*/) primary++
    }
    next
}
file == 2 { status = $0; next }
FNR == 1 { results++ }
$0 == "}" { whole++ }
/"run_id"/ { if (index($0, "\"" run "\"")) same++; else fail(FILENAME " is of another run") }
END {
    if (!failed && !ended) fail("kpi.log is cut off")
    if (!failed && !invalid) {
        if (status != "0") fail("the run ended with status " status)
        else if (primary != 1) fail("kpi.log has " primary + 0 " primary KPIs instead of one")
        else if (planned + 0 < 1) fail("kpi.log does not say how many instances there were")
        else if (results != planned || same != planned) fail(same + 0 " of " planned " instances have a result")
        else if (whole != planned) fail(planned - whole " of " planned " instances have a result that is cut off")
    }
    for (i = 0; i < kept; i++)
        if (line[i] ~ /^# / || line[i] ~ /^## / || (!failed && !invalid)) print line[i]
    if (failed || invalid) { print "#INVALID RESULT: " why; exit 3 }
}
' kpi.log status "${results[@]}"
