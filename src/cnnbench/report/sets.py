"""Read sets of repeated runs, from folders of logs or result files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cnnbench.base.disk import describe_refusal
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.text import printable
from cnnbench.results.exchange import read_results
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, find_iterations, find_runs, load_run

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


def read_sets(paths: Sequence[Path]) -> list[RunSet]:
    """Read sets, the first of which is A; raise UsageError where one has no run, or two have a run in common."""
    if not 2 <= len(paths) <= 26:
        raise UsageError(f"{len(paths)} sets of runs: needed 2 to 26, the first of which the others are compared with")
    sets = [_read_set(chr(ord("A") + number), path) for number, path in enumerate(paths)]
    owners: dict[tuple[str, str, str], RunSet] = {}
    for one in sets:
        for member in one.runs:
            other = owners.setdefault(_identity(member.run), one)
            if other is not one:
                raise UsageError(
                    f"{other.label} and {one.label}: both have the run {member.run.run_id} ({member.name}); "
                    "a run is not compared with itself, so give sets that have none in common"
                )
    return sets


def _identity(run: RunResult) -> tuple[str, str, str]:
    return run.workload, run.case, run.run_id


def _read_set(label: str, path: Path) -> RunSet:
    problems: list[str] = []
    found: dict[tuple[str, str, str], SetRun] = {}
    for place in _find_results(path, problems):
        for name, run in _read_place(place, problems):
            if (one := found.get(_identity(run))) is not None:
                problems.append(f"{place}: is the run of {one.name} again ({run.run_id}), and counts once")
                continue
            found[_identity(run)] = SetRun(name, run, run.started_at)
    if not found:
        told = f": {'; '.join(problems)}" if problems else ""
        raise UsageError(printable(f"{label}, {path}: no result of a run there{told}; needed is {NEEDED}"))
    return RunSet(label, printable(str(path)), tuple(found.values()), tuple(map(printable, problems)))


def _read_place(place: Path, problems: list[str]) -> list[tuple[str, RunResult]]:
    """Return the runs of a worker directory or a file, by what the set calls them."""
    try:
        if not place.is_file():
            return [(_name(place), load_run(place))]
        runs, failures = read_results(place)
    except CnnbenchError as error:
        problems.append(str(error))
        return []
    except OSError as error:
        problems.append(f"{place}: cannot be read: {describe_refusal(error)}")
        return []
    problems += failures
    return [(_name(Path(name)), run) for name, run in runs]


def _find_results(path: Path, problems: list[str]) -> Iterator[Path]:
    """Return the worker directories, or the result file, that a path stands for."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UsageError(printable(f"{path}: no such folder or file; needed is {NEEDED}"))
    if (path / RUN_FILE).exists() or (path / WORKER).is_dir() or find_iterations(path):
        yield from find_runs(path)
        return

    def refuse(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read: {describe_refusal(error)}")

    for folder, names, _ in os.walk(path, onerror=refuse):
        names.sort()
        for name in [one for one in names if one.startswith("logs-")]:
            if not (runs := find_runs(Path(folder, name))):
                problems.append(f"{Path(folder, name)}: no itr-N there; no run of the case has begun")
            yield from runs
        names[:] = [one for one in names if not one.startswith(("logs-", "."))]


def _name(place: Path) -> str:
    """Return what a set calls a run: itr-N where it is in one."""
    return printable(place.parent.name if place.name == WORKER else place.name)
