"""Drive one container through the engine's command line: start, follow, fetch its logs, remove; leave none behind.

A container runs attached. Its standard input is held open from here and it ends when that closes (see serve.py), so
that it does not outlive this process, however this process ends. Works with docker and podman alike.
"""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import progress_stream
from cnnbench.base.signals import uninterrupted
from cnnbench.machine.topology import format_cpu_list

EXPORT = Path("/export-logs")
"""The FIFO inside a container that its logs come out of as a tar archive; the image has it, so a reader can wait."""

BUILD_LABEL = "cnnbench.build"
"""Label of a container or network: the directory that its logs go to, by which `ctest.sh --stop` knows its own."""

OWNER_LABEL = "cnnbench.owner"
"""Label of a container or network: the process that attends to it."""

TMPFS = "/tmp:rw,nosuid,nodev,noexec,size=2g,mode=1777"  # noqa: S108 - the container's own
SHM_SIZE, SHARED_SHM_SIZE = "1g", "3g"
"""Of a container's shared memory; where two share it, it has their temporary files too."""
SHM = "/dev/shm"  # noqa: S108 - the container's own

CONTAINER, NETWORK = "container", "network"
"""What of a run is kept by the engine."""

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
    """What a container is given, which is nothing else: no capability but one, a read-only file system.

    `network`: none, or one of the run's own; `is_shared`: another may have its processes and its shared memory, as
    it has those of `beside`. `program`: what runs in place of the image's entry point, with its arguments.
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
    network: str = "none"
    is_shared: bool = False
    beside: str = ""
    program: Sequence[str] = ()


def run_command(cli: Sequence[str], spec: ContainerSpec) -> list[str]:
    """Return the command that runs a container and stays attached to it."""

    def each(option: str, values: Iterable[str]) -> list[str]:
        return [word for value in values for word in (option, value)]

    memory = str(spec.memory_bytes)
    if spec.beside:
        shm = ["--ipc", f"container:{spec.beside}", "--pid", f"container:{spec.beside}"]
    else:
        shm = ["--ipc", "shareable", "--shm-size", SHARED_SHM_SIZE] if spec.is_shared else ["--shm-size", SHM_SIZE]
    return [
        *(*cli, "run", "--interactive", "--name", spec.name),
        *each("--label", (f"{name}={value}" for name, value in spec.labels.items())),
        *("--cap-drop", "ALL", *(("--cap-add", "SYS_NICE") if spec.sys_nice else ())),
        *("--security-opt", "no-new-privileges", "--network", spec.network, "--read-only"),
        *("--tmpfs", TMPFS, *shm, "--log-driver", "none"),
        *("--pids-limit", str(spec.pids), "--memory", memory, "--memory-swap", memory),
        *("--cpuset-cpus", format_cpu_list(spec.cpus)),
        *(("--cpuset-mems", format_cpu_list(spec.nodes)) if spec.nodes else ()),
        *each("--mount", (mount_value(path, at) for at, path in spec.mounts.items())),
        *each("--device", spec.devices),
        *each("--group-add", map(str, spec.groups)),
        *each("--env", (f"{name}={value}" for name, value in spec.environment.items())),
        *(("--entrypoint", spec.program[0]) if spec.program else ()),
        *spec.extra,
        spec.image,
        *spec.program[1:],
    ]


def network_command(cli: Sequence[str], name: str, labels: Mapping[str, str]) -> list[str]:
    """Return the command that makes a network which reaches no other; this machine alone reaches what is on it."""
    told = [word for label, value in labels.items() for word in ("--label", f"{label}={value}")]
    return [*cli, "network", "create", "--internal", *told, name]


@contextlib.contextmanager
def internal_network(cli: Sequence[str], name: str, labels: Mapping[str, str]) -> Iterator[None]:
    """Have such a network for the block; containers that are on it still must have been removed by then."""
    try:
        with uninterrupted():
            run_engine(network_command(cli, name, labels))
        yield
    finally:
        with contextlib.suppress(CnnbenchError), uninterrupted():  # the engine is gone: remove_orphans comes later
            _remove(cli, NETWORK, name)


def mount_value(source: Path, destination: str) -> str:
    """Return the value of --mount that is read-only, a line of CSV: a path may hold a comma."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        ["type=bind", f"source={source}", f"destination={destination}", "readonly"]
    )
    return line.getvalue()


def run_engine(command: Sequence[str], timeout_s: float | None = ANSWER_S) -> str:
    """Run a command of the container engine's and return what it prints; raise CnnbenchError with its complaint."""
    words = " ".join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            start_new_session=True,  # a Ctrl-C must not reach it first
        )
    except FileNotFoundError as error:
        raise CnnbenchError(
            f"{command[0]}: not found; install it, or choose another with -DCONTAINER_CLI or --container-cli"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CnnbenchError(f"`{words}` was not done within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise CnnbenchError(f"`{words}` failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


class Container:
    """One container, from its start to its removal at the end of the block; what it prints goes to a file and on.

    `take` is handed each line first, and returns whether that was for it alone.
    """

    def __init__(
        self, cli: Sequence[str], name: str, log: Path, take: Callable[[str], bool] = lambda _line: False
    ) -> None:
        self._cli, self._name, self._log, self._take = list(cli), name, log, take
        self._client: subprocess.Popen[str] | None = None
        self.export_complaint = ""

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
        with contextlib.suppress(OSError):
            self._log.touch()
        with uninterrupted():
            self._client = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # as above
            )
            self._follower = threading.Thread(target=self._follow, args=(self._client.stdout, progress_stream()))
            self._follower.start()

    def _follow(self, lines: TextIO, stream: TextIO) -> None:
        """Copy what it prints to the log and on; whatever cannot be written, the run must not wait for a reader."""
        log: BinaryIO | None = None
        for line in lines:
            if self._take(line):
                continue
            with contextlib.suppress(OSError):
                log = log or self._log.open("wb", buffering=0)
                log.write(line.encode())
            with contextlib.suppress(OSError, ValueError):
                print(line, end="", file=stream, flush=True)
        if log is not None:
            log.close()

    def wait_until_running(self) -> bool:
        """Wait until the engine has started it; return False when it could not."""
        assert self._client is not None
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
        assert self._client is not None
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
                stderr=subprocess.PIPE,
                start_new_session=True,
            ) as reader,
        ):
            assert reader.stdout is not None
            assert reader.stderr is not None
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
                self.export_complaint = reader.stderr.read().decode(errors="replace").strip()
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
        form = "{{json .State}}\n{{.HostConfig.Memory}}"  # podman's account as a whole has another shape
        try:
            command = [*self._cli, "inspect", "--type", CONTAINER, "--format", form, self._name]
            state, _, memory = run_engine(command).rpartition("\n")
        except CnnbenchError as error:
            return {}, str(error)
        return json.loads(state) | {"Memory": int(memory)}, ""

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
        if self._client is None:
            return
        with contextlib.suppress(CnnbenchError), uninterrupted():  # not there, or the engine is not, as above
            _remove(self._cli, CONTAINER, self._name)
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


@dataclass(frozen=True)
class Owner:
    """The process that attends to a container: its machine, that one's start, its PID namespace, number and start."""

    machine: str
    boot: str
    namespace: str
    pid: int
    began: str

    @classmethod
    def of(cls, pid: int) -> "Owner":
        """Describe a process of this machine; raise FileNotFoundError when there is none."""
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        machine_id = Path("/etc/machine-id")
        identity = machine_id.read_text().strip() if machine_id.is_file() else ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(f"{os.uname().nodename}-{identity}", boot, str(Path("/proc/self/ns/pid").stat().st_ino), pid, began)

    @property
    def label(self) -> str:
        """What a container's label says of it."""
        return "/".join([self.machine, self.boot, self.namespace, str(self.pid), self.began])

    @classmethod
    def parse(cls, label: str) -> "Owner":
        """Read what `label` gave."""
        machine, boot, namespace, pid, began = label.split("/")
        return cls(machine, boot, namespace, int(pid), began)

    def is_gone(self) -> bool:
        """Say whether it has certainly ended; of another machine or PID namespace nothing is certain."""
        here = Owner.of(os.getpid())
        if self.machine != here.machine:
            return False
        if self.boot != here.boot:
            return True
        if self.namespace != here.namespace:
            return False
        try:
            os.kill(self.pid, 0)
            return Owner.of(self.pid) != self
        except ProcessLookupError:
            return True
        except (PermissionError, FileNotFoundError):  # another user's, which /proc may hide
            return False


def read_label(cli: Sequence[str], kind: str, name: str, label: str) -> str:
    """Return a label of a container, an image or a network (`kind`); empty when it has none of that name."""
    labels = ".Labels" if kind == NETWORK else ".Config.Labels"
    form = f'{{{{index {labels} "{label}"}}}}'
    return run_engine([*cli, "inspect", "--type", kind, "--format", form, name])


def remove_orphans(cli: Sequence[str]) -> None:
    """Remove the containers and networks whose owner was killed, or had lost the engine, before it could."""
    for kind in (CONTAINER, NETWORK):
        for name in _list(cli, kind, OWNER_LABEL):
            with contextlib.suppress(CnnbenchError):  # its owner has removed it meanwhile
                if Owner.parse(read_label(cli, kind, name, OWNER_LABEL)).is_gone():
                    _remove(cli, kind, name)


def stop_containers(cli: Sequence[str], root: Path) -> list[str]:
    """Remove the containers whose logs go to a directory, running or not, and their networks; return all the names.

    Raises CnnbenchError when some are still there in the end.
    """
    label, names, left, refusals = f"{BUILD_LABEL}={root}", list[str](), list[str](), list[str]()
    for kind in (CONTAINER, NETWORK):
        for name in _list(cli, kind, label):
            names.append(name)
            try:
                _remove(cli, kind, name)
            except CnnbenchError as error:  # its owner may be removing it at this moment
                refusals.append(str(error))
        left += _list(cli, kind, label)
    if left:
        raise CnnbenchError(f"{' '.join(left)}: could not be removed: {'; '.join(refusals)}")
    return names


def _list(cli: Sequence[str], kind: str, label: str) -> list[str]:
    """Return the names; of two containers the one beside the other first, without which podman removes neither."""
    command, name = (["ps", "--all"], "{{.Names}}") if kind == CONTAINER else (["network", "ls"], "{{.Name}}")
    names = run_engine([*cli, *command, "--filter", f"label={label}", "--format", name]).split()
    return sorted(names, reverse=True)


def _remove(cli: Sequence[str], kind: str, name: str) -> None:
    run_engine([*cli, *(["rm", "--force"] if kind == CONTAINER else ["network", "rm"]), name])
