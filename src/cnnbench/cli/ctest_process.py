"""Run ctest so that nothing of it stays, however it ends, and so that its cases' progress and skips are seen."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from cnnbench.base.progress import STREAM_VARIABLE
from cnnbench.base.signals import end_with_parent
from cnnbench.cases.variables import SKIPS_VARIABLE

_GRACE_S = 15.0


def _print_skip(line: str) -> None:
    print(f"skipped: {line}", flush=True)


def run_ctest(
    command: Sequence[str],
    build_dir: Path,
    environment: Mapping[str, str],
    on_skip: Callable[[str], object] = _print_skip,
) -> int:
    """Run ctest, then tell why cases were skipped; return its exit code, or 128 + N when signal N has ended it."""
    with tempfile.NamedTemporaryFile("r", prefix="cnnbench-skips-") as skips, _lead_progress_around(command) as led:
        weaker = {"CTEST_OUTPUT_ON_FAILURE": "1", **led}
        code = _run_to_the_end(command, build_dir, {**weaker, **environment, SKIPS_VARIABLE: skips.name})
        for line in skips:
            on_skip(line.rstrip("\n"))
    return code


def record_skip(case: str, reason: str, environ: Mapping[str, str]) -> None:
    """Leave a skipped case's reason to the ctest.sh that it runs under, if any."""
    if path := environ.get(SKIPS_VARIABLE):
        with Path(path).open("a") as file:
            file.write(f"{case}: {reason.removeprefix(f'{case}: ')}\n")


def _run_to_the_end(command: Sequence[str], build_dir: Path, environment: Mapping[str, str]) -> int:
    """Run ctest and leave no process of it; return its exit code, or 128 + N when signal N has ended it.

    ctest neither hands a signal on to its cases nor waits for them. So it gets a session of its own, all of which is
    signalled and waited for here. Where we are killed ourselves, the kernel kills ctest, and its cases end with it.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if process:
            _signal_session(process.pid, number)

    with _handle_signals(forward):
        bound = partial(end_with_parent, os.getpid(), signal.SIGKILL)
        process = subprocess.Popen(command, cwd=build_dir, env=environment, start_new_session=True, preexec_fn=bound)
        if received:  # before there was a process to forward it to
            _signal_session(process.pid, received[0])
        code = process.wait()
        if code < 0 and not received:
            _signal_session(process.pid, signal.SIGTERM)
        if code < 0 or received:
            _end_session(process.pid)
    return 128 + received[0] if received else 128 - code if code < 0 else code


def _copy_lines(lines: TextIO, stream: TextIO) -> None:
    for line in lines:
        print(line, end="", file=stream, flush=True)


@contextlib.contextmanager
def _lead_progress_around(command: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield what leads a case's progress around ctest to our standard error, unless ctest shows all it prints.

    A terminal is written to directly, for the bars. Anything else gets the lines through a pipe of ours: a file that
    two processes have opened each for itself would be overwritten by turns.
    """
    if {"-V", "-VV", "--verbose", "--extra-verbose"}.intersection(command):
        yield {}
    elif sys.stderr.isatty():
        yield {STREAM_VARIABLE: f"/proc/{os.getpid()}/fd/2"}
    else:
        reading, writing = os.pipe()
        with open(reading) as lines, open(writing, "w") as end:  # noqa: PTH123 - descriptors, not paths
            copier = threading.Thread(target=_copy_lines, args=(lines, sys.stderr))
            copier.start()
            try:
                yield {STREAM_VARIABLE: f"/proc/{os.getpid()}/fd/{end.fileno()}"}
            finally:
                end.close()
                copier.join()


@contextlib.contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have this handler called for the signals that ask to stop, except those that we were started to ignore."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _signal_session(session: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, number)  # ctest and its cases share the group that the session began with


def _end_session(session: int) -> None:
    """Wait for the cases to put things in order, and kill what is left when their time is up."""
    deadline_s = time.monotonic() + _GRACE_S
    while _is_session_alive(session) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    _signal_session(session, signal.SIGKILL)


def _is_session_alive(session: int) -> bool:
    """Say whether a process of this session still runs; a zombie, which only waits to be reaped, does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _parent, _group, its_session, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_session) == session and state != "Z":
                return True
    return False
