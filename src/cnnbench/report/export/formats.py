"""Name the formats that runs are exported in, and write one: to a file, whole or not at all, or to a stream."""

import contextlib
import importlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cnnbench.base.disk import check_directory, explain_refusals
from cnnbench.base.errors import UsageError
from cnnbench.report.reading import Found
from cnnbench.results.record import RunResult

Writer = Callable[[Sequence[tuple[str, RunResult]], Sequence[str], BinaryIO], None]
"""Writes runs by the names of their logs; the second argument is what could not be read, and why."""

FORMATS = {
    "json": "cnnbench.report.export.text:write_json",
    "csv": "cnnbench.report.export.text:write_csv",
    "markdown": "cnnbench.report.export.text:write_markdown",
    "junit": "cnnbench.report.export.junit:write_junit",
    "xlsx": "cnnbench.report.export.workbook:write_workbook",
    "parquet": "cnnbench.report.export.parquet:write_parquet",
}
SUFFIXES = {
    ".json": "json",
    ".csv": "csv",
    ".md": "markdown",
    ".markdown": "markdown",
    ".xml": "junit",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
}
"""The format of a file that none is named for."""
BINARY = ("xlsx", "parquet")
"""What no terminal is to get."""

HOW_TO_GET = "run script/setup.sh report"


def choose_format(name: str, output: Path | None) -> str:
    """Return the format that is named, or that of a file's suffix; raise UsageError where that is none."""
    if not name:
        if output is None:
            raise UsageError(f"needs -o FILE, or --format: {', '.join(FORMATS)}")
        name = SUFFIXES.get(output.suffix.lower(), "")
        if not name:
            raise UsageError(
                f"-o {output}: {output.suffix or 'no suffix'} tells no format; name it with --format "
                f"({', '.join(FORMATS)}), or the file with {', '.join(SUFFIXES)}"
            )
    if name not in FORMATS:
        raise UsageError(f"--format {name}: no such format; there are {', '.join(FORMATS)}")
    if name in BINARY and output is None:
        raise UsageError(f"--format {name}: is no text, so it needs -o FILE")
    return name


def load_writer(name: str) -> Writer:
    """Import what writes a format."""
    module, _, function = FORMATS[name].partition(":")
    writer: Writer = getattr(importlib.import_module(module), function)
    return writer


def need(module: str, what: str) -> Any:
    """Return a module that writes a format; raise UsageError, with how to get it, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what}: needs {module.partition('.')[0]}, which is not installed: {HOW_TO_GET}") from error


def export(name: str, found: Found) -> bytes:
    """Return runs in a format."""
    stream = io.BytesIO()
    write(name, found, stream)
    return stream.getvalue()


def write(name: str, found: Found, stream: BinaryIO) -> None:
    """Write runs in a format."""
    load_writer(name)(found.named, found.failures, stream)


def check_output(output: Path) -> None:
    """Raise UsageError where no file can be written there."""
    if output.is_dir():
        raise UsageError(f"-o {output}: is a directory; name a file in it")
    try:
        kind = output.stat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    except OSError as error:  # a link that leads to itself, a file in place of a directory
        raise UsageError(f"-o {output}: cannot be written to ({error.strerror})") from error
    if not stat.S_ISREG(kind):
        raise UsageError(f"-o {output}: is no regular file; text formats go to standard output without -o")
    check_directory(f"-o {output}", output.resolve().parent)


def write_whole(output: Path, write: Callable[[BinaryIO], None]) -> None:
    """Have a file written beside its place and moved there when it is whole; one that was there stays until then.

    A link stays one: what it leads to is replaced, with the permissions that it had.
    """
    place = output.resolve()
    with explain_refusals(place, "make room, or name another file with -o"):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{place.name[:100]}.", dir=place.parent)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                write(stream)
            partial.chmod(_permissions(place))
            partial.replace(place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            raise


def _permissions(place: Path) -> int:
    """Return the permissions of a file that is there, or those that a new one gets."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(place.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
