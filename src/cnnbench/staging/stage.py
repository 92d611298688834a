"""Stage an artefact: fetch it or take a local copy, verify it, and only then put it into the cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.cache import explain_disk_errors, locked, require_free_space
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.progress import BYTES, Progress
from cnnbench.cases.artefacts import Artefact, Md5, Sha256
from cnnbench.staging.download import DEFAULT_RETRY, Retry, discard_part, download

CHUNK_BYTES = 1 << 20


class Verified(BaseModel):
    """What a file in the cache was found to be; its size and time tell later whether it has been touched since."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    mtime_ns: int
    md5: Md5
    sha256: Sha256


def staged_path(artefact: Artefact, cache_root: Path) -> Path:
    """Return where the artefact is, or would be, in the cache."""
    return cache_root / "artefacts" / artefact.name / artefact.file_name


def stage_artefact(
    artefact: Artefact,
    cache_root: Path,
    source: Path | None = None,
    expected_sha256: str | None = None,
    *,
    progress: Callable[..., Progress] = Progress,
    retry: Retry = DEFAULT_RETRY,
) -> Path:
    """Bring the artefact into the cache, from `source` (a local file) or else its URL; return its path there.

    Nothing appears under that path before size and digests are right. A file staged earlier is used again if its size
    and time are those recorded when it was verified. `expected_sha256` adds a digest to those of the manifest. Raises
    CnnbenchError, with the cache as it was (but for the part of a download that can be resumed).
    """
    artefact = _with_expected_digest(artefact, expected_sha256)
    path = staged_path(artefact, cache_root)
    if _is_verified(path, artefact):
        return path
    with explain_disk_errors(path), locked(path):
        if _is_verified(path, artefact):
            return path
        if path.exists():
            _read_again(path, artefact, progress)
        elif source is not None:
            _install_copy(source, path, artefact, progress)
        else:
            _install_download(path, artefact, progress, retry)
    return path


def verify_artefact(
    artefact: Artefact,
    cache_root: Path,
    expected_sha256: str | None = None,
    *,
    progress: Callable[..., Progress] = Progress,
) -> Path:
    """Read and digest a staged artefact once more; return its path. Raises CnnbenchError when it is not there."""
    path = staged_path(artefact, cache_root)
    require_staged(path, artefact.name)
    artefact = _with_expected_digest(artefact, expected_sha256)
    with explain_disk_errors(path), locked(path):
        _read_again(path, artefact, progress)
    return path


def require_staged(path: Path, name: str) -> None:
    """Raise CnnbenchError where what is staged by this name is not there."""
    if not path.exists():
        raise CnnbenchError(
            f"{name}: not staged, there is no {path}: run `cnnbench stage {name}`; doc/staging.md says what that needs"
        )


def _read_again(path: Path, artefact: Artefact, progress: Callable[..., Progress]) -> None:
    _write_record(path, _check(path, artefact, progress, f"delete {path} and stage it again"))


def _with_expected_digest(artefact: Artefact, expected_sha256: str | None) -> Artefact:
    if expected_sha256 is not None:
        expected_sha256 = expected_sha256.strip().lower()
        if not re.fullmatch("[0-9a-f]{64}", expected_sha256):
            raise UsageError(f"expected SHA-256 {expected_sha256!r}: must be 64 hexadecimal digits")
        if artefact.sha256 not in (None, expected_sha256):
            raise UsageError(f"expected SHA-256 {expected_sha256}: the manifest says {artefact.sha256}; leave one out")
        artefact = artefact.model_copy(update={"sha256": expected_sha256})
    if artefact.md5 is None and artefact.sha256 is None:
        raise CnnbenchError(
            f"{artefact.name}: the manifest has no digest for {artefact.file_name} (no public source gives one), so it "
            "cannot be verified: give the SHA-256 that you expect, from a source you trust"
        )
    return artefact


def _install_download(path: Path, artefact: Artefact, progress: Callable[..., Progress], retry: Retry) -> None:
    part = path.with_name(f"{path.name}.part")
    download(artefact.url, part, label=artefact.file_name, size=artefact.size, retry=retry, progress=progress)
    try:
        verified = _check(part, artefact, progress, f"check {artefact.url}, or give a good copy with --from FILE")
    except CnnbenchError:
        discard_part(part)
        raise
    _put_in_place(part, path, verified)
    discard_part(part)


def _install_copy(source: Path, path: Path, artefact: Artefact, progress: Callable[..., Progress]) -> None:
    if not (source.is_file() and os.access(source, os.R_OK)):
        raise UsageError(f"{source}: not a file that can be read; needed a local copy of {artefact.file_name}")
    incoming = path.with_name(f"{path.name}.incoming")
    incoming.unlink(missing_ok=True)
    try:
        _link_or_copy(source.resolve(), incoming, progress)
        verified = _check(incoming, artefact, progress, f"{source} is not the file in the manifest: give another")
        _put_in_place(incoming, path, verified)
    finally:
        incoming.unlink(missing_ok=True)
    discard_part(path.with_name(f"{path.name}.part"))


def _link_or_copy(source: Path, destination: Path, progress: Callable[..., Progress]) -> None:
    try:
        destination.hardlink_to(source)
    except OSError:  # another file system, or one without hard links, or a file of another user
        size = source.stat().st_size
        require_free_space(destination.parent, size)
        with source.open("rb") as read, destination.open("wb") as write, progress(source.name, size, BYTES) as bar:
            while chunk := read.read(CHUNK_BYTES):
                write.write(chunk)
                bar.advance(len(chunk))


def _check(path: Path, artefact: Artefact, progress: Callable[..., Progress], remedy: str) -> Verified:
    """Compare the file with the manifest: first its size, then both digests in one reading."""
    status = path.stat()
    if artefact.size is not None and status.st_size != artefact.size:
        raise CnnbenchError(f"{artefact.file_name}: has {status.st_size} bytes, needed {artefact.size}; {remedy}")
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file, progress(f"verifying {artefact.file_name}", status.st_size, BYTES) as bar:
        while chunk := file.read(CHUNK_BYTES):
            md5.update(chunk)
            sha256.update(chunk)
            bar.advance(len(chunk))
    for kind, found, needed in (
        ("MD5", md5.hexdigest(), artefact.md5),
        ("SHA-256", sha256.hexdigest(), artefact.sha256),
    ):
        if needed is not None and found != needed:
            raise CnnbenchError(f"{artefact.file_name}: {kind} is {found}, needed {needed}; {remedy}")
    return Verified(size=status.st_size, mtime_ns=status.st_mtime_ns, md5=md5.hexdigest(), sha256=sha256.hexdigest())


def _put_in_place(temporary: Path, path: Path, verified: Verified) -> None:
    """Rename after the bytes are on the disk, so that not even a power cut leaves a half file under the final name."""
    _write_record(path, verified)  # first, so that it is there if the file is; a rename keeps size and time
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified.json")


def _write_record(path: Path, verified: Verified) -> None:
    temporary = path.with_name(f"{path.name}.verified.json.new")
    temporary.write_text(verified.model_dump_json(), encoding="utf-8")
    temporary.replace(_record_path(path))


def _is_verified(path: Path, artefact: Artefact) -> bool:
    """Tell from the record whether the file was verified against these very digests and is untouched since."""
    try:
        status = path.stat()
        record = Verified.model_validate_json(_record_path(path).read_bytes())
    except (FileNotFoundError, ValidationError):
        return False
    return (
        (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
        and artefact.size in (None, record.size)
        and artefact.md5 in (None, record.md5)
        and artefact.sha256 in (None, record.sha256)
    )
