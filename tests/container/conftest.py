"""Fixtures of the tests that need a container engine; without one they are skipped and say so."""

import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from cmake_build import find_tool
from container_engine import (
    BUILD_S,
    ContainerWorkload,
    Images,
    ask,
    configure,
    explain_absence,
    find_containers,
    write_container_checkout,
)
from null_workload import wait_until

LOCAL_BASE = "cnnbench-base:bookworm"


@pytest.fixture(scope="session")
def engine() -> None:
    """A container engine that answers."""
    if reason := explain_absence():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def base_image(engine: None) -> str:
    """CNNBENCH_BASE_IMAGE, else what script/base-image.sh makes, else, empty, the public one of the Dockerfile."""
    if given := os.environ.get("CNNBENCH_BASE_IMAGE"):
        return given
    return LOCAL_BASE if ask("image", "inspect", LOCAL_BASE).returncode == 0 else ""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, base_image: str) -> Images:
    """The images of a null workload, made as a user makes them; removed at the end."""
    if not shutil.which("make"):
        pytest.skip("make: not found; images are made with it")
    directory = tmp_path_factory.mktemp("images")
    write_container_checkout(directory / "checkout")
    made = Images(directory / "checkout", directory / "build", f"test-{secrets.token_hex(4)}")
    done = configure(made.build, made.source, f"-DRELEASE={made.release}", f"-DBASE_IMAGE={base_image}")
    assert done.returncode == 0, done.stderr
    try:
        subprocess.run([find_tool("cmake"), "--build", made.build], check=True, timeout=BUILD_S)
        yield made
    finally:
        ask("rmi", made.dummy, f"harness-benchmark:{made.release}")
        ask("image", "prune", "--force", "--filter", "label=cnnbench.workload=Harness")  # what failed builds left


@pytest.fixture
def workload(images: Images, tmp_path: Path) -> ContainerWorkload:
    """The null workload in containers, with the logs of this test; no container of it may be left."""
    workload = ContainerWorkload(images, tmp_path)
    yield workload
    left = workload.containers()
    for name in left:
        ask("rm", "--force", name)
    assert not left


def _is_removed(directory: Path) -> bool:
    shutil.rmtree(directory, ignore_errors=True)  # a case whose ctest was killed may still say its last word
    return not directory.exists()


@pytest.fixture
def build_directory(images: Images) -> Path:
    """The workload's build directory; after the test it has no logs again, and no container that writes there."""
    yield images.directory
    for logs in images.directory.glob("logs-*"):
        wait_until(lambda logs=logs: _is_removed(logs), "the end of what writes there")
    left = find_containers(images.directory)
    for name in left:
        ask("rm", "--force", name)
    assert not left
