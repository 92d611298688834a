"""Compute every statistic from raw step times, after the fact.

Step times are int64 arrays, steps x 3, with the columns of `launch.shared.COLUMNS` (ns, CLOCK_MONOTONIC).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats has the same distributions, but takes a second to import

from cnnbench.base.errors import InvalidMeasurementError

CONFIDENCE = 0.95
MAX_SLICES = 20
MIN_SLICES = 3

NARROWING = 0.9

PERCENTILE_FLOORS = {50: 6, 90: 64, 95: 130, 99: 662, 99.9: 6636}
"""Samples without which a percentile is not printed. Six is the least that give the median a 95 % interval at all
(1 - 2 * 0.5**6 = 0.97); the others are MLPerf's early-stopping minima for 99 % confidence."""


@dataclass(frozen=True)
class Window:
    """The span in which every instance was measuring: what all figures are taken over."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """The window's length."""
        return (self.end_ns - self.start_ns) / 1e9

    def edges(self, slices: int) -> np.ndarray:
        """Return the bounds of so many equal slices (ns)."""
        return np.linspace(self.start_ns, self.end_ns, slices + 1)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval; no interval where too few samples allow none."""

    mean: float
    half_width: float | None

    @property
    def relative_half_width(self) -> float | None:
        """The interval's half-width as a share of the mean."""
        return None if self.half_width is None else self.half_width / self.mean


@dataclass(frozen=True)
class Steadiness:
    """How steady throughput was: its trend over the window and its spread between slices, as shares of the mean.

    `drift_p`: how likely the slices would show such a trend by chance if there were none.
    """

    drift: float
    drift_p: float
    spread: float


def common_window(steps: Sequence[np.ndarray]) -> Window:
    """Return the span from the last instance's first step to the first instance's last one."""
    if not steps or any(len(rows) == 0 for rows in steps):
        raise InvalidMeasurementError("an instance has measured no step")
    window = Window(max(int(rows[0, 0]) for rows in steps), min(int(rows[-1, 2]) for rows in steps))
    if window.end_ns <= window.start_ns:
        raise InvalidMeasurementError("the instances were never measuring at the same time")
    return window


def images_by(steps: np.ndarray, images: np.ndarray, times_ns: np.ndarray) -> np.ndarray:
    """Return how many images one instance had completed at each of some times.

    `images`: the images of each step. A step that is under way counts by the share of its time that has passed: at a
    window's edges whole steps would count half a step too few on average, which is per cents in a short window.
    """
    completed = np.concatenate([[0.0], np.cumsum(images)])
    moments = steps[:, [0, 2]].ravel()
    progress = np.column_stack([completed[:-1], completed[1:]]).ravel()
    return np.interp(times_ns, moments, progress)


def slice_rates(steps: Sequence[np.ndarray], images: Sequence[np.ndarray], window: Window) -> np.ndarray:
    """Return the throughput (images/s) of all instances together in equal slices of the window.

    A slice holds two steps of the slowest instance or more, so that slices are close to independent; there are at
    most MAX_SLICES, and none where not even MIN_SLICES would fit.
    """
    fewest = min(len(rows) for rows in steps)
    slices = min(MAX_SLICES, fewest // 2)
    if slices < MIN_SLICES:
        return np.empty(0)
    edges = window.edges(slices)
    completed = sum(images_by(rows, counts, edges) for rows, counts in zip(steps, images, strict=True))
    return np.diff(completed) / (window.seconds / slices)


def estimate_throughput(steps: Sequence[np.ndarray], images: Sequence[np.ndarray], window: Window) -> Estimate:
    """Return images/s over the window: what all instances completed in it, divided by its length.

    The interval is Student's on the means of equal slices (batch means; Law, Simulation Modeling and Analysis, 9.5).
    """
    ends = np.array([window.start_ns, window.end_ns])
    completed = sum(
        float(np.diff(images_by(rows, counts, ends))[0]) for rows, counts in zip(steps, images, strict=True)
    )
    return Estimate(completed / window.seconds, _half_width(slice_rates(steps, images, window)))


def estimate_trials(figures: Sequence[float]) -> Estimate:
    """Return the mean of a figure over trials, each of processes of its own, with Student's interval between them.

    It has in it what differs from one start to the next, such as where memory lies, and what no interval within one
    run can tell.
    """
    samples = np.asarray(figures, dtype=np.float64)
    return Estimate(float(samples.mean()), _half_width(samples))


def is_narrowing(steps: Sequence[np.ndarray], images: Sequence[np.ndarray], window: Window) -> bool:
    """Tell whether the interval of throughput still gets narrower: by a tenth since half of the time had passed.

    Of steps that are alike it is then by three tenths. True where either half has too few steps to tell.
    """
    half = Window(window.start_ns, (window.start_ns + window.end_ns) // 2)
    before, now = (estimate_throughput(steps, images, part).relative_half_width for part in (half, window))
    return before is None or now is None or now <= NARROWING * before


def instance_figures(
    steps: Sequence[np.ndarray], images: Sequence[np.ndarray], window: Window
) -> list[dict[str, float | None]]:
    """Return what each instance did in the window of all: `images_per_s`, which add up, and `latency_mean_ms`.

    The latency is None for an instance without a whole step in the window.
    """
    figures: list[dict[str, float | None]] = []
    for rows, counts in zip(steps, images, strict=True):
        times_ms = inference_times_ms([rows], window)
        figures.append(
            {
                "images_per_s": estimate_throughput([rows], [counts], window).mean,
                "latency_mean_ms": float(times_ms.mean()) if len(times_ms) else None,
            }
        )
    return figures


def estimate_next(figures: Sequence[float]) -> Estimate:
    """Return the mean of a figure over runs, with the interval that the next run's is in 95 % of the time.

    Student's prediction interval of a normal figure (Hahn, Meeker, Statistical Intervals, 4.7).
    """
    samples = np.asarray(figures, dtype=np.float64)
    width = _half_width(samples)
    return Estimate(float(samples.mean()), None if width is None else width * float(np.sqrt(len(samples) + 1)))


def _half_width(samples: np.ndarray) -> float | None:
    """Return the half-width of the mean's 95 % interval by Student's t; None for fewer than MIN_SLICES samples."""
    if len(samples) < MIN_SLICES:
        return None
    quantile = float(special.stdtrit(len(samples) - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(samples.std(ddof=1)) / float(np.sqrt(len(samples)))


def inference_times_ms(steps: Sequence[np.ndarray], window: Window) -> np.ndarray:
    """Return the inference times (ms) of all steps wholly inside the window, in the order of their ends."""
    rows = np.concatenate(steps)
    inside = rows[(rows[:, 0] >= window.start_ns) & (rows[:, 2] <= window.end_ns)]
    inside = inside[np.argsort(inside[:, 2], kind="stable")]
    return (inside[:, 2] - inside[:, 1]) / 1e6


def estimate_latency(times_ms: np.ndarray) -> Estimate:
    """Return the mean inference time (ms) with the interval of its batch means."""
    slices = min(MAX_SLICES, len(times_ms) // 2)
    means = np.array([part.mean() for part in np.array_split(times_ms, slices)]) if slices else np.empty(0)
    return Estimate(float(times_ms.mean()), _half_width(means))


def percentiles(samples: np.ndarray) -> dict[float, float]:
    """Return the percentiles for which there are samples enough, each being one of the samples (nearest rank)."""
    ordered, size = np.sort(samples), len(samples)
    return {
        percentile: float(ordered[-(-round(10 * percentile) * size // 1000) - 1])  # in integers: 0.999 is not exact
        for percentile, floor in PERCENTILE_FLOORS.items()
        if size >= floor
    }


def input_wait_share(steps: Sequence[np.ndarray], window: Window) -> float:
    """Return the share of the instances' time in the window that went by waiting for input."""
    waited_ns = 0
    for rows in steps:
        starts, ready = np.clip(rows[:, :2], window.start_ns, window.end_ns).T
        waited_ns += int((ready - starts).sum())
    return waited_ns / (len(steps) * (window.end_ns - window.start_ns))


def steadiness(rates: np.ndarray) -> Steadiness | None:
    """Return the drift (of a fitted straight line, end to end) and the spread (coefficient of variation) of slices.

    How likely a drift is by chance comes from Student's test of the line's slope against none.
    """
    if len(rates) < MIN_SLICES:
        return None
    size, mean = len(rates), float(rates.mean())
    x, y = np.arange(size) - (size - 1) / 2, rates - mean
    slope = float(x @ y / (x @ x))
    error = float(np.linalg.norm(y - slope * x) / np.sqrt((size - 2) * (x @ x)))
    return Steadiness(
        drift=slope * (size - 1) / mean,
        drift_p=2 * float(special.stdtr(size - 2, -abs(slope) / error)) if error else float(slope == 0),
        spread=float(rates.std(ddof=1)) / mean,
    )


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the tightest order statistics around it that hold it with 95 % confidence.

    Free of any distribution (binomial ranks; Conover, Practical Nonparametric Statistics, 3.2); needs six samples.
    """
    ordered, size = sorted(samples), len(samples)
    rank = int(np.searchsorted(special.bdtr(np.arange(size + 1), size, 0.5), (1 - CONFIDENCE) / 2))
    if rank < 1:
        raise ValueError(f"{size} samples: six are needed for the interval of a median")
    return float(np.median(ordered)), ordered[rank - 1], ordered[size - rank]


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Return by how much `first` is right more often than `second` on the same images, and its 95 % interval.

    `first`, `second`: bool, N. The interval is that of Newcombe (Statistics in Medicine 17:2635-2650, 1998), method 10:
    Wilson's interval of each share, put together with what the two have in common.
    """
    size = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    rights = both + only_first, both + only_second
    (low1, high1), (low2, high2) = (accuracy_interval(right, size) for right in rights)
    share1, share2 = (right / size for right in rights)
    marginals = rights[0] * rights[1] * (size - rights[0]) * (size - rights[1])
    agreement: float = both * neither - only_first * only_second
    if agreement > 0:
        agreement = max(agreement - size / 2, 0)
    phi = agreement / float(np.sqrt(marginals)) if marginals else 0.0

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(one**2 - 2 * phi * one * other + other**2))

    difference = (only_first - only_second) / size
    below, above = reach(share1 - low1, high2 - share2), reach(share2 - low2, high1 - share1)
    return difference, difference - below, difference + above


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper, Pearson, Biometrika 26:404-413, 1934); of nothing, (0, 1)."""
    tail = (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(successes, trials - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return low, high


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share of correct answers (Wilson, JASA 22:209-212, 1927)."""
    z2, share = float(special.ndtri((1 + CONFIDENCE) / 2)) ** 2, correct / total
    middle, scale = share + z2 / (2 * total), 1 + z2 / total
    half_width = float(np.sqrt(z2 * (share * (1 - share) + z2 / (4 * total)) / total))
    low = 0.0 if correct == 0 else (middle - half_width) / scale  # exactly, and not as rounding leaves it
    high = 1.0 if correct == total else (middle + half_width) / scale
    return low, high
