"""Read the runs that a page is about, and their raw data where that can be read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from cnnbench.base.errors import CnnbenchError
from cnnbench.report.reading import FoundRun
from cnnbench.report.reading import read_runs as read_found
from cnnbench.report.selection import ALL, Selection
from cnnbench.report.table import find_interval
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import Kpi, RunResult
from cnnbench.run.measured import Measured
from cnnbench.run.record import read_record, read_seen

T = TypeVar("T")

DAMAGED = (
    CnnbenchError, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    AssertionError, RecursionError, MemoryError,
)  # fmt: skip
"""What reading files may raise that are not what a run leaves: the run is told of, and the page goes on without."""

MOST_RUNS = 1000
"""How many runs a page has, the newest of those that there are."""


@dataclass(frozen=True)
class PageRun:
    """A run; `number`: what the page calls it, from 1. `logs`: the name of its logs. `label`: what charts call it."""

    number: int
    logs: str
    directory: Path
    result: RunResult
    label: str = ""

    @property
    def short_logs(self) -> str:
        """The name of its logs without the case's, where they are named for that."""
        return self.logs.removeprefix(f"logs-{self.result.case}/")

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters as they took effect."""
        return self.result.requested | self.result.effective

    def parameter(self, name: str) -> str:
        """Return a parameter as it took effect; nothing where the run has none of that name."""
        return self.parameters.get(name, "")

    @property
    def network(self) -> str:
        """The network; where its workload has one alone and names none, the workload."""
        return self.parameter("TOPOLOGY") or self.result.workload

    @property
    def engine(self) -> str:
        """The engine, where that is a parameter, or the build of it."""
        return self.parameter("ENGINE") or self.parameter("TF_VARIANT")

    @property
    def precision(self) -> str:
        """The precision asked for."""
        return self.parameter("PRECISION")

    @property
    def mode(self) -> str:
        """What was measured: throughput, latency, accuracy or capacity."""
        return self.parameter("MODE")

    @property
    def batch(self) -> int:
        """The images of a step; 0 where that is no number."""
        return _count(self.parameter("BATCH_SIZE"))

    @property
    def instances(self) -> int:
        """How many instances there were; 0 where that is no number."""
        return _count(self.parameter("INSTANCES"))

    @property
    def cores(self) -> int:
        """The cores of an instance; 0 where that is no number."""
        return _count(self.parameter("CORES_PER_INSTANCE"))

    @property
    def shape(self) -> str:
        """How many instances of how many cores."""
        return f"{self.instances or '?'}×{self.cores or '?'}"  # noqa: RUF001 - the sign for "times" is meant

    @property
    def what(self) -> str:
        """What one may compare it by: network, engine and precision."""
        return ", ".join(word for word in (self.network, self.engine, self.precision) if word)

    @property
    def counts(self) -> bool:
        """Whether it has numbers to show: an invalid run has none."""
        return self.result.verdict != "invalid"

    @cached_property
    def kpis(self) -> dict[str, Kpi]:
        """The KPIs by their keys; none of an invalid run."""
        return {kpi.key: kpi for kpi in self.result.kpis} if self.counts else {}

    def value(self, key: str) -> float | None:
        """Return a KPI's value, None where there is none to show."""
        return self.kpis[key].value if key in self.kpis else None

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return the ends of a KPI's 95 % interval."""
        return find_interval(self.result, key) if self.counts else None

    def text(self, key: str) -> str:
        """Return a KPI with how far its interval goes; nothing where there is none to show."""
        value, interval = self.value(key), self.interval(key)
        if value is None:
            return ""
        if interval is None:
            return format_number(value)
        reach = max(value - interval[0], interval[1] - value)
        return f"{format_number(value)} ±{reach:.{0 if reach >= 10 else 2}f}"

    @cached_property
    def measured(self) -> Measured:
        """The raw data; raises CnnbenchError where there is no record of what they are."""
        return Measured(self.directory, read_record(self.directory), read_seen(self.directory))


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


@dataclass
class Runs:
    """The runs of a page, the oldest first. `failures`: what could not be read. `older`: how many were left out.

    `everything`: these and the older ones, of which there is less to know.
    """

    runs: list[PageRun]
    failures: list[str] = field(default_factory=list)
    older: int = 0
    unread: dict[str, list[int]] = field(default_factory=dict)
    everything: Sequence[FoundRun] = ()

    @property
    def counting(self) -> list[PageRun]:
        """Those that have numbers."""
        return [run for run in self.runs if run.counts]

    def read(self, run: PageRun, read: Callable[[PageRun], T]) -> T | None:
        """Return what `read` finds in a run's files; None, and a note, where they are not what a run leaves."""
        try:
            return read(run)
        except DAMAGED as error:
            reason = str(error).removeprefix(f"{run.directory}: ").partition("\n")[0]
            known = self.unread.setdefault(reason or type(error).__name__, [])
            if run.number not in known:
                known.append(run.number)
            return None


def newest(runs: Sequence[PageRun], most: int) -> tuple[list[PageRun], list[str]]:
    """Return at most so many runs, the newest of them, and a note if some are left out."""
    if len(runs) <= most:
        return list(runs), []
    return list(runs[-most:]), [f"shown are the newest {most} of {len(runs)} runs."]


def read_runs(directories: Sequence[Path], selection: Selection = ALL) -> Runs:
    """Read the runs of logs-<case>, itr-N and worker directories, and of files of results.

    What cannot be read is a failure beside the others. Runs are in the order in which they were started, and numbered
    so; one that is given twice is shown once.
    """
    found = read_found(directories, selection, whole=MOST_RUNS)
    ordered = sorted(found.runs, key=lambda one: _moment(one.result))
    older = max(0, len(ordered) - MOST_RUNS)
    runs = [PageRun(number, one.name, one.place, one.result) for number, one in enumerate(ordered[older:], start=1)]
    return Runs(_label(runs), found.failures, older, everything=found.runs)


def _moment(run: RunResult) -> float:
    """Return when a run was started, as seconds; one that does not say comes first."""
    at = run.started_at
    return at.timestamp() if at else 0.0


def _label(runs: Sequence[PageRun]) -> list[PageRun]:
    """Give each run the words that tell it from others, and its number."""
    each = [
        (run.network, run.engine, run.precision, run.mode, f"batch {run.batch}" if run.batch else "", run.shape)
        for run in runs
    ]
    differing = [len(set(words)) > 1 for words in zip(*each, strict=True)]
    return [
        PageRun(
            run.number,
            run.logs,
            run.directory,
            run.result,
            " ".join(
                [f"#{run.number}", *(word for word, tells in zip(words, differing, strict=True) if tells and word)]
            ),
        )
        for run, words in zip(runs, each, strict=True)
    ]
