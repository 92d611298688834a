"""Run a user's own power meter: a command that prints readings for as long as it runs.

Each line is a reading, `TIME VALUE UNIT`: seconds since 1970, and the energy so far (J) or the power then (W).
"""

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, cast

from cnnbench.base.signals import uninterrupted
from cnnbench.machine.energy import Series, UnreadableError

PATIENCE_S = 10.0
"""How long a meter may go without a reading, and how far its clock may be off ours."""
EXIT_S = 2.0
"""How long it may take to end once it is told to."""
NEEDED = "needed lines of `TIME VALUE UNIT`, such as `1700000000.25 137.5 W`; see doc/user-guide.md, Energy"
NAME = "meter"

MeterUnit = Literal["J", "W"]


def parse_reading(line: str) -> tuple[float, float, MeterUnit]:
    """Return a reading's time (s since 1970), value and unit; raise UnreadableError for what is none."""
    words = line.split()
    try:
        time_s, value, unit = float(words[0]), float(words[1]), words[2]
    except (ValueError, IndexError):
        unit = ""
    if unit not in ("J", "W") or len(words) != 3 or not (math.isfinite(time_s) and math.isfinite(value)):
        raise UnreadableError(f"it printed {line.strip()[:60]!r}; {NEEDED}")
    if value < 0:
        raise UnreadableError(f"it printed {line.strip()[:60]!r}, which is below 0")
    return time_s, value, cast(MeterUnit, unit)


class Meter:
    """A meter that runs from when it is entered until it is left; what it prints as errors goes into `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command, self._log = command, log
        self._times_ns: list[int] = []
        self._values: list[float] = []
        self._unit: MeterUnit | None = None
        self._last_s = -math.inf
        self._failure = ""
        self._heard = threading.Condition()
        self._ending = False
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Meter":
        """Start it; that it cannot be started is a failure of its series."""
        try:
            with self._log.open("wb") as log, uninterrupted():
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,
                )
                self._thread = threading.Thread(target=self._listen, args=[process], name=NAME, daemon=True)
                self._process = process
                self._thread.start()
        except OSError as error:
            self._failure = f"it cannot be started: {error.strerror}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, with all that it has started."""
        with self._heard:
            self._ending = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process and self._thread.is_alive():  # which waits for its end: so the number is its own still
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                self._thread.join(EXIT_S)

    def wait_for(self, time_ns: int) -> int | None:
        """Wait for a reading of this time (CLOCK_MONOTONIC) or later and return its own; None where none comes."""
        deadline_s = time.monotonic() + PATIENCE_S + max(0.0, time_ns / 1e9 - time.monotonic())
        with self._heard:
            while not self._failure and not (self._times_ns and self._times_ns[-1] >= time_ns):
                if not self._heard.wait(deadline_s - time.monotonic()):
                    self._failure = f"it gave no reading for {PATIENCE_S:g} s"
            return None if self._failure else next(one for one in self._times_ns if one >= time_ns)

    def series(self) -> Series:
        """Return what it has read so far."""
        with self._heard:
            times_ns, values = tuple(self._times_ns), tuple(self._values)
            return Series(NAME, self._unit or "W", None, times_ns, values, self._failure)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._heard:
                if self._failure or self._ending:
                    continue  # but what it prints is taken, so that it does not wait for that
                try:
                    self._take(line)
                except UnreadableError as error:
                    self._failure = str(error)
                self._heard.notify_all()
        code = process.wait()
        with self._heard:
            if not self._failure and not self._ending:
                self._failure = f"it ended with exit code {code}, before the run did; what it said is in {self._log}"
            self._heard.notify_all()

    def _take(self, line: str) -> None:
        time_s, value, unit = parse_reading(line)
        now_s = time.time()
        if abs(now_s - time_s) > PATIENCE_S:
            raise UnreadableError(
                f"its clock is {time_s - now_s:.4g} s off this machine's: it printed {line.strip()!r}"
            )
        if unit != (self._unit or unit):
            raise UnreadableError(f"it printed {line.strip()!r} after readings in {self._unit}")
        if time_s <= self._last_s:
            raise UnreadableError(f"its time went back: it printed {line.strip()!r} after {self._last_s:.3f}")
        self._unit, self._last_s = unit, time_s
        time_ns = time.monotonic_ns() - round((now_s - time_s) * 1e9)
        self._times_ns.append(max(time_ns, self._times_ns[-1] + 1) if self._times_ns else time_ns)
        self._values.append(value)
