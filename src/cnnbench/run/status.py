"""Hold how far calls of ctest.sh and their cases are: files in a build directory that anybody may read meanwhile.

`status/` has a file for each call, one for each case that runs, and for each call the ends of its cases, a line for
each. Each file is put in place whole, by a rename. What has died leaves its file, by whose owner that can be told.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cnnbench.base.errors import CnnbenchError
from cnnbench.launch.container import Owner

DIRECTORY = "status"
SCHEMA: Literal[1] = 1
COSTS = "costs.json"
"""The file that keeps how long each case took last, when the files of the call that it was of are removed.

ctest's own of that (CTestCostData.txt) has the last time divided by the number of runs, where one case runs at a time.
"""

InstanceState = Literal["starting", "loading", "warming up", "measuring", "done", "dead"]
STATES: tuple[InstanceState, ...] = ("starting", "loading", "warming up", "measuring", "done", "dead")
"""In the order that an instance goes through them."""


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Owned(_Plain):
    """What a process tells of itself. All times of day are in s since the epoch."""

    schema_version: Literal[1] = SCHEMA
    owner: str
    began_s: float
    told_s: float

    @field_validator("owner")
    @classmethod
    def _check_owner(cls, owner: str) -> str:
        Owner.parse(owner)
        return owner

    def is_gone(self) -> bool:
        """Say whether the process has certainly ended, as when it was killed, or its machine started again."""
        return Owner.parse(self.owner).is_gone()

    @property
    def pid(self) -> int:
        """The process."""
        return Owner.parse(self.owner).pid


class InstanceStatus(_Plain):
    """How far an instance is, or a server's client; `steps`: it has ended, those of the warm-up among them."""

    index: int
    state: InstanceState
    steps: int


class Rate(_Plain):
    """What has been measured so far, with the half-width of its 95 % interval; None where too few steps give none."""

    mean: float
    half_width: float | None
    unit: str


class Phase(_Plain):
    """What a case is doing: how much of it is done, of how much, as far as that is known, and the time left (s).

    `at_most_s`: the time left at the most, where it may be less.
    """

    name: str
    began_s: float
    done: float | None = None
    total: float | None = None
    unit: str = ""
    left_s: float | None = None
    at_most_s: float | None = None


class Progressed(_Plain):
    """What changes while a case runs; `clients`: whether `instances` are a server's clients."""

    schema_version: Literal[1] = SCHEMA
    phase: Phase
    instances: tuple[InstanceStatus, ...] = ()
    clients: bool = False
    cpus: tuple[int, ...] = ()
    throughput: Rate | None = None
    frequency_mhz: float | None = None
    temperature_c: float | None = None


class CaseStatus(_Owned):
    """A case that runs; `call`: the name of the call that it is of, empty where it is of none."""

    call: str
    case: str
    backend: Literal["native", "docker"]
    now: Progressed


class CaseEnd(_Plain):
    """How a case ended; `headline`: its primary figure, else why there is none."""

    schema_version: Literal[1] = SCHEMA
    case: str
    began_s: float
    ended_s: float
    verdict: Literal["valid", "unstable", "invalid", "failed", "skipped"]
    headline: str
    logs: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_s - self.began_s


class Costs(_Plain):
    """How long each case took last, by its name (s)."""

    schema_version: Literal[1] = SCHEMA
    seconds: dict[str, float] = {}


class CallStatus(_Owned):
    """A call of ctest.sh; `cases`: of each of its `runs` of ctest, in their order. `run`: the one under way, from 1."""

    name: str
    cases: tuple[str, ...]
    runs: int = 1
    run: int = 1
    settings: str = ""
    ended_s: float | None = None
    exit_code: int | None = None

    @property
    def is_running(self) -> bool:
        """Say whether it goes on, as far as can be told."""
        return self.ended_s is None and not self.is_gone()


_Model = TypeVar("_Model", CaseStatus, CallStatus, CaseEnd, Costs)


@dataclass(frozen=True)
class CallSeen:
    """A call, the cases of it that have a file, and how those that are over ended."""

    call: CallStatus
    running: tuple[CaseStatus, ...]
    died: tuple[CaseStatus, ...]
    ended: tuple[CaseEnd, ...]

    @property
    def count(self) -> int:
        """How many cases it has, those of all its runs."""
        return self.call.runs * len(self.call.cases)

    @property
    def over(self) -> int:
        """How many of them are over, whatever came of them; ctest's --repeat ends one more than once."""
        return min(self.count, len(self.ended) + len(self.died))


@dataclass(frozen=True)
class BuildSeen:
    """What a build directory tells: calls, the oldest first, cases that are of none, and which files are no such."""

    directory: Path
    calls: tuple[CallSeen, ...]
    alone: tuple[CaseStatus, ...]
    ended_alone: tuple[CaseEnd, ...]
    costs_s: dict[str, float]
    complaints: tuple[str, ...]

    @property
    def is_running(self) -> bool:
        """Say whether anything runs there."""
        return any(one.call.is_running for one in self.calls) or any(not case.is_gone() for case in self.alone)


def write_status(directory: Path, name: str, status: BaseModel) -> None:
    """Put a file in place, whole: who reads it sees what was there before, or this.

    Its directory is made, but not what that is in: with nothing run yet, there is nothing to leave behind.
    """
    directory.mkdir(exist_ok=True)
    partial = directory / f".{name}.{os.getpid()}"
    try:
        partial.write_text(status.model_dump_json(), encoding="utf-8")
        partial.replace(directory / name)
    finally:
        partial.unlink(missing_ok=True)


def case_file(pid: int) -> str:
    """Return the name of a running case's file."""
    return f"case-{pid}.json"


def ends_file(call: str) -> str:
    """Return the name of the file with the ends of a call's cases."""
    return f"{call or 'alone'}.ends"


def add_end(directory: Path, call: str, end: CaseEnd) -> None:
    """Add a case's end to those of its call; of cases without one only the last is kept."""
    directory.mkdir(exist_ok=True)
    line = end.model_dump_json() + "\n"
    with (directory / ends_file(call)).open("a" if call else "w", encoding="utf-8") as file:
        file.write(line)


class Call:
    """A call of ctest.sh of this process, for as long as it goes on; `cases`: those of each of its `runs` of ctest.

    As it begins, the files of calls that are over are removed.
    """

    def __init__(self, build_dir: Path, cases: Sequence[str], runs: int) -> None:
        now = time.time()
        self._directory = build_dir / DIRECTORY
        self.status = CallStatus(
            owner=Owner.of(os.getpid()).label,
            began_s=now,
            told_s=now,
            name=f"call-{os.getpid()}-{time.monotonic_ns()}",  # run.sh makes several in one process
            cases=tuple(cases),
            runs=runs,
        )
        with contextlib.suppress(OSError):
            _remove_past(build_dir)
        self._change()

    def begin_run(self, number: int, settings: str) -> None:
        """Say which run of ctest begins, from 1 on, and with which settings."""
        self._change(run=number, settings=settings)

    def end(self, exit_code: int) -> None:
        """Say that it is over."""
        self._change(ended_s=time.time(), exit_code=exit_code)

    def _change(self, **fields: object) -> None:
        self.status = self.status.model_copy(update={"told_s": time.time(), **fields})
        with contextlib.suppress(OSError):  # as on a full disk: the cases run, and nobody is told of them
            write_status(self._directory, f"{self.status.name}.json", self.status)


def _remove_past(build_dir: Path) -> None:
    """Remove the files of calls that are over, and of cases that have died, but for how long each case took."""
    directory, seen = build_dir / DIRECTORY, read_build(build_dir)
    if seen.costs_s:
        write_status(directory, COSTS, Costs(seconds=seen.costs_s))
    for one in seen.calls:
        if not one.call.is_running:
            for case in one.died:
                (directory / case_file(case.pid)).unlink(missing_ok=True)
            for name in (ends_file(one.call.name), f"{one.call.name}.json"):
                (directory / name).unlink(missing_ok=True)
    for case in seen.alone:
        if case.is_gone():
            (directory / case_file(case.pid)).unlink(missing_ok=True)


def read_build(build_dir: Path) -> BuildSeen:
    """Return what a build directory tells; raise CnnbenchError where it is none.

    A file that is damaged or of another version is passed over, and told in `complaints`.
    """
    if not (build_dir / "CTestTestfile.cmake").is_file():
        raise CnnbenchError(
            f"{build_dir}: no build directory of a workload's: needed is one with a CTestTestfile.cmake, as cmake makes"
        )
    directory, complaints = build_dir / DIRECTORY, list[str]()

    def read(pattern: str, parse: Callable[[Path], Iterator[_Model]]) -> list[_Model]:
        found = list[_Model]()
        for path in sorted(directory.glob(pattern)):
            try:
                found += parse(path)
            except FileNotFoundError:  # it ended meanwhile
                continue
            except ValidationError as error:
                complaints.append(_complain(path, error))
        return found

    def ends(name: str) -> tuple[CaseEnd, ...]:
        return tuple(read(name, _each(CaseEnd)))

    cases = read("case-*.json", _whole(CaseStatus))
    calls = sorted(read("call-*.json", _whole(CallStatus)), key=lambda call: call.began_s)
    seen = tuple(_see(call, [case for case in cases if case.call == call.name], ends(ends_file(call.name)))
                 for call in calls)  # fmt: skip
    known = {call.name for call in calls}
    alone = tuple(case for case in cases if case.call not in known)
    ended_alone = ends(ends_file(""))
    kept = read(COSTS, _whole(Costs))
    costs_s = (kept[0].seconds if kept else {}) | _costs_of((*ended_alone, *(end for one in seen for end in one.ended)))
    return BuildSeen(build_dir, seen, alone, ended_alone, costs_s, tuple(complaints))


def _costs_of(ended: Sequence[CaseEnd]) -> dict[str, float]:
    """Return how long each case took that was measured to its end (s), the last time."""
    whole = [end for end in ended if end.verdict in ("valid", "unstable")]
    return {end.case: end.seconds for end in sorted(whole, key=lambda end: end.ended_s)}


def _see(call: CallStatus, cases: Sequence[CaseStatus], ended: tuple[CaseEnd, ...]) -> CallSeen:
    gone = {case.owner: case.is_gone() for case in cases}
    running = tuple(case for case in cases if not gone[case.owner])
    return CallSeen(call, running, tuple(case for case in cases if gone[case.owner]), ended)


def _whole(model: type[_Model]) -> Callable[[Path], Iterator[_Model]]:
    def parse(path: Path) -> Iterator[_Model]:
        yield model.model_validate_json(path.read_bytes())

    return parse


def _each(model: type[_Model]) -> Callable[[Path], Iterator[_Model]]:
    def parse(path: Path) -> Iterator[_Model]:
        for line in path.read_bytes().splitlines():
            yield model.model_validate_json(line)

    return parse


def _complain(path: Path, error: ValidationError) -> str:
    for one in error.errors():
        if one["loc"] == ("schema_version",):
            return f"{path}: of schema {one['input']!r:.40}, needed {SCHEMA}; read it with the cnnbench that wrote it"
    what = error.errors()[0]
    where = ".".join(map(str, what["loc"]))
    return f"{path}: damaged{f', {where}' if where else ''}: {what['msg']}; remove it"


@dataclass(frozen=True)
class LeftOfCall:
    """The time left of a call (s), as far as it is known: without that of `unknown` cases that never ran there.

    `is_least`: whether it is longer by those, or by what follows the measuring in a case that never ran.
    """

    seconds: float
    unknown: int
    is_least: bool


def left_of_case(case: CaseStatus, cost_s: float | None, now_s: float) -> float | None:
    """Return the time left of a case (s), from how long it took before and what it tells itself; None if neither is.

    What follows the measuring is in the former alone.
    """
    known = [cost_s - (now_s - case.began_s)] if cost_s is not None else []
    phase = case.now.phase
    if phase.left_s is not None:
        known.append(phase.left_s - (now_s - case.told_s))
    return max(0.0, *known) if known else None


def left_of_call(seen: CallSeen, costs_s: dict[str, float], now_s: float) -> LeftOfCall:
    """Return the time left of a call: what each case took in it before, however that ended, else in others."""
    costs_s = costs_s | {end.case: end.seconds for end in seen.ended if end.verdict != "skipped"}
    begun = [one.case for one in seen.ended] + [one.case for one in (*seen.died, *seen.running)]
    left = Counter(dict.fromkeys(seen.call.cases, seen.call.runs)) - Counter(begun)
    times: list[float | None] = [costs_s.get(name) for name in left.elements()]
    times += [left_of_case(case, costs_s.get(case.case), now_s) for case in seen.running]
    unknown = sum(one is None for one in times)
    is_least = unknown > 0 or any(case.case not in costs_s for case in seen.running)
    return LeftOfCall(sum(one for one in times if one is not None), unknown, is_least)
