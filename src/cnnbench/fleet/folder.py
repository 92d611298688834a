"""Keep a fleet's state in one folder, in files that are whole or absent: any later call goes on from them.

fleet.json                     which plan the folder is of, and its token
batches/<batch>/               batch.json, then submitted.json, node.json, now.json, ended.json, closed.json, log
results/<pool>-<slot>/<task>/  one run's logs and outcome.json, moved there whole
set-aside/<task>.<n>/          runs that were made again
merged/                        the report
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.fleet.batch import BatchFile, Ended, Ending, Node, Now, Outcome
from cnnbench.fleet.plan import Plan, Task
from cnnbench.report.reading import SET_ASIDE

FLEET, BATCH, SUBMITTED, NODE = "fleet.json", "batch.json", "submitted.json", "node.json"
NOW, ENDED, CLOSED, OUTCOME = "now.json", "ended.json", "closed.json", "outcome.json"
LOG, CANCEL, LOCK = "log", "cancel", "lock"
REMEDY = "make room, or name another folder with -o"

_File = TypeVar("_File", bound=BaseModel)


class Submitted(BaseModel):
    """That a batch was handed to a launcher, which calls it `job`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    submitted_s: float
    slot: int


class Closed(BaseModel):
    """That the controller is done with a batch; `reason`: why it did not end well. `node_s`: how long it had a node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["ended", "failed", "lost"]
    reason: str
    node: str
    node_s: float


class _FleetFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    plan: str
    token: str
    fleet: dict[str, Any]


def write_file(path: Path, content: BaseModel) -> None:
    """Write a small file so that it is whole or absent, whatever dies meanwhile."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_refusals(path, REMEDY, lambda: part.unlink(missing_ok=True)):
        part.write_text(content.model_dump_json(), encoding="utf-8")
        part.replace(path)


def read_file(path: Path, model: type[_File]) -> _File | None:
    """Return a file's content; None where there is none. Raises CnnbenchError for what is not such a file."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CnnbenchError(f"{path}: not what a fleet leaves: {error.errors()[0]['msg']}") from error


def read_ending(path: Path) -> Ending | None:
    """Return what an outcome's file says; None where there is none."""
    found = read_file(path, Outcome)
    return Ending.of(found) if found else None


def place_of(pool: str, slot: int, task: str) -> str:
    """Return where below results/ a task's run goes."""
    return f"{pool}-{slot}/{task}"


class HeldError(UsageError):
    """Another controller is at work in a fleet's folder."""


class FleetFolder:
    """A fleet's folder; what has not been written yet reads as absent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results, self.batches, self.set_aside = path / "results", path / "batches", path / SET_ASIDE
        self.merged = path / "merged"

    @property
    def token(self) -> str:
        """What the folder says of itself, the same from whichever machine it is seen; empty where it has none."""
        found = read_file(self.path / FLEET, _FleetFile)
        return found.token if found else ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other controllers out; raise UsageError where one is at work. The kernel lets go when this one dies."""
        make_directory(self.path, REMEDY)
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HeldError(
                    f"{self.path}: another `cnnbench fleet` is at work there; follow it with --status, end all that "
                    "it submitted with --cancel, or name another folder with -o"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def adopt(self, plan: Plan) -> None:
        """Make this the folder of a plan; raise UsageError where it is another plan's, and say what differs."""
        for directory in (self.results, self.batches, self.set_aside):
            make_directory(directory, REMEDY)
        now = plan.fleet.model_dump(mode="json") | {"machines": dict(plan.machines)}
        before = read_file(self.path / FLEET, _FleetFile)
        if before is None:
            write_file(self.path / FLEET, _FleetFile(plan=plan.id, token=os.urandom(16).hex(), fleet=now))
            return
        if before.plan != plan.id:
            differences = list_changes(before.fleet, now) or ["the cases that the workloads declare"]
            raise UsageError(
                f"{self.path}: has the runs of another plan ({before.plan}, this is {plan.id}); what differs:\n  "
                + "\n  ".join(differences)
                + "\nname another folder with -o, or run the file as it was"
            )

    def read_outcome(self, place: str) -> Ending | None:
        """Return how a run ended; None where it has not."""
        return read_ending(self.results / place / OUTCOME)

    def find_outcomes(self, tasks: Iterable[Task]) -> dict[str, Ending]:
        """Return the outcomes of tasks that have one, by id; folders are listed, not asked for each task."""
        by_slot: dict[str, list[Task]] = {}
        for task in tasks:
            by_slot.setdefault(f"{task.pool}-{task.slot}", []).append(task)
        found: dict[str, Ending] = {}
        for slot, members in by_slot.items():
            try:
                there = set(os.listdir(self.results / slot))  # noqa: PTH208 - names alone, many of them
            except FileNotFoundError:
                continue
            for task in members:
                if task.id in there and (outcome := self.read_outcome(f"{slot}/{task.id}")):
                    found[task.id] = outcome
        return found

    def write_outcome(self, place: str, outcome: Outcome) -> None:
        """Write the outcome of a run that left nothing else."""
        part = self.path / "partial" / f"{outcome.task}.{outcome.batch}.{os.getpid()}"
        make_directory(part, REMEDY)
        write_file(part / OUTCOME, outcome)
        self.install(part, place)

    def install(self, part: Path, place: str) -> bool:
        """Move a run's folder to its place, whole; where another has come there first, drop it and return False."""
        target = self.results / place
        make_directory(target.parent, REMEDY)
        try:
            part.rename(target)
        except OSError:
            if not (target / OUTCOME).is_file():
                raise
            shutil.rmtree(part)
            return False
        return True

    def put_aside(self, place: str, task: str) -> None:
        """Move a run out of its place, so that it is made again; it stays to be looked at."""
        number = 1
        while (target := self.set_aside / f"{task}.{number}").exists():
            number += 1
        (self.results / place).rename(target)

    def read_set_aside(self) -> dict[str, list[Ending]]:
        """Return the outcomes of runs that were made again, by task."""
        found: dict[str, list[Ending]] = {}
        for path in sorted(self.set_aside.glob("*.*"), key=lambda path: int(path.suffix[1:])):
            if outcome := read_ending(path / OUTCOME):
                found.setdefault(path.stem, []).append(outcome)
        return found

    def add_batch(self, batch: BatchFile, slot: int) -> None:
        """Write a batch for a launcher to hand to the machine in a pool's slot."""
        part = self.batches / f".{batch.id}.part"
        shutil.rmtree(part, ignore_errors=True)
        make_directory(part, REMEDY)
        (part / BATCH).write_text(batch.model_dump_json(), encoding="utf-8")
        (part / "slot").write_text(str(slot), encoding="utf-8")
        part.rename(self.batches / batch.id)

    @property
    def has_begun(self) -> bool:
        """Whether anything of the fleet was made to be run."""
        return next(self.batches.glob("[0-9a-f]*"), None) is not None

    def list_batches(self) -> list[str]:
        """Return the ids of all batches."""
        return sorted(path.name for path in self.batches.glob("[0-9a-f]*"))

    def read_batch(self, batch: str) -> tuple[BatchFile, int]:
        """Return a batch and the slot that it is for."""
        found = read_file(self.batches / batch / BATCH, BatchFile)
        if found is None:
            raise CnnbenchError(f"{self.batches / batch}: no {BATCH} there")
        return found, int((self.batches / batch / "slot").read_text())

    def read_node(self, batch: str) -> Node | None:
        """Return which machine has begun a batch."""
        return read_file(self.batches / batch / NODE, Node)

    def read_now(self, batch: str) -> Now | None:
        """Return what the machine of a batch is doing."""
        return read_file(self.batches / batch / NOW, Now)

    def read_ended(self, batch: str) -> Ended | None:
        """Return how a batch ended on its machine."""
        return read_file(self.batches / batch / ENDED, Ended)

    def last_words(self, batch: str) -> str:
        """Return the last line that a batch's process printed."""
        path = self.batches / batch / LOG
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        return next((line for line in reversed(lines) if line.strip()), "")


def list_changes(before: Any, now: Any, at: str = "") -> list[str]:
    """Return a line for each place in which two pieces of plain data differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        return [
            line
            for name in names
            for line in list_changes(before.get(name), now.get(name), f"{at}.{name}" if at else str(name))
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            line
            for number, pair in enumerate(zip(before, now, strict=True))
            for line in list_changes(*pair, f"{at}.{number}")
        ]
    return [] if before == now else [f"{at}: {json.dumps(before)}, now {json.dumps(now)}"]
