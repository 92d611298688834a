"""Start Triton Server, see whether it is up, read what it counts, and leave nothing of it behind.

It listens on loopback, or on the network of a run where it is in a container beside this one.
"""

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, UsageError
from cnnbench.base.signals import uninterrupted
from cnnbench.launch.beside import Neighbour
from cnnbench.launch.local import WorkerLaunch, WorkerProcess
from cnnbench.launch.tied import tied_command
from cnnbench.run.record import ServiceCount
from cnnbench.worker.process import read_resident_bytes

LOOPBACK = "127.0.0.1"
START_S = 120.0
"""How long a server may take until it is ready: loading a network takes most of it."""
STOP_S, HURRY_S = 30.0, 3.0
"""How long it may take to end when told to, and after a Ctrl-C, when whoever runs this waits for some seconds only."""
ANSWER_S = 10.0
"""How long it may take to tell how it is, or what it has counted."""
LOOK_S = 0.05
PREFIX = "cnnbench-triton"


_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxies the environment names."""


@dataclass(frozen=True)
class Ports:
    """The ports of a server."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def choose(cls, http: int | None = None, grpc: int | None = None, metrics: int | None = None) -> "Ports":
        """Return those asked for, and free ones in place of None; raise UsageError for one that is taken."""
        with ExitStack() as held:
            found = []
            for name, asked in (("http", http), ("grpc", grpc), ("metrics", metrics)):
                one = held.enter_context(socket.socket())
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
                try:
                    one.bind((LOOPBACK, asked or 0))
                except (OSError, OverflowError) as error:
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    raise UsageError(f"the {name} port {asked} of {LOOPBACK}: {reason}; give another") from error
                found.append(one.getsockname()[1])
        return cls(*found)


@dataclass(frozen=True)
class Wanted:
    """What a server is to have: some models of a repository, ports, and what the names of what it makes begin with.

    `address`: where it listens.
    """

    repository: Path
    models: Sequence[str]
    ports: Ports
    prefix: str
    address: str = LOOPBACK

    def options(self, repository: str, address: str, ports: Ports) -> list[str]:
        """Return the options of any server; the repository, the address and the ports are as it sees them."""
        return [
            *("--model-repository", repository, "--model-control-mode=explicit"),
            *(f"--load-model={name}" for name in self.models),
            *("--disable-auto-complete-config", "--allow-gpu-metrics=false", f"--exit-timeout-secs={STOP_S:g}"),
            *(f"--http-address={address}", f"--http-port={ports.http}"),
            *(f"--grpc-address={address}", f"--grpc-port={ports.grpc}"),
            *(f"--metrics-address={address}", f"--metrics-port={ports.metrics}"),
        ]


@dataclass(frozen=True)
class Start:
    """What is started: a command that lasts as long as the server, its environment, and the CPUs it is pinned to."""

    command: Sequence[str]
    environment: Mapping[str, str]
    cpus: str = ""


class Origin(ABC):
    """Where a server comes from. `removable`: whether one that is not up yet can be removed as it is."""

    removable = False

    @abstractmethod
    def prepare(self, wanted: Wanted, stack: ExitStack) -> Start:
        """Make ready what the server needs, and have the stack remove it when the server has ended."""


class Server:
    """A server with some models of a repository, and no others that are there.

    It is up inside of the block, and gone with all that it made after it.
    `prefix`: how the names of its shared memory begin, and of its clients'. `address`: where it is asked.
    """

    def __init__(
        self,
        origin: Origin,
        repository: Path,
        models: Sequence[str],
        ports: Ports,
        log: Path,
        start_s: float = START_S,
        neighbour: Neighbour | None = None,
    ) -> None:
        self._models: list[int] = []
        self.ports, self._log, self._start_s, self._neighbour = ports, log, start_s, neighbour
        self.prefix = f"{PREFIX}-{os.getpid()}-{ports.grpc}"
        self.address = neighbour.address if neighbour else LOOPBACK
        self._wanted = Wanted(repository, models, ports, self.prefix, self.address)
        self._origin, self._ready, self._stop_s = origin, False, STOP_S

    def __enter__(self) -> "Server":
        """Start it and wait until it is ready; raise CnnbenchError with its own words when it does not get there."""
        self._stack = ExitStack()
        try:
            start = self._origin.prepare(self._wanted, self._stack)
            with uninterrupted():
                self._process: WorkerProcess = self._stack.enter_context(self._launch(start).process())
                self._stack.callback(self._stop)
            self._wait_until_ready()
            self._ready = True
            self._models = self._find_models()
            self.metadata = self._read("/v2")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, and remove what it leaves."""
        if isinstance(error, KeyboardInterrupt):
            self._stop_s = HURRY_S
        self._stack.close()

    def _launch(self, start: Start) -> WorkerLaunch:
        if self._neighbour:
            return self._neighbour.launch([*start.command], dict(start.environment), self._log)
        return WorkerLaunch(tied_command(start.command, start.cpus), dict(start.environment), self._log, ())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_s
        while True:
            if self._process.exit_code is not None:
                raise CnnbenchError(f"Triton Server did not start: {self._explain()}; its log: {self._log}")
            if time.monotonic() > deadline:
                raise CnnbenchError(
                    f"Triton Server was not ready within {self._start_s:g} s: {self._explain()}; its log: {self._log}"
                )
            with suppress(OSError), _NO_PROXY.open(f"{self._url}/v2/health/ready", timeout=ANSWER_S) as answer:
                if answer.status == 200:
                    return
            time.sleep(LOOK_S)

    def _explain(self) -> str:
        """Return what it says itself of why it is not up: first of a model, as the rest follows from that."""
        lines = self._log.read_text(errors="replace").splitlines()
        told = [line for line in lines if re.match(r"E\d{4} |error: |.*Error(:| response )", line)]
        if not told:
            return "it says nothing"
        of_models = [line for line in told if re.match(r"E\d{4} \S+ +\d+ model_", line)]
        return " ".join(re.sub(r"^E\d{4} \S+ +\d+ ", "", [*of_models, told[-1]][0]).split())[:400]

    @property
    def _url(self) -> str:
        return f"http://{self.address}:{self.ports.http}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Return its process id and those of the models' processes, as they were when it was ready."""
        return [self.pid, *self._models]

    def _find_models(self) -> list[int]:
        children = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):  # a thread of its own may end at any moment
                children += [int(word) for word in task.read_text().split()]
        return children

    def check(self) -> None:
        """Raise InvalidMeasurementError when it has ended, or a model's process, in whose place it starts another."""
        if self._process.exit_code is not None:
            raise InvalidMeasurementError(f"Triton Server has ended: {self._process.describe_end()}")
        for pid in self._models:
            if not _is_alive(pid):
                raise InvalidMeasurementError(f"process {pid} of the served model has ended; its log: {self._log}")

    def count(self, model: str) -> ServiceCount:
        """Return what it has counted of a model, and what memory it and its models have of their own."""
        found = self._read(f"/v2/models/{model}/stats")
        try:
            own = sum(read_resident_bytes(pid, "RssAnon") for pid in self.pids())
        except OSError as error:
            raise InvalidMeasurementError(f"a process of Triton Server's has ended: {error}") from error
        return read_count(found["model_stats"][0]).model_copy(update={"own_bytes": own})

    def _read(self, path: str) -> dict[str, Any]:
        try:
            with _NO_PROXY.open(f"{self._url}{path}", timeout=ANSWER_S) as answer:
                found: dict[str, Any] = json.load(answer)
        except (OSError, ValueError) as error:
            raise InvalidMeasurementError(f"Triton Server does not answer {path}: {error}") from error
        return found

    def _stop(self) -> None:
        """Have it end its models, which write their results then; what is left then, or has not by then, is killed.

        Where one of them has died it would wait for that in vain.
        """
        whole = all(map(_is_alive, self._models)) and (self._ready or not self._origin.removable)
        if self._process.exit_code is None and whole:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._stop_s
        while whole and self._process.exit_code is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        with suppress(ProcessLookupError):  # its models, where it was killed
            os.killpg(self._process.pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    """Tell whether a process runs, and not only waits for somebody to take note of its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def read_count(found: Mapping[str, Any]) -> ServiceCount:
    """Return a model's statistics as the server's HTTP interface has them."""
    times = found["inference_stats"]

    def total(name: str, key: str) -> int:
        return int(times.get(name, {}).get(key, 0))

    return ServiceCount(
        requests=total("success", "count"),
        failures=total("fail", "count"),
        executions=int(found.get("execution_count", 0)),
        images=int(found.get("inference_count", 0)),
        queue_ns=total("queue", "ns"),
        input_ns=total("compute_input", "ns"),
        compute_ns=total("compute_infer", "ns"),
        output_ns=total("compute_output", "ns"),
        batches={int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in found.get("batch_stats", [])},
    )
