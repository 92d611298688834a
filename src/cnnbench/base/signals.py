"""Turn what asks a run to end (Ctrl-C, SIGTERM, its time limit) into one exception in the main thread.

A process that is killed cannot ask: those it started have the kernel do so.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from cnnbench.base.errors import TimeUpInterrupt, UsageError

INTERRUPTED = 130
"""The exit code after a Ctrl-C that no measurement had to record: 128 + SIGINT, as shells have it."""

MOST_TIMEOUT_S = 1e9
"""Some thirty years: a timer may refuse more."""

_PR_SET_PDEATHSIG = 1


def end_by_exceptions() -> None:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt, the first of them only."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: _end_by(KeyboardInterrupt()))


def _end_by(interrupt: BaseException) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the ending of the instances
    raise interrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what asks a run to end until the block is done; it must be short.

    A process that is being started is known to nobody yet who could end it.
    """
    held: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        first, frame = held[0]
        handlers[signal.Signals(first)](first, frame)


def end_with_parent(parent: int, number: int) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies; at once when it already has.

    What the process becomes by `exec` keeps to that. The kernel takes the thread that started this process for its
    parent, so that must be one which lasts.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call: this process has another parent by now
        os.kill(os.getpid(), number)


def check_timeout(option: str, timeout_s: float | None) -> None:
    """Raise UsageError for a time limit that is none."""
    if timeout_s is not None and not 0 < timeout_s <= MOST_TIMEOUT_S:
        raise UsageError(f"{option} {timeout_s:g}: must be more than 0 and at most {MOST_TIMEOUT_S:g} seconds")


@contextmanager
def time_limit(timeout_s: float | None, name: str = "TIMEOUT") -> Iterator[None]:
    """Raise TimeUpInterrupt, with the limit's name, inside the block when it takes longer."""
    if timeout_s is not None:
        interrupt = TimeUpInterrupt(f"not done within {name}={timeout_s:g} s")

        def end(_number: int, _frame: FrameType | None) -> None:
            _end_by(interrupt)

        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
