"""What a machine is told to do, and what it leaves: small files that cross between machines."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cnnbench.results.record import SCHEMA

Kind = Literal["", "refused", "skipped", "failed", "interrupted", "lost"]
"""Why there is no result. refused: by the machine, before anything ran. lost: nothing was heard of it any more."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskFile(_Model):
    """One run of a batch; `place`: the folder below results/ that it leaves, which no other run has.

    `not_of`: the batches whose run of it was put aside, so that what they have left on a machine does not count.
    """

    id: str
    place: str
    workload: str
    case: str
    parameters: dict[str, str]
    not_of: list[str] = []


class BatchFile(_Model):
    """Some runs for one machine, which makes them one after the other, and what it must be to make them.

    `token`: what the fleet's folder says of itself; empty where the machine has a folder of its own. `written_s`: when
    this was written, by the controller's clock. `sources`: the digest of the program; `workloads`: those of the
    workloads' declarations. `files`, `images`: digests of what the machine must have.
    """

    schema_version: Literal[1] = 1
    result_schema: int = SCHEMA
    id: str
    pool: str
    launcher: str
    platform: str
    token: str
    written_s: float
    clock_skew_s: float
    sources: str
    workloads: dict[str, str]
    files: dict[str, str]
    images: dict[str, str]
    backend: Literal["native", "container"]
    cache: str
    container_cli: str
    registry: str
    release: str
    docker_options: str
    timeout_s: float
    hang_after_s: float | None
    tasks: list[TaskFile]

    @property
    def name(self) -> str:
        """What the batch's job is called, wherever it runs."""
        return f"cnnbench-{self.id}"


class Node(_Model):
    """What a machine says of itself when it begins a batch.

    `host`: its host name. `allocation`: the scheduler's identity of the job. `pid`: of the process, to end it by.
    """

    host: str
    allocation: str
    pid: int
    began_s: float


class Now(_Model):
    """What a machine is doing: a run that it began then, of so many that are done; `task` is empty while it waits."""

    task: str
    since_s: float
    done: int


class Ended(_Model):
    """How a batch ended on its machine; `reason` is empty where all its runs have an outcome."""

    reason: str
    ended_s: float


Verdict = Literal["valid", "unstable", "invalid", "failed"]


class Outcome(_Model):
    """How a run ended; `verdict` is "failed" where there is no result, and `kind` says in what way.

    `disturbed`: what took the cores of a run that is not steady; empty where nothing was seen to.
    """

    schema_version: Literal[1] = 1
    task: str
    batch: str
    verdict: Verdict
    reason: str = ""
    kind: Kind = ""
    disturbed: str = ""
    host: str = ""
    allocation: str = ""
    began_s: float
    ended_s: float
    run_file: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a controller keeps of an outcome: there may be hundreds of thousands."""

    batch: str
    verdict: Verdict
    reason: str
    kind: Kind
    disturbed: str
    host: str
    run_file: str

    @classmethod
    def of(cls, one: Outcome) -> "Ending":
        """Return what is kept of an outcome."""
        return cls(one.batch, one.verdict, one.reason, one.kind, one.disturbed, one.host, one.run_file)
