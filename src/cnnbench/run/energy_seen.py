"""Read energy while a run is measured, and tell afterwards what was used in its common window."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnbench.launch.local import keep_off
from cnnbench.machine.energy import Reader, Series, UnreadableError
from cnnbench.machine.facts import POWER_OF
from cnnbench.machine.meter import NAME as METER
from cnnbench.machine.meter import PATIENCE_S, Meter
from cnnbench.run.energy import EnergySources
from cnnbench.run.measured import Measured
from cnnbench.run.record import EnergySeen

MOST_W = 2000.0
"""More than one processor, its memory or a GPU draws: a counter that went back has run over if that took no more."""

_TO_SI = {"uJ": 1e-6, "mJ": 1e-3, "J": 1.0, "mW": 1e-3, "W": 1.0}


@contextmanager
def watch_energy(
    sources: EnergySources, logs: Path, cpus: Collection[int], tell: Callable[[EnergySeen], object]
) -> Iterator[None]:
    """Measure idle power, and read energy while the block runs; `tell` gets the readings once it has ended well.

    `cpus`: what is measured; who reads, and a user's meter, stay off these where there are others.
    """
    if not sources.domains and not sources.meter:
        yield
        return
    with ExitStack() as stack:
        with keep_off(cpus):  # threads and processes stay where the thread was that started them
            meter = stack.enter_context(Meter(sources.meter, logs / "meter.log")) if sources.meter else None
            reader = stack.enter_context(Reader(sources.domains))
        idle_ns = _measure_idle(sources.idle_s, meter)
        reader.keep()
        yield
        if meter:
            meter.wait_for(time.monotonic_ns())
    series = [*([meter.series()] if meter else []), *reader.series()]
    of = [METER] if meter else [one.name for one in series]
    tell(EnergySeen(of=tuple(of), series=tuple(series), idle_ns=idle_ns, note=sources.note))


def _measure_idle(idle_s: float, meter: Meter | None) -> tuple[int, int] | None:
    """Wait while nothing runs; return the span, which ends with a reading of the meter's, if there is one."""
    begin_ns = meter.wait_for(0) if meter else time.monotonic_ns()
    if begin_ns is None or not idle_s:
        return None
    end_ns: int | None = begin_ns + round(idle_s * 1e9)
    time.sleep(max(0.0, idle_s - (time.monotonic_ns() - begin_ns) / 1e9))
    if meter:
        end_ns = meter.wait_for(begin_ns + round(idle_s * 1e9))
    return (begin_ns, end_ns) if end_ns else None


def mean_power_w(series: Series, start_ns: int, end_ns: int) -> float:
    """Return the mean power in a span; raise UnreadableError where the readings do not tell it."""
    if series.failure:
        raise UnreadableError(f"{series.name}: {series.failure}")
    times_ns = np.array(series.times_ns, dtype=np.int64)
    if len(times_ns) < 2 or times_ns[0] > start_ns or times_ns[-1] < end_ns:
        raise UnreadableError(f"{series.name}: its {len(times_ns)} readings do not go from end to end")
    first = int(np.searchsorted(times_ns, start_ns, side="right")) - 1
    last = int(np.searchsorted(times_ns, end_ns, side="left"))
    seconds = (times_ns[first : last + 1] - start_ns) / 1e9
    steps_j = _energy_steps(series, np.array(series.values[first : last + 1]) * _TO_SI[series.unit], np.diff(seconds))
    used_j = np.concatenate([[0.0], np.cumsum(steps_j)])
    span_s = (end_ns - start_ns) / 1e9
    power_w = float(np.diff(np.interp([0.0, span_s], seconds, used_j))[0]) / span_s
    if power_w <= 0:
        raise UnreadableError(f"{series.name}: it tells of no energy in {span_s:.2f} s")
    return power_w


def _energy_steps(series: Series, values: np.ndarray, gaps_s: np.ndarray) -> np.ndarray:
    """Return the energy (J) between each two readings, of a counter that may have run over, or of powers."""
    longest_s = float(gaps_s.max())
    most_s = PATIENCE_S if series.name == METER else np.inf
    range_j = series.wraps_at * _TO_SI[series.unit] if series.wraps_at else None
    if range_j:
        most_s = range_j / (2 * MOST_W)
    if longest_s > most_s:
        raise UnreadableError(f"{series.name}: no reading for {longest_s:.1f} s, needed one every {most_s:.1f} s")
    if series.unit in ("W", "mW"):
        steps: np.ndarray = gaps_s * (values[1:] + values[:-1]) / 2
        return steps
    steps = np.diff(values)
    back = steps < 0
    if range_j:
        steps[back] += range_j
    wrong = back & ((steps < 0) | (steps > MOST_W * gaps_s))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UnreadableError(f"{series.name}: its counter went back from {values[at]:.4f} to {values[at + 1]:.4f} J")
    return steps


@dataclass(frozen=True)
class EnergyUse:
    """The power of what was read (W), in the window and idle, and of its parts; None for what is not told.

    `failures`: why not.
    """

    power_w: float | None
    idle_w: float | None
    parts: dict[str, tuple[float, float | None]]
    failures: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str]:
        """What each domain drew."""
        return {
            POWER_OF + name: f"{power:.4g} W" + ("" if idle is None else f", idle {idle:.4g} W")
            for name, (power, idle) in self.parts.items()
        }


def use_energy(run: Measured) -> EnergyUse | None:
    """Return what a run drew in its common window; None where nothing was read."""
    seen = run.seen.energy
    if seen is None:
        return None
    parts: dict[str, tuple[float, float | None]] = {}
    failures: list[str] = []
    for series in seen.series:
        try:
            power_w = mean_power_w(series, run.window.start_ns, run.window.end_ns)
        except UnreadableError as error:
            failures.append(f"power and energy are not told: {error}")
            continue
        idle_w = None
        if seen.idle_ns:
            try:
                idle_w = mean_power_w(series, *_between(series, *seen.idle_ns))
            except UnreadableError as error:
                failures.append(f"idle power is not told: {error}")
        parts[series.name] = power_w, idle_w
    told = [parts[name] for name in seen.of if name in parts]
    idle = [idle_w for _, idle_w in told if idle_w is not None]
    whole = len(told) == len(seen.of)
    return EnergyUse(
        sum(power_w for power_w, _ in told) if whole else None,
        sum(idle) if len(idle) == len(seen.of) else None,
        parts,
        tuple(failures),
    )


def note_energy(run: Measured) -> list[str]:
    """Return what a reader of a run's energy should know, and why there is none where it should be."""
    use = use_energy(run)
    if use is None or run.seen.energy is None:
        return []
    note = run.seen.energy.note
    return [*([note] if note and use.power_w is not None else []), *use.failures]


def _between(series: Series, start_ns: int, end_ns: int) -> tuple[int, int]:
    """Return the times of the first and the last reading in a span: beyond it something else runs."""
    inside = [time_ns for time_ns in series.times_ns if start_ns <= time_ns <= end_ns]
    if len(inside) < 2:
        raise UnreadableError(f"{series.name}: {len(inside)} readings in {(end_ns - start_ns) / 1e9:.2f} s, needed two")
    return inside[0], inside[-1]
