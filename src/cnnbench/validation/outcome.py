"""Find out from its logs what each case of a validation has come to, and which run is due next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.machine.facts import HOST_NAME
from cnnbench.results.record import RUN_FILE, Kpi, RunResult, find_runs, load_run
from cnnbench.run.kpis import find_kind
from cnnbench.validation.plan import CaseChoice, PlannedMachine

BEST_RULE = (
    "of several runs of a case the best valid one counts; without a valid one the best that is unstable, and without "
    "one either the case is INVALID"
)


@dataclass(frozen=True)
class CaseRun:
    """A run of a case, where it lies, and how long it took (s)."""

    worker: Path
    run: RunResult
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a case has come to: its runs in their order, and where there is none, why it was skipped or has failed."""

    choice: CaseChoice
    runs: tuple[CaseRun, ...] = ()
    skipped: str = ""
    failed: str = ""

    def of_verdict(self, verdict: str) -> list[CaseRun]:
        """Return the runs that were judged so."""
        return [one for one in self.runs if one.run.verdict == verdict]

    @property
    def counting(self) -> RunResult | None:
        """The run that counts (BEST_RULE); None where there is none with a number."""
        for verdict in ("valid", "unstable"):
            if able := self.of_verdict(verdict):
                by_name = {str(number): primary(one.run).value for number, one in enumerate(able)}
                return able[int(find_kind(primary(able[0].run).key).best(by_name))].run
        return None

    @property
    def state(self) -> str:
        """Say valid, unstable, INVALID, failed, skipped, or not run."""
        if counting := self.counting:
            return counting.verdict
        if self.runs:
            return "INVALID"
        return "failed" if self.failed else "skipped" if self.skipped else "not run"

    def due(self, runs: int, repeats: int) -> bool:
        """Say whether another run is due: of valid and INVALID ones `runs`, with so many unstable ones repeated."""
        settled = sum(one.run.verdict != "unstable" for one in self.runs)
        return settled < runs and len(self.runs) < runs + repeats and not self.skipped and not self.failed


def primary(run: RunResult) -> Kpi:
    """Return the KPI that a run was made for; it is not invalid."""
    return next(kpi for kpi in run.kpis if kpi.primary)


def read_runs_of(logs: Path, machine: PlannedMachine) -> tuple[list[CaseRun], list[str]]:
    """Return the runs of a logs-<case> directory that have a result, and what else is there.

    What was interrupted tells nothing, and what another machine has measured is not this one's.
    """
    found, told = [], []
    for worker in find_runs(logs) if logs.is_dir() else []:
        path = worker / RUN_FILE
        if not path.is_file():
            continue  # it was killed, or is under way
        try:
            run = load_run(worker)
        except CnnbenchError as error:
            told.append(str(error))
            continue
        if run.interrupted:
            continue
        host = run.facts.get(HOST_NAME, machine.host)
        if host != machine.host or run.facts.get("CPU", machine.cpu) != machine.cpu:
            told.append(f"{worker}: was run on {host}, {run.facts.get('CPU', 'CPU not told')}, and does not count here")
            continue
        found.append(CaseRun(worker, run, max(0.0, path.stat().st_mtime - worker.parent.stat().st_mtime)))
    return found, told


def next_due(outcomes: Sequence[Outcome], runs: int, repeats: int) -> Outcome | None:
    """Return the case whose run is due next: the first of those with the fewest runs, so that drift hits all alike."""
    return min((one for one in outcomes if one.due(runs, repeats)), key=lambda one: len(one.runs), default=None)


def count_due(one: Outcome, runs: int, repeats: int) -> int:
    """Return how many runs of a case are still to come when no more of them are unstable."""
    settled = sum(run.run.verdict != "unstable" for run in one.runs)
    return min(runs - settled, runs + repeats - len(one.runs)) if one.due(runs, repeats) else 0


def estimate_left_s(outcomes: Sequence[Outcome], runs: int, repeats: int, guesses: Mapping[CaseChoice, float]) -> float:
    """Return about how long (s) takes what is due (`count_due`): by a case's own runs where it has some."""
    left = 0.0
    for one in outcomes:
        taken = [run.seconds for run in one.runs]
        left += count_due(one, runs, repeats) * (sum(taken) / len(taken) if taken else guesses[one.choice])
    return left
