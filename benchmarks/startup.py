"""Tell the CPU time that the commands take which answer without measuring: the median of several calls.

.venv/bin/python benchmarks/startup.py [--rounds 10] [--build build]

`--build`: a build directory, with the logs of a run in it: `./run.sh -R latency_avx_fp32` makes both.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.results.record import RUN_FILE, WORKER


def main() -> None:
    """Measure each in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="calls of each (default: 10)")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build")
    arguments = parser.parse_args()
    runs = sorted(arguments.build.glob(f"workload/*/logs-*/itr-*/{WORKER}/{RUN_FILE}"))
    if not runs:
        sys.exit(f"{arguments.build}: has no logs of a run; ./run.sh -R latency_avx_fp32 makes some in build/")
    workload, cnnbench = runs[0].parents[3], [sys.executable, "-m", "cnnbench"]
    commands = {
        "cnnbench --help": [*cnnbench, "--help"],
        "ctest.sh -N": [str(workload / "ctest.sh"), "-N"],
        "list-kpi of one run": [*cnnbench, "list-kpi", str(runs[0].parent)],
    }
    times_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            times_s[name].append(cpu_time_s(command))
    for name, each_s in times_s.items():
        print(f"{name:20}  {statistics.median(each_s):.2f} s")


def cpu_time_s(command: list[str]) -> float:
    """Run a command that must succeed; return the CPU time of its process and of those that it waited for."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command}: failed with exit code {os.waitstatus_to_exitcode(status)}; it says why above")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
