"""Unpack tar archives without trusting them: only plain files and directories, all inside, all complete.

Standard library only. `tarfile`'s own data filter exists from 3.10.12, 3.11.4 and 3.12 on: it is asked too where it is
there, but the checks here do not depend on it.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from cnnbench.base.cache import require_free_space
from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import BYTES, Progress

GZIP_MAGIC = b"\x1f\x8b"
MAX_MEMBERS = 1_000_000
# JPEG images hardly compress, text and source code by less than 20: more than this is not a dataset but a trap.
MAX_EXPANSION = 100
SMALL_BYTES = 64 << 20
MAX_NAME_BYTES = 255
CHUNK_BYTES = 1 << 20


class DamagedError(CnnbenchError):
    """An archive is cut off or damaged, so that it cannot be told what it held."""


def unpack(tar_path: Path, directory: Path, *, progress: Callable[..., Progress] = Progress) -> None:
    """Extract a .tar or .tar.gz into an existing directory; all of it is checked before the first file is written.

    Raises CnnbenchError for an archive that is damaged or that holds anything but plain files and directories under
    relative names.
    """
    with _opened(tar_path) as (archive, stream):
        members = _checked_members(archive, stream, tar_path, directory)
        total_bytes = sum(member.size for member in members)
        require_free_space(directory, total_bytes)
        # set_attrs=False: owner, mode and time are this user's own, not the archive's.
        options: dict[str, Any] = {"set_attrs": False}
        if hasattr(tarfile, "data_filter"):
            options["filter"] = "data"
        with progress(f"extracting {tar_path.name}", total_bytes, BYTES) as bar:
            for member in members:
                archive.extract(member, directory, **options)
                bar.advance(member.size)


def read_archived_file(tar_path: Path, file_name: str) -> bytes:
    """Return the contents of the one plain file called `file_name`, in whatever directory of the archive."""
    with _opened(tar_path) as (archive, _):
        found = [member for member in archive if member.isreg() and PurePosixPath(member.name).name == file_name]
        if len(found) != 1 or found[0].size > SMALL_BYTES:
            raise CnnbenchError(f"{tar_path}: has {len(found)} files {file_name}, needed one of at most 64 MB")
        file = archive.extractfile(found[0])
        assert file is not None
        return file.read()


@contextmanager
def _opened(tar_path: Path) -> Iterator[tuple[tarfile.TarFile, BinaryIO]]:
    """Open an archive and the (decompressed) stream under it; name the archive in whatever error its bytes cause."""
    if not tar_path.is_file():
        raise CnnbenchError(f"{tar_path}: no such archive: stage it first")
    try:
        with tar_path.open("rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                yield archive, stream
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedError(f"{tar_path}: truncated, damaged or unsafe archive ({error}): stage it again") from error


def _checked_members(
    archive: tarfile.TarFile, stream: BinaryIO, tar_path: Path, directory: Path
) -> list[tarfile.TarInfo]:
    """Return all members once each has passed and the archive is known to be complete."""
    archive_bytes = tar_path.stat().st_size
    compressed = isinstance(stream, gzip.GzipFile)
    max_bytes = max(SMALL_BYTES, MAX_EXPANSION * archive_bytes) if compressed else archive_bytes
    total_bytes = 0
    members: list[tarfile.TarInfo] = []
    files: set[PurePosixPath] = set()
    seen: set[PurePosixPath] = set()
    for member in archive:
        reason = _objection(member, seen)
        total_bytes += member.size
        if reason is None and total_bytes > max_bytes:
            reason = f"the archive would unpack to more than {max_bytes} bytes"
        if reason is None and len(members) >= MAX_MEMBERS:
            reason = f"the archive has more than {MAX_MEMBERS} members"
        if reason is not None:
            raise CnnbenchError(f"{tar_path}: refused at {member.name!r}: {reason}; nothing was extracted")
        path = PurePosixPath(member.name)
        seen.add(path)
        if member.isreg():
            files.add(path)
        if hasattr(tarfile, "data_filter"):
            tarfile.data_filter(member, str(directory))
        members.append(member)
    for path in seen:
        if not files.isdisjoint(path.parents):
            raise CnnbenchError(f"{tar_path}: refused at {str(path)!r}: it lies inside a file; nothing was extracted")
    # tarfile takes a bad header, or none at all, for the end of the archive; a real end is a block of zeros.
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DamagedError(f"{tar_path}: truncated or damaged after {len(members)} members: stage it again")
    if compressed:
        _read_to_end(stream, tar_path, max_bytes)
    return members


def _read_to_end(stream: BinaryIO, tar_path: Path, max_bytes: int) -> None:
    """Read what follows the end marker: only at the very end does gzip compare its checksum."""
    while stream.read(CHUNK_BYTES):
        if stream.tell() > 2 * max_bytes:
            raise CnnbenchError(f"{tar_path}: refused: data without end after the archive; nothing was extracted")


def _objection(member: tarfile.TarInfo, seen: set[PurePosixPath]) -> str | None:
    """Say what is wrong with a member; None if nothing is."""
    path = PurePosixPath(member.name)
    if path.is_absolute():
        return "its name is absolute"
    if ".." in path.parts:
        return "its name has `..`"
    if member.issym() or member.islnk():
        return f"it is a link (to {member.linkname!r})"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "it is neither a plain file nor a directory"
    if path in seen:
        return "its name occurs twice"
    if "\0" in member.name or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        return "its name is no file name"
    if member.isreg() and not path.parts:
        return "it has no name"
    if member.size < 0:
        return "its size is negative"
    return None
