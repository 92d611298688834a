"""The launcher for this machine: a process for each batch, which lives on when the controller dies."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import BaseModel

from cnnbench.base.errors import UsageError
from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.folder import LOG, FleetFolder
from cnnbench.fleet.launcher import Batch, JobState, node_command
from cnnbench.fleet.process import batch_argument, find_state, stop
from cnnbench.fleet.spec import Pool, Runs, Strict, read_options


class LocalOptions(Strict):
    """It has no options."""


class LocalLauncher:
    """Runs batches here, one after the other."""

    Options: ClassVar[type[BaseModel]] = LocalOptions
    chooses_nodes: ClassVar[bool] = False

    def __init__(self, pool: Pool, folder: FleetFolder) -> None:
        self._pool, self._folder = pool, folder
        self._children: list[subprocess.Popen[bytes]] = []
        read_options(LocalOptions, pool)

    @property
    def machines(self) -> int:
        """Always one."""
        if self._pool.machines not in (None, 1):
            raise UsageError(
                f"pool {self._pool.name}: machines is {self._pool.machines}, and launcher local has this machine "
                "alone; leave it out"
            )
        for name in ("constraint", "folder"):
            if getattr(self._pool, name):
                raise UsageError(
                    f"pool {self._pool.name}: {name} has no meaning for launcher local, which has this machine alone; "
                    "leave it out"
                )
        return 1

    def check(self, run: Runs) -> None:
        """Do nothing: each batch checks the machine."""

    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Start a process for each batch, in a session of its own."""
        jobs = {}
        for batch in batches:
            directory = self._folder.batches / batch.id
            command = node_command(self._pool, sys.executable, str(self._folder.path))
            command[command.index("-")] = batch_argument(self._folder, batch.id)
            with (directory / LOG).open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
                )
            self._children.append(process)
            jobs[batch.id] = str(process.pid)
        return jobs

    def poll(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Look at the processes and what they have left."""
        self._children = [child for child in self._children if child.poll() is None]
        return {batch: find_state(self._folder, batch, int(pid)) for batch, pid in jobs.items()}

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """End the processes."""
        for batch, pid in jobs.items():
            stop(self._folder, batch, int(pid))

    def collect(self, batch: BatchFile) -> None:
        """Do nothing: the processes write into the fleet's folder."""

    @staticmethod
    def identify(environ: Mapping[str, str]) -> str:  # noqa: ARG004 - as every launcher
        """Return the process that the batch is."""
        return f"local process {os.getpid()}"
