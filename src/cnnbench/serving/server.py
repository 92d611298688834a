"""Start Triton Server on loopback, see whether it is up, read what it counts, and leave nothing of it behind."""

import json
import os
import re
import signal
import socket
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, SkippedError, UsageError
from cnnbench.base.signals import uninterrupted
from cnnbench.base.start import START
from cnnbench.launch.local import WorkerLaunch, WorkerProcess
from cnnbench.run.record import ServiceCount
from cnnbench.staging.environments import TRITON_SERVER, locked_python
from cnnbench.worker.process import read_resident_bytes

LOOPBACK = "127.0.0.1"
START_S = 120.0
"""How long a server may take until it is ready: loading a network takes most of it."""
STOP_S = 30.0
"""How long it may take to end when told to."""
ANSWER_S = 10.0
"""How long it may take to tell how it is, or what it has counted."""
LOOK_S = 0.05
REGIONS = Path("/dev/shm")  # noqa: S108 - where POSIX has shared memory
PREFIX = "cnnbench-triton"
BACKEND = "python"
PRELOAD = "LD_PRELOAD"
PROGRAMS = 3
"""From the controller to the model: what ties the server to this process, the server, and the model's own process."""


_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxies the environment names."""


@dataclass(frozen=True)
class Ports:
    """The ports of a server, on loopback."""

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
class Installation:
    """Where a server is: its program, and the directory of its backends, whose Python one the models need."""

    program: Path
    backends: Path
    stub: Path


def find_installation(program: str, cache: Path) -> Installation:
    """Return a user's installation by its program, or that of the wheel, made ready on first use."""
    number = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if program:
        path = Path(program)
        if not os.access(path, os.X_OK):
            raise UsageError(
                f"TRITON_SERVER={program}: no program; needed is `tritonserver`, as /opt/tritonserver/bin has"
            )
        backend = path.parents[1] / "backends" / BACKEND
        if not backend.is_dir():
            raise UsageError(f"TRITON_SERVER={program}: has no Python backend in {backend}; install it with it")
        return Installation(path, backend, backend / "triton_python_backend_stub")
    environment = locked_python(TRITON_SERVER, cache).parents[1]
    found = list(environment.glob("lib/python*/site-packages/pytriton/tritonserver/bin/tritonserver"))
    if not found:
        raise CnnbenchError(f"{environment}: has no tritonserver; remove it, and it is made anew")
    root = found[0].parents[1]
    stub = root / "python_backend_stubs" / number / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stub.parents[1].iterdir()))
        raise SkippedError(f"Triton Server's wheel has no stub for Python {number}, which has this: it has {known}")
    return Installation(found[0], root / "backends" / BACKEND, stub)


def find_libpython() -> Path:
    """Return the directory of this Python's shared library, in which the server's stub runs; raise SkippedError."""
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    places = [sysconfig.get_config_var(one) for one in ("LIBDIR", "LIBPL")]
    places.append(f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}")
    for place in filter(None, places):
        if (Path(place) / name).exists():
            return Path(place)
    raise SkippedError(
        f"Triton Server needs {name}, in which its models run, and this Python has none: install "
        f"{name.partition('.so')[0]} (Debian, Ubuntu), or a Python built with --enable-shared"
    )


class Server:
    """A server with some models of a repository, and no others that are there.

    It is up inside of the block, and gone with all that it made after it.
    `python`: the models' own, of the engine's environment. `environment`: what the models' processes get. `prefix`: how
    the names of its shared memory begin, and of its clients'.
    """

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        models: Sequence[str],
        ports: Ports,
        python: Path,
        environment: Mapping[str, str],
        log: Path,
        start_s: float = START_S,
    ) -> None:
        self._models: list[int] = []
        self.ports, self._log, self._start_s = ports, log, start_s
        self._installation, self._repository, self._names = installation, repository, models
        self.prefix = f"{PREFIX}-{os.getpid()}-{ports.grpc}"
        self._environment = dict(environment)
        if preloaded := environment.get(PRELOAD):  # what samples takes itself out, once in each program on the way
            first = preloaded.partition(":")[0]
            self._environment[PRELOAD] = ":".join([first] * (PROGRAMS - 1) + [preloaded])
        self._environment["PATH"] = f"{python.parent}:{environment.get('PATH', os.defpath)}"
        libraries = [str(find_libpython()), environment.get("LD_LIBRARY_PATH", "")]
        self._environment["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))

    def command(self, backends: Path) -> list[str]:
        """Return the command that starts it."""
        return [
            *(str(self._installation.program), "--model-repository", str(self._repository)),
            *("--model-control-mode=explicit", *(f"--load-model={name}" for name in self._names)),
            *("--backend-directory", str(backends), "--disable-auto-complete-config", "--allow-gpu-metrics=false"),
            f"--exit-timeout-secs={STOP_S:g}",
            f"--backend-config=python,shm-region-prefix-name={self.prefix}",
            *(f"--http-address={LOOPBACK}", f"--http-port={self.ports.http}"),
            *(f"--grpc-address={LOOPBACK}", f"--grpc-port={self.ports.grpc}"),
            *(f"--metrics-address={LOOPBACK}", f"--metrics-port={self.ports.metrics}"),
        ]

    def __enter__(self) -> "Server":
        """Start it and wait until it is ready; raise CnnbenchError with its own words when it does not get there."""
        remove_orphans()
        self._stack = ExitStack()
        try:
            backends = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cnnbench-triton-")))
            self._link_backend(backends)
            self._stack.callback(self._remove_regions)
            # It is not started by itself: what it becomes ends with this process, however that ends.
            tied = [sys.executable, START, "cnnbench.launch.tied", str(os.getpid()), "", *self.command(backends)]
            launch = WorkerLaunch(tied, self._environment, self._log, ())
            with uninterrupted():
                self._process: WorkerProcess = self._stack.enter_context(launch.process())
                self._stack.callback(self._stop)
            self._wait_until_ready()
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
        self._stack.close()

    def _link_backend(self, backends: Path) -> None:
        """Make the directory of backends that the server looks into: of links, by which its files find theirs."""
        target = backends / BACKEND
        target.mkdir()
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            (target / name).symlink_to(self._installation.backends / name)
        (target / "triton_python_backend_stub").symlink_to(self._installation.stub)

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
        told = [line for line in lines if re.match(r"E\d{4} |error: |.*Error: ", line)]
        if not told:
            return "it says nothing"
        of_models = [line for line in told if re.match(r"E\d{4} \S+ +\d+ model_", line)]
        return " ".join(re.sub(r"^E\d{4} \S+ +\d+ ", "", [*of_models, told[-1]][0]).split())[:400]

    @property
    def _url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.http}"

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
        """Return what it has counted of a model, and what it and its models have in memory."""
        found = self._read(f"/v2/models/{model}/stats")
        try:
            resident = sum(map(read_resident_bytes, self.pids()))
        except OSError as error:
            raise InvalidMeasurementError(f"a process of Triton Server's has ended: {error}") from error
        return read_count(found["model_stats"][0]).model_copy(update={"resident_bytes": resident})

    def _read(self, path: str) -> dict[str, Any]:
        try:
            with _NO_PROXY.open(f"{self._url}{path}", timeout=ANSWER_S) as answer:
                found: dict[str, Any] = json.load(answer)
        except (OSError, ValueError) as error:
            raise InvalidMeasurementError(f"Triton Server does not answer {path}: {error}") from error
        return found

    def _stop(self) -> None:
        """Have it end its models, which write their results then; what is left then, or after STOP_S, is killed.

        Where one of them has died it would wait for that in vain.
        """
        whole = all(map(_is_alive, self._models))
        if self._process.exit_code is None and whole:
            os.kill(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while whole and self._process.exit_code is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        with suppress(ProcessLookupError):  # its models, where it was killed
            os.killpg(self._process.pid, signal.SIGKILL)

    def _remove_regions(self) -> None:
        for path in REGIONS.glob(f"{self.prefix}*"):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    """Tell whether a process runs, and not only waits for somebody to take note of its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def remove_orphans() -> None:
    """Remove the shared memory of servers whose controllers have been killed with them."""
    for path in REGIONS.glob(f"{PREFIX}-*"):
        found = re.match(rf"{PREFIX}-(\d+)-", path.name)
        with suppress(FileNotFoundError):  # another run may be removing it at this moment
            if found and path.stat().st_uid == os.getuid() and not Path(f"/proc/{found[1]}").exists():
                path.unlink()


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
