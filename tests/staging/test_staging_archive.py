import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cnnbench.base.cache import install_directory
from cnnbench.base.errors import CnnbenchError
from cnnbench.staging import archive
from cnnbench.staging.archive import read_archived_file, unpack

GOOD = {"set/a.jpeg": b"A" * 700, "set/deep/b.jpeg": b"B" * 3000}


def member(name: str, kind: bytes = tarfile.REGTYPE, contents: bytes = b"", link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(contents), link
    return info, contents


def add(tar: tarfile.TarFile, info: tarfile.TarInfo, contents: bytes) -> None:
    tar.addfile(info, io.BytesIO(contents))


def make_tar(path: Path, *extra: tuple, compress: str = "") -> Path:
    with tarfile.open(path, f"w:{compress}") as tar:
        for name, contents in GOOD.items():
            add(tar, *member(name, contents=contents))
        for info, contents in extra:
            add(tar, info, contents)
    return path


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.suffix != ".lock")


def extract(tar: Path, destination: Path) -> None:
    """Extract as the image sets do it: into a directory that appears only when all of it is there."""
    install_directory(lambda building: unpack(tar, building), destination)


@pytest.mark.parametrize("compress", ["", "gz"])
def test_a_good_archive_is_extracted_whole(tmp_path, compress):
    tar = make_tar(tmp_path / "good.tar", member("./empty", tarfile.DIRTYPE), compress=compress)
    extract(tar, tmp_path / "out")
    for name, contents in GOOD.items():
        assert (tmp_path / "out" / name).read_bytes() == contents
    assert everything(tmp_path) == sorted(
        ["good.tar", "out", *(f"out/{n}" for n in ("empty", "set", "set/deep", *GOOD))]
    )


HOSTILE = {
    "absolute": ([member("/tmp/cnnbench-escaped", contents=b"x")], "absolute"),
    "parent": ([member("../escaped", contents=b"x")], r"`\.\.`"),
    "parent inside": ([member("set/../../escaped", contents=b"x")], r"`\.\.`"),
    "parent directory": ([member("..", tarfile.DIRTYPE)], r"`\.\.`"),
    "symlink out": ([member("link", tarfile.SYMTYPE, link="../..")], "link"),
    "symlink then file through it": (
        [member("link", tarfile.SYMTYPE, link=".."), member("link/escaped", contents=b"x")],
        "link",
    ),
    "symlink inside": ([member("link", tarfile.SYMTYPE, link="set/a.jpeg")], "link"),
    "hard link": ([member("link", tarfile.LNKTYPE, link="../secret")], "link"),
    "device": ([member("null", tarfile.CHRTYPE)], "neither a plain file"),
    "fifo": ([member("pipe", tarfile.FIFOTYPE)], "neither a plain file"),
    "duplicate": ([member("set/a.jpeg", contents=b"other")], "twice"),
    "duplicate in disguise": ([member("./set//a.jpeg", contents=b"other")], "twice"),
    "file used as a directory": ([member("set/a.jpeg/c", contents=b"x")], "inside a file"),
    "long name": ([member("n" * 300, contents=b"x")], "no file name"),
}


@pytest.mark.parametrize(("extra", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(tmp_path, extra, reason):
    inner = tmp_path / "inner"
    inner.mkdir()
    tar = make_tar(inner / "hostile.tar", *extra)
    with pytest.raises(CnnbenchError, match=reason):
        extract(tar, inner / "out")
    assert everything(tmp_path) == ["inner", "inner/hostile.tar"]
    assert not Path("/tmp/cnnbench-escaped").exists()


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_the_checks_do_not_depend_on_the_filter_of_newer_pythons(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    extract(make_tar(tmp_path / "good.tar"), tmp_path / "good")
    assert (tmp_path / "good" / "set" / "a.jpeg").read_bytes() == GOOD["set/a.jpeg"]
    for number, (extra, reason) in enumerate(HOSTILE.values()):
        with pytest.raises(CnnbenchError, match=reason):
            extract(make_tar(tmp_path / f"{number}.tar", *extra), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compress", ["", "gz"])
def test_an_archive_truncated_anywhere_is_refused(tmp_path, compress):
    whole = make_tar(tmp_path / "whole.tar", compress=compress).read_bytes()
    # Only the padding after the end marker may be missing from a plain tar.
    end = len(whole) if compress else 1024 + 512 + 3072 + 512
    cut = tmp_path / "cut.tar"
    for length in range(0, end, 512 if not compress else 16):
        cut.write_bytes(whole[:length])
        with pytest.raises(CnnbenchError, match=r"truncated|damaged"):
            extract(cut, tmp_path / "out")
    assert everything(tmp_path) == ["cut.tar", "whole.tar"]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    tar = make_tar(tmp_path / "damaged.tar")
    contents = bytearray(tar.read_bytes())
    contents[512 + 1024 + 10] ^= 0xFF  # in the name of the second member: its header checksum is now wrong
    tar.write_bytes(contents)
    with pytest.raises(CnnbenchError, match="truncated or damaged after 1 members"):
        extract(tar, tmp_path / "out")
    assert everything(tmp_path) == ["damaged.tar"]


def test_a_negative_size_is_refused(tmp_path):
    header = bytearray(member("negative")[0].tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "negative.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(CnnbenchError, match=r"negative|damaged"):
        extract(tmp_path / "negative.tar", tmp_path / "out")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "page.tar").write_text("<html>log in first</html>" * 100)
    with pytest.raises(CnnbenchError, match="damaged"):
        extract(tmp_path / "page.tar", tmp_path / "out")
    with pytest.raises(CnnbenchError, match="no such archive"):
        extract(tmp_path / "absent.tar", tmp_path / "out")


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    # 64 MiB of zeros in some 65 kB: more than a hundredfold.
    bomb = make_tar(tmp_path / "bomb.tar", member("zeros", contents=bytes(archive.SMALL_BYTES)), compress="gz")
    with pytest.raises(CnnbenchError, match="would unpack to more than"):
        extract(bomb, tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    many = make_tar(tmp_path / "many.tar", member("third"))
    with pytest.raises(CnnbenchError, match="more than 2 members"):
        extract(many, tmp_path / "out")
    assert everything(tmp_path) == ["bomb.tar", "many.tar"]


def test_a_member_that_claims_more_than_the_archive_holds_is_refused(tmp_path):
    info, _ = member("huge")
    info.size = 10**12
    path = tmp_path / "claims.tar"
    path.write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(CnnbenchError, match=r"would unpack to more than|truncated"):
        extract(path, tmp_path / "out")


def test_a_file_size_limit_met_midway_leaves_nothing(tmp_path):
    tar = make_tar(tmp_path / "good.tar")
    script = (
        "import resource, sys; from pathlib import Path; from cnnbench.base.errors import CnnbenchError\n"
        "from cnnbench.staging.archive import unpack\n"
        "from cnnbench.base.cache import install_directory\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: install_directory(lambda building: unpack(Path(sys.argv[1]), building), Path(sys.argv[2]))\n"
        "except CnnbenchError as error: sys.exit(f'clear: {error}')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tar, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert "clear: " in ended.stderr
    assert "limit" in ended.stderr
    assert everything(tmp_path) == ["good.tar"]


def test_one_file_is_read_without_extracting(tmp_path):
    tar = make_tar(tmp_path / "good.tar.gz", compress="gz")
    assert read_archived_file(tar, "b.jpeg") == GOOD["set/deep/b.jpeg"]
    with pytest.raises(CnnbenchError, match=r"0 files meta\.mat"):
        read_archived_file(tar, "meta.mat")
    tar.write_bytes(gzip.compress(b"not a tar" * 1000))
    with pytest.raises(CnnbenchError, match="damaged"):
        read_archived_file(tar, "b.jpeg")
