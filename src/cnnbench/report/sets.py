"""Read sets of repeated runs, from folders of logs or result files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cnnbench.base.disk import describe_refusal
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.text import printable
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, find_iterations, find_runs, load_run, read_result

NEEDED = f"a folder with logs-<case>/itr-N in it, one of these, or a {RUN_FILE}"


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
    sets = [read_folder(chr(ord("A") + number), path) for number, path in enumerate(paths)]
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


def read_folder(label: str, path: Path) -> RunSet:
    """Read the runs of a folder, each once; raise UsageError where it has none."""
    problems: list[str] = []
    found: dict[tuple[str, str, str], SetRun] = {}
    for place in find_results(path, problems):
        try:
            run = read_result(place) if place.is_file() else load_run(place)
        except CnnbenchError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{place}: cannot be read: {describe_refusal(error)}")
            continue
        if (one := found.get(_identity(run))) is not None:
            problems.append(f"{place}: is the run of {one.name} again ({run.run_id}), and counts once")
            continue
        found[_identity(run)] = SetRun(_name(place), run, parse_time(run.started))
    if not found:
        told = f": {'; '.join(problems)}" if problems else ""
        raise UsageError(printable(f"{label}, {path}: no result of a run there{told}; needed is {NEEDED}"))
    return RunSet(label, printable(str(path)), tuple(found.values()), tuple(map(printable, problems)))


def find_results(path: Path, problems: list[str]) -> Iterator[Path]:
    """Yield the worker directories, or the result file, that a path stands for; what has none is a problem."""
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


def parse_time(text: str) -> datetime | None:
    """Return when a run was started; None where its text does not say."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not know the Z
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
