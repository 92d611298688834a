"""Find out whether a place that a user names can be written to, before anything is done for it."""

import os
import tempfile
from pathlib import Path

from cnnbench.base.errors import UsageError


def check_directory(given: str, path: Path) -> None:
    """Raise UsageError unless a directory can be written to, or made; whatever is tried for that leaves nothing.

    `given`: the option with its value. Permissions alone do not tell: below /proc, root has them and makes nothing.
    """
    path = path.absolute()
    try:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        Path(tempfile.mkdtemp(prefix=".cnnbench-", dir=there)).rmdir()
    except OSError as error:
        raise UsageError(
            f"{given}: cannot be written to ({os.strerror(error.errno or 0)}); give a directory that is yours, or one "
            "that can be made"
        ) from error
