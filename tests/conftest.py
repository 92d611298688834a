"""Fixtures that several folders share; being here, it also puts tests/ on the import path."""

import os
import signal
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError
from cnnbench.engines import pytorch
from cnnbench.engines.builds import choose_build
from cnnbench.engines.registry import find_engine
from cnnbench.machine.host import read_cpuinfo
from cnnbench.staging.environments import engine_python

# A shell starts background jobs with SIGINT ignored, and children inherit that: the programs under test must get it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class FileScheduling(LoadScopeScheduling):
    """Keep together, where tests run side by side, those of a file, which share runs, and those of container images."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "tests/container" if path.startswith("tests/container/") else path


def pytest_xdist_make_scheduler(config, log):
    """Part tests so among the processes that run them."""
    return FileScheduling(config, log)


@pytest.fixture(scope="session")
def engine_cache() -> Path:
    """The user's cache: environments and models are made once, as for a user, not once a test."""
    return cache_root(os.environ)


@pytest.fixture
def cpu_flags(monkeypatch, tmp_path):
    """Have the cases that this process plans find a CPU with these flags."""

    def pretend(flags: str) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor : 0\nvendor_id : GenuineIntel\nflags : {flags}\n")
        monkeypatch.setattr("cnnbench.run.job.read_cpuinfo", lambda: read_cpuinfo(cpuinfo))

    return pretend


@pytest.fixture(scope="session")
def tensorflow_python(engine_cache: Path) -> Path:
    """A Python with TensorFlow, cnnbench not yet on its path."""
    engine = find_engine("tensorflow")
    return engine_python(engine, choose_build(engine, "auto", read_cpuinfo()), engine_cache)


@pytest.fixture(scope="session")
def pytorch_python(engine_cache: Path) -> Path:
    """A Python with PyTorch's build for CPUs; skips where that cannot be had, as its index is not everywhere."""
    if sys.version_info[:2] != pytorch.PYTHON:
        pytest.skip("PyTorch is locked for Python 3.11 alone")
    try:
        return engine_python(find_engine("pytorch"), "cpu", engine_cache)
    except CnnbenchError as error:
        pytest.skip(f"PyTorch's build for CPUs cannot be had here: {error}")


@pytest.fixture
def unsupported_python(monkeypatch):
    """Have this Python be one that no model can be quantised with, as 3.12 and 3.13 are."""
    monkeypatch.setattr("cnnbench.engines.tensorflow.ITEX_PYTHONS", ((3, 9),))
