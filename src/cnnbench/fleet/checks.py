"""Refuse on a machine, before anything runs, what would make its runs other than those that were asked for."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from cnnbench.base.cache import digest_file
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, UsageError
from cnnbench.cases.platforms import detect_platform
from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.folder import FleetFolder
from cnnbench.launch.container import run_engine
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.record import SCHEMA
from cnnbench.run.images import digest_package


class RefusedError(InvalidMeasurementError):
    """This machine is not what its runs were asked for on; another one may be."""


def check_folder(batch: BatchFile, folder: FleetFolder) -> None:
    """Raise UsageError where a shared folder is not the one that the controller sees."""
    if not batch.token:
        return
    found = folder.token
    if not found:
        raise UsageError(
            f"{folder.path}: no fleet's folder on this machine; needed is the controller's, over a shared file "
            "system, or `shared: false` and a `folder` in the pool"
        )
    if found != batch.token:
        raise UsageError(
            f"{folder.path}: is another folder on this machine than where the fleet was started (token {found[:8]}, "
            f"needed {batch.token[:8]}); mount the same one, or give the pool `shared: false`"
        )


def check_node(batch: BatchFile, cache: Path) -> None:
    """Raise RefusedError with what was found, what was needed and what to do."""
    _check_schema(batch)
    _check_clock(batch)
    _check_platform(batch)
    _check_sources(batch)
    for path, needed in batch.files.items():
        _check_file(cache / path, needed)
    for image, needed in batch.images.items():
        _check_image(batch.container_cli.split(), image, needed)


def digest_workload(directory: Path) -> str:
    """Return a digest of what a workload declares: its yaml files and cmake declarations."""
    files = sorted(
        path for pattern in ("*.yaml", "CMakeLists.txt", "cmake/*.cmake") for path in directory.glob(pattern)
    )
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(directory)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _check_schema(batch: BatchFile) -> None:
    if batch.result_schema != SCHEMA:
        raise RefusedError(
            f"results here are of schema {SCHEMA}, needed {batch.result_schema}: have the same version of cnnbench on "
            "all machines"
        )


def _check_clock(batch: BatchFile, now: Callable[[], float] = time.time) -> None:
    behind_s = batch.written_s - now()
    if behind_s > batch.clock_skew_s:
        raise RefusedError(
            f"the clock here is {behind_s:.1f} s or more behind the controller's (clock_skew_s is "
            f"{batch.clock_skew_s:g}): have both kept by one time server"
        )


def _check_platform(batch: BatchFile) -> None:
    found = detect_platform(read_cpuinfo())
    if batch.platform and found != batch.platform:
        raise RefusedError(
            f"this machine is {found}, and pool {batch.pool} is of {batch.platform}: give the pool other machines, or "
            "another platform, or none"
        )


def _check_sources(batch: BatchFile) -> None:
    if (found := digest_package()) != batch.sources:
        raise RefusedError(
            f"the program here has the digest {found[:12]}, the controller's {batch.sources[:12]}: bring both "
            "checkouts to the same commit"
        )
    for path, needed in batch.workloads.items():
        directory = Path(path)
        if not (directory / "workload.yaml").is_file():
            raise RefusedError(f"{directory}: no workload.yaml on this machine; the controller has one")
        if (found := digest_workload(directory)) != needed:
            raise RefusedError(
                f"{directory}: its declarations have the digest {found[:12]}, the controller's {needed[:12]}: bring "
                "both to the same commit"
            )


def _check_file(path: Path, needed: str) -> None:
    if not path.is_file():
        raise RefusedError(f"{path}: not on this machine; needed is one with SHA-256 {needed[:12]}...; stage it")
    if (found := digest_file(path)) != needed:
        raise RefusedError(f"{path}: SHA-256 is {found[:12]}..., needed {needed[:12]}...: it has other bytes; stage it")


def _check_image(cli: list[str], image: str, needed: str) -> None:
    try:
        text = run_engine([*cli, "image", "inspect", "--format", "[{{json .Id}},{{json .RepoDigests}}]", image])
    except CnnbenchError as error:
        raise RefusedError(f"image {image}: {error}") from error
    identity, digests = json.loads(text)
    found = [identity, *(one.partition("@")[2] for one in digests or ())]
    if needed not in found:
        raise RefusedError(f"image {image}: is {' or '.join(found)}, needed {needed}: pull or make that one")
