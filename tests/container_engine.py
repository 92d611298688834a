"""Reach a container engine, make the null engine's images, run cases in containers of them, start another engine."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cmake_build import run_cmake
from cnnbench.launch.container import BUILD_LABEL
from cnnbench.worker.control import State
from null_workload import PATIENCE_S, ROOT, NullWorkload, wait_until, write_checkout

CLI = shlex.split(os.environ.get("CONTAINER_CLI", "docker"))
IMAGE_NAME = "harness-dummy"
BUILD_S = 600

_IMAGES = "images: {parts: harness, inference: harness}\n"
_DOCKERFILE = """\
ARG BENCHMARK_IMAGE
FROM ${BENCHMARK_IMAGE} AS dummy
ENV CNNBENCH_WORKLOAD=/opt/cnnbench/workload/Harness
COPY workload/Harness ${CNNBENCH_WORKLOAD}
"""

_REACHED = """
import sys
from pathlib import Path
from cnnbench.worker.control import ControlBlock, State
(shared,) = Path("/dev/shm").glob(".cnnbench-run-*")
control, wanted = ControlBlock(shared), State[sys.argv[1]]
sys.exit(any(control.state(int(index)) < wanted for index in sys.argv[2:]))
"""


def ask(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the engine's, however it ends."""
    return subprocess.run(
        [*CLI, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=BUILD_S,
    )


def tell(*arguments: str, **environment: str) -> str:
    """Run a command of the engine's that must succeed; return what it prints."""
    done = ask(*arguments, **environment)
    assert done.returncode == 0, f"{' '.join(done.args)}: {done.stderr}"
    return done.stdout.strip()


def explain_absence() -> str:
    """Say why there is no engine to test with; empty when one answers."""
    try:
        done = ask("version", "--format", "{{.Server.Version}}")
    except FileNotFoundError:
        return f"{CLI[0]}: not found; install docker or podman, or set CONTAINER_CLI"
    if done.returncode == 0:
        return ""
    return f"no container engine answered `{shlex.join(CLI)} version`; start one, or set DOCKER_HOST or CONTAINER_CLI"


def write_container_checkout(directory: Path) -> Path:
    """Write a checkout whose one workload, of the null engine, declares images; return the Python to run it with."""
    write_checkout(directory, "GENERIC")
    for name in ("Dockerfile.1.model", "Dockerfile.2.benchmark", "requirements", "kpi.sh"):
        (directory / name).symlink_to(ROOT / name)
    workload = directory / "workload" / "Harness"
    with (workload / "workload.yaml").open("a") as settings:
        settings.write(_IMAGES)
    (workload / "Dockerfile").write_text(_DOCKERFILE)
    python, start = directory / "python", str(directory / "src" / "cnnbench" / "base" / "start.py")
    python.write_text(
        f'#!/bin/sh\nshift 3 # -I -m cnnbench\nexec {sys.executable} -I {shlex.quote(start)} cnnbench "$@"\n'
    )
    python.chmod(0o755)
    git = ["git", "-C", str(directory), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Add a checkout"]):
        subprocess.run([*git, *command], check=True)
    return python


def configure(build: Path, source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure a build directory of such a checkout for the docker backend."""
    cli = f"-DCONTAINER_CLI={shlex.join(CLI)}"
    return run_cmake(build, source / "python", "-DPLATFORM=GENERIC", "-DBACKEND=docker", cli, *options, source=source)


@dataclass(frozen=True)
class Images:
    """The images of a checkout's workload, and the build directory that they were made in."""

    source: Path
    build: Path
    release: str

    @property
    def dummy(self) -> str:
        """The image that cases run in."""
        return f"{IMAGE_NAME}:{self.release}"

    @property
    def directory(self) -> Path:
        """The workload's build directory, which has ctest.sh."""
        return self.build / "workload" / "Harness"


class ContainerWorkload(NullWorkload):
    """The workload of some images, to be run in containers with logs in a directory of its own."""

    def __init__(self, images: Images, directory: Path, *options: str) -> None:
        self.directory, self.logs_root = images.source / "workload" / "Harness", directory / "runs"
        self._options = ["--backend", "docker", "--container-cli", shlex.join(CLI), "--release", images.release]
        self._options += options

    def command(self, *arguments: str, **case: str) -> list[str]:
        """Return the command that runs a case in a container."""
        return super().command(*self._options, *arguments, **case)

    def containers(self, **environment: str) -> list[str]:
        """Return the containers whose logs go here, running or not."""
        return find_containers(self.logs_root, **environment)

    def wait_for_container(self) -> str:
        """Wait until a container of a run runs; return its name."""
        running = lambda: [name for name in self.containers() if is_running(name)]  # noqa: E731
        wait_until(running, "a container")
        return running()[0]

    def wait_for_state(self, state: State, *instances: int) -> str:  # type: ignore[override]
        """Wait until these instances in the container of a run have come so far; return its name."""
        name = self.wait_for_container()
        command = ["exec", name, "python", "-c", _REACHED, state.name, *map(str, instances or (0,))]
        wait_until(lambda: ask(*command).returncode == 0, f"instances {instances} {state.name}")
        return name


def find_containers(root: Path, **environment: str) -> list[str]:
    """Return the containers whose logs go to a directory, running or not."""
    return tell(
        "ps", "--all", "--filter", f"label={BUILD_LABEL}={root}", "--format", "{{.Names}}", **environment
    ).split()


def is_running(name: str) -> bool:
    """Say whether a container runs."""
    return ask("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true"


def explain_no_private_engine() -> str:
    """Say why no engine of our own can be started here; empty when one can."""
    if Path(CLI[0]).name != "docker" or not all(map(shutil.which, ("dockerd", "unshare", "setpriv"))):
        return "a private engine needs dockerd, unshare and setpriv, and docker as CONTAINER_CLI"
    return "" if os.geteuid() == 0 else "a private engine needs root"


@contextmanager
def private_engine(directory: Path, *prefix: str) -> Iterator["PrivateEngine"]:
    """Run an engine of our own, without networks; whatever happens to it meanwhile, none is left afterwards.

    Its data stay in the directory for the next one. `prefix`: the command that starts it, as setpriv is one.
    """
    directory.mkdir(exist_ok=True)
    engine = PrivateEngine(directory, prefix)
    engine.start()
    try:
        yield engine
    finally:
        engine.end(signal.SIGTERM)


class PrivateEngine:
    """An engine of our own in a directory."""

    def __init__(self, directory: Path, prefix: Sequence[str]) -> None:
        self._directory, self._prefix = directory, prefix
        self.host = f"unix://{directory}/docker.sock"

    def start(self) -> None:
        """Start it and wait until it answers."""
        directory = self._directory
        command = [*self._prefix, "dockerd", "--host", self.host, "--pidfile", directory / "pid"]
        command += ["--data-root", directory / "data", "--exec-root", directory / "exec"]
        # Without a bridge an engine removes docker0, which may be another's: only in a network namespace of its own.
        # In a mount namespace of its own it leaves no mounts behind when it is killed.
        command = ["unshare", "--net", "--mount", *command, "--bridge", "none", "--iptables=false"]
        with (directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: ask("version", DOCKER_HOST=self.host).returncode == 0, "an engine of our own")

    def end(self, number: int) -> None:
        """End it by a signal and wait until it has."""
        self._process.send_signal(number)
        self._process.wait(timeout=PATIENCE_S)
        # What a killed one could not clear away, and the next would be misled by.
        (self._directory / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)
