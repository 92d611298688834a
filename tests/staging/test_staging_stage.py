import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.artefacts import Artefact
from cnnbench.staging.download import Retry
from cnnbench.staging.stage import stage_artefact, staged_path, verify_artefact

CONTENTS = bytes(range(256)) * 2000
AT_ONCE = Retry(attempts=3, pause_s=0)


class Site(ThreadingHTTPServer):
    """A web server on loopback that holds one file and answers as `answers` says, one word per request; then well.

    Words: a status, `ignore-range`, `half` (closes midway), `stall` (sends half, then waits for `gate`), `shift`
    (another range than asked for).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.contents = CONTENTS
        self.etag: str | None = '"one"'
        self.answers: list[str] = []
        self.ranges: list[str | None] = []
        self.stalled = threading.Event()
        self.gate = threading.Event()

    def handle_error(self, request, client_address):
        """Say nothing of clients that were killed."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.pb"


class Answer(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        site = self.server
        site.ranges.append(self.headers["Range"])
        how = site.answers.pop(0) if site.answers else "well"
        if how.isdigit():
            self.send_error(int(how))
            return
        start = self._start() if how != "ignore-range" else 0
        size = len(site.contents)
        if start > 0 and start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = site.contents[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start - 1 if how == "shift" else start
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if how == "half":
            return
        if how == "stall":
            self.wfile.flush()
            site.stalled.set()
            site.gate.wait(60)
        self.wfile.write(body[len(body) // 2 :])

    def _start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        return int(asked[1]) if asked and self.headers["If-Range"] == self.server.etag else 0


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def artefact(url: str = "http://127.0.0.1:1/model.pb", contents: bytes = CONTENTS, **changes) -> Artefact:
    fields = {
        "size": len(contents),
        "md5": hashlib.md5(contents).hexdigest(),
        "sha256": hashlib.sha256(contents).hexdigest(),
    }
    return Artefact(name="model", file_name="model.pb", url=url, terms="none", **fields | changes)


def files(cache: Path) -> dict[str, bytes]:
    """What the cache holds, but for its empty lock files."""
    found = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.name: path.read_bytes() for path in found}


def test_a_download_is_staged_once(site, tmp_path):
    path = stage_artefact(artefact(site.url), tmp_path)
    assert path == tmp_path / "artefacts" / "model" / "model.pb"
    assert path.read_bytes() == CONTENTS
    assert stage_artefact(artefact(site.url), tmp_path) == path
    assert verify_artefact(artefact(site.url), tmp_path) == path
    assert site.ranges == [None]
    assert sorted(files(tmp_path)) == ["model.pb", "model.pb.verified.json"]


def test_a_broken_connection_is_resumed(site, tmp_path):
    site.answers = ["half", "half"]
    assert stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE).read_bytes() == CONTENTS
    half, three_quarters = len(CONTENTS) // 2, len(CONTENTS) // 2 + len(CONTENTS) // 4
    assert site.ranges == [None, f"bytes={half}-", f"bytes={three_quarters}-"]


def test_the_next_run_resumes_what_this_one_gave_up(site, tmp_path):
    site.answers = ["half", "503", "503"]
    with pytest.raises(CnnbenchError, match=r"failed 3 times.*503.*resume"):
        stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE)
    assert files(tmp_path)["model.pb.part"] == CONTENTS[: len(CONTENTS) // 2]
    stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE)
    assert site.ranges[-1] == f"bytes={len(CONTENTS) // 2}-"
    assert sorted(files(tmp_path)) == ["model.pb", "model.pb.verified.json"]


@pytest.mark.parametrize("second", ["ignore-range", "shift"])
def test_a_server_that_will_not_resume_is_asked_for_all(site, tmp_path, second):
    site.answers = ["half", second]
    assert stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE).read_bytes() == CONTENTS


def test_no_part_of_another_version_is_joined(site, tmp_path):
    site.answers = ["half", "503", "503"]
    with pytest.raises(CnnbenchError):
        stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE)
    site.contents, site.etag = CONTENTS[::-1], '"two"'
    assert stage_artefact(artefact(site.url, site.contents), tmp_path).read_bytes() == CONTENTS[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_validator_a_download_starts_afresh(site, tmp_path, etag):
    site.answers, site.etag = ["half"], etag
    assert stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE).read_bytes() == CONTENTS
    assert site.ranges == [None, None]


def test_a_part_that_is_whole_is_not_fetched_again(site, tmp_path):
    site.answers = ["half", "503", "503"]
    unsized = artefact(site.url, size=None)
    with pytest.raises(CnnbenchError):
        stage_artefact(unsized, tmp_path, retry=AT_ONCE)
    part = tmp_path / "artefacts" / "model" / "model.pb.part"
    part.write_bytes(CONTENTS)
    assert stage_artefact(unsized, tmp_path, retry=AT_ONCE).read_bytes() == CONTENTS
    assert site.ranges[-1] == f"bytes={len(CONTENTS)}-"  # answered 416: nothing is missing


def test_a_server_that_always_breaks_off_is_given_up(site, tmp_path):
    site.etag, site.answers = None, ["half"] * 10
    with pytest.raises(CnnbenchError, match="the connection closed after 256000 of 512000 bytes"):
        stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE)
    assert len(site.ranges) <= 1 + AT_ONCE.attempts
    assert files(tmp_path) == {}


def test_a_passing_failure_is_tried_again(site, tmp_path):
    site.answers = ["503", "429"]
    assert stage_artefact(artefact(site.url), tmp_path, retry=AT_ONCE).read_bytes() == CONTENTS


@pytest.mark.parametrize("status", ["403", "404"])
def test_a_refusal_is_an_error_at_once(site, tmp_path, status):
    site.answers = [status]
    with pytest.raises(CnnbenchError, match=rf"{site.url}: the server answered {status}.*--from FILE"):
        stage_artefact(artefact(site.url), tmp_path)
    assert len(site.ranges) == 1
    assert files(tmp_path) == {}


def test_no_server_is_a_clear_error(tmp_path):
    with pytest.raises(CnnbenchError, match=r"failed 3 times.*refused.*--from FILE"):
        stage_artefact(artefact(), tmp_path, retry=AT_ONCE)
    assert files(tmp_path) == {}


def test_a_file_of_another_size_is_refused_before_it_is_fetched(site, tmp_path):
    with pytest.raises(CnnbenchError, match="offers 512000 bytes, needed 999"):
        stage_artefact(artefact(site.url, size=999), tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("field", "kind"), [("md5", "MD5"), ("sha256", "SHA-256")])
def test_a_wrong_digest_is_refused_and_the_cache_stays_as_it_was(site, tmp_path, field, kind):
    wrong = "0" * len(getattr(artefact(), field))
    with pytest.raises(CnnbenchError, match=f"{kind} is {getattr(artefact(), field)}, needed {wrong}"):
        stage_artefact(artefact(site.url, **{field: wrong}), tmp_path)
    assert files(tmp_path) == {}


def test_a_local_copy_is_taken(tmp_path):
    source = tmp_path / "mine.pb"
    source.write_bytes(CONTENTS)
    path = stage_artefact(artefact(), tmp_path / "cache", source)
    assert path.read_bytes() == CONTENTS
    assert source.read_bytes() == CONTENTS
    assert sorted(files(tmp_path / "cache")) == ["model.pb", "model.pb.verified.json"]


def test_a_local_copy_on_another_file_system_is_copied(tmp_path, monkeypatch):
    def no_hard_links(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", no_hard_links)
    source = tmp_path / "mine.pb"
    source.write_bytes(CONTENTS)
    path = stage_artefact(artefact(), tmp_path / "cache", source)
    assert path.read_bytes() == CONTENTS
    assert not path.samefile(source)


@pytest.mark.parametrize("contents", [CONTENTS[:-1], CONTENTS[:-1] + b"x", b""])
def test_a_bad_local_copy_is_refused_and_the_cache_stays_as_it_was(tmp_path, contents):
    source = tmp_path / "mine.pb"
    source.write_bytes(contents)
    with pytest.raises(CnnbenchError, match=r"model\.pb: .* needed .*mine\.pb is not the file in the manifest"):
        stage_artefact(artefact(), tmp_path / "cache", source)
    assert files(tmp_path / "cache") == {}
    assert source.read_bytes() == contents


def test_a_local_copy_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"mine\.pb: not a file that can be read"):
        stage_artefact(artefact(), tmp_path / "cache", tmp_path / "mine.pb")


def test_without_any_digest_the_user_must_give_one(site, tmp_path):
    unknown = artefact(site.url, size=None, md5=None, sha256=None)
    with pytest.raises(CnnbenchError, match=r"no digest .* cannot be verified: give the SHA-256"):
        stage_artefact(unknown, tmp_path)
    assert site.ranges == []
    with pytest.raises(CnnbenchError, match="SHA-256 is"):
        stage_artefact(unknown, tmp_path, expected_sha256="0" * 64)
    path = stage_artefact(unknown, tmp_path, expected_sha256=f" {artefact().sha256.upper()}\n")
    assert path.read_bytes() == CONTENTS


@pytest.mark.parametrize("given", ["abc", "0" * 64])
def test_an_expected_digest_that_cannot_be_right_is_a_usage_error(tmp_path, given):
    with pytest.raises(UsageError, match=r"64 hexadecimal digits|the manifest says"):
        stage_artefact(artefact(), tmp_path, expected_sha256=given)


def test_a_file_changed_in_the_cache_is_noticed(site, tmp_path):
    path = stage_artefact(artefact(site.url), tmp_path)
    changed = CONTENTS[:-1] + b"x"
    path.write_bytes(changed)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CnnbenchError, match=r"SHA-256 is|MD5 is"):
        stage_artefact(artefact(site.url), tmp_path)
    path.unlink()
    assert stage_artefact(artefact(site.url), tmp_path).read_bytes() == CONTENTS


def test_verify_sees_a_change_that_kept_size_and_time(site, tmp_path):
    path = stage_artefact(artefact(site.url), tmp_path)
    time_ns = path.stat().st_mtime_ns
    path.write_bytes(CONTENTS[:-1] + b"x")
    os.utime(path, ns=(time_ns, time_ns))
    with pytest.raises(CnnbenchError, match=r"delete .*model\.pb and stage it again"):
        verify_artefact(artefact(site.url), tmp_path)


def test_what_is_not_staged_is_not_brought_by_verifying_it(site, tmp_path):
    needed = r"model: not staged, there is no .*model\.pb: run `cnnbench stage model`"
    for wanted in (artefact(site.url), artefact(site.url, md5=None, sha256=None)):
        with pytest.raises(CnnbenchError, match=needed):
            verify_artefact(wanted, tmp_path)
    assert site.ranges == []
    assert not list(tmp_path.iterdir())


def test_a_lost_or_damaged_record_only_costs_a_reading(site, tmp_path):
    path = stage_artefact(artefact(site.url), tmp_path)
    record = path.with_name("model.pb.verified.json")
    for contents in (None, "{"):
        record.unlink() if contents is None else record.write_text(contents)
        assert stage_artefact(artefact(site.url), tmp_path) == path
        assert "sha256" in record.read_text()
    assert len(site.ranges) == 1


def test_another_version_in_the_manifest_is_not_served_from_the_old_file(site, tmp_path):
    stage_artefact(artefact(site.url), tmp_path)
    with pytest.raises(CnnbenchError, match="MD5 is"):
        stage_artefact(artefact(site.url, CONTENTS[::-1]), tmp_path)


STAGER = """
import resource, sys
from pathlib import Path
from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.artefacts import Artefact
from cnnbench.staging.stage import stage_artefact

if limit := int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    print(stage_artefact(Artefact.model_validate_json(sys.argv[1]), Path(sys.argv[2])))
except CnnbenchError as error:
    sys.exit(f"clear: {error}")
"""


def start_stager(wanted: Artefact, cache: Path, file_size_limit: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", STAGER, wanted.model_dump_json(), str(cache), str(file_size_limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_fetch_one_file(site, tmp_path):
    site.answers = ["stall"]
    with start_stager(artefact(site.url), tmp_path) as one:
        assert site.stalled.wait(60)
        with start_stager(artefact(site.url), tmp_path) as two:
            assert "waiting" in two.stderr.readline()
            site.gate.set()
            printed = {one.communicate()[0], two.communicate()[0]}
    assert printed == {f"{staged_path(artefact(), tmp_path)}\n"}
    assert (one.returncode, two.returncode) == (0, 0)
    assert site.ranges == [None]
    assert staged_path(artefact(), tmp_path).read_bytes() == CONTENTS


def test_a_download_that_was_killed_is_resumed(site, tmp_path):
    site.contents = CONTENTS * 20
    wanted = artefact(site.url, site.contents)
    site.answers = ["stall"]
    with start_stager(wanted, tmp_path) as killed:
        assert site.stalled.wait(60)
        part = staged_path(wanted, tmp_path).with_name("model.pb.part")
        while not (part.exists() and part.stat().st_size):
            assert killed.poll() is None
        killed.kill()
    assert not staged_path(wanted, tmp_path).exists()
    assert stage_artefact(wanted, tmp_path).read_bytes() == site.contents
    assert site.ranges[1].startswith("bytes=")
    assert sorted(files(tmp_path)) == ["model.pb", "model.pb.verified.json"]


def test_a_disk_that_fills_up_midway_is_a_clear_error_and_leaves_nothing(site, tmp_path):
    with start_stager(artefact(site.url), tmp_path, file_size_limit=100_000) as process:
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "clear: " in errors
    assert "limit" in errors
    assert files(tmp_path) == {}


def test_too_small_a_disk_is_found_before_the_download(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CnnbenchError, match=r"1\.0 kB free on this disk, needed 512\.0 kB"):
        stage_artefact(artefact(site.url), tmp_path)
    assert files(tmp_path) == {}
