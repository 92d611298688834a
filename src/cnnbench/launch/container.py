"""Drive one container through the engine's command line: start, follow, fetch its logs, remove; leave none behind.

A container runs attached. Its standard input is held open from here and it ends when that closes (see serve.py), so
that it does not outlive this process, however this process ends. Works with docker and podman alike.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cnnbench.errors import CnnbenchError
from cnnbench.progress import progress_stream
from cnnbench.topology import format_cpu_list

EXPORT = Path("/export-logs")
"""The FIFO inside a container that its logs come out of as a tar archive; the image has it, so a reader can wait."""

BUILD_LABEL = "cnnbench.build"
"""Label of a container: the directory that its logs go to, by which `ctest.sh --stop` knows its own."""

OWNER_LABEL = "cnnbench.owner"
"""Label of a container: the process that attends to it."""

TMPFS = "/tmp:rw,nosuid,nodev,noexec,size=2g,mode=1777"  # noqa: S108 - the container's own
SHM_SIZE = "1g"

ANSWER_S = 60.0
"""How long the engine may take to answer a question."""
GRACE_S = 8.0
"""How long an interrupted container may take to end its instances and hand over its logs; ctest.sh waits longer."""
ASK_AGAIN_S = 1.0
END_S = 2.0
"""How long a container may take to be gone when its logs are out."""
POLL_S = 0.2
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ContainerSpec:
    """What a container is given, which is nothing else: no network, no capability but one, a read-only file system.

    `cpus`, `nodes`: the logical CPUs and the NUMA nodes it may use; no nodes: all. `mounts`: files of the host by where
    they are read-only inside. `sys_nice`: have the capability that binding memory to a node takes. `extra`: options of
    the user's, which come last and so win. `groups`: those of the host, by number, that its user is in besides.
    """

    name: str
    image: str
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    cpus: frozenset[int]
    nodes: frozenset[int]
    memory_bytes: int
    pids: int
    mounts: Mapping[str, Path]
    devices: Sequence[str]
    sys_nice: bool
    extra: Sequence[str]
    groups: Sequence[int] = ()


def run_command(cli: Sequence[str], spec: ContainerSpec) -> list[str]:
    """Return the command that runs a container and stays attached to it."""

    def each(option: str, values: Iterable[str]) -> list[str]:
        return [word for value in values for word in (option, value)]

    memory = str(spec.memory_bytes)
    return [
        *(*cli, "run", "--interactive", "--name", spec.name),
        *each("--label", (f"{name}={value}" for name, value in spec.labels.items())),
        *("--cap-drop", "ALL", *(("--cap-add", "SYS_NICE") if spec.sys_nice else ())),
        *("--security-opt", "no-new-privileges", "--network", "none", "--read-only"),
        *("--tmpfs", TMPFS, "--shm-size", SHM_SIZE, "--log-driver", "none"),
        *("--pids-limit", str(spec.pids), "--memory", memory, "--memory-swap", memory),
        *("--cpuset-cpus", format_cpu_list(spec.cpus)),
        *(("--cpuset-mems", format_cpu_list(spec.nodes)) if spec.nodes else ()),
        *each("--mount", (f"type=bind,source={path},destination={at},readonly" for at, path in spec.mounts.items())),
        *each("--device", spec.devices),
        *each("--group-add", map(str, spec.groups)),
        *each("--env", (f"{name}={value}" for name, value in spec.environment.items())),
        *spec.extra,
        spec.image,
    ]


def run_engine(command: Sequence[str], timeout_s: float | None = ANSWER_S) -> str:
    """Run a command of the container engine's and return what it prints; raise CnnbenchError with its complaint."""
    words = " ".join(command)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except FileNotFoundError as error:
        raise CnnbenchError(f"{command[0]}: not found; install it, or choose another with -DCONTAINER_CLI") from error
    except subprocess.TimeoutExpired as error:
        raise CnnbenchError(f"`{words}` was not done within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise CnnbenchError(f"`{words}` failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


class Container:
    """One container, from its start to its removal at the end of the block; what it prints goes to a file and on."""

    def __init__(self, cli: Sequence[str], name: str, log: Path) -> None:
        self._cli, self._name, self._log = list(cli), name, log

    def __enter__(self) -> "Container":
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove it, whether or not it still runs."""
        self.remove()

    def start(self, command: Sequence[str]) -> None:
        """Start it with what `run_command` returned."""
        self._client = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a Ctrl-C must not reach it first
        )
        self._follower = threading.Thread(target=self._follow)
        self._follower.start()

    def _follow(self) -> None:
        assert self._client.stdout is not None
        stream = progress_stream()
        with self._log.open("wb", buffering=0) as log:
            for line in self._client.stdout:
                with contextlib.suppress(OSError):  # a full disk: the run must not wait for who reads on
                    log.write(line.encode())
                print(line, end="", file=stream, flush=True)

    def wait_until_running(self) -> bool:
        """Wait until the engine has started it; return False when it could not."""
        while self._client.poll() is None:
            if self.inspect()[0].get("Running"):
                return True
            time.sleep(POLL_S)
        self._follower.join()
        return False

    def fetch(self, archive: Path) -> KeyboardInterrupt | None:
        """Write its logs, a tar archive that comes when its run has ended, into a file, and let it end.

        When interrupted, ask it to end its run, give it GRACE_S to hand its logs over, and return the interrupt.
        """
        interrupt = self._read_export(archive)
        with contextlib.suppress(subprocess.TimeoutExpired):  # until then the engine may say that it runs
            self._client.wait(END_S)
        return interrupt

    def _read_export(self, archive: Path) -> KeyboardInterrupt | None:
        command = [*self._cli, "exec", self._name, "cat", str(EXPORT)]
        with (
            archive.open("wb", buffering=0) as file,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as reader,
        ):
            assert reader.stdout is not None
            ending = threading.Thread(target=self._end, args=(reader,))
            try:
                _copy(reader.stdout.fileno(), file.fileno())
            except KeyboardInterrupt as interrupt:
                ending.start()
                _copy(reader.stdout.fileno(), file.fileno())
                ending.join()
                return interrupt
            finally:
                reader.kill()
        return None

    def _end(self, reader: subprocess.Popen[bytes]) -> None:
        """Ask it to end until its logs are out, for GRACE_S: a program that only just starts does not hear it yet."""
        deadline_s = time.monotonic() + GRACE_S
        while reader.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(CnnbenchError):  # it may have ended meanwhile
                run_engine([*self._cli, "kill", "--signal", "TERM", self._name])
            with contextlib.suppress(subprocess.TimeoutExpired):
                reader.wait(ASK_AGAIN_S)
        reader.kill()

    def inspect(self) -> tuple[dict[str, Any], str]:
        """Return the engine's account of its state, empty with the complaint when there is none to have.

        `Memory` is its limit in bytes: options of the user's may have set another than was planned.
        """
        try:
            account = json.loads(run_engine([*self._cli, "inspect", "--format", "{{json .}}", self._name]))
        except CnnbenchError as error:
            return {}, str(error)
        return account["State"] | {"Memory": account["HostConfig"]["Memory"]}, ""

    @property
    def output(self) -> list[str]:
        """The lines it has printed."""
        return self._log.read_text(errors="replace").splitlines() if self._log.exists() else []

    def was_refused_a_capability(self) -> bool:
        """Say whether the engine would not start it because of the capability it was to have."""
        refusal = re.compile(r"SYS_NICE|capabilit|apply caps|bounding set", re.IGNORECASE)
        return any(refusal.search(line) for line in self.output)

    def remove(self) -> None:
        """Remove it and wait until nothing of it is left; an engine that has gone away cannot be asked any more."""
        with contextlib.suppress(CnnbenchError):  # not there, or the engine is not: remove_orphans comes later
            run_engine([*self._cli, "rm", "--force", self._name])
        if self._client.poll() is None:
            os.killpg(self._client.pid, signal.SIGKILL)
            self._client.wait()
        self._follower.join()


def _copy(source: int, destination: int) -> None:
    """Copy until the end of the source; unbuffered, so that an interrupted copy can go on."""
    while chunk := os.read(source, CHUNK_BYTES):
        view = memoryview(chunk)
        while view:
            view = view[os.write(destination, view) :]


def owner_of(pid: int) -> str:
    """Return what tells a process from every other: the machine's start, its number and the time it began."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot}/{pid}/{began}"


def _is_gone(owner: str) -> bool:
    """Say whether a container's owner was a process of this machine and has ended."""
    boot, pid, _ = owner.split("/")
    if not owner_of(os.getpid()).startswith(boot):
        return False  # of another machine, or from before this one was started: nobody knows
    try:
        return owner_of(int(pid)) != owner
    except FileNotFoundError:
        return True


def remove_orphans(cli: Sequence[str]) -> None:
    """Remove the containers whose owner was killed, or had lost the engine, before it could."""
    for name in _list(cli, OWNER_LABEL):
        with contextlib.suppress(CnnbenchError):  # its owner has removed it meanwhile
            owner = run_engine([*cli, "inspect", "--format", f'{{{{index .Config.Labels "{OWNER_LABEL}"}}}}', name])
            if _is_gone(owner):
                run_engine([*cli, "rm", "--force", name])


def stop_containers(cli: Sequence[str], root: Path) -> list[str]:
    """Remove the containers whose logs go to a directory, running or not; return their names."""
    names = _list(cli, f"{BUILD_LABEL}={root}")
    for name in names:
        run_engine([*cli, "rm", "--force", name])
    return names


def _list(cli: Sequence[str], label: str) -> list[str]:
    return run_engine([*cli, "ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}"]).split()
