"""Download one file over HTTP(S): resume where an earlier try stopped, try again when the network fails."""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.cache import explain_disk_errors, require_free_space
from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import BYTES, Progress

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# A write to the disk raises none of these.
_NETWORK_ERRORS = (URLError, ConnectionError, TimeoutError, http.client.HTTPException, ssl.SSLError)


@dataclass(frozen=True)
class Retry:
    """How long to be patient: `attempts` in a row without one new byte, with pauses that double from `pause_s`."""

    attempts: int = 5
    pause_s: float = 1.0
    timeout_s: float = 30.0


DEFAULT_RETRY = Retry()


class _PartOrigin(BaseModel):
    """Where a `.part` file comes from; `validator` is the ETag or date that its remote file had."""

    model_config = ConfigDict(extra="forbid")

    url: str
    validator: str


class _Part:
    """A file that grows as it is downloaded, with a note of its origin beside it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self._url = url
        self._origin_path = path.with_name(f"{path.name}.json")

    def bytes_held(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self) -> str | None:
        """Return what proves that the remote file is still the same, or None: then only a new start is safe."""
        try:
            origin = _PartOrigin.model_validate_json(self._origin_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return origin.validator if origin.url == self._url else None

    def begin(self, validator: str | None) -> None:
        """Empty the file and note its new origin."""
        self.discard()
        self.path.touch()
        if validator:
            origin = _PartOrigin(url=self._url, validator=validator)
            self._origin_path.write_text(origin.model_dump_json(), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)


def download(
    url: str,
    part_path: Path,
    *,
    label: str,
    size: int | None = None,
    retry: Retry = DEFAULT_RETRY,
    progress: Callable[..., Progress] = Progress,
) -> None:
    """Download `url` into `part_path`, going on from the bytes that are there if the remote file has not changed.

    `size` is the number of bytes needed, where known. When the network fails for good the part stays, for a later
    resume if that is possible; when the disk is full or the server sends too much it is removed.
    """
    part = _Part(part_path, url)
    furthest = part.bytes_held()
    failures = 0
    while True:
        try:
            with explain_disk_errors(part_path, part.discard):
                _fetch(url, part, label, size, retry.timeout_s, progress)
        except _NETWORK_ERRORS as error:
            failures = 1 if part.bytes_held() > furthest else failures + 1
            furthest = max(furthest, part.bytes_held())
            if failures >= retry.attempts:
                if part.validator() is None:
                    part.discard()  # no later try could go on from it
                raise CnnbenchError(
                    f"{url}: download failed {failures} times in a row, last with: {_reason(error)}; run it again to "
                    f"resume from the {part.bytes_held()} bytes kept, or give a local copy with --from FILE"
                ) from error
            pause_s = retry.pause_s * 2 ** (failures - 1)
            _log.warning("%s: %s; trying again in %g s", url, _reason(error), pause_s)
            time.sleep(pause_s)
        else:
            return


def discard_part(part_path: Path) -> None:
    """Remove a `.part` file and the note beside it."""
    _Part(part_path, "").discard()


def _fetch(
    url: str, part: _Part, label: str, size: int | None, timeout_s: float, progress: Callable[..., Progress]
) -> None:
    """Make one request and append what comes; raise one of _NETWORK_ERRORS when another try may help."""
    validator = part.validator()
    held = part.bytes_held() if validator else 0
    if held and held == size:
        return
    headers = {"Accept-Encoding": "identity"}
    if held and validator:
        headers |= {"Range": f"bytes={held}-", "If-Range": validator}
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout_s)  # noqa: S310 - the manifest allows http(s) only
    except HTTPError as error:
        if error.code == 416:
            # The part is as long as the remote file or longer: whole, or not to be trusted.
            if error.headers.get("Content-Range") == f"bytes */{held}":
                return
            part.discard()
            raise ConnectionError("the server has nothing beyond the part at hand; starting afresh") from error
        if error.code in TRANSIENT_STATUS:
            raise
        raise CnnbenchError(
            f"{url}: the server answered {error.code} {error.reason}, needed 200: "
            "check the URL and your access to it, or give a local copy with --from FILE"
        ) from error
    with response:
        total = _announced_bytes(response, held, part)
        if size is not None and total is not None and total != size:
            raise CnnbenchError(
                f"{url}: the server offers {total} bytes, needed {size}: this is not the file in the manifest; "
                "check the URL, or give a local copy with --from FILE"
            )
        if response.status != 206:
            held = 0
        limit = size if size is not None else total
        if limit is not None:
            require_free_space(part.path.parent, limit - held)
        if held == 0:
            part.begin(_validator(response))
        _append(response, part, progress(label, limit, BYTES, done=held), limit)
    if total is not None and part.bytes_held() < total:
        raise ConnectionError(f"the connection closed after {part.bytes_held()} of {total} bytes")


def _announced_bytes(response: http.client.HTTPResponse, held: int, part: _Part) -> int | None:
    """Return the length of the whole remote file, checking that a partial answer begins where ours ends."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return int(length) if length else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != held:
        part.discard()
        raise ConnectionError("the server answered with another range than asked for; starting afresh")
    return int(found[2])


def _append(response: http.client.HTTPResponse, part: _Part, bar: Progress, limit: int | None) -> None:
    with part.path.open("ab") as file, bar:
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            bar.advance(len(chunk))
            if limit is not None and file.tell() > limit:
                part.discard()
                raise CnnbenchError(
                    f"{response.url}: the server sends more than the {limit} bytes needed; stopped: check the URL"
                )


def _validator(response: http.client.HTTPResponse) -> str | None:
    """Return what If-Range accepts: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _reason(error: BaseException) -> str:
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
