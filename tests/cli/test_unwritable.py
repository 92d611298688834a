"""Places that cannot be written to, or run from: commands say what is wrong, where, and what moves the place."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from checkout import ROOT
from cmake_build import find_tool
from null_workload import THROUGHPUT, NullWorkload, clean_environment, step_of, write_checkout
from run_files import save_set

UNSHARE = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
CLI = (sys.executable, "-I", "-m", "cnnbench")
MOUNTS = {
    "read-only": "mount -t tmpfs -o ro tmpfs {at}",
    "full": "mount -t tmpfs -o size=64k tmpfs {at}; head -c 1M /dev/zero > {at}/filler 2>/dev/null || true",
    "roomy": "mount -t tmpfs -o size=20m tmpfs {at}",
    "scant": "mount -t tmpfs -o size=2m tmpfs {at}",
    "noexec": "mount -t tmpfs -o noexec tmpfs {at}",
    "sealed": "mount --bind {at} {at}; mount -o remount,bind,ro {at}",  # read-only, with what was there
    "open": "mount -t tmpfs tmpfs {at}",
}


def run_mounted(
    mounts: Sequence[tuple[str, Path | str]], command: Sequence[object], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command where file systems of these kinds are mounted; an empty variable is taken out."""
    script = "; ".join(["set -e", *(MOUNTS[kind].format(at=shlex.quote(str(at))) for kind, at in mounts), 'exec "$@"'])
    variables = {
        name: value for name, value in clean_environment(**environment).items() if value or name not in environment
    }
    words = [*UNSHARE, "sh", "-c", script, "sh", *map(str, command)]
    return subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module", autouse=True)
def _mounts_are_allowed(tmp_path_factory):
    if shutil.which("unshare") is None:
        pytest.skip("no `unshare` to mount file systems with")
    directory = tmp_path_factory.mktemp("mount")
    done = run_mounted([("read-only", directory)], ["true"], directory)
    if done.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


@dataclass
class Row:
    """A command in a place that is `kind`, and what it must say besides that place."""

    what: str
    kind: str
    command: Sequence[object]
    said: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 1


def test_a_place_that_cannot_be_used_is_named_with_what_moves_it(tmp_path):
    place, file = tmp_path / "place", tmp_path / "file"
    place.mkdir()
    file.touch()
    workload = write_checkout(tmp_path / "sources", "GENERIC") / "workload" / "Harness"
    case = [*CLI, "case", "--workload", workload, "--case", THROUGHPUT, "--steps=4", "--logs-root"]
    sweep = [*CLI, "sweep", "--workload", workload, "--platform", "GENERIC", "--case", THROUGHPUT]
    sweep += ["--set", "BATCH_SIZE=1", "--state"]
    stage = [*CLI, "stage", "procedural"]
    benchmark = [*CLI, "benchmark", "--spec", ROOT / "workload/CNN-PyTorch-Public/benchmarks.yml", "--output"]
    inductor = [*CLI, "run", "--model", "resnet18", "--precision", "32.32", "--engine", "inductor", "--dry-run"]
    export = [*CLI, "export", ROOT / "tests/results/schema-1/results.json", "-o"]
    peak = ["sh", "-c", 'cp /bin/true "$CNNBENCH_PEAK"; exec "$@"', "sh", *CLI, "peak"]
    cache, at, full = "CNNBENCH_CACHE", str(place), "the disk is full"
    read_only, denied = "the file system is read-only", "Read-only file system"
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "script", checkout / "script")
    rows = [
        Row("cache", "read-only", stage, [read_only, at, f"set {cache}"], {cache: at}),
        Row("cache", "full", stage, [full, at, f"set {cache}"], {cache: at}),
        Row("cache", "", stage, ["a file is where", str(file), f"set {cache}"], {cache: f"{file}/x"}),
        Row("cache", "", stage, ["/proc/.cache", "no directory can be made", f"set {cache}"], {"HOME": "/proc"}),
        Row("cache", "", stage, ["~nobody-of-that-name/x", f"set {cache}"], {cache: "~nobody-of-that-name/x"}, 2),
        Row("logs", "read-only", [*case, place], [denied, at, "--logs-root", "cmake -B"], code=2),
        Row("logs", "full", [*case, place], [full, f"{at}/logs-", "--logs-root", "cmake -B"]),
        Row("logs", "", [*case, file], ["Not a directory", str(file), "--logs-root"], code=2),
        Row("state", "read-only", [*sweep, place / "x"], [denied, at, "--state"], code=2),
        Row("state", "", [*sweep, file, "--output", tmp_path / "o"], ["Not a directory", str(file), "--state"], code=2),
        Row("output", "read-only", [*sweep, tmp_path, "--output", place / "o"], [denied, at, "--output"], code=2),
        Row("output", "read-only", [*benchmark, place], [denied, at, "--output"], code=2),
        Row("export", "read-only", [*export, place / "x.json"], [denied, at, "-o"], code=2),
        Row("export", "full", [*export, place / "x.csv"], [full, f"{at}/x.csv", "with -o"]),
        Row("export", "full", [*export, place / "x.xlsx"], [full, f"{at}/x.xlsx", "with -o"]),
        Row("export", "full", [*export, place / "x.parquet"], [full, f"{at}/x.parquet", "with -o"]),
        Row("peak", "noexec", peak, ["noexec", "CNNBENCH_PEAK"], {"CNNBENCH_PEAK": f"{at}/cnnbench-peak"}),
        Row("set-up", "", [checkout / "script" / "setup.sh"], ["cannot be written to", str(checkout)]),
    ]  # fmt: skip
    if sys.version_info[:2] == (3, 11):
        another = [*inductor, "--model-cache-path", place]
        for kind, reason, code in (("read-only", denied, 2), ("noexec", "noexec", 1)):
            rows.append(Row("compiled", kind, another, [reason, at, "MODEL_CACHE_PATH"], {"CXX": "true"}, code))
    amiss = []
    for row in rows:
        mounts = [(row.kind, place)] if row.kind else [("sealed", checkout)] if row.what == "set-up" else []
        done = run_mounted(mounts, row.command, tmp_path, **row.environment)
        well = done.returncode == row.code and all(text in done.stderr for text in row.said)
        if not well or "Traceback" in done.stderr or "Errno" in done.stderr:
            amiss.append(f"{row.what}, {row.kind}: {done.returncode}: {done.stdout}{done.stderr}")
    assert not amiss, "\n".join(amiss)


def test_shared_files_go_where_there_is_room_and_else_the_error_names_both_places(tmp_path):
    workload = NullWorkload(tmp_path)
    workload.logs_root.mkdir()
    run, shared = workload.command("--steps=4"), tmp_path / "shared"
    shared.mkdir()
    done = run_mounted([("full", "/dev/shm")], run, tmp_path, TMPDIR=str(shared))
    assert done.returncode == 0, done.stderr
    assert workload.shared().parent == shared

    small = [("full", shared), ("full", "/dev/shm")]
    done = run_mounted(
        [*small, ("sealed", "/tmp"), ("sealed", "/var/tmp"), ("open", workload.logs_root)],
        run,
        Path("/proc"),
        TMPDIR=str(shared),
    )
    assert done.returncode == 1
    assert "temporary directory" in done.stderr
    assert "set TMPDIR to a directory with room" in done.stderr
    done = run_mounted([small[1], ("scant", shared)], run, tmp_path, TMPDIR=str(shared))
    assert done.returncode == 1
    assert f"/dev/shm and {shared}: neither can be written to and has 16.0 MB free" in done.stderr
    assert "TMPDIR" in done.stderr


def test_memory_that_fills_up_while_measuring_is_named(tmp_path):
    workload = NullWorkload(tmp_path)
    filled = ["sh", "-c", '(sleep 3; head -c 100M /dev/zero > /dev/shm/filler 2>/dev/null) & exec "$@"', "sh"]
    command = workload.command("--min_time=20", "--max_time=20", "--instances=1", step_of(0.1))
    done = run_mounted([("roomy", "/dev/shm")], [*filled, *command], tmp_path)
    assert done.returncode == 3
    assert "no room was left for its step times: make room in /dev/shm, or else set TMPDIR" in done.stdout + done.stderr


def test_progress_that_cannot_be_written_goes_to_standard_error_and_the_run_goes_on(tmp_path):
    workload = NullWorkload(tmp_path)
    for path, why in (("/dev/full", "No space left on device"), (f"{tmp_path}/not/there", "No such file or directory")):
        done = workload.run("--steps=4", CNNBENCH_PROGRESS=path)
        assert done.returncode == 0, done.stderr
        assert f"CNNBENCH_PROGRESS={path}: " in done.stderr
        assert why in done.stderr
        assert "measuring throughput avx_fp32: 4 of 4 steps" in done.stderr


def test_a_build_directory_that_programs_cannot_run_from_leaves_utilization_out(tmp_path):
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler; on Debian and Ubuntu: apt-get install gcc libc6-dev")
    source, build = write_checkout(tmp_path / "checkout", "GENERIC"), tmp_path / "build"
    build.mkdir()
    configure = [find_tool("cmake"), "-S", source, "-B", build, f"-DCNNBENCH_PYTHON={sys.executable}"]
    done = run_mounted([("noexec", build)], [*configure, "-DPLATFORM=GENERIC"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Utilization: left out, as {build}/cnnbench-peak cannot be run" in done.stdout
    assert "cmake -B" in done.stdout


def test_a_history_on_a_read_only_or_full_disk_is_read_and_not_added_to(tmp_path):
    logs, place = save_set(tmp_path / "logs", [1.0, 2.0, 3.0]), tmp_path / "place"
    place.mkdir()
    add, history = [*CLI, "export", "--sqlite"], place / "h.db"
    assert subprocess.run([*add, history, logs], check=False, capture_output=True).returncode == 0
    more = save_set(tmp_path / "more", [float(number) for number in range(1, 40)], begin=10)
    done = run_mounted([("sealed", place)], [*add, history, more], tmp_path)
    assert (done.returncode, f"{history}: cannot be written to" in done.stderr) == (1, True), done.stderr
    done = run_mounted([("sealed", place)], [*CLI, "list-kpi", "--format", "csv", history], tmp_path)
    assert (done.returncode, done.stdout.count("\nrun,")) == (0, 3), done.stderr
    done = run_mounted([("full", place)], [*add, history, more], tmp_path)
    assert (done.returncode, f"{history}: " in done.stderr) == (1, True), done.stderr
    assert "full" in done.stderr
