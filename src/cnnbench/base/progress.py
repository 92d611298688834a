"""Show how far a long step has come: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

STREAM_VARIABLE = "CNNBENCH_PROGRESS"
"""Environment variable: a file to report to. ctest keeps what a case prints to itself; this leads around it."""

LINE_INTERVAL_S = 10.0
BYTES = "B"
SECONDS = "s"
OVERTIME = "waiting for the steps under way"
"""What is said while a step of so many seconds goes on past them."""
_SECONDS_BAR = "{l_bar}{bar}| {n:.15g}/{total:.15g} s{postfix}"

_listeners: list[Callable[[Progress], object]] = []


@contextmanager
def listening(listener: Callable[[Progress], object]) -> Iterator[None]:
    """Have this called, for the block, with each step of this process that begins, gets on or ends; be quick."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Progress:
    """Count finished units of one step and report on standard error.

    `unit` is a plural noun ("images", "steps"), "B" for bytes, which are scaled to kB, MB and GB, or "s" for seconds,
    which have no rate and of which `total` is the most that the step is meant to take. `total` is None where it is not
    known; never more than it is shown. `done` is what an earlier run had finished: it shows, but does not count into
    the rate.
    """

    def __init__(
        self,
        label: str,
        total: float | None,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self._done: float = done
        self._done_before = done
        self._stream = stream if stream is not None else progress_stream()
        self._clock = clock
        self._started_s = self._reported_s = clock()
        self._bar: tqdm | None = None
        self._note = ""
        self.is_over = False

    def __enter__(self) -> Progress:
        """Begin to show; time counts from here."""
        self._started_s = self._reported_s = self._clock()
        # The locks of today's engines have tqdm, but one that does without is as well off with lines.
        if self._stream.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.label,
                total=self.total,
                initial=self._done,
                unit=self.unit if self.unit == BYTES else f" {self.unit}",
                unit_scale=self.unit == BYTES,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_SECONDS_BAR if self.unit == SECONDS else None,
            )
        self._tell()
        return self

    @property
    def done(self) -> float:
        """How many units are finished."""
        return self._done

    @property
    def left_s(self) -> float | None:
        """The time left (s), at the most where units are seconds; None where it is not known."""
        if self.unit == SECONDS and self.total is not None:
            return max(0.0, self.total - self._done)
        rate_per_s = self._rate_per_s()
        if self.total is None or rate_per_s == 0:
            return None
        return max(0.0, self.total - self._done) / rate_per_s

    def note(self, text: str) -> None:
        """Have something else that is known by now shown beside the count."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def _tell(self) -> None:
        for listener in _listeners:
            listener(self)

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as finished."""
        more = n if self.total is None else max(0, min(n, self.total - self._done))
        self._done += more
        if self._bar is not None:
            if more < n and self.unit == SECONDS:
                self._bar.set_postfix_str(f"{self._note}, {OVERTIME}".removeprefix(", "))
            self._bar.update(more)
        self.remind()
        self._tell()

    def remind(self) -> None:
        """Write a line where one is due, though nothing more may be finished."""
        if self._bar is None and self._clock() - self._reported_s >= LINE_INTERVAL_S:
            self._reported_s = self._clock()
            self._write_line(self._remaining())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say that the step is done, unless it failed."""
        self.is_over = kind is None
        self._tell()
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._write_line(f"done in {duration_text(self._clock() - self._started_s)}")

    def _rate_per_s(self) -> float:
        elapsed_s = self._clock() - self._started_s
        return (self._done - self._done_before) / elapsed_s if elapsed_s > 0 else 0.0

    def _remaining(self) -> str:
        left_s = self.left_s
        if left_s is None:
            return ""
        if self.unit == SECONDS:
            return f"at most {duration_text(left_s)} left" if left_s > 0 else OVERTIME
        return f"{duration_text(left_s)} left"

    def _write_line(self, ending: str) -> None:
        rate_per_s = self._rate_per_s()
        if self.unit == BYTES:
            total = "" if self.total is None else f" of {bytes_text(self.total)}"
            count, rate = f"{bytes_text(self._done)}{total}", f"{bytes_text(rate_per_s)}/s"
        else:
            total = "" if self.total is None else f" of {self.total:.15g}"
            count = f"{self._done:.15g}{total} {self.unit}"
            rate = "" if self.unit == SECONDS else f"{rate_per_s:.3g}/s"
        parts = [count, rate if rate_per_s else "", self._note, ending]
        line = f"{self.label}: {', '.join(part for part in parts if part)}"
        try:
            print(line, file=self._stream, flush=True)
        except OSError as error:
            if self._stream is sys.stderr or not (path := os.environ.get(STREAM_VARIABLE)):
                raise
            print(f"{STREAM_VARIABLE}={path}: {error.strerror}; reporting here", file=sys.stderr)
            self._stream = sys.stderr
            print(line, file=self._stream, flush=True)


def progress_stream() -> TextIO:
    """Return the stream that STREAM_VARIABLE names, else standard error."""
    path = os.environ.get(STREAM_VARIABLE)
    if path and not sys.stderr.isatty():
        try:
            return open(path, "a")  # noqa: PTH123 - as long-lived as standard error, and no file to create
        except OSError as error:
            print(f"{STREAM_VARIABLE}={path}: cannot be written ({error.strerror}); reporting here", file=sys.stderr)
    return sys.stderr


def bytes_text(count: float) -> str:
    """Write a number of bytes for people, in decimal units: 6744924160 is "6.7 GB"."""
    if count < 1000:
        return f"{count:.0f} B"
    units = ["kB", "MB", "GB", "TB"]
    power = min(len(units), int(math.log10(count)) // 3)
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def duration_text(seconds: float) -> str:
    """Write a time for people, in whole seconds: 3725 is "1 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
