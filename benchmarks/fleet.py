"""Measure what a fleet of N machines costs its controller: planning, following to the end, reading again and merging.

Time is simulated, and so are the machines: a launcher writes, for each run, a result as the null engine leaves it. All
else is the product's: the plan, the folder, the controller, the merge. Each size is a process of its own, as its peak
of memory is told too.

    python benchmarks/fleet.py --null fleet-runs --workload Harness [--runs 200] [--folder DIR] 10 100 1000
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from cnnbench.cli.comparing import better
from cnnbench.fleet.batch import BatchFile, Ended, Node, Outcome
from cnnbench.fleet.controller import Controller
from cnnbench.fleet.folder import ENDED, NODE, OUTCOME, FleetFolder, write_file
from cnnbench.fleet.launcher import Batch, JobState
from cnnbench.fleet.plan import plan_fleet
from cnnbench.fleet.report import write_report
from cnnbench.fleet.spec import Fleet, Pool, Runs, Strict
from cnnbench.results.record import RUN_FILE, Kpi, RunResult, read_result

CASE = "test_harness_inference_throughput_avx_fp32"


class SimulatedOptions(Strict):
    """It has none."""


class Clock:
    """Time that passes when it is slept."""

    def __init__(self) -> None:
        self.now_s = 1.8e9

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.now_s += seconds


class SimulatedLauncher:
    """Machines that make all runs of a batch in their time, and leave what the null engine would."""

    Options: ClassVar[type[BaseModel]] = SimulatedOptions
    chooses_nodes: ClassVar[bool] = False

    def __init__(self, pool: Pool, folder: FleetFolder, clock: Clock, template: RunResult) -> None:
        self._pool, self._folder, self._clock, self._template = pool, folder, clock, template
        self._ends_s: dict[str, float] = {}

    @property
    def machines(self) -> int:
        """As many as the pool has."""
        return self._pool.machines or 1

    def check(self, run: Runs) -> None:
        """Find nothing wrong."""

    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Note when each will have ended."""
        for one in batches:
            self._ends_s[one.id] = self._clock() + one.limit_s / 3
        return {one.id: one.file.name for one in batches}

    def poll(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Make the runs of what has ended by now."""
        states = {}
        for batch in jobs:
            if self._clock() < self._ends_s[batch]:
                states[batch] = JobState("running")
                continue
            self._make(*self._folder.read_batch(batch))
            states[batch] = JobState("ended")
        return states

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """Do nothing."""

    def collect(self, batch: BatchFile) -> None:
        """Do nothing."""

    @staticmethod
    def identify(environ: Mapping[str, str]) -> str:  # noqa: ARG004 - as every launcher
        """Return nothing."""
        return ""

    def _make(self, batch: BatchFile, slot: int) -> None:
        host, now_s = f"{batch.pool}{slot:04}", self._clock()
        directory = self._folder.batches / batch.id
        write_file(directory / NODE, Node(host=host, allocation="", pid=1, began_s=now_s - len(batch.tasks)))
        template = json.loads(self._template.model_dump_json())
        template["facts"] |= {"host name": host}
        for number, task in enumerate(batch.tasks):
            place = self._folder.results / task.place
            worker = place / f"logs-{task.case}" / "itr-1" / "worker-0"
            worker.mkdir(parents=True)
            template["run_id"] = task.id
            template["kpis"][0]["value"] = 100 * (1 + 0.01 * (number % 7) / 7 + 0.02 * (slot % 11) / 11)
            (worker / RUN_FILE).write_text(json.dumps(template))
            outcome = Outcome(
                task=task.id, batch=batch.id, verdict="valid", host=host, began_s=now_s, ended_s=now_s,
                run_file=(worker / RUN_FILE).relative_to(place).as_posix(),
            )  # fmt: skip
            (place / OUTCOME).write_text(outcome.model_dump_json())
        write_file(directory / ENDED, Ended(reason="", ended_s=now_s))


def make_template(directory: Path) -> RunResult:
    """Return a result of the null engine, or one that is like it where the folder has none."""
    found = next(directory.glob(f"**/logs-{CASE}/itr-*/worker-0/{RUN_FILE}"), None)
    if found is None:
        raise SystemExit(f"{directory}: no result of {CASE} there; run a fleet of the null engine into it first")
    run = read_result(found)
    primary = Kpi(key="Throughput", unit="img/s", value=100.0, primary=True)
    others = [kpi for kpi in run.kpis if not kpi.primary]
    return run.model_copy(update={"kpis": [primary, *others], "criteria": []})


def measure(machines: int, runs: int, directory: Path, template: RunResult, workload: Path) -> dict[str, float]:
    """Return the seconds that each part takes with so many machines, and the peak of memory (MB)."""
    seconds: dict[str, float] = {}
    last_s = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        seconds[name], last_s = now_s - last_s, now_s

    fleet = Fleet.model_validate(
        {
            "pools": [{"name": name, "launcher": "local", "machines": machines // 2} for name in ("spr", "genoa")],
            "run": {"workloads": [str(workload)], "cases": [CASE], "trials": runs, "repeats": 0, "run_s": 60},
        }
    )
    folder, clock = FleetFolder(directory), Clock()
    plan = plan_fleet(fleet, directory, {pool.name: pool.machines or 1 for pool in fleet.pools})
    lap("planning")
    launchers = {pool.name: SimulatedLauncher(pool, folder, clock, template) for pool in fleet.pools}
    with folder.held():
        folder.adopt(plan)
        control = Controller(plan, folder, launchers, directory, print, clock, clock.sleep)
        control.begin()
        control.step()
        lap("submitting")
        control.run()
        lap("following, and writing results")
        again = Controller(plan, folder, launchers, directory, print, clock, clock.sleep)
        again.begin()
        assert again.done
        assert len(again.outcomes) == machines * runs
        del again
        lap("reading state again")
    report = write_report(plan, folder, control.outcomes, better)
    assert not report.problems
    lap("merging and judging")
    seconds["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return seconds


def main() -> None:
    """Measure each size in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="runs of each machine (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to put what is made (default: a temporary one)")
    parser.add_argument("--null", type=Path, required=True, help="a fleet's folder with a result of the null engine")
    parser.add_argument("--workload", type=Path, required=True, help="that workload's directory")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("machines", type=int, nargs="*", default=[10, 100, 1000])
    arguments = parser.parse_args()
    template = make_template(arguments.null)
    if arguments.one:
        with tempfile.TemporaryDirectory(prefix="fleet-", dir=arguments.folder) as directory:
            found = measure(arguments.one, arguments.runs, Path(directory), template, arguments.workload.resolve())
            print(json.dumps(found))
        return
    for machines in arguments.machines:
        command = [sys.executable, *sys.argv, "--one", str(machines)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        parts = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
        print(f"{machines} machines x {arguments.runs} runs: {parts}", flush=True)


if __name__ == "__main__":
    main()
