"""Run a tuning sweep of one case: what is due, round by round, into logs directories that it also goes on from.

A sweep has no state of its own: each run is a normal result whose note says which round it belongs to.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from cnnbench.base.disk import held, make_directory
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.cases.case import TestCase
from cnnbench.machine.facts import machine_facts
from cnnbench.machine.topology import format_cpu_list
from cnnbench.report.table import CPUS_USED, DEFINING_FACTS
from cnnbench.results.kpi_text import STATUS, format_number
from cnnbench.results.record import SEEN, Kpi, RunResult, find_runs, load_run
from cnnbench.run.job import Job
from cnnbench.run.kpis import find_kind
from cnnbench.tuning.decide import Drop, Speeds, count_due, find_fastest, find_slow, plan_round
from cnnbench.tuning.space import TUNED, Space

Measure = Callable[[Job], tuple[RunResult, Path]]
Say = Callable[[str], None]
Runs = dict[str, dict[int, RunResult]]
"""Setting to round to run."""

_NOTE = "round {} of a tuning sweep"


@dataclass(frozen=True)
class Outcome:
    """What a sweep found for one case.

    `best`: the fastest setting, None when all have failed. `dropped`: why settings are out, by setting.
    """

    case: TestCase
    runs: Runs
    best: str | None
    dropped: dict[str, str]


@dataclass
class Pace:
    """How long the runs of this sweep take."""

    began_s: float = field(default_factory=time.monotonic)
    runs: int = 0

    def describe(self, due: int) -> str:
        """Say how long it has taken and how long so many more runs take at most."""
        elapsed_s = time.monotonic() - self.began_s
        left = f", at most {_duration(elapsed_s / self.runs * due)} left" if self.runs else ""
        return f"{_duration(elapsed_s)} so far{left}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def hold_state(state: Path) -> Iterator[None]:
    """Make the directory and keep other sweeps out of it."""
    make_directory(state, "give another --state with room that you may write to")
    with held(state, f"--state {state}: another sweep is running there; wait for it or give another"):
        yield


def run_sweep(spaces: Sequence[Space], state: Path, rounds: int, measure: Measure, say: Say) -> list[Outcome]:
    """Tune one case after the other; return what was found for those that this machine can run.

    Raises SkippedError when it can run none, and KeyboardInterrupt when asked to end: the same sweep then goes on.
    """
    for space in spaces:
        if space.skipped:
            say(f"skipped: {space.case.name}: {'; '.join(space.obstacles)}")
    able = [space for space in spaces if not space.skipped]
    if not able:
        raise SkippedError("no case of the sweep can run here; the reasons are above")
    with hold_state(state):
        sweeps, pace = [CaseSweep(space, state, rounds) for space in able], Pace()
        try:
            return [
                sweep.run(measure, pace, sum(later.due for later in sweeps[number:]), say)
                for number, sweep in enumerate(sweeps, start=1)
            ]
        except KeyboardInterrupt:
            say(f"the runs so far are in {state}; the same command goes on from there")
            raise


class CaseSweep:
    """The sweep of one case over a space, in a state directory that may hold its earlier runs.

    Raises UsageError when they are of other parameters, or of another machine, engine or model.
    """

    def __init__(self, space: Space, state: Path, rounds: int) -> None:
        self.case, self.space = space.case, space
        self._rounds, self._state = rounds, state
        self._runs: Runs = {name: {} for name in space.jobs}
        self._announced: set[str] = set()
        past = _read_rounds(state / f"logs-{space.case.name}")
        self._check([run for _, run in past])
        names = {_tuned(job.requested): name for name, job in space.jobs.items()}
        for number, run in past:
            if (setting := names.get(_tuned(run.requested))) is not None:
                self._runs[setting][number] = run

    @property
    def due(self) -> int:
        """How many runs it takes at most to the end."""
        return count_due(self._speeds, self._rounds, self._unsteady)

    def run(self, measure: Measure, pace: Pace, due_later: int, say: Say) -> Outcome:
        """Measure what is due and return what was found; `due_later`: how many runs other cases will take at most."""
        label = f"{self.case.mode} {self.case.precision}"
        if found := sum(map(len, self._runs.values())):
            say(f"{label}: goes on from {found} runs in {self._state}")
        for reason, names in self.space.obstacles.items():
            say(f"{label}: dropped {', '.join(names)}: {reason}")
        while True:
            number, names = plan_round(self._speeds, self._rounds, self._unsteady)
            self._announce(label, say)
            if not names:
                return self._outcome()
            for position, name in enumerate(names, start=1):
                where = f"round {number} of {max(number, self._rounds)}, run {position} of {len(names)}"
                say(f"{label}, {where}: {name}; {pace.describe(self.due + due_later)}")
                try:
                    run, _ = measure(self._job(name, number))
                except CnnbenchError as error:  # nothing was measured: what it needs cannot be had here
                    self.space.refused[name] = error
                    say(f"{label}: dropped {name}: {error}")
                    continue
                self._keep(run, name, number)
                pace.runs += 1
                say(f"{label}: {name}: {_describe(run)}")

    def _job(self, name: str, number: int) -> Job:
        job = self.space.jobs[name]
        return replace(job, notes=(*job.notes, _NOTE.format(number)))

    def _keep(self, run: RunResult, name: str, number: int) -> None:
        if run.interrupted:
            raise KeyboardInterrupt
        self._check([*(run for runs in self._runs.values() for run in runs.values()), run])
        self._runs[name][number] = run

    def _check(self, runs: Sequence[RunResult]) -> None:
        if found := find_mixture(runs, list(self.space.jobs.values()), machine_facts()):
            raise UsageError(
                f"--state {self._state}: holds runs of {self.case.name} that do not compare: {found}; "
                "give another directory to begin anew"
            )

    @property
    def _failed(self) -> dict[str, str]:
        return {
            name: f"round {number}: {_describe(run)}"
            for name, runs in self._runs.items()
            for number, run in runs.items()
            if run.verdict == "invalid"
        }

    @property
    def _speeds(self) -> Speeds:
        failed = self._failed | self.space.refused
        return {
            name: {number: _speed(run) for number, run in runs.items()}
            for name, runs in self._runs.items()
            if name not in failed
        }

    @property
    def _unsteady(self) -> set[tuple[str, int]]:
        return {
            (name, number)
            for name, runs in self._runs.items()
            for number, run in runs.items()
            if run.verdict == "unstable"
        }

    @property
    def _slow(self) -> dict[str, Drop]:
        return find_slow(self._speeds, self._rounds, unsteady=self._unsteady)

    @property
    def _dropped(self) -> dict[str, str]:
        slow = {name: str(drop) for name, drop in self._slow.items()}
        return {name: str(error) for name, error in self.space.refused.items()} | self._failed | slow

    def _announce(self, label: str, say: Say) -> None:
        """Say which settings have gone since the last time."""
        for name, reason in self._dropped.items():
            if name not in self._announced and name not in self.space.refused:
                say(f"{label}: dropped {name}: {reason}")
        self._announced = set(self._dropped)

    def _outcome(self) -> Outcome:
        dropped = self._dropped
        left = {name: runs for name, runs in self._speeds.items() if name not in dropped}
        return Outcome(self.case, self._runs, find_fastest(left) if left else None, dropped)


def primary_kpi(run: RunResult) -> Kpi:
    """Return what a run was for."""
    return next(kpi for kpi in run.kpis if kpi.primary)


def _speed(run: RunResult) -> float:
    """Return a figure of which more is better."""
    kpi = primary_kpi(run)
    return 1 / kpi.value if find_kind(kpi.key).better == "lower" else kpi.value


def _describe(run: RunResult) -> str:
    if run.verdict == "invalid":
        return f"invalid: {run.reason}" + (f" ({run.facts[SEEN]})" if SEEN in run.facts else "")
    kpi = primary_kpi(run)
    return f"{format_number(kpi.value)} {kpi.unit}" + (f", unstable: {run.reason}" if run.reason else "")


def _tuned(requested: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(requested.get(name) for name in TUNED)


def _read_rounds(logs: Path) -> list[tuple[int, RunResult]]:
    """Return a case's runs that belong to a sweep and ended by themselves, with the numbers of their rounds."""
    runs = [load_run(worker) for worker in find_runs(logs) if (worker / STATUS).is_file()]
    pattern = re.compile(_NOTE.format("([0-9]+)"))
    found = [(next((m for note in run.notes if (m := pattern.fullmatch(note))), None), run) for run in runs]
    return [(int(match[1]), run) for match, run in found if match and not run.interrupted]


def find_mixture(runs: Sequence[RunResult], jobs: Sequence[Job], machine: Mapping[str, str | None]) -> str:
    """Say in what runs differ from what is to be measured, this machine or each other; empty when they belong together.

    Software may differ between engine builds, and the CPUs used between settings.
    """
    asked = {name: value for name, value in jobs[0].requested.items() if name not in TUNED} if jobs else {}
    cpus = {_tuned(job.requested): format_cpu_list(c for one in job.plan.instances for c in one.cpus) for job in jobs}
    software: dict[tuple[str, str], str] = {}
    for run in runs:
        pairs: list[tuple[str, str | None, str | None]]
        pairs = [(name, run.requested.get(name), value) for name, value in asked.items()]
        pairs += [(name, run.facts.get(name), value) for name, value in machine.items() if name in DEFINING_FACTS]
        pairs.append((CPUS_USED, run.facts.get(CPUS_USED), cpus.get(_tuned(run.requested), run.facts.get(CPUS_USED))))
        for name in DEFINING_FACTS:
            if name not in machine and name != CPUS_USED and name in run.facts:
                first = software.setdefault((run.effective.get("VARIANT", ""), name), run.facts[name])
                pairs.append((name, first, run.facts[name]))
        for name, before, now in pairs:
            if before != now:
                return f"{name} was {_or_nothing(before)} there, and is {_or_nothing(now)} now"
    return ""


def _or_nothing(value: str | None) -> str:
    return repr(value) if value is not None else "not given"
