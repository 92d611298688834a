"""Tell by how much two sets of runs differ, and how sure that is: the runs are the unit, never the steps within one.

Everything is in logarithms of the runs' figures, so that a shift is a ratio, and swapping the sets turns it over.

- Location: the mean; from TRIM_FROM runs in the smaller set on, of both sets the mean without the TRIM lowest and
  highest, as a run that something disturbed would else spoil many good ones.
- Error: that of trimmed means, by winsorised variances (Yuen, Biometrika 61:165-170, 1974; without trimming it is
  Welch, Biometrika 34:28-35, 1947), degrees of freedom by Satterthwaite. So spreads and numbers of runs may differ.
  Where they differ much, there are no more degrees of freedom than the smaller set has by itself: in few runs that no
  outlier is among, the spread seems less than it is.
- Order: runs that follow each other are alike. The variance of the difference is widened by what a first-order
  autoregression makes of it with the runs' places in time (Box, Jenkins, Time Series Analysis, 3.2). Its correlation is
  CORRELATION, or what SHOWN_FROM runs or more show, if that is higher. Sets that were measured in turns need none of
  that, and get nothing off either.
- Disturbance: where it is known what share of the cores' time each run was left, there are shifts beside the first, of
  figures divided by that share to each power of CLEARINGS. A verdict needs all of them (see finding.py), so that no
  neighbour that ran beside one set and not the other makes one. Where most of the spread goes with the share, the first
  shift has the smaller error of the others.

What this holds under, and what it sees, is simulated by `benchmarks/compare.py`; doc/comparing.md has the table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

MIN_RUNS = 3
"""The fewest runs of each set from which anything is told."""
TRIM = 0.2
TRIM_FROM = 8
UNEQUAL = 2 / 3
"""A set has much fewer runs than another that has less than this share of them."""
CORRELATION = 0.5
"""Of a run with the one before it, at the least: few runs tell little of it, and shared machines have that much."""
MOST_CORRELATION = 0.9
OUTLIER = 2.5
"""Figures further away than so many robust standard deviations count as if they were that far."""
CLEARINGS = (1.0, 1.25)
"""Half of a core's time for others costs half of the throughput, and a little more for what they do to caches."""
SHOWN_FROM = 16
"""The fewest runs of both sets together that are asked for their correlation."""

Floats = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Shift:
    """The logarithm of the ratio of two sets' figures, with its standard error.

    `variances`: what each sample adds to the error's square, times its number of runs. `trim`: the share of runs left
    out at either end.
    """

    log_ratio: float
    error: float
    degrees: float
    variances: tuple[float, ...]
    trim: float = 0.0

    @property
    def ratio(self) -> float:
        """The ratio of the second set's figure to the first's."""
        return math.exp(self.log_ratio)

    @property
    def p_value(self) -> float:
        """How likely a shift of this size or more is where there is none (two-sided)."""
        if self.error == 0:
            return float(self.log_ratio == 0)
        return 2 * float(special.stdtr(self.degrees, -abs(self.log_ratio) / self.error))

    def half_width(self, level: float) -> float:
        """Return how far the interval goes that misses the true shift with probability `level`."""
        return -float(special.stdtrit(self.degrees, level / 2)) * self.error if self.error else 0.0

    def interval(self, level: float) -> tuple[float, float]:
        """Return the interval of the ratio that misses the true one with probability `level`."""
        reach = self.half_width(level)
        return math.exp(self.log_ratio - reach), math.exp(self.log_ratio + reach)

    def with_runs(self, runs: int) -> "Shift":
        """Return what so many runs of each set would give, if they came out as those that there are."""
        kept = runs - 2 * int(self.trim * runs) if runs >= TRIM_FROM else runs
        error = math.sqrt(sum(self.variances) / runs)
        return Shift(self.log_ratio, error, len(self.variances) * (kept - 1), self.variances, self.trim)


def estimate_shift(first: Floats, second: Floats, places: Sequence[float] | None = None) -> Shift:
    """Return the shift from one set of log figures to another, of MIN_RUNS each at the least.

    `places`: where each run of the first and then of the second set has its place in time, counted in runs; None where
    the one set was measured after the other, or nothing is known.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    trim = TRIM if min(map(len, samples)) >= TRIM_FROM else 0.0
    means, squares, kept = zip(*(_trimmed(values, trim) for values in samples), strict=True)
    widening = _widening(samples, _correlation(samples), places)
    variance = sum(squares)
    if variance == 0:
        return Shift(means[1] - means[0], 0.0, float(sum(kept) - 2), (0.0, 0.0), trim)
    degrees = variance**2 / sum(square**2 / (count - 1) for square, count in zip(squares, kept, strict=True))
    if min(kept) < UNEQUAL * max(kept):
        degrees = min(degrees, min(kept) - 1)
    variances = tuple(widening * square * len(values) for square, values in zip(squares, samples, strict=True))
    return Shift(means[1] - means[0], math.sqrt(widening * variance), degrees, variances, trim)


def estimate_step(before: Floats, after: Floats) -> Shift:
    """Return the shift between two parts of one series, which scatter alike, as the difference of their medians.

    Either part may be short, so both tell together how much figures scatter: by the residuals, drawn in to OUTLIER
    robust standard deviations. The median's error is sqrt(pi / 2) of the mean's (Kenney, Keeping, Mathematics of
    Statistics, 3.26), widened as figures that follow each other are alike.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in (before, after)]
    medians = [float(np.median(values)) for values in samples]
    residuals = [values - median for values, median in zip(samples, medians, strict=True)]
    every = np.concatenate(residuals)
    reach = OUTLIER * 1.4826 * float(np.median(np.abs(every)))
    degrees = len(every) - 2
    variance = float(np.square(np.clip(every, -reach, reach)).sum()) / degrees
    widening = _widening(samples, _correlation(samples), None)
    variances = tuple(math.pi / 2 * widening * variance if variance > 1e-24 else 0.0 for _ in samples)
    error = math.sqrt(sum(one / len(values) for one, values in zip(variances, samples, strict=True)))
    return Shift(medians[1] - medians[0], error, float(degrees), variances)


def estimate_shifts(
    samples: Sequence[Floats],
    left: Sequence[Sequence[float]] = (),
    places: Sequence[float] | None = None,
    sign: int = 1,
    *,
    paired: bool = False,
) -> tuple[Shift, ...]:
    """Return the shift of two sets' log figures, and those that would be had each run had its cores to itself.

    `left`: the share of the cores' time that each run was left; nothing where it is not known. `sign`: 1 of rates,
    which go with that share, -1 of times. `paired`: whether runs with the same number were measured side by side.
    """

    def estimate(power: float) -> Shift:
        first, second = (
            np.asarray(values, dtype=np.float64) - power * share for values, share in zip(samples, shares, strict=True)
        )
        return estimate_paired(second - first) if paired else estimate_shift(first, second, places)

    shares = [sign * np.log(np.asarray(one, dtype=np.float64)) for one in left] or [np.zeros(1)] * 2
    seen = estimate(0)
    if not left:
        return (seen,)
    cleared = [estimate(power) for power in CLEARINGS]
    if 2 * cleared[0].error ** 2 < seen.error**2:
        seen = replace(cleared[0], log_ratio=seen.log_ratio)
    return (seen, *cleared)


def centre(logs: Floats, trim: float = 0.0) -> float:
    """Return the figure whose logarithm lies in the middle of some, in a shift with this trim."""
    ordered = np.sort(np.asarray(logs, dtype=np.float64))
    cut = int(trim * len(ordered))
    return math.exp(float(ordered[cut : len(ordered) - cut].mean()))


def estimate_paired(differences: Floats) -> Shift:
    """Return the shift from log ratios of pairs, each of runs that were measured side by side.

    What drifts slowly is in both runs of a pair, and not in their ratio: so nothing is widened.
    """
    values = np.asarray(differences, dtype=np.float64)
    trim = TRIM if len(values) >= TRIM_FROM else 0.0
    mean, square, kept = _trimmed(values, trim)
    return Shift(mean, math.sqrt(square), float(kept - 1), (square * len(values),), trim)


def _trimmed(values: np.ndarray, trim: float) -> tuple[float, float, int]:
    """Return a trimmed mean, the square of its standard error, and how many values were kept."""
    size, cut = len(values), int(trim * len(values))
    ordered = np.sort(values)
    kept = ordered[cut : size - cut]
    winsorised = np.clip(ordered, kept[0], kept[-1])
    square = (size - 1) * float(winsorised.var(ddof=1)) / (len(kept) * (len(kept) - 1))
    # Values that are alike but for the last bits of their logarithms have no spread.
    return float(kept.mean()), square if square > 1e-24 else 0.0, len(kept)


def _correlation(samples: Sequence[np.ndarray]) -> float:
    """Return the correlation of a run with the one before it, CORRELATION at the least.

    Outliers are drawn in to OUTLIER robust standard deviations. The estimate's bias, in each set -(1 + 3 rho) / n to
    first order (Marriott, Pope, Biometrika 41:390-402, 1954), is taken out.
    """
    runs = sum(map(len, samples))
    if runs < SHOWN_FROM:
        return CORRELATION
    products = total = 0.0
    for values in samples:
        away = values - np.median(values)
        reach = OUTLIER * 1.4826 * float(np.median(np.abs(away)))
        away = np.clip(away, -reach, reach)
        away -= away.mean()
        products += float(away[1:] @ away[:-1])
        total += float(away @ away)
    found = (products / total + 2 / runs) / (1 - 6 / runs) if total else 0.0
    return min(max(CORRELATION, found), MOST_CORRELATION)


def _widening(samples: Sequence[np.ndarray], correlation: float, places: Sequence[float] | None) -> float:
    """Return by what correlated runs make the variance of the sets' difference larger than it seems; 1 at the least."""
    first, second = map(len, samples)
    where = np.arange(first + second, dtype=np.float64) if places is None else np.asarray(places, dtype=np.float64)
    own = [where[:first], where[first:]]
    if places is None:  # nobody knows how long was between them
        true = sum(_alike(np.full(len(part), 1 / len(part)), part, correlation) for part in own)
    else:
        weights = np.concatenate([np.full(first, -1 / first), np.full(second, 1 / second)])
        true = _alike(weights, where, correlation)
    seen = sum(
        (size - _alike(np.ones(size), part, correlation) / size) / (size - 1) / size
        for size, part in zip((first, second), own, strict=True)
    )
    return max(1.0, true / seen)


def _alike(weights: np.ndarray, where: np.ndarray, correlation: float) -> float:
    """Return the variance of a weighted sum of runs at these places, of whose variance 1 is each one's own.

    That is the sum of weights[i] weights[j] correlation^|where[i] - where[j]|, in one pass along the places.
    """
    order = np.argsort(where, kind="stable")
    total = before = last = 0.0
    for weight, place in zip(weights[order].tolist(), where[order].tolist(), strict=True):
        before *= correlation ** (place - last)
        total += weight * (weight + 2 * before)
        before, last = before + weight, place
    return total
