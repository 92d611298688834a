"""What a person sees while ctest.sh runs: on a terminal, in a log file, and by --status from elsewhere."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading

import pytest

from cmake_build import run_cmake
from cnnbench.run.status import DIRECTORY
from null_workload import SLUG, THROUGHPUT, clean_environment, find_workers, process_files, wait_until, write_checkout

CASES = "throughput latency"
SETTINGS = {"STEPS": "150", "WARMUP_STEPS": "20", "CUSTOMER_ENV": "CNNBENCH_NULL_STEP_MS=20", "BATCH_SIZE": "1"}
ENDLESS = SETTINGS | {"STEPS": "100000"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = write_checkout(tmp_path_factory.mktemp("live"), "GENERIC")
    (root / "workload" / "Harness" / "CMakeLists.txt").write_text(f"add_workload(CASES {CASES})\n")
    return root


@pytest.fixture
def build(checkout, tmp_path):
    done = run_cmake(tmp_path / "build", sys.executable, "-DPLATFORM=GENERIC", source=checkout)
    assert done.returncode == 0, done.stderr
    yield tmp_path / "build" / "workload" / "Harness"
    assert not find_workers(tmp_path)


def status(build):
    return subprocess.run([build / "ctest.sh", "--status"], env=clean_environment(), capture_output=True, text=True)


def shown_status(build):
    done = status(build)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Terminal:
    """A command on a terminal of its own, and all that it writes there."""

    def __init__(self, command, columns=80, **environment):
        self._controller, end = pty.openpty()
        self.resize(columns)
        environment = clean_environment(TERM="xterm-256color", **environment)
        self.process = subprocess.Popen(
            command,
            env={name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")},
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        self._parts = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while part := os.read(self._controller, 65536):
                self._parts.append(part)

    def resize(self, columns):
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    @property
    def raw(self):
        return b"".join(self._parts).decode(errors="replace")

    @property
    def text(self):
        return ESCAPES.sub("", self.raw.replace("\x1b[2K", "\n"))

    def wait_for(self, pattern):
        wait_until(lambda: re.search(pattern, self.text) or self.process.poll() is not None, pattern)
        assert re.search(pattern, self.text), self.text

    def end(self):
        code = self.process.wait()
        self._reader.join()
        os.close(self._controller)
        return code


def test_a_terminal_shows_what_runs_below_what_ctest_says_and_status_the_same(build):
    terminal = Terminal([build / "ctest.sh"], **SETTINGS)
    terminal.wait_for(r"\d ± [\d.]+ img/s so far")
    beside = shown_status(build)
    assert re.search(r"^ctest.sh \(process \d+\): case 1 of 2, \d+ s so far", beside)
    assert terminal.end() == 0
    text = terminal.text
    assert "case 1 of 2" in text
    assert "case 2 of 2" in text
    assert re.search(r"measuring throughput avx_fp32\n +\d+ of 150 steps, about \d+ s left", text)
    assert "instances: 1 measuring" in text
    assert "1/2 Test #1: " in text
    assert "100% tests passed" in text
    assert terminal.raw.count(HIDE) == terminal.raw.count(SHOW) == 1
    after = terminal.raw[terminal.raw.rindex(SHOW) :]
    assert "so far" not in after  # wiped away, and nothing of it drawn again
    ended = shown_status(build).splitlines()
    assert ended[0] == "nothing is running"
    assert ended[1].endswith("with exit code 0 after 2 of 2 cases")
    assert ended[2] == f"last: test_{SLUG}_inference_latency_avx_fp32"


def test_a_terminal_that_goes_away_without_a_signal_stops_nothing(build):
    controller, end = pty.openpty()
    command = [build / "ctest.sh", "-R", "throughput"]
    environment = clean_environment(TERM="xterm-256color", **SETTINGS)
    process = subprocess.Popen(command, env=environment, stdin=end, stdout=end, stderr=end)
    os.close(end)
    text = b""
    while b"so far" not in text:
        text += os.read(controller, 65536)
    os.close(controller)
    assert process.wait() in (0, 120)  # Python's, for output that it could give to nobody
    assert shown_status(build).splitlines()[1].endswith("with exit code 0 after 1 of 1 case")


def test_a_ctrl_c_leaves_a_clean_terminal_and_says_so_afterwards(build):
    terminal = Terminal([build / "ctest.sh", "-R", "throughput"], columns=40, NO_COLOR="1", **ENDLESS)
    terminal.wait_for("instances: 1 measuring")
    terminal.resize(30)
    os.write(terminal._controller, b"\x03")
    terminal.process.send_signal(signal.SIGINT)  # this terminal controls no session
    assert terminal.end() == 128 + signal.SIGINT
    assert terminal.raw.count(HIDE) == terminal.raw.count(SHOW) == 1
    assert not [line for line in terminal.text.split("\n") if "so far" in line and len(line) > 40]
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.raw)  # no colour
    assert "with exit code 130 after 1 of 1 case" in shown_status(build)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CNNBENCH_PROGRESS": "/dev/null"}])
def test_a_terminal_that_cannot_have_a_view_gets_none(build, environment):
    script = f"{build}/ctest.sh -R throughput"
    settings = SETTINGS | {"STEPS": "20"}
    words = [f"{name}={value}" for name, value in environment.items()]
    terminal = Terminal(["env", *words, "sh", "-c", script], **settings)
    assert terminal.end() == 0
    assert HIDE not in terminal.raw
    assert "so far" not in terminal.raw
    assert "100% tests passed" in terminal.text
    assert ("measuring throughput avx_fp32: 20 of 20 steps" in terminal.text) == ("TERM" in environment)


def test_a_log_file_gets_plain_lines_and_a_reader_is_told_of_a_sweep(build, tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [build / "ctest.sh", "-R", "throughput", "--set", "BATCH_SIZE=1 2"],
            env=clean_environment(**SETTINGS),
            stdout=log,
            stderr=log,
        )
        wait_until(lambda: "case 2 of 2" in shown_status(build), "the second case")
        wait_until(lambda: "img/s so far" in shown_status(build), "a rate")
        told = shown_status(build)
        assert process.wait() == 0
    assert "  run 2 of 2: BATCH_SIZE=2" in told
    assert f"last: {THROUGHPUT}\n" in told
    lines = (tmp_path / "log").read_text().splitlines()
    assert sum(line.startswith("measuring throughput") and " ± " in line for line in lines) == 2
    assert not any("\x1b" in line for line in lines)


def test_what_was_killed_is_not_shown_as_running_for_ever(build):
    process = subprocess.Popen(
        [build / "ctest.sh", "-R", "throughput"],
        env=clean_environment(**ENDLESS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: "measuring" in shown_status(build), "a case that measures")
    process.kill()
    process.wait()
    told = shown_status(build).splitlines()
    assert f"ctest.sh (process {process.pid}) died after " in "\n".join(told)
    cases = lambda: [one for one in process_files("cmdline").values() if str(build).encode() in one]  # noqa: E731
    wait_until(lambda: not cases(), "the case ended")  # it ends with its ctest
    assert shown_status(build).startswith("nothing is running\n")


def test_status_of_what_is_damaged_or_no_build_directory_says_so(build, tmp_path):
    (build / DIRECTORY).mkdir()
    (build / DIRECTORY / "case-1.json").write_text('{"schema_version": 2}')
    done = status(build)
    assert done.returncode == 1
    assert done.stdout == "nothing is running, and nothing has run here yet\n"
    assert "case-1.json: of schema 2, needed 1" in done.stderr
    for more in ("-N", "--loop=2", "--continue"):
        bad = subprocess.run([build / "ctest.sh", "--status", more], capture_output=True, text=True)
        assert bad.returncode == 2
        assert bad.stderr.startswith("cnnbench: --status: goes alone, or with the build directories of other workloads")
    bad = subprocess.run([build / "ctest.sh", "--status", tmp_path], capture_output=True, text=True)
    assert bad.returncode == 1
    assert f"{tmp_path}: no build directory of a workload's" in bad.stderr
    other = tmp_path / "other"
    other.mkdir()
    (other / "CTestTestfile.cmake").touch()
    both = subprocess.run([build / "ctest.sh", "--status", other], capture_output=True, text=True)
    silent = "  nothing is running, and nothing has run here yet"
    assert both.stdout.splitlines() == [f"{build}:", silent, f"{other}:", silent]
