"""Make one virtual environment for each engine build, from its lock file, on first use.

`python -m cnnbench.staging.environments ENGINE VARIANT` does so for an image, before the rest of this package is copied
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
from cnnbench.engines.registry import ENGINES, GPU_VARIANT
from cnnbench.machine.host import CpuInfo

REQUIREMENTS = REPOSITORY / "requirements"

ITEX_PYTHONS = ((3, 10), (3, 11))
"""The Pythons that the last ITEX with CPU wheels has wheels for."""

TORCH_PYTHON = (3, 11)
"""The Python that PyTorch is locked for (requirements/pytorch-cpu.in)."""

GPU_PYTHON_VARIABLE = "CNNBENCH_PYTORCH_CUDA"
"""Environment variable: a Python that has PyTorch for GPUs, timm and torchvision already, to be used as it is in place
of the environment of requirements/pytorch-cuda.lock, which is several gigabytes to fetch."""

INDEXES = dict.fromkeys(("pytorch-cpu", "peers-pytorch"), "https://download.pytorch.org/whl/cpu")
"""Where else the packages of a lock file are, which PyPI has not."""

QUANTIZER = "quantizer"
"""The environment that quantises an engine's models; nothing is measured with it. It stands beside the builds."""

RANKS = ("mpi", "ranks")
"""The environment of MPI's ranks, as engine and build: mpi4py, and what their part of cnnbench imports."""


def lock_file(engine: str, variant: str) -> Path:
    """Return the lock file of one engine build."""
    name = ENGINES[engine].environment or engine if engine in ENGINES else engine
    return REQUIREMENTS / f"{name}-{variant}.lock"


def choose_variant(
    engine: str,
    requested: str,
    cpu: CpuInfo,
    weight_sharing: bool = False,
    int8: bool = False,
    gpu: bool = False,
    python: tuple[int, int] = sys.version_info[:2],
) -> str:
    """Return the build to use: the requested one, or for `auto` the first that can run; empty if the engine has none.

    Raises SkippedError when this Python or CPU cannot run the requested one or it has no kernels for `int8`, UsageError
    when it cannot share weights. On a `gpu` it is the build for GPUs that runs, and nowhere else.
    The order is the measured one (doc/performance.md): ITEX was as fast as stock TensorFlow or faster wherever it could
    run, on Intel's and on AMD's processors.
    It locks every operation while it runs, though, so that instances on one set of weights would take turns.
    zentf is AMD's and comes last, as nothing measured so far shows it ahead of stock TensorFlow; stock runs everywhere.
    """
    variants = ENGINES[engine].variants
    if not variants:
        return ""
    if weight_sharing and requested == "itex":
        raise UsageError("VARIANT=itex: cannot share weights between instances that run at once; choose stock or auto")
    obstacles = {variant: _obstacle(variant, variants, cpu, python) for variant in (*variants, requested)}
    if weight_sharing:
        obstacles["itex"] = "cannot share weights"
    if int8:
        able = ENGINES[engine].int8_variants
        instead = f"; choose {' or '.join(able)}" if able else ""
        obstacles |= dict.fromkeys(set(variants) - set(able), f"has no int8 convolutions{instead}")
    for variant in variants:
        if gpu != (variant == GPU_VARIANT):
            obstacles[variant] = "runs on CPUs only" if gpu else "is for cuda_ precisions"
    if requested == "auto":
        if runnable := [variant for variant in variants if not obstacles[variant]]:
            return runnable[0]
        raise SkippedError("; ".join(f"{engine} {variant}: {obstacles[variant]}" for variant in variants))
    if obstacles[requested]:
        raise SkippedError(f"VARIANT={requested}: {obstacles[requested]}")
    return requested


def _obstacle(variant: str, variants: tuple[str, ...], cpu: CpuInfo, python: tuple[int, int]) -> str:
    """Say why a build cannot run here; empty when it can."""
    if variant == "auto":
        return ""
    if variant not in variants:
        return f"is no build of this engine; there are {', '.join(variants)}"
    if variant == "itex" and python not in ITEX_PYTHONS:
        return f"has no wheels for Python {python[0]}.{python[1]}, only for 3.10 and 3.11"
    if variant == "cpu" and python != TORCH_PYTHON:
        return f"its lock file has no PyTorch for Python {python[0]}.{python[1]}, only for 3.11"
    if variant in ("itex", "zentf") and "avx2" not in cpu.flags:
        return "needs a CPU with AVX2"
    return ""


def environment_path(engine: str, variant: str, cache: Path) -> Path:
    """Return where an engine build's environment is: its name tells engine, build, Python and lock file."""
    lock = lock_file(engine, variant)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    return cache / "environments" / f"{lock.stem}-cp{sys.version_info[0]}{sys.version_info[1]}-{digest}"


def own_gpu_python(variant: str) -> Path | None:
    """Return the Python that the caller has for GPUs, None where an environment of ours is to be made."""
    if variant != GPU_VARIANT or not (name := os.environ.get(GPU_PYTHON_VARIABLE)):
        return None
    python = Path(name).absolute()
    if not os.access(python, os.X_OK):
        raise UsageError(f"{GPU_PYTHON_VARIABLE}={name}: no program; needed is a Python with PyTorch for GPUs and timm")
    return python


def require_environment(engine: str, variant: str, cache: Path) -> None:
    """Raise SkippedError when an engine build has no environment, for where none can be made: in a container."""
    if not variant or environment_path(engine, variant, cache).is_dir():
        return
    there = [one for one in ENGINES[engine].variants if environment_path(engine, one, cache).is_dir()]
    raise SkippedError(
        f"VARIANT={variant}: this image was made without it and has {', '.join(there) or 'none'}: configure with "
        f"-DMORE_VARIANTS={variant} and make it anew (doc/containers.md)"
    )


def engine_python(engine: str, variant: str, cache: Path) -> Path:
    """Return the Python that runs an engine build, making its environment when it is not there yet."""
    if not variant:
        return Path(sys.executable)
    if own := own_gpu_python(variant):
        return own
    lock = lock_file(engine, variant)
    destination = environment_path(engine, variant, cache)
    python = destination / "bin" / "python"
    if not python.exists():
        _discard_orphan(destination, python)
    install_directory(lambda directory: _make_environment(directory, lock), destination)
    return python


def quantizer_obstacle(python: tuple[int, int] = sys.version_info[:2]) -> str:
    """Say why no model can be quantised to int8 with this Python; empty when one can."""
    if python in ITEX_PYTHONS:
        return ""
    return (
        f"quantising a model to int8 needs TensorFlow 2.15, which has wheels for Python 3.10 and 3.11 only, and this "
        f"is {python[0]}.{python[1]}; run with one of those, or give a graph that is int8 already by MODEL"
    )


def quantizer_python(engine: str, cache: Path) -> Path:
    """Return the Python that quantises an engine's models; raise SkippedError where its packages have no wheels."""
    if obstacle := quantizer_obstacle():
        raise SkippedError(obstacle)
    return engine_python(engine, QUANTIZER, cache)


def _discard_orphan(destination: Path, python: Path) -> None:
    """Remove an environment whose Python, a link to the one that it was made with, leads nowhere any more."""
    with explain_disk_errors(destination), locked(destination):
        if not python.exists() and destination.is_dir():  # another process may have made it anew meanwhile
            print(f"{destination}: the Python that it was made with is gone: making it anew", file=sys.stderr)
            shutil.rmtree(destination)


def _make_environment(directory: Path, lock: Path) -> None:
    """Fill a directory with a virtual environment; it may be renamed afterwards, as only its Python is used."""
    print(f"making the environment of {lock.stem}: this downloads and unpacks a framework", file=sys.stderr, flush=True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    _run([str(base if base.exists() else sys.executable), "-m", "venv", str(directory)], lock)
    install = [str(directory / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    install += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    try:
        _run(install, lock)
    except CnnbenchError:
        if not (index := INDEXES.get(lock.stem)):
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


if __name__ == "__main__":
    engine_python(sys.argv[1], sys.argv[2], cache_root(os.environ))
