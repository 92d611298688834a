"""Read the runs that commands are given: the one way from paths to results, whatever lies there."""

import gc
import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnnbench.base.disk import describe_refusal
from cnnbench.base.errors import CnnbenchError
from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.history import is_history, read_entries
from cnnbench.report.selection import ALL, Selection, Sieve
from cnnbench.results.exchange import read_results
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, find_iterations, find_runs, load_run, parse_result

PLACES = "places"
"""What a stripped plan has: how many CPUs and sockets the instances were on."""
SET_ASIDE = "set-aside"
"""The folder of the runs that a fleet has made again, which do not count, wherever one looks from."""
Identity = tuple[str, str, str]
"""What no two runs have in common: workload, case and the run's own id."""


@dataclass(frozen=True)
class FoundRun:
    """A run and the name of its logs. `place`: its worker directory, or the file that it was read from."""

    name: str
    place: Path
    result: RunResult

    @property
    def identity(self) -> Identity:
        """What no other run has."""
        return self.result.workload, self.result.case, self.result.run_id


@dataclass(frozen=True)
class Failure:
    """Something that is no result of a run, and why."""

    told: str


@dataclass
class Found:
    """The runs that there are, in the order in which they were given.

    `failures`: what could not be read, and why. `repeated`: what is a run again that is there already, of which each
    counts once.
    """

    runs: list[FoundRun] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def named(self) -> list[tuple[str, RunResult]]:
        """The results by the names of their logs."""
        return [(one.name, one.result) for one in self.runs]


Reader = Callable[[Path, Sieve], Iterable[FoundRun | Failure]]


def read_runs(paths: Sequence[Path], selection: Selection = ALL, *, whole: int | None = None) -> Found:
    """Read the runs of folders and files; SOURCES says of which.

    What cannot be read is a failure beside the others, and a run that is there twice counts once. `whole`: how many,
    the newest, keep their plan, their instances and the criteria that held (None: all); the figures of thousands take
    little without. Raises CnnbenchError where the selection leaves none of the runs that there are.
    """
    found, sieve, newest = Found(), Sieve(selection), _Newest(whole)
    known: dict[Identity, int] = {}
    for one in _without_collector(iterate(paths, sieve)):
        if isinstance(one, Failure):
            found.failures.append(one.told)
        elif (number := known.get(one.identity)) is not None:
            first = found.runs[number]
            if not _same_place(one, first):
                again = f"{one.place}: is the run of {first.name} again ({one.result.run_id})"
                other = "" if strip(one.result) == strip(first.result) else " with another result"
                found.repeated.append(f"{again}{other}, and counts once")
        else:
            known[one.identity] = len(found.runs)
            found.runs.append(one)
            newest.add(found.runs)
    if not found.runs:
        sieve.explain()
    if sieve.undated:
        found.failures.append(f"{sieve.undated} runs do not say when they were started, and are left out of --since")
    _name_by_path(found.runs)
    return found


def iterate(paths: Iterable[Path], sieve: Sieve) -> Iterator[FoundRun | Failure]:
    """Yield what there is in paths, one by one and whole, under the short names of logs."""
    for path in paths:
        try:
            path.stat()  # a link that leads to itself, a folder that may not be entered: said once, for what was given
        except (FileNotFoundError, NotADirectoryError):
            yield Failure(f"{path}: no {RUN_FILE} there; no such folder or file")
            continue
        except OSError as error:
            yield Failure(f"{path}: cannot be read: {error.strerror}")
            continue
        try:
            yield from next(read for fits, read in SOURCES if fits(path))(path, sieve)
        except CnnbenchError as error:
            yield Failure(str(error))
        except OSError as error:
            yield Failure(f"{path}: cannot be read: {describe_refusal(error)}")


def _without_collector(each: Iterator[FoundRun | Failure]) -> Iterator[FoundRun | Failure]:
    """Yield the same, with Python's collector of cycles at rest: results have none, and it would look for them over and
    over in all that are there already, which takes as long as reading them.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield from each
    finally:
        if collects:
            gc.enable()


def _read_file(path: Path, sieve: Sieve) -> Iterator[FoundRun | Failure]:
    runs, failures = read_results(path)
    yield from map(Failure, failures)
    yield from (FoundRun(name, path, run) for name, run in runs if _admits(sieve, run))


def _read_history(path: Path, sieve: Sieve) -> Iterator[FoundRun | Failure]:
    for entry in read_entries(path):
        if sieve.admits(entry.started, entry.machine):
            try:
                yield FoundRun(entry.logs, path, parse_result(entry.text, f"{path} ({entry.logs})"))
            except CnnbenchError as error:
                yield Failure(str(error))


def _read_folder(path: Path, sieve: Sieve) -> Iterator[FoundRun | Failure]:
    for worker in find_workers(path):
        if isinstance(worker, Failure):
            yield worker
            continue
        try:
            run = load_run(worker)
        except CnnbenchError as error:
            yield Failure(str(error))
        except OSError as error:
            yield Failure(f"{worker}: cannot be read: {describe_refusal(error)}")
        else:
            if _admits(sieve, run):
                yield FoundRun(name_logs(worker), worker, run)


def _admits(sieve: Sieve, run: RunResult) -> bool:
    return sieve.admits(run.started_at, run.facts.get(HOST_NAME, ""))


def find_workers(path: Path) -> Iterator[Path | Failure]:
    """Yield the worker directories that a folder stands for: its own, or those of all logs-<case> below it."""
    if path.is_file():
        path = path.parent
    named = Path(os.path.abspath(path)).name  # noqa: PTH100 - resolve() raises where a link leads to itself
    if named.startswith("logs-") or named == WORKER or (path / RUN_FILE).exists() or (path / WORKER).is_dir():
        yield from _find_begun(path)
        return
    if find_iterations(path):
        yield from find_runs(path)
        return
    refused: list[OSError] = []
    empty = True
    for folder, names, files in os.walk(path, onerror=refused.append):
        names.sort()
        for link in (Path(folder, one) for one in sorted(files) if one.startswith("logs-")):
            if link.is_symlink() and not link.exists():
                empty = False
                yield Failure(f"{link}: leads to nothing, or to itself")
        for name in [one for one in names if one.startswith("logs-")]:
            empty = False
            yield from _find_begun(Path(folder, name))
        names[:] = [one for one in names if not one.startswith(("logs-", ".")) and one != SET_ASIDE]
    yield from (Failure(f"{error.filename}: cannot be read: {describe_refusal(error)}") for error in refused)
    if empty and not refused:
        yield path  # of which is said that it has no result


def _find_begun(path: Path) -> Iterator[Path | Failure]:
    try:
        runs = find_runs(path)
    except OSError as error:
        yield Failure(f"{path}: cannot be read: {describe_refusal(error)}")
        return
    if not runs:
        yield Failure(f"{path}: no itr-N there; no run of the case has begun")
    yield from runs


SOURCES: tuple[tuple[Callable[[Path], bool], Reader], ...] = (
    (is_history, _read_history),
    (lambda path: path.is_file() and path.name != RUN_FILE, _read_file),
    (lambda path: True, _read_folder),  # noqa: ARG005
)
"""What runs are read from, and how; the first that fits a path: histories, files of results, folders of logs."""


def name_logs(worker: Path) -> str:
    """Return `logs-<case>/itr-N`, or a lone worker directory's name."""
    path = Path(os.path.realpath(worker))
    name = "/".join(path.parts[-3:-1]) if path.name == WORKER else path.name
    return _encodable(name)


def _encodable(name: str) -> str:
    """Return a name of a file, which need not be text, as text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _name_by_path(runs: list[FoundRun]) -> None:
    """Name by path those in directories, and by their ids too those in files, where two have the same name."""
    own = [number for number, one in enumerate(runs) if one.place.name != one.name and one.place.is_dir()]
    if len({runs[number].name for number in own}) < len(own):
        for number in own:
            runs[number] = replace(runs[number], name=_encodable(str(runs[number].place)))
    often = Counter(one.name for one in runs)
    for number, one in enumerate(runs):
        if often[one.name] > 1 and not one.place.is_dir():
            runs[number] = replace(one, name=f"{one.name} ({one.result.run_id})")


def _same_place(one: FoundRun, other: FoundRun) -> bool:
    return os.path.realpath(one.place) == os.path.realpath(other.place)


def strip(run: RunResult) -> RunResult:
    """Return a result with what its figures and its verdict need: of the plan where instances were, no criterion that
    held, and nothing of the instances themselves.
    """
    places = count_places(run)
    plan = {PLACES: places} if any(places) else {}
    return run.model_copy(update={"plan": plan, "instances": [], "criteria": run.failures})


def count_places(run: RunResult) -> tuple[int, int]:
    """Return how many CPUs and sockets the instances of a run were planned on; 0 where its plan does not tell."""
    if PLACES in run.plan:
        cpus, sockets = run.plan[PLACES]
        return int(cpus), int(sockets)
    planned = run.plan.get("instances")
    instances = [one for one in planned if isinstance(one, dict)] if isinstance(planned, list) else []
    counts = [
        len({(one.get("host", ""), place) for one in instances for place in one.get(name) or ()})
        for name in ("cpus", "sockets")
    ]
    return counts[0], counts[1]


class _Newest:
    """Strips all runs but so many, the newest."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.kept: list[tuple[float, int]] = []

    def add(self, runs: list[FoundRun]) -> None:
        """Take the last of these runs in, and strip the oldest of those kept where there are too many."""
        if self.most is None:
            return
        at = runs[-1].result.started_at
        heapq.heappush(self.kept, (at.timestamp() if at else 0.0, len(runs) - 1))
        if len(self.kept) > self.most:
            _, number = heapq.heappop(self.kept)
            runs[number] = replace(runs[number], result=strip(runs[number].result))
