import subprocess
import sys
from pathlib import Path

import pytest

from cnnbench.base.cache import cache_root, install_directory, require_free_space
from cnnbench.base.errors import CnnbenchError

# A builder that says when it is half done, and goes on when it is told to.
BUILDER = """
import sys
from pathlib import Path
from cnnbench.base.cache import install_directory

def build(directory):
    (directory / "first").write_text("half a set")
    print("half", flush=True)
    sys.stdin.readline()
    (directory / "second").write_text(sys.argv[2])

install_directory(build, Path(sys.argv[1]))
"""


def start_builder(destination: Path, who: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", BUILDER, str(destination), who]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def test_the_cache_is_where_the_environment_says():
    assert cache_root({"CNNBENCH_CACHE": "/data/cache"}) == Path("/data/cache")
    assert cache_root({}) == Path.home() / ".cache" / "cnnbench"
    assert cache_root({"CNNBENCH_CACHE": ""}) == Path.home() / ".cache" / "cnnbench"


def test_a_directory_is_built_once(tmp_path):
    builds = []

    def build(directory: Path) -> None:
        builds.append(directory)
        (directory / "image.jpeg").write_bytes(b"x")

    for _ in range(2):
        assert install_directory(build, tmp_path / "sub" / "set") == tmp_path / "sub" / "set"
    assert len(builds) == 1
    assert names(tmp_path / "sub") == ["set"]
    assert names(tmp_path / "sub" / "set") == ["image.jpeg"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_nothing(tmp_path, error):
    def build(directory: Path) -> None:
        (directory / "half").write_bytes(b"x")
        raise error

    with pytest.raises(error):
        install_directory(build, tmp_path / "set")
    assert names(tmp_path) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    def build(directory: Path) -> None:
        (directory / "half").write_bytes(b"x")
        Path("/dev/full").write_bytes(b"x")  # the kernel answers ENOSPC

    with pytest.raises(CnnbenchError, match=r"the disk is full.*CNNBENCH_CACHE"):
        install_directory(build, tmp_path / "set")
    assert names(tmp_path) == []


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(CnnbenchError, match="is a file"):
        install_directory(lambda directory: None, tmp_path / "set")
    assert (tmp_path / "set").read_text() == "mine"


def test_what_a_killed_builder_left_is_cleaned_by_the_next(tmp_path):
    with start_builder(tmp_path / "set", "killed") as killed:
        assert killed.stdout.readline() == "half\n"
        killed.kill()
    assert not (tmp_path / "set").exists()
    assert names(tmp_path) == [".set.building"]

    install_directory(lambda directory: (directory / "whole").write_text("yes"), tmp_path / "set")
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["whole"]


def test_of_two_builders_at_once_the_second_waits_and_reuses(tmp_path):
    with start_builder(tmp_path / "set", "one") as one:
        assert one.stdout.readline() == "half\n"
        with start_builder(tmp_path / "set", "two") as two:
            assert "waiting" in two.stderr.readline()
            one.communicate("\n")
            printed, _ = two.communicate("\n")
            assert (one.returncode, two.returncode) == (0, 0)
    assert printed == ""
    assert (tmp_path / "set" / "second").read_text() == "one"


def test_when_the_first_of_two_builders_is_killed_the_second_builds(tmp_path):
    with start_builder(tmp_path / "set", "one") as one:
        assert one.stdout.readline() == "half\n"
        with start_builder(tmp_path / "set", "two") as two:
            assert "waiting" in two.stderr.readline()
            one.kill()
            two.communicate("\n")
            assert two.returncode == 0
    assert (tmp_path / "set" / "second").read_text() == "two"


def test_too_little_space_is_found_before_writing(tmp_path):
    require_free_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(CnnbenchError, match=r"free on this disk, needed 1000\.0 TB"):
        require_free_space(tmp_path / "not" / "there" / "yet", 10**15)
