"""Say what is wrong with a place that cannot be written to, and what moves it elsewhere.

Standard library only: the engines' environments import this too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, UsageError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit (ulimit -f) is reached",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "a file is where a directory is needed",
}


def describe_refusal(error: OSError) -> str:
    """Say what the system has refused, and what to do where no place of ours is known to be the reason."""
    if error.errno in _REASONS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_REASONS[error.errno]}: put that right, or choose another place"
    if error.filename is None and "temporary directory" in (error.strerror or ""):
        return f"{error.strerror}: set TMPDIR to a directory with room that you may write to"
    return str(error)


@contextmanager
def explain_refusals(path: Path, remedy: str, discard: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Raise a clear error, after `discard()`, when the disk refuses to take `path`: full, over quota, not writable.

    `remedy`: what to do, and which variable or option moves it elsewhere.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        discard()
        raise CnnbenchError(f"{error.filename or path}: {_REASONS[error.errno]}: {remedy}") from error


def make_directory(path: Path, remedy: str) -> None:
    """Make a directory where there is none yet, with its parents; raise a clear error where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CnnbenchError(f"{path}: {_REASONS[errno.ENOTDIR]}: {remedy}") from error
    except OSError as error:  # of /proc, "no such file"
        reason = _REASONS.get(error.errno or 0, f"no directory can be made ({error.strerror})")
        raise CnnbenchError(f"{error.filename or path}: {reason}: {remedy}") from error


YOURS = "give a directory that is yours, or one that can be made"


def check_directory(given: str, path: Path, remedy: str = YOURS) -> None:
    """Raise UsageError unless a directory can be written to, or made; whatever is tried for that leaves nothing.

    `given`: the option with its value. Permissions alone do not tell: below /proc, root has them and makes nothing.
    """
    path = path.absolute()
    try:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        Path(tempfile.mkdtemp(prefix=".cnnbench-", dir=there)).rmdir()
    except OSError as error:
        raise UsageError(f"{given}: cannot be written to ({os.strerror(error.errno or 0)}); {remedy}") from error


@contextmanager
def held(directory: Path, refusal: str) -> Iterator[None]:
    """Keep other processes out of a directory that is there; raise UsageError with `refusal` where one is in it.

    The kernel lets go when the holder dies, and nothing is left in the directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(refusal) from error
        yield
    finally:
        os.close(descriptor)


def require_loadable(path: Path, remedy: str) -> None:
    """Raise a clear error where the libraries that go below `path` could not be loaded, as it is mounted noexec."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if os.statvfs(existing).f_flag & os.ST_NOEXEC:
        raise CnnbenchError(f"{existing}: the file system is mounted noexec, so no library loads from there: {remedy}")


def temporary_root() -> Path:
    """Return where temporary files go; raise a clear error where nothing can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise CnnbenchError(describe_refusal(error)) from error
