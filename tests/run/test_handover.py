"""How a run's logs come out of what a container prints, or of a file, and what is told where they do not."""

import io
import tarfile

import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.cli.main import main
from cnnbench.run.handover import NotWholeError, print_archive, read_printed, save_archive
from cnnbench.run.serve import overlay_cache


def print_logs(tmp_path, content=b"x" * 10_000, **limits):
    logs = tmp_path / "logs"
    (logs / "process-0").mkdir(parents=True)
    (logs / "process-0" / "steps.npy").write_bytes(content)
    printed = io.StringIO()
    print_archive(printed, logs, 3, "", **limits)
    return printed.getvalue()


def unpack(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {member.name: found.extractfile(member).read() for member in found if member.isreg()}


def test_what_is_printed_among_other_lines_is_read_back(tmp_path):
    printed = print_logs(tmp_path)
    files = unpack(read_printed(f"measuring\n{printed}after\n".splitlines()))
    assert files == {"process-0/steps.npy": b"x" * 10_000, "status": b"3\n"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "no logs were printed"),  # rotated away
        (lambda lines: lines[:-1], "not whole"),
        (lambda lines: [lines[0], lines[-1]], "not whole: 0 of"),
        (lambda lines: [lines[0], lines[1][:-8], *lines[2:]], "not whole"),
        (lambda lines: [lines[0], "?" + lines[1], *lines[2:]], "damaged at '?"),
    ],
)
def test_of_what_is_not_whole_nothing_is_taken(tmp_path, change, message):
    with pytest.raises(NotWholeError) as caught:
        read_printed(change(print_logs(tmp_path).splitlines()))
    assert message in str(caught.value)


def test_logs_too_large_to_be_printed_are_told(tmp_path):
    files = unpack(read_printed(print_logs(tmp_path, bytes(range(256)) * 99, limit_bytes=200).splitlines()))
    assert set(files) == {"error", "status"}
    assert (
        b"at most 200 B can be had from what a container prints: give the pool a volume for results" in files["error"]
    )


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    print_logs(tmp_path)
    path = tmp_path / "fleet" / "batch" / "run.tar.gz"
    save_archive(path, tmp_path / "logs", 0, "why")
    assert unpack(path.read_bytes())["error"] == b"why"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    with pytest.raises(CnnbenchError, match=r"could not be written there: .*; the volume needs room"):
        save_archive(path / "below", tmp_path / "logs", 0, "")


def test_a_cache_of_a_volume_adds_to_that_of_the_image(tmp_path):
    for cache, name in (("image", "both"), ("image", "own"), ("volume", "both"), ("volume", "more")):
        (tmp_path / cache / "datasets" / name).mkdir(parents=True)
    found = overlay_cache(tmp_path / "image", tmp_path / "all", tmp_path / "volume") / "datasets"
    whose = {path.name: path.readlink().parent.parent.name for path in found.iterdir()}
    assert whose == {"both": "image", "own": "image", "more": "volume"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--own-cpus", "0", "--export", "-"], "--own-cpus 0: must be a number of CPUs, from 1 on"),
        (["--own-cpus", "1"], "--own-cpus: is for where nobody reaches into the container; needs --export"),
        (["--batch", "{}"], "--batch: is for where nobody reaches into the container"),
        (["--batch", "{}", "--export", "-"], "--batch: not a batch that this version of cnnbench knows"),
        (["--timeout", "0", "--export", "-"], "--timeout 0: must be more than 0"),
    ],
)
def test_bad_options_of_what_an_image_runs(options, message, capsys):
    assert main(["container", *options]) == 2
    assert message in capsys.readouterr().err
