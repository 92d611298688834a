"""What a launcher is: how batches of runs get to machines. Launchers are chosen by name and imported late."""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from pydantic import BaseModel

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.spec import Pool, Runs

LAUNCHERS = {
    "kubernetes": "cnnbench.fleet.kubernetes:KubernetesLauncher",
    "local": "cnnbench.fleet.local:LocalLauncher",
    "slurm": "cnnbench.fleet.slurm:SlurmLauncher",
    "ssh": "cnnbench.fleet.ssh:SshLauncher",
}
"""The launchers by name, as `module:Class`."""

JobStateName = Literal["queued", "running", "ended", "failed", "lost"]


class UnavailableError(CnnbenchError):
    """A scheduler or machine does not answer just now; the controller asks again."""


@dataclass(frozen=True)
class Batch:
    """A batch on its way to a machine.

    `file`: what the machine reads; `file.name` is what the job is called, always the same for the same batch. `slot`:
    which machine of the pool, from 0. `avoid`: host names that it must not go to, where the launcher can choose.
    `limit_s`: after how long it may be ended.
    """

    file: BatchFile
    slot: int
    avoid: tuple[str, ...]
    limit_s: float

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.file.id


@dataclass(frozen=True)
class JobState:
    """What is known of a batch's job.

    "ended": its process came to its end by itself, whatever its runs came to. "failed": it did not, `reason` says why,
    in the scheduler's words. "lost": nothing is known of it. `node`: the machine's name once it has one.
    """

    state: JobStateName
    node: str = ""
    reason: str = ""


class Launcher(Protocol):
    """Brings batches of one pool to machines.

    A launcher keeps nothing in memory that it needs: a controller that is started again makes a new one. `Options`:
    what `options:` of a pool may have. `chooses_nodes`: whether the scheduler chooses the machine of a slot, so that a
    batch may go to another one the next time; else a slot is a machine.
    """

    Options: ClassVar[type[BaseModel]]
    chooses_nodes: ClassVar[bool]

    def __init__(self, pool: Pool, folder: FleetFolder) -> None:
        """Read the pool's options (spec.read_options); touch nothing yet."""

    @property
    def machines(self) -> int:
        """How many machines the pool has, by its file alone; raise UsageError where that does not fit together."""

    def check(self, run: Runs) -> None:
        """Raise UsageError, in the scheduler's own words, where batches could not be run as the pool is declared.

        Raises UnavailableError where machines do not answer, or are fewer than asked for: a fleet that has begun goes
        on without them.
        """

    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Hand batches over; return what each one's job is called, by batch id.

        A batch whose job is known already, by the name that it would get, is not handed over again. Raises
        UnavailableError where the scheduler does not answer or has a quota that is used up for now: some may be
        handed over then, and are found the next time.
        """

    def poll(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Return the state of jobs, by batch id; raise UnavailableError where nobody answers."""

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """End jobs with all their processes, those that wait and those that run; one that has ended is left alone."""

    def collect(self, batch: BatchFile) -> None:
        """Bring what a batch has left so far into the fleet's folder; nothing where its machine writes there itself."""

    @staticmethod
    def identify(environ: Mapping[str, str]) -> str:
        """Say on the machine which job this is, by what the scheduler has put into the environment."""


def find_launcher(name: str) -> type[Launcher]:
    """Return a launcher's class; raise UsageError, with the names that there are, for an unknown one."""
    if name not in LAUNCHERS:
        close = difflib.get_close_matches(name, LAUNCHERS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(LAUNCHERS)}"
        raise UsageError(f"launcher {name}: no such launcher; {hint}")
    module, _, attribute = LAUNCHERS[name].partition(":")
    found: type[Launcher] = getattr(importlib.import_module(module), attribute)
    return found


def node_command(pool: Pool, python: str, folder: str) -> list[str]:
    """Return the command that runs a batch, which it reads from standard input, on a machine of a pool.

    `python`: this process's own, for a pool that names no checkout.
    """
    program = pool.python or (f"{pool.checkout}/.venv/bin/python" if pool.checkout else python)
    return [program, "-I", "-m", "cnnbench", "fleet-node", "-", "--folder", folder]
