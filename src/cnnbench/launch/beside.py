"""Run a program in a container beside this one, which shares this one's processes and shared memory, not its network.

`python -m cnnbench.launch.beside SOCKET` is what that container does: whoever connects is told its address, hands over
a program's command and environment and the file for its output, and is told its process id and, at last, how it has
ended. When the connection ends, the program and what it has started are killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from cnnbench.base.errors import CnnbenchError
from cnnbench.launch.local import WorkerLaunch, WorkerProcess
from cnnbench.launch.tied import tied_command

COME_S, LOOK_S = 60.0, 0.05
"""How long that container may take to come, as it is started after this one, and how often it is looked for."""
ANSWER_S = 10.0
"""How long it may take to start a program."""
GONE = "the container beside this one has ended"


@dataclass(frozen=True)
class Neighbour:
    """The container beside this one: where it is asked, and its address on the network that both are on."""

    path: Path
    address: str

    @classmethod
    def find(cls, path: Path) -> "Neighbour":
        """Return it once it answers; raise CnnbenchError when it does not."""
        deadline = time.monotonic() + COME_S
        while True:
            try:
                connection = _connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() > deadline:
                    raise CnnbenchError(f"{path}: no container beside this one within {COME_S:g} s") from error
                time.sleep(LOOK_S)
        with connection, connection.makefile("r") as stream:
            return cls(path, str(_read(stream)["address"]))

    def launch(self, command: list[str], environment: dict[str, str], log: Path) -> "NeighbourLaunch":
        """Return what starts a program there."""
        return NeighbourLaunch(command, environment, log, (), self.path)


@dataclass(frozen=True)
class NeighbourLaunch(WorkerLaunch):
    """A program to start in the container beside this one, which is asked at `path`."""

    path: Path

    def process(self) -> "NeighbourProcess":
        """Return the process, not yet started."""
        return NeighbourProcess(self, self.path)


class NeighbourProcess(WorkerProcess):
    """A program that was started there: a session of its own, and as good as a child of this process."""

    def __init__(self, launch: WorkerLaunch, path: Path) -> None:
        super().__init__(launch)
        self._path, self._pid = path, 0
        self._exit_code: int | None = None

    def __enter__(self) -> "NeighbourProcess":
        """Start it; raise CnnbenchError when it could not be."""
        asked = {"command": self.launch.command, "environment": dict(self.launch.environment)}
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(_connect(self._path))
                self._stream = stack.enter_context(connection.makefile("r"))
                _read(self._stream)  # the address
                with self.launch.log.open("wb") as log:
                    socket.send_fds(connection, [b"\0"], [log.fileno()])
                connection.sendall(json.dumps(asked).encode() + b"\n")
                self._pid = _read(self._stream)["pid"]
                connection.settimeout(None)
            except OSError as error:
                raise CnnbenchError(f"{self.launch.command[0]}: not started: {GONE}: {error}") from error
            self._stack = stack.pop_all()
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()
        return self

    def _wait(self) -> None:
        try:
            self._exit_code = _read(self._stream)["exit_code"]
        except CnnbenchError:  # its container was ended, and it with that
            self._exit_code = -signal.SIGKILL

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Kill it with all that it has started, if it still runs, and wait until it is gone."""
        if self._exit_code is None:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        self._waiting.join()
        self._stack.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._exit_code


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _read(stream: TextIO) -> dict[str, Any]:
    """Return what is told next; raise CnnbenchError for a failure, and where nothing comes any more."""
    try:
        found: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise CnnbenchError(f"{GONE}: {error}") from error
    if "failure" in found:
        raise CnnbenchError(f"the container beside this one: {found['failure']}")
    return found


def run_for_others(path: Path) -> None:
    """Run a program at a time for whoever connects."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection, suppress(BrokenPipeError, ConnectionResetError):
                _run_for(connection)


def _run_for(connection: socket.socket) -> None:
    def tell(**said: object) -> None:
        connection.sendall(json.dumps(said).encode() + b"\n")

    try:
        tell(address=socket.gethostbyname(name := socket.gethostname()))
    except socket.gaierror as error:
        tell(failure=f"{name}: {error.strerror}: it has no address by its name; which DOCKER_OPTIONS took that?")
    _, files, _, _ = socket.recv_fds(connection, 1, 1)
    if not files:  # who only wanted to know the address
        return
    with os.fdopen(files[0], "wb") as log, connection.makefile("r") as stream:
        asked = json.loads(stream.readline())
        try:
            process = subprocess.Popen(
                tied_command(asked["command"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=asked["environment"],
                start_new_session=True,
            )
        except OSError as error:
            tell(failure=str(error))
            return
        threading.Thread(target=_end_with, args=(connection, process.pid), daemon=True).start()
        tell(pid=process.pid)
        tell(exit_code=process.wait())


def _end_with(connection: socket.socket, pid: int) -> None:
    """Kill a program when who asked for it has gone; what ended before is not there any more."""
    with suppress(OSError):
        if not connection.recv(1):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    run_for_others(Path(sys.argv[1]))
