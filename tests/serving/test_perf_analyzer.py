"""perf_analyzer beside our own clients: the program itself at a real server, and programs that fail in its place."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_served import OBSTACLE, QUICK, WORKLOAD, assert_nothing_left, case_command, figures, logs_of

from cnnbench.base.errors import InvalidMeasurementError, SkippedError
from cnnbench.proof.verdict import judge_second_client
from cnnbench.results.differences import list_differences
from cnnbench.results.record import load_run
from cnnbench.run.judging import judge_run
from cnnbench.serving.perf_analyzer import (
    LIBRARIES,
    NAME,
    REGION_NAMES,
    WINDOWS,
    Asked,
    PerfAnalyzer,
    ask,
    find_perf_analyzer,
)
from cnnbench.serving.programs import REGIONS
from cnnbench.staging.environments import PERF_ANALYZER, TRITON_SERVER, environment_path
from null_workload import PATIENCE_S, clean_environment, process_files, run_kpi, wait_until

served = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
    pytest.mark.usefixtures("pytorch_python"),
]
ASKED = Asked(
    address="127.0.0.1:8001",
    model="resnet50",
    protocol="grpc",
    batch_size=2,
    request_bytes=1_000_000,
    shared_memory=False,
    concurrency=4,
    due_ns=None,
    seconds=0.3,
    rate_per_s=100.0,
)
REPORT = "Concurrency,Inferences/Second,p50 latency,p99 latency\n4,200.5,7384,20003\n"
LOG = "  Pass [1] throughput: 180 infer/sec.\n  Pass [2] throughput: 220.5 infer/sec.\n    Request count: 700\n"


def run_served(root, cache, mode, *arguments):
    return subprocess.run(
        case_command(root, mode, *QUICK, *arguments, "--perf_analyzer"),
        env=clean_environment(CNNBENCH_CACHE=str(cache)),
        capture_output=True,
        text=True,
    )


def find_analyzers(root):
    marked = f"{root}/".encode()
    found = process_files("cmdline").items()
    return [pid for pid, words in found if words.split(b"\0")[0].endswith(b"/perf_analyzer") and marked in words]


def event_of(logs):
    events = [json.loads(line) for line in (logs / "seen.jsonl").read_text().splitlines()]
    (event,) = (one for one in events if one["event"] == "second client")
    return event


@pytest.fixture(scope="module")
def closed(engine_cache, tmp_path_factory):
    """The logs of a run in which each client, of ours and of its, waits for its answer."""
    root = tmp_path_factory.mktemp("closed")
    done = run_served(root, engine_cache, "throughput", "--concurrency=4", "--shared_memory")
    assert done.returncode == 0, done.stdout + done.stderr
    return logs_of(root)


class TestAtAServer:
    pytestmark = served

    def test_its_figures_stand_beside_ours(self, closed):
        run, found, event = load_run(closed), figures(closed), event_of(closed)
        assert not event["failure"]
        assert found["perf_analyzer requests"] == event["requests_per_s"]
        assert found["perf_analyzer p50"] == event["p50_ms"]
        # In the units of ours: how near they are is the criterion's to say.
        assert 0.1 < found["perf_analyzer requests"] / found["Requests"] < 10
        assert 0.1 < found["perf_analyzer p50"] / found["Latency p50"] < 10
        assert len(event["windows_per_s"]) == WINDOWS
        assert run.facts[NAME] == f"{event['version']}, {event['requests']} requests"
        (criterion,) = (one for one in run.criteria if one.name == "second client")
        assert f"perf_analyzer had {event['requests_per_s']:.4g} requests/s, our clients" in criterion.found
        assert criterion.severity == "unstable"
        assert run_kpi(closed, WORKLOAD / "kpi.sh").returncode == 0
        assert not list_differences(run, judge_run(closed))

    def test_it_is_no_part_of_what_our_clients_measured(self, closed):
        looks = [json.loads(line) for line in (closed / "seen.jsonl").read_text().splitlines()]
        first, last = (one for one in looks if one["event"] == "look")
        ours = sum(len(np.load(path)) for path in (closed / "client").glob("instance-*/steps.npy"))
        assert last["served"]["requests"] - first["served"]["requests"] <= ours + 8

    def test_what_it_leaves_is_its_output_alone(self, closed):
        assert {path.name for path in (closed / NAME).iterdir()} == {"output.log", "report.csv"}
        assert "Using asynchronous calls" in (closed / NAME / "output.log").read_text()

    def test_requests_at_moments_of_their_own_are_those_of_our_clients(self, engine_cache, tmp_path):
        done = run_served(tmp_path, engine_cache, "latency", "--request_rate=50")
        assert done.returncode in (0, 3), done.stdout + done.stderr  # on a busy machine some of ours are sent late
        logs = logs_of(tmp_path)
        rows, event = np.load(logs / "client" / "instance-0" / "steps.npy"), event_of(logs)
        due_ns = np.sort(rows[:, 0])
        gaps_us = np.array((logs / NAME / "intervals.txt").read_text().split(), dtype=float)
        assert gaps_us == pytest.approx(np.diff(due_ns) / 1e3, abs=1.001)
        assert event["requests_per_s"] == pytest.approx(len(due_ns) / (gaps_us.sum() / 1e6), rel=0.1)
        assert "second client" in {one.name for one in load_run(logs).criteria}

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_it_does_not_outlive_the_controller(self, engine_cache, tmp_path, number):
        command = case_command(tmp_path, "throughput", *QUICK, "--perf_analyzer")
        environment = clean_environment(CNNBENCH_CACHE=str(engine_cache))
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as one:
            try:
                wait_until(lambda: find_analyzers(tmp_path), f"{NAME} under way")
                one.send_signal(number)
                one.communicate(timeout=PATIENCE_S)
            finally:
                one.kill()
        assert one.returncode == (3 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_until(lambda: not find_analyzers(tmp_path), f"{NAME} gone")
        assert_nothing_left(one.pid)


@pytest.fixture
def analyzer(tmp_path):
    """Make a program in perf_analyzer's place, of some Python."""

    def make(code):
        program = tmp_path / "program"
        program.write_text(f"#!{sys.executable}\nimport os, sys, time\n{code}\n")
        program.chmod(0o755)
        return PerfAnalyzer(program, "2.51.0", {})

    return make


def ask_it(analyzer, directory, asked=ASKED, patience_s=PATIENCE_S, check=lambda: None):
    cpus = sorted(os.sched_getaffinity(0))[-1:]
    return ask(analyzer, asked, directory / NAME, dict(os.environ), cpus, patience_s, check)


WRITES = "open(sys.argv[sys.argv.index('-f') + 1], 'w').write({!r}); print({!r})"


def test_what_it_reports_is_read(analyzer, tmp_path):
    seen = ask_it(analyzer(WRITES.format(REPORT, LOG)), tmp_path)
    assert (seen.failure, seen.version, seen.requests, seen.requests_per_s) == ("", "2.51.0", 700, 100.25)
    assert (seen.p50_ms, seen.p99_ms) == (7.384, 20.003)
    assert (seen.windows_per_s, seen.delayed_share) == ((90.0, 110.25), 0.0)
    (again := tmp_path / "again").mkdir()
    late = f"{LOG}[WARNING] Perf Analyzer was not able to keep up. 12.5% of the requests were delayed. "
    assert ask_it(analyzer(WRITES.format(REPORT, late)), again).delayed_share == 0.125


def test_it_is_where_the_clients_are(analyzer, tmp_path):
    seen = ask_it(analyzer("sys.exit(f'on {sorted(os.sched_getaffinity(0))}')"), tmp_path)
    assert seen.failure.endswith(f"on {sorted(os.sched_getaffinity(0))[-1:]}")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit('error: no such model')", r"perf_analyzer \d+ was ended with exit code 1; .*error: no such model$"),
        ("os.kill(os.getpid(), 9)", r"perf_analyzer \d+ was killed by SIGKILL"),
        ("", r"its report, .*/report.csv: No such file or directory"),
        (WRITES.format("", LOG), r"its report, .*: 0 lines of figures, needed one"),
        (WRITES.format(REPORT, ""), r"its report, .*: 1 lines of figures, needed one, and how many requests"),
        (WRITES.format(REPORT.replace("200.5", "0"), LOG), r"its report, .*: 0 images/s"),
        (WRITES.format(REPORT.replace("200.5", "inf"), LOG), r"its report, .*: inf images/s"),
        (WRITES.format(REPORT.replace("7384", "nan"), LOG), r"its report, .*, 50 % within nan us"),
        (WRITES.format(REPORT.replace("200.5", "fast"), LOG), r"its report, .*: could not convert string to float"),
        (WRITES.format(REPORT.replace("p99 latency", "p98 latency"), LOG), r"its report, .*: 'p99 latency'"),
    ],
)
def test_one_that_fails_is_told(analyzer, tmp_path, code, reason):
    seen = ask_it(analyzer(code), tmp_path)
    assert re.search(reason, seen.failure), seen.failure
    assert seen.requests == 0


def test_one_that_hangs_is_given_up(analyzer, tmp_path):
    seen = ask_it(analyzer("print(os.getpid(), flush=True); time.sleep(600)"), tmp_path, patience_s=1)
    assert re.fullmatch(r"perf_analyzer \d+ hung: not done within 1\.3 s", seen.failure)
    assert int((tmp_path / NAME / "output.log").read_text()) not in process_files("stat")


def test_it_ends_with_what_it_asks(analyzer, tmp_path):
    def check():
        if log.is_file() and log.read_text():
            raise InvalidMeasurementError("Triton Server has ended")

    log = tmp_path / NAME / "output.log"
    with pytest.raises(InvalidMeasurementError, match="Triton Server has ended"):
        ask_it(analyzer("print(os.getpid(), flush=True); time.sleep(600)"), tmp_path, check=check)
    assert int(log.read_text()) not in process_files("stat")


def test_its_shared_memory_is_removed_before_and_after(analyzer, tmp_path):
    first, second = (REGIONS / name for name in REGION_NAMES)
    code = f"there = os.path.exists({str(first)!r}); open({str(second)!r}, 'w').close(); sys.exit(f'there: {{there}}')"
    if not first.exists():
        first.write_bytes(b"")  # as one leaves it whose controller was killed
    seen = ask_it(analyzer(code), tmp_path, replace(ASKED, shared_memory=True))
    assert seen.failure.endswith("there: False")
    assert not first.exists()
    assert not second.exists()


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, "-i grpc -b 2 --async --concurrency-range 4 --measurement-interval 83 "),
        ({"protocol": "http"}, "-i http -b 2 "),
        ({"seconds": 36.0}, "--measurement-interval 8333 "),  # 10 s of 100 MB/s
        ({"seconds": 36.0, "shared_memory": True}, "--shared-memory system --measurement-interval 10000 "),
        ({"due_ns": np.array([1, 2])}, "--request-intervals logs/intervals.txt --measurement-interval 83 "),
        ({"seconds": 0.0001}, "--measurement-interval 1 "),
    ],
)
def test_it_asks_as_our_clients_did(asked, options, tmp_path):
    found = " ".join(replace(ASKED, **asked).options(tmp_path)).replace(str(tmp_path), "logs")
    assert options in found
    assert found.startswith("-m resnet50 -u 127.0.0.1:8001 ")


@pytest.fixture
def staged(tmp_path):
    """A cache with perf_analyzer and the libraries that it needs; its program."""
    for lock in (PERF_ANALYZER, TRITON_SERVER):
        (environment_path(lock, tmp_path) / "bin").mkdir(parents=True)
        (environment_path(lock, tmp_path) / "bin" / "python").symlink_to(sys.executable)
    libraries = environment_path(TRITON_SERVER, tmp_path) / "lib/python3/site-packages/nvidia_pytriton.libs"
    libraries.mkdir(parents=True)
    for pattern in LIBRARIES.values():
        (libraries / pattern.replace("*", "", 1).replace("*", ".1")).write_text("")
    program = environment_path(PERF_ANALYZER, tmp_path) / "bin" / NAME
    program.write_text('#!/bin/sh\nls "${LD_LIBRARY_PATH%%:*}" >"$0.libraries"\necho "Perf Analyzer Version 9.9" >&2\n')
    program.chmod(0o755)
    return program


def test_it_finds_its_libraries_by_their_own_names(staged, tmp_path):
    found = find_perf_analyzer(tmp_path)
    assert (found.program, found.version) == (staged, "9.9")
    assert set(staged.with_name(f"{NAME}.libraries").read_text().split()) == set(LIBRARIES)


def _lacks_the_program(program):
    program.unlink()


def _lacks_a_library(program):
    (library,) = program.parents[2].glob("triton-server-*/lib/python*/site-packages/*/libb64*")
    library.unlink()


def _is_of_another_machine(program):
    program.write_bytes(b"\x7fELF of another machine")


def _needs_another_system(program):
    program.write_text("#!/bin/sh\necho \"libc.so.6: version 'GLIBC_2.38' not found\" >&2\nexit 1\n")


def _says_nothing(program):
    program.write_text("#!/bin/sh\nexit 5\n")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_lacks_the_program, "its package has no program for "),
        (_lacks_a_library, r"it needs libb64.so.0d, and .* has no libb64-\*.so.0d\*; remove that, and it is made anew"),
        (_is_of_another_machine, "Exec format error"),
        (_needs_another_system, "libc.so.6: version 'GLIBC_2.38' not found"),
        (_says_nothing, "exit code 5"),
    ],
)
def test_where_it_cannot_run_that_is_told(staged, tmp_path, damage, reason):
    damage(staged)
    with pytest.raises(SkippedError, match=f"^PERF_ANALYZER=True: perf_analyzer cannot run here: {reason}"):
        find_perf_analyzer(tmp_path)


@pytest.mark.parametrize(
    ("criterion", "passed", "words"),
    [
        (
            judge_second_client(100, 104.9, (), 0, ""),
            True,
            "perf_analyzer had 104.9 requests/s, our clients 100: +4.9%",
        ),
        (judge_second_client(100, 95.1, (), 0, ""), True, "-4.9%"),
        (judge_second_client(100, 105.1, (90, 120), 0, ""), False, "+5.1% (its windows 90 to 120), needed within 5%"),
        (judge_second_client(100, 94.9, (), 0.02, ""), False, "-5.1%, and it sent 2.0% of the requests late"),
        (judge_second_client(100, 94.9, (), 0, ""), False, "stop other work on this machine"),
        (
            judge_second_client(100, 0, (), 0, "it hung"),
            False,
            "no figures beside our clients' 100 requests/s: it hung",
        ),
    ],
)
def test_what_two_clients_agree_on(criterion, passed, words):
    assert (criterion.passed, criterion.severity) == (passed, "unstable")
    assert words in f"{criterion.found}, needed {criterion.needed}"
