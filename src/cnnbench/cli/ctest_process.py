"""Run ctest so that nothing of it stays, however it ends, and so that its cases' progress and skips are seen."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from cnnbench.base.progress import STREAM_VARIABLE
from cnnbench.base.signals import end_with_parent
from cnnbench.cases.variables import SKIPS_VARIABLE, STATUS_VARIABLE

_GRACE_S = 15.0


def _print_skip(line: str) -> None:
    print(f"skipped: {line}", flush=True)


def run_ctest(
    command: Sequence[str],
    build_dir: Path,
    environment: Mapping[str, str],
    call: str = "",
    on_skip: Callable[[str], object] = _print_skip,
) -> int:
    """Run ctest, then tell why cases were skipped; return its exit code, or 128 + N when signal N has ended it.

    `call`: the name of the call that its cases are of, which they are told, and which is shown on a terminal.
    """
    told = {STATUS_VARIABLE: call} if call else {}
    with tempfile.NamedTemporaryFile("r", prefix="cnnbench-skips-") as skips:
        with _show(command, build_dir, environment, call) as shown:
            weaker = {"CTEST_OUTPUT_ON_FAILURE": "1", **shown.environment}
            variables = {**weaker, **environment, **told, SKIPS_VARIABLE: skips.name}
            code = _run_to_the_end(command, build_dir, variables, shown)
        for line in skips:
            on_skip(line.rstrip("\n"))
    return code


def record_skip(case: str, reason: str, environ: Mapping[str, str]) -> None:
    """Leave a skipped case's reason to the ctest.sh that it runs under, if any."""
    if path := environ.get(SKIPS_VARIABLE):
        with Path(path).open("a") as file:
            file.write(f"{case}: {reason.removeprefix(f'{case}: ')}\n")


@dataclass(frozen=True)
class _Shown:
    """Where ctest's output goes, None for ours; `environment`: what leads its cases' progress around it."""

    environment: Mapping[str, str]
    stdout: TextIO | None = None
    stderr: TextIO | None = None


def _run_to_the_end(command: Sequence[str], build_dir: Path, environment: Mapping[str, str], shown: _Shown) -> int:
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
        process = subprocess.Popen(
            command,
            cwd=build_dir,
            env=environment,
            stdout=shown.stdout,
            stderr=shown.stderr,
            start_new_session=True,
            preexec_fn=bound,
        )
        if received:  # before there was a process to forward it to
            _signal_session(process.pid, received[0])
        code = process.wait()
        if code < 0 and not received:
            _signal_session(process.pid, signal.SIGTERM)
        if code < 0 or received:
            _end_session(process.pid)
    return 128 + received[0] if received else 128 - code if code < 0 else code


def _copy_lines(lines: TextIO) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _show(command: Sequence[str], build_dir: Path, environment: Mapping[str, str], call: str) -> Iterator[_Shown]:
    """Yield where ctest's output and its cases' progress go: on a terminal, above and into the view of the call.

    Anything else gets the progress in lines, as does a terminal that cannot have a view, and ctest's output directly.
    They come through a pipe of ours: a file that two processes have opened each for itself would be overwritten by
    turns. Where ctest shows all that its cases print, that has their progress. With -Q, or where the user leads the
    progress elsewhere, nothing is shown.
    """
    is_quiet = bool({"-Q", "--quiet"}.intersection(command)) or STREAM_VARIABLE in environment
    is_verbose = bool({"-V", "-VV", "--verbose", "--extra-verbose"}.intersection(command))
    with contextlib.ExitStack() as stack:
        if call and not is_quiet and _is_drawable(sys.stderr, environment):
            from cnnbench.cli.live import LiveView

            view = stack.enter_context(LiveView(build_dir, call, sys.stderr))
            told = {} if is_verbose else _stream_to(stack.enter_context(_pipe_to(view.tell)))
            lines = stack.enter_context(_pipe_to(view.copy, pty.openpty))  # on a terminal, ctest has colours
            yield _Shown(told, lines if sys.stdout.isatty() else None, lines)
        elif is_quiet or is_verbose:
            yield _Shown({})
        else:
            yield _Shown(_stream_to(stack.enter_context(_pipe_to(_copy_lines))))


def _is_drawable(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Say whether a stream is a terminal whose cursor can be moved."""
    return stream.isatty() and environment.get("TERM", "") not in ("", "dumb", "unknown")


def _stream_to(end: TextIO) -> dict[str, str]:
    return {STREAM_VARIABLE: f"/proc/{os.getpid()}/fd/{end.fileno()}"}


@contextlib.contextmanager
def _pipe_to(take: Callable[[TextIO], object], make: Callable[[], tuple[int, int]] = os.pipe) -> Iterator[TextIO]:
    """Yield the end of a pipe, or of a terminal that `make` makes, whose lines are taken by a thread, to the last."""
    reading, writing = make()
    with open(reading, errors="replace") as lines, open(writing, "w") as end:  # noqa: PTH123 - descriptors, not paths
        taker = threading.Thread(target=take, args=(lines,))
        taker.start()
        try:
            yield end
        finally:
            end.close()
            taker.join()


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
