"""Know the virtual environment of each build of an engine, which is made from its lock file on first use."""

import os
import sys
from pathlib import Path

from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.engines.registry import Build, Engine, Steps
from cnnbench.staging.installer import REQUIREMENTS, environment_of, make_environment

RANKS = "mpi-ranks"
"""The lock file of MPI's ranks: mpi4py, and what their part of cnnbench imports."""

LOADGEN = "loadgen"
"""The lock file of MLPerf's LoadGen."""

TRITON_SERVER, TRITON_CLIENT = "triton-server", "triton-client"
"""The lock files of what serves, and of what asks it."""

PERF_ANALYZER = "perf-analyzer"
"""The lock file of NVIDIA's perf_analyzer, which asks once more."""


def lock_path(lock: str) -> Path:
    """Return the file of a lock's name."""
    return REQUIREMENTS / f"{lock}.lock"


def environment_path(lock: str, cache: Path) -> Path:
    """Return where the environment of a lock file is."""
    return environment_of(lock_path(lock), cache)


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
    if not there:
        raise SkippedError(
            f"this image was made without {engine.name}, which is needed: configure with it in -DENGINES, or with none "
            "there, and make it anew (doc/containers.md)"
        )
    raise SkippedError(
        f"VARIANT={variant}: this image was made without it and has {', '.join(there)}: configure with "
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
    return make_environment(lock_path(lock), cache, index)


def steps_python(engine: Engine, variant: str, steps: Steps, cache: Path) -> Path:
    """Return the Python that runs some steps of an engine's; raise SkippedError where this Python cannot."""
    if obstacle := steps.obstacle(sys.version_info[:2]):
        raise SkippedError(obstacle)
    return locked_python(steps.lock, cache) if steps.lock else engine_python(engine, variant, cache)
