"""Find a `tritonserver` of this machine, and have it started with what its models need."""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.machine.topology import format_cpu_list
from cnnbench.serving.server import PREFIX, Origin, Start, Wanted
from cnnbench.staging.environments import TRITON_SERVER, locked_python

PYTHON = "python"
"""The backend of Triton's that has this program's engines in it."""
REGIONS = Path("/dev/shm")  # noqa: S108 - where POSIX has shared memory
PRELOAD = "LD_PRELOAD"
PROGRAMS = 3
"""From the controller to the model: what ties the server to this process, the server, and the model's own process."""


@dataclass(frozen=True)
class Installation:
    """Where a server is: its program, and the directory of its backends, whose Python one the models need."""

    program: Path
    backends: Path
    stub: Path


def find_installation(program: str, cache: Path, option: str = "TRITON_SERVER=") -> Installation:
    """Return a user's installation by its program, or that of the wheel, made ready on first use.

    `option`: what the program was given by.
    """
    number = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if program:
        backend = find_backend(program, PYTHON, option)
        return Installation(Path(program).absolute(), backend, backend / "triton_python_backend_stub")
    environment = locked_python(TRITON_SERVER, cache).parents[1]
    found = list(environment.glob("lib/python*/site-packages/pytriton/tritonserver/bin/tritonserver"))
    if not found:
        raise CnnbenchError(f"{environment}: has no tritonserver; remove it, and it is made anew")
    root = found[0].parents[1]
    stub = root / "python_backend_stubs" / number / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stub.parents[1].iterdir()))
        raise SkippedError(f"Triton Server's wheel has no stub for Python {number}, which has this: it has {known}")
    return Installation(found[0], root / "backends" / PYTHON, stub)


def find_backend(program: str, name: str, option: str) -> Path:
    """Return the directory of a backend of a user's installation; raise UsageError where it has none."""
    path = Path(program)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(f"{option}{program}: no program; needed is `tritonserver`, as /opt/tritonserver/bin has")
    backend = path.absolute().parents[1] / "backends" / name
    if not backend.is_dir():
        raise UsageError(f"{option}{program}: has no {name} backend in {backend}; install it with it")
    return backend


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


class EngineServer(Origin):
    """A program whose models are this program's engines, each in a process of Triton's Python backend.

    `python`: the models' own, of the engine's environment. `environment`: what their processes get.
    """

    def __init__(self, installation: Installation, python: Path, environment: Mapping[str, str]) -> None:
        self._installation = installation
        self._environment = dict(environment)
        if preloaded := environment.get(PRELOAD):  # what samples takes itself out, once in each program on the way
            first = preloaded.partition(":")[0]
            self._environment[PRELOAD] = ":".join([first] * (PROGRAMS - 1) + [preloaded])
        self._environment["PATH"] = f"{python.parent}:{environment.get('PATH', os.defpath)}"
        libraries = [str(find_libpython()), environment.get("LD_LIBRARY_PATH", "")]
        self._environment["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))

    def prepare(self, wanted: Wanted, stack: ExitStack) -> Start:
        """Make the directory of backends that the server looks into: of links, by which its files find theirs."""
        backends = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cnnbench-triton-")))
        target = backends / PYTHON
        target.mkdir()
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            (target / name).symlink_to(self._installation.backends / name)
        (target / "triton_python_backend_stub").symlink_to(self._installation.stub)
        remove_orphans()
        stack.callback(_remove_regions, wanted.prefix)
        options = [
            *("--backend-directory", str(backends)),
            f"--backend-config={PYTHON},shm-region-prefix-name={wanted.prefix}",
        ]
        return Start([str(self._installation.program), *_options(wanted), *options], self._environment)


class OwnServer(Origin):
    """A user's program, whose models are of its own backends; `cpus`: where it runs, anywhere where there are none."""

    def __init__(self, program: Path, environment: Mapping[str, str], cpus: Sequence[int]) -> None:
        self._program, self._environment, self._cpus = program.absolute(), dict(environment), cpus

    def prepare(self, wanted: Wanted, stack: ExitStack) -> Start:
        """Return its command; it has its backends beside it."""
        remove_orphans()
        stack.callback(_remove_regions, wanted.prefix)
        options = [
            *("--backend-directory", str(self._program.parents[1] / "backends")),
            f"--backend-config={PYTHON},shm-region-prefix-name={wanted.prefix}",
        ]
        return Start([str(self._program), *_options(wanted), *options], self._environment, format_cpu_list(self._cpus))


def _options(wanted: Wanted) -> list[str]:
    return wanted.options(str(wanted.repository), wanted.address, wanted.ports)


def _remove_regions(prefix: str) -> None:
    for path in REGIONS.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def remove_orphans() -> None:
    """Remove the shared memory of servers whose controllers have been killed with them."""
    for path in REGIONS.glob(f"{PREFIX}-*"):
        owner = path.name.removeprefix(f"{PREFIX}-").partition("-")[0]
        try:
            if owner.isdecimal() and path.stat().st_uid == os.getuid() and not Path(f"/proc/{owner}").exists():
                path.unlink()
        except FileNotFoundError:  # another run may be removing it at this moment
            continue
