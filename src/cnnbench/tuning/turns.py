"""Measure several cases in turns, so that a machine that drifts hits all alike: ratios are taken within rounds."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, SkippedError
from cnnbench.cases.workload import load_workload
from cnnbench.results.record import RunResult
from cnnbench.results.stats import median_interval
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S
from cnnbench.run.native import measure_job
from cnnbench.serving.measurement import measurement_of

MIN_ROUNDS = 6
"""Without which a median has no 95 % interval."""


@dataclass
class Contender:
    """One of the cases: made ready, with the run of each round, and why it was not measured, if so.

    `logs_root`: where logs of its runs are kept; None for nowhere.
    """

    name: str
    job: Job | None = None
    logs_root: Path | None = None
    runs: list[RunResult] = field(default_factory=list)
    reason: str = ""
    failed: bool = False

    @classmethod
    def of_case(cls, name: str, workload: Path, case: str, settings: dict[str, str]) -> "Contender":
        """Return a case of a workload's function by the rest of its name; left out where this machine cannot run it."""
        one, found = cls(name), load_workload(workload)
        try:
            case = f"test_{found.slug}_{found.function}_{case}"
            one.job = prepare_job(plan_case(workload, case, os.environ, settings), os.environ)
        except SkippedError as error:
            one.refuse(error)
        return one

    def refuse(self, error: CnnbenchError) -> None:
        """Leave it out from now on."""
        self.reason, self.failed, self.runs = str(error), not isinstance(error, SkippedError), []
        print(f"{self.name}: NOT MEASURED: {self.reason}", file=sys.stderr, flush=True)

    def figures(self, key: str) -> list[float]:
        """Return a KPI of each round."""
        return [kpi.value for run in self.runs for kpi in run.kpis if kpi.key == key]

    def ratios(self, base: "Contender", key: str) -> list[float]:
        """Return a KPI of each round over that of another."""
        return [one / other for one, other in zip(self.figures(key), base.figures(key), strict=True)]

    def verdict(self) -> str:
        """Return in words how the rounds were judged."""
        unstable = sum(run.verdict == "unstable" for run in self.runs)
        return f"{unstable} of {len(self.runs)} unstable" if unstable else "valid"


def take_turns(contenders: Sequence[Contender], rounds: int, key: str, cache: Path) -> None:
    """Measure each that can be measured once in every round; one that is invalid is left out from then on."""
    for number in range(1, rounds + 1):
        for one in contenders:
            if not one.reason:
                _measure(one, number, key, cache)


def _measure(one: Contender, number: int, key: str, cache: Path) -> None:
    try:
        run = measure_once(one, cache)
    except CnnbenchError as error:
        one.refuse(error)
        return
    one.runs.append(run)
    found = one.figures(key)
    if len(found) < len(one.runs):
        one.refuse(InvalidMeasurementError(f"a block has too few samples for {key}: raise --seconds"))
        return
    print(f"round {number}: {one.name} {found[-1]:.2f}, {run.verdict}", file=sys.stderr, flush=True)


def measure_once(one: Contender, cache: Path) -> RunResult:
    """Return a run of a case; raise InvalidMeasurementError for an invalid one, KeyboardInterrupt for one ended."""
    assert one.job is not None
    kind = measurement_of(one.job, cache)
    if one.logs_root:
        run, _ = measure_job(one.job, cache, one.logs_root, None, None, kind)
    else:
        with tempfile.TemporaryDirectory() as logs:
            run = kind(one.job, stage_inputs(one.job, cache), Path(logs), DEFAULT_HANG_S).run()
    if run.interrupted:
        raise KeyboardInterrupt
    if run.verdict == "invalid":
        raise InvalidMeasurementError(run.reason)
    return run


def interval_text(samples: Sequence[float], digits: int) -> str:
    """Return a median with its 95 % interval."""
    median, low, high = median_interval(samples)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
