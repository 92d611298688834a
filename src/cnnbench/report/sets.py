"""Read sets of repeated runs, from folders of logs or result files."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.report.reading import FoundRun, Identity, read_runs
from cnnbench.report.selection import Selection
from cnnbench.report.text import printable
from cnnbench.results.record import RUN_FILE, WORKER, RunResult

NEEDED = f"a folder with logs-<case>/itr-N in it, one of these, a {RUN_FILE}, or a file of `cnnbench export`"


@dataclass(frozen=True)
class SetRun:
    """One run of a set: where it is, what it came to, and when it was started (None where it does not say)."""

    name: str
    run: RunResult
    started: datetime | None


@dataclass(frozen=True)
class RunSet:
    """The runs of one side of a comparison, in the order in which they were made.

    `label`: A for the first, and so on. `problems`: what there is that is no result, or one a second time.
    """

    label: str
    path: str
    runs: tuple[SetRun, ...]
    problems: tuple[str, ...]


def read_sets(paths: Sequence[Path], selection: Selection = Selection()) -> list[RunSet]:  # noqa: B008 - it is frozen
    """Read sets, the first of which is A; raise UsageError where one has no run, or two have a run in common."""
    if not 2 <= len(paths) <= 26:
        raise UsageError(f"{len(paths)} sets of runs: needed 2 to 26, the first of which the others are compared with")
    sets = [_read_set(chr(ord("A") + number), path, selection) for number, path in enumerate(paths)]
    owners: dict[Identity, RunSet] = {}
    for one in sets:
        for member in one.runs:
            other = owners.setdefault(_identity(member.run), one)
            if other is not one:
                raise UsageError(
                    f"{other.label} and {one.label}: both have the run {member.run.run_id} ({member.name}); "
                    "a run is not compared with itself, so give sets that have none in common"
                )
    return sets


def _identity(run: RunResult) -> Identity:
    return run.workload, run.case, run.run_id


def _read_set(label: str, path: Path, selection: Selection) -> RunSet:
    if not path.exists() and not path.is_symlink():
        raise UsageError(printable(f"{path}: no such folder or file; needed is {NEEDED}"))
    found = read_runs([path], selection, whole=0)
    problems = [*found.failures, *found.repeated]
    if not found.runs:
        told = f": {'; '.join(problems)}" if problems else ""
        raise UsageError(printable(f"{label}, {path}: no result of a run there{told}; needed is {NEEDED}"))
    return make_set(label, str(path), found.runs, problems)


def make_set(label: str, path: str, runs: Sequence[FoundRun], problems: Sequence[str]) -> RunSet:
    """Return a set of runs that were found; a run that claims to be another one is a problem, and left out."""
    members: dict[Identity, SetRun] = {}
    told = list(problems)
    for one in runs:
        if (first := members.get(one.identity)) is not None:
            told.append(f"{one.place}: is the run of {first.name} again ({one.result.run_id}), and counts once")
            continue
        members[one.identity] = SetRun(_name(Path(one.name)), one.result, one.result.started_at)
    return RunSet(label, printable(path), tuple(members.values()), tuple(map(printable, told)))


def _name(place: Path) -> str:
    """Return what a set calls a run: itr-N where it is in one."""
    return printable(place.parent.name if place.name == WORKER else place.name)
