"""Make one virtual environment for each build of an engine, from its lock file, on first use.

`python -m cnnbench.staging.environments LOCK` does so for an image, before the rest of this package is copied
there.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from cnnbench.base.cache import cache_root, explain_disk_errors, install_directory, locked
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.engines.registry import Build, Engine, Steps, engines

REQUIREMENTS = REPOSITORY / "requirements"

RANKS = "mpi-ranks"
"""The lock file of MPI's ranks: mpi4py, and what their part of cnnbench imports."""


def lock_path(lock: str) -> Path:
    """Return the file of a lock's name."""
    return REQUIREMENTS / f"{lock}.lock"


def environment_path(lock: str, cache: Path) -> Path:
    """Return where the environment of a lock file is: its name tells the lock's, the Python and the lock's digest."""
    digest = hashlib.sha256(lock_path(lock).read_bytes()).hexdigest()[:12]
    return cache / "environments" / f"{lock}-cp{sys.version_info[0]}{sys.version_info[1]}-{digest}"


def own_python(build: Build) -> Path | None:
    """Return the Python that the caller has for a build, None where an environment of ours is to be made."""
    if not build.own_python or not (name := os.environ.get(build.own_python)):
        return None
    python = Path(name).absolute()
    if not os.access(python, os.X_OK):
        raise UsageError(
            f"{build.own_python}={name}: no program; needed is a Python with what is in requirements/{build.lock}.lock"
        )
    return python


def require_environment(engine: Engine, variant: str, cache: Path) -> None:
    """Raise SkippedError when an engine's build has no environment, for where none can be made: in a container."""
    if not variant or environment_path(engine.build(variant).lock, cache).is_dir():
        return
    there = [build.name for build in engine.builds if environment_path(build.lock, cache).is_dir()]
    raise SkippedError(
        f"VARIANT={variant}: this image was made without it and has {', '.join(there) or 'none'}: configure with "
        f"-DMORE_VARIANTS={variant} and make it anew (doc/containers.md)"
    )


def planned_python(engine: Engine, variant: str, cache: Path) -> Path:
    """Return the Python that runs an engine's build, whether its environment is there yet or not."""
    if not variant:
        return Path(sys.executable)
    build = engine.build(variant)
    return own_python(build) or environment_path(build.lock, cache) / "bin" / "python"


def engine_python(engine: Engine, variant: str, cache: Path) -> Path:
    """Return the Python that runs an engine's build, making its environment when it is not there yet."""
    if not variant:
        return Path(sys.executable)
    build = engine.build(variant)
    return own_python(build) or locked_python(build.lock, cache, build.index)


def locked_python(lock: str, cache: Path, index: str = "") -> Path:
    """Return the Python of a lock file's environment, making that when it is not there yet.

    `index`: where else its packages are, if not all are where pip looks.
    """
    destination = environment_path(lock, cache)
    python = destination / "bin" / "python"
    if not python.exists():
        _discard_orphan(destination, python)
    install_directory(lambda directory: _make_environment(directory, lock_path(lock), index), destination)
    return python


def steps_python(engine: Engine, variant: str, steps: Steps, cache: Path) -> Path:
    """Return the Python that runs some steps of an engine's; raise SkippedError where this Python cannot."""
    if obstacle := steps.obstacle(sys.version_info[:2]):
        raise SkippedError(obstacle)
    return locked_python(steps.lock, cache) if steps.lock else engine_python(engine, variant, cache)


def _discard_orphan(destination: Path, python: Path) -> None:
    """Remove an environment whose Python, a link to the one that it was made with, leads nowhere any more."""
    with explain_disk_errors(destination), locked(destination):
        if not python.exists() and destination.is_dir():  # another process may have made it anew meanwhile
            print(f"{destination}: the Python that it was made with is gone: making it anew", file=sys.stderr)
            shutil.rmtree(destination)


def _make_environment(directory: Path, lock: Path, index: str) -> None:
    """Fill a directory with a virtual environment; it may be renamed afterwards, as only its Python is used."""
    print(f"making the environment of {lock.stem}: this downloads and unpacks a framework", file=sys.stderr, flush=True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    _run([str(base if base.exists() else sys.executable), "-m", "venv", str(directory)], lock)
    install = [str(directory / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    install += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    try:
        _run(install, lock)
    except CnnbenchError:
        if not index:
            raise
        # Only now, as every package would be looked for there too, and where it cannot be reached, waited for.
        print(f"{lock.name}: not all of it where pip looks: trying {index} as well", file=sys.stderr, flush=True)
        _run([*install, "--extra-index-url", index, "--retries", "1", "--timeout", "30"], lock)


def _run(command: list[str], lock: Path) -> None:
    """Run a step; show pip's own bars on a terminal, and its downloads and installations as lines anywhere else."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    terminal = sys.stderr.isatty()
    last: deque[str] = deque(["it says why above"] if terminal else [], maxlen=8)
    with subprocess.Popen(
        command,
        env=environment,
        stdout=sys.stderr if terminal else subprocess.PIPE,
        stderr=None if terminal else subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            for line in process.stdout or ():
                last.append(line.rstrip())
                if line.lstrip().startswith(("Downloading", "Installing")):
                    print(f"  {line.strip()[:110]}", file=sys.stderr, flush=True)
            code = process.wait()
        except BaseException:  # interrupted: neither the step nor what it has started may go on
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if code != 0:
        raise CnnbenchError(
            f"making the environment of {lock.name} failed at `{' '.join(command)}`:\n" + "\n".join(last)
        )


def _index_of(lock: str) -> str:
    return next((build.index for engine in engines().values() for build in engine.builds if build.lock == lock), "")


if __name__ == "__main__":
    locked_python(sys.argv[1], cache_root(os.environ), _index_of(sys.argv[1]))
