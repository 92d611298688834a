"""Have a server of a user's image started in a container, which is gone when the server is."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.signals import uninterrupted
from cnnbench.base.start import START
from cnnbench.launch.container import (
    OWNER_LABEL,
    SHM_SIZE,
    TMPFS,
    Owner,
    mount_value,
    remove_orphans,
    run_engine,
)
from cnnbench.machine.topology import format_cpu_list
from cnnbench.serving.server import LOOK_S, LOOPBACK, STOP_S, Origin, Ports, Start, Wanted

MODELS = "/models"
"""Where a container has the repository."""
INSIDE = Ports(http=8000, grpc=8001, metrics=8002)
"""The ports of a server in its container, which is asked by others, on loopback."""
REMOVE_S = 10.0
"""How long the engine may take to remove a container that has ended."""
ANYWHERE = "0.0.0.0"  # noqa: S104 - of the container, whose ports are published on loopback alone


class ImageServer(Origin):
    """The `tritonserver` of an image, whose models are of its own backends.

    `cli`: the container engine's command line. `environment`: what the server gets besides the image's own. `cpus`:
    where it runs, anywhere where there are none.
    """

    removable = True

    def __init__(self, cli: Sequence[str], image: str, environment: Mapping[str, str], cpus: Sequence[int]) -> None:
        self._cli, self._image, self._environment, self._cpus = list(cli), image, environment, cpus

    def prepare(self, wanted: Wanted, stack: ExitStack) -> Start:
        """Make the container, and have it removed in the end; the command stays attached to it, and stops it."""
        run_engine([*self._cli, "version"])
        try:
            run_engine([*self._cli, "image", "inspect", "--format", "{{.Id}}", self._image])
        except CnnbenchError as error:
            pull = " ".join([*self._cli, "pull", self._image])
            raise UsageError(f"--server-image {self._image}: no such image here; `{pull}` may have it") from error
        remove_orphans(self._cli)
        stack.callback(self._remove, wanted.prefix)
        with uninterrupted():
            run_engine(self.create_command(wanted))
        attached = [sys.executable, START, "cnnbench.launch.attached", f"{STOP_S:g}", wanted.prefix, *self._cli]
        return Start(attached, dict(os.environ))

    def create_command(self, wanted: Wanted) -> list[str]:
        """Return the command that makes the container: it sees the repository, and is given what it needs to serve."""
        published = zip(("http", "grpc", "metrics"), (INSIDE.http, INSIDE.grpc, INSIDE.metrics), strict=True)
        return [
            *(*self._cli, "create", "--rm", "--name", wanted.prefix),
            *("--label", f"{OWNER_LABEL}={Owner.of(os.getpid()).label}"),
            *("--user", f"{os.getuid()}:{os.getgid()}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--read-only", "--tmpfs", TMPFS, "--ipc", "private", "--shm-size", SHM_SIZE, "--log-driver", "none"),
            *(f"--publish={LOOPBACK}:{getattr(wanted.ports, name)}:{inside}" for name, inside in published),
            *(("--cpuset-cpus", format_cpu_list(self._cpus)) if self._cpus else ()),
            *("--mount", mount_value(wanted.repository, MODELS)),
            *(f"--env={name}={value}" for name, value in self._environment.items()),
            *("--entrypoint", "tritonserver", self._image),
            *wanted.options(MODELS, ANYWHERE, INSIDE),
        ]

    def _remove(self, name: str) -> None:
        """Remove the container, and wait until that is done where the engine is at it, as the server has ended."""
        with suppress(CnnbenchError):  # it is gone or going, or the engine is: the next server looks for it
            run_engine([*self._cli, "rm", "--force", name])
        deadline = time.monotonic() + REMOVE_S
        with suppress(CnnbenchError):
            while name in run_engine([*self._cli, "ps", "--all", "--format", "{{.Names}}"]).split():
                if time.monotonic() > deadline:
                    break
                time.sleep(LOOK_S)
