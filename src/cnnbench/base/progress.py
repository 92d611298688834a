"""Show how far a long step has come: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm

STREAM_VARIABLE = "CNNBENCH_PROGRESS"
"""Environment variable: a file to report to. ctest keeps what a case prints to itself; this leads around it."""

LINE_INTERVAL_S = 5.0
BYTES = "B"
SECONDS = "s"
OVERTIME = "waiting for the steps under way"
"""What is said while a step of so many seconds goes on past them."""
_SECONDS_BAR = "{l_bar}{bar}| {n:.15g}/{total:.15g} s{postfix}"


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
        self._label = label
        self._total = total
        self._unit = unit
        self._done: float = done
        self._done_before = done
        self._stream = stream if stream is not None else progress_stream()
        self._clock = clock
        self._started_s = self._reported_s = clock()
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        """Begin to show; time counts from here."""
        self._started_s = self._reported_s = self._clock()
        # The locks of today's engines have tqdm, but one that does without is as well off with lines.
        if self._stream.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._label,
                total=self._total,
                initial=self._done,
                unit=self._unit if self._unit == BYTES else f" {self._unit}",
                unit_scale=self._unit == BYTES,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_SECONDS_BAR if self._unit == SECONDS else None,
            )
        return self

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as finished."""
        more = n if self._total is None else max(0, min(n, self._total - self._done))
        self._done += more
        if self._bar is not None:
            if more < n and self._unit == SECONDS:
                self._bar.set_postfix_str(OVERTIME)
            self._bar.update(more)
        elif self._clock() - self._reported_s >= LINE_INTERVAL_S:
            self._reported_s = self._clock()
            self._write_line(self._remaining())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say that the step is done, unless it failed."""
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._write_line(f"done in {_duration(self._clock() - self._started_s)}")

    def _rate_per_s(self) -> float:
        elapsed_s = self._clock() - self._started_s
        return (self._done - self._done_before) / elapsed_s if elapsed_s > 0 else 0.0

    def _remaining(self) -> str:
        rate_per_s = self._rate_per_s()
        if self._unit == SECONDS and self._total is not None:
            left_s = self._total - self._done
            return f"at most {_duration(left_s)} left" if left_s > 0 else OVERTIME
        if self._total is None or rate_per_s == 0:
            return ""
        return f"{_duration(max(0, self._total - self._done) / rate_per_s)} left"

    def _write_line(self, ending: str) -> None:
        rate_per_s = self._rate_per_s()
        if self._unit == BYTES:
            total = "" if self._total is None else f" of {bytes_text(self._total)}"
            count, rate = f"{bytes_text(self._done)}{total}", f"{bytes_text(rate_per_s)}/s"
        else:
            total = "" if self._total is None else f" of {self._total:.15g}"
            count = f"{self._done:.15g}{total} {self._unit}"
            rate = "" if self._unit == SECONDS else f"{rate_per_s:.3g}/s"
        parts = [count, rate if rate_per_s else "", ending]
        line = f"{self._label}: {', '.join(part for part in parts if part)}"
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


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
