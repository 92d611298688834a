"""Read sets of repeated runs, from folders of logs or result files."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.reading import Found, FoundRun, Identity, read_runs
from cnnbench.report.selection import ALL, Selection
from cnnbench.report.table import OF_ONE_RUN, effective_parameters
from cnnbench.report.text import printable
from cnnbench.results.record import RUN_FILE, WORKER, RunResult

NEEDED = f"a folder with logs-<case>/itr-N in it, one of these, a {RUN_FILE}, or a file or history of `cnnbench export`"

MOST_SETS = 26
MACHINE = "machine"
"""What `--by` calls the fact that says on which machine a run was made."""


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


def read_sets(paths: Sequence[Path], selection: Selection = ALL) -> list[RunSet]:
    """Read sets, the first of which is A; raise UsageError where one has no run, or two have a run in common."""
    if not 2 <= len(paths) <= MOST_SETS:
        raise UsageError(
            f"{len(paths)} sets of runs: needed 2 to {MOST_SETS}, the first of which the others are compared with; "
            "--by and --split-at make sets of one"
        )
    sets = [read_folder(chr(ord("A") + number), path, selection) for number, path in enumerate(paths)]
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


def read_folder(label: str, path: Path, selection: Selection = ALL) -> RunSet:
    """Read the runs of a folder or file, each once; raise UsageError where it has none."""
    if not path.exists() and not path.is_symlink():
        raise UsageError(printable(f"{path}: no such folder or file; needed is {NEEDED}"))
    found = read_runs([path], selection, whole=0)
    problems = [*found.failures, *found.repeated]
    if not found.runs:
        told = f": {'; '.join(problems)}" if problems else ""
        raise UsageError(printable(f"{label}, {path}: no result of a run there{told}; needed is {NEEDED}"))
    return make_set(label, str(path), found.runs, problems)


def split_by(paths: Sequence[Path], fact: str, selection: Selection = ALL) -> list[RunSet]:
    """Read runs as sets, one for each value of a fact or parameter, in the order in which these were first seen.

    `fact`: `machine` is the host's name. Runs without it are in no set. Raises UsageError where there are not 2 to 26.
    """
    name = HOST_NAME if fact == MACHINE else fact
    found = _read_some(paths, selection)
    groups: dict[str, list[FoundRun]] = {}
    for one in sorted(found.runs, key=_moment):
        if name in (said := _said_of(one.result)):
            groups.setdefault(said[name], []).append(one)
    if len(groups) < 2:
        each = [_said_of(one.result) for one in found.runs]
        names = [
            key for key in dict.fromkeys(chain.from_iterable(each)) if not key.startswith((*OF_ONE_RUN, "fell back "))
        ]
        able = [key for key in names if len({said[key] for said in each if key in said}) > 1]
        value = f"all runs that say have {next(iter(groups))}" if groups else "no fact and no parameter of a run"
        told = f"they differ by {', '.join(able)}" if able else "nothing that they say differs"
        raise UsageError(printable(f"--by {fact}: {value}; {told}"))
    if len(groups) > MOST_SETS:
        raise UsageError(f"--by {fact}: has {len(groups)} values; needed 2 to {MOST_SETS}, so choose another fact")
    found.failures += _tell_left_out(len(found.runs), sum(map(len, groups.values())), f"say no {fact}")
    return _split([(f"{fact} {value}", runs) for value, runs in groups.items()], paths, found)


def _said_of(run: RunResult) -> dict[str, str]:
    return run.facts | dict(effective_parameters(run))


def split_at(paths: Sequence[Path], moment: datetime, selection: Selection = ALL) -> list[RunSet]:
    """Read runs as two sets, those before a moment and those since; raise UsageError where one of them has none."""
    found = _read_some(paths, selection)
    dated = [one for one in sorted(found.runs, key=_moment) if one.result.started_at]
    sides = [[one for one in dated if (_moment(one) >= moment.timestamp()) is since] for since in (False, True)]
    told = f"{moment:%Y-%m-%d %H:%M}{f':{moment:%S}' if moment.second else ''} UTC"
    for side, word in zip(sides, ("before", "since"), strict=True):
        if not side:
            raise UsageError(f"--split-at: no run {word} {told}; choose a moment between the runs, or give other runs")
    found.failures += _tell_left_out(len(found.runs), len(dated), "do not say when they were started")
    return _split([(f"before {told}", sides[0]), (f"since {told}", sides[1])], paths, found)


def _read_some(paths: Sequence[Path], selection: Selection) -> Found:
    found = read_runs(paths, selection, whole=0)
    if not found.runs:
        told = f": {'; '.join(found.failures)}" if found.failures else ""
        raise UsageError(printable(f"no result of a run there{told}; needed is {NEEDED}"))
    return found


def _tell_left_out(there: int, used: int, why: str) -> list[str]:
    return [f"{there - used} of {there} runs {why}, and are left out"] if used < there else []


def _split(parts: Sequence[tuple[str, list[FoundRun]]], paths: Sequence[Path], found: Found) -> list[RunSet]:
    """Return parts of what was found as sets; what could not be read is a problem of the first."""
    where = " ".join(map(str, paths))
    problems = [*found.failures, *found.repeated]
    return [
        make_set(chr(ord("A") + number), f"{where}, {name}", runs, problems if number == 0 else ())
        for number, (name, runs) in enumerate(parts)
    ]


def _moment(one: FoundRun) -> float:
    at = one.result.started_at
    return at.timestamp() if at else 0.0


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
