"""Keep what is staged or made in one cache directory, where a file or directory is whole or absent.

Standard library only: the engines' environments import this too.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.progress import bytes_text

_log = logging.getLogger(__name__)

MOVE = "set CNNBENCH_CACHE to a directory with room that you may write to"
"""What to do where the cache cannot be written to."""

SCANT_BYTES = 16_000_000
"""What is left of a disk, at the most, on which a step failed because it was full: less than its next file needs."""


def cache_root(environ: Mapping[str, str]) -> Path:
    """Return the cache directory: `CNNBENCH_CACHE`, or `~/.cache/cnnbench`."""
    chosen = environ.get("CNNBENCH_CACHE")
    try:
        return Path(chosen).expanduser().absolute() if chosen else Path.home().absolute() / ".cache" / "cnnbench"
    except RuntimeError as error:
        found = f"CNNBENCH_CACHE={chosen}" if chosen else f"CNNBENCH_CACHE and HOME are not set, user {os.getuid()}"
        raise UsageError(f"{found}: there is no such home directory; {MOVE}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` among processes; wait for another holder, and say so.

    The lock is an empty file `.NAME.lock` beside `path`. It stays there: removing a lock file that another process has
    just opened would let two of them in. The kernel drops the lock when its holder dies.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    make_directory(lock_path.parent, MOVE)
    # Read-only is enough for flock, and lets several users share one cache.
    descriptor = os.open(lock_path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("%s: another process is at work on it; waiting until it ends", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install_directory(build: Callable[[Path], object], destination: Path) -> Path:
    """Have `build(directory)` fill an empty directory and rename it to `destination`; return `destination`.

    An existing `destination` is complete, so nothing is done. The building goes on in the sibling `.NAME.building`,
    under the lock of `destination`; when `build` raises, it is removed and `destination` stays absent. What a killed
    process left there is removed by the next one.
    """
    if _is_installed(destination):
        return destination
    with explain_disk_errors(destination), locked(destination):
        if _is_installed(destination):
            return destination
        building = destination.with_name(f".{destination.name}.building")
        if building.exists():
            shutil.rmtree(building)
        try:
            building.mkdir()
            build(building)
            building.replace(destination)
        except BaseException as error:
            full = building.exists() and shutil.disk_usage(building).free < SCANT_BYTES
            shutil.rmtree(building, ignore_errors=True)
            if full and type(error) is CnnbenchError:  # a program's that was run, which has said why
                raise CnnbenchError(f"{error}\n{building}: the disk is full: make room, or {MOVE}") from error
            raise
    return destination


def _is_installed(destination: Path) -> bool:
    """Tell whether a directory was installed here; an empty one (a bare mount point) was not."""
    if destination.exists() and not destination.is_dir():
        raise CnnbenchError(f"{destination}: is a file, needed a directory: move it away")
    return destination.is_dir() and any(destination.iterdir())


def digest_file(path: Path) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def require_free_space(directory: Path, needed_bytes: int) -> None:
    """Raise when the file system of `directory` (or of its nearest existing parent) has too little room."""
    existing = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise CnnbenchError(
            f"{directory}: {bytes_text(free_bytes)} free on this disk, needed {bytes_text(needed_bytes)}: "
            "free some space, or set CNNBENCH_CACHE to a directory on a larger disk"
        )


def explain_disk_errors(path: Path, discard: Callable[[], object] = lambda: None) -> AbstractContextManager[None]:
    """Raise a clear error, after `discard()`, when the disk refuses to take `path`, a part of the cache."""
    return explain_refusals(path, f"what was written of it is removed; make room, or {MOVE}", discard)
