"""Hand a run's logs over as one archive, into a FIFO, a file or what a container prints; read the last back.

An archive holds the run's files, `error` when there is a message, and last of all `status`, the exit code. Printed, it
is base64 between a line with its size and SHA-256 and a line that ends it: of a log that was cut off or rotated nothing
is taken for whole.
"""

import base64
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TextIO

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError
from cnnbench.base.progress import bytes_text
from cnnbench.results.kpi_text import STATUS

ERROR = "error"
"""The file of an archive that says why there is no result."""

PRINTED_BYTES = 6 << 20
"""How large an archive may be that is printed: a kubelet rotates a container's log at 10 MiB (containerLogMaxSize), and
hands out only what came since; base64 makes 8 MiB of this."""

_LINE_BYTES = 3 * 1024
BEGIN = re.compile(r"=== cnnbench logs: (?P<bytes>\d+) bytes, SHA-256 (?P<sha256>[0-9a-f]{64})")
END = "=== cnnbench logs: end"


class NotWholeError(CnnbenchError):
    """What was printed holds no archive, or not the whole of one."""


def write_archive(stream: BinaryIO, logs: Path, status: int, error: str, *, compress: bool = False) -> None:
    """Write the logs as a tar archive into a stream."""
    texts = ({ERROR: error} if error else {}) | {STATUS: f"{status}\n"}
    with tarfile.open(fileobj=stream, mode="w|gz" if compress else "w|") as archive:
        for path in sorted(logs.rglob("*")):
            if path.relative_to(logs).as_posix() not in texts:
                archive.add(path, path.relative_to(logs).as_posix(), recursive=False)
        for name, text in texts.items():
            content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def save_archive(path: Path, logs: Path, status: int, error: str) -> None:
    """Write the logs into a file of their own, which is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            write_archive(stream, logs, status, error, compress=True)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as failure:
        raise CnnbenchError(
            f"{path}: the logs could not be written there: {failure.strerror}; "
            "the volume needs room, and to be writable by the user of the image"
        ) from failure


def print_archive(stream: TextIO, logs: Path, status: int, error: str, limit_bytes: int = PRINTED_BYTES) -> None:
    """Print the logs for `read_printed`; where they are too large for that, only that they are."""
    archive = io.BytesIO()
    write_archive(archive, logs, status, error, compress=True)
    if archive.tell() > limit_bytes:
        told = (
            f"the logs of this run have {bytes_text(archive.tell())}, and at most {bytes_text(limit_bytes)} can be had "
            "from what a container prints: give the pool a volume for results"
        )
        archive = io.BytesIO()
        write_archive(archive, logs / "none", InvalidMeasurementError.exit_code, told, compress=True)
    content = archive.getvalue()
    lines = [f"=== cnnbench logs: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}"]
    lines += [base64.b64encode(content[at : at + _LINE_BYTES]).decode() for at in range(0, len(content), _LINE_BYTES)]
    print("\n".join([*lines, END]), file=stream, flush=True)


def read_printed(lines: Iterable[str]) -> bytes:
    """Return the archive that a container printed; raise NotWholeError where it is not there whole."""
    found, content, ended = None, bytearray(), False
    for line in map(str.strip, lines):
        if begin := BEGIN.fullmatch(line):
            found, content, ended = begin, bytearray(), False
        elif found and line == END:
            ended = True
        elif found and not ended:
            try:
                content += base64.b64decode(line, validate=True)
            except ValueError as error:
                raise NotWholeError(f"the printed logs are damaged at {line[:40]!r}: {error}") from error
    if found is None:
        raise NotWholeError("no logs were printed")
    digest = hashlib.sha256(content).hexdigest()
    if not ended or len(content) != int(found["bytes"]) or digest != found["sha256"]:
        raise NotWholeError(
            f"the printed logs are not whole: {len(content)} of {found['bytes']} bytes, "
            f"SHA-256 {digest[:12]}, needed {found['sha256'][:12]}"
        )
    return bytes(content)
