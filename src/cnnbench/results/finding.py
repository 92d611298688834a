"""Judge shifts between sets of runs: faster, slower, the same, or how many runs it would take to tell.

Where there are several shifts of one comparison, with and without what is known to have disturbed the runs, all of
them must come to the same.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import special

from cnnbench.results.shift import MIN_RUNS, Shift

ALPHA = 0.05
"""How often sets that do not differ may be found to, in a whole call."""
POWER = 0.8
"""How likely the number of runs that is named would tell."""
MOST_RUNS = 1000
"""More runs than that are not worth naming."""

Finding = Literal["faster", "slower", "same", "cannot tell"]


def p_value(shifts: Sequence[Shift]) -> float:
    """Return how likely shifts of this size or more are where there are none; 1 where they do not go the same way."""
    if len({shift.log_ratio > 0 for shift in shifts}) > 1:
        return 1.0
    return max(shift.p_value for shift in shifts)


def interval(shifts: Sequence[Shift], level: float) -> tuple[float, float]:
    """Return the ends between which the intervals of all shifts lie, each missing its own with probability `level`."""
    ends = [shift.interval(level) for shift in shifts]
    return min(low for low, _ in ends), max(high for _, high in ends)


def share_out(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the level that each of many tests is to be held to, so that all together have `alpha` (Holm).

    Scandinavian Journal of Statistics 6:65-70, 1979: the smallest p value against alpha / k, the next against
    alpha / (k - 1), and so on; from the first that fails on, all are held to that one's.
    """
    levels, left, failed = [0.0] * len(p_values), len(p_values), False
    for number in sorted(range(len(p_values)), key=p_values.__getitem__):
        levels[number] = alpha / left
        failed = failed or p_values[number] > levels[number]
        left -= not failed
    return levels


def judge(shifts: Sequence[Shift], threshold: float, level: float, *, higher_is_better: bool) -> Finding:
    """Say what the shifts of a comparison come to.

    faster, slower: the interval leaves out a ratio of 1 (significance), and the ratio itself is further from 1 than the
    threshold (effect). same: the whole interval is within the threshold. Else, it cannot be told. `threshold`: 0.02
    reaches from 1 / 1.02 to 1.02.
    """
    findings = {_judge_one(shift, threshold, level, higher_is_better) for shift in shifts}
    return findings.pop() if len(findings) == 1 else "cannot tell"


def _judge_one(shift: Shift, threshold: float, level: float, higher_is_better: bool) -> Finding:
    bound, reach = math.log1p(threshold), shift.half_width(level)
    if abs(shift.log_ratio) > max(bound, reach):
        return "faster" if (shift.log_ratio > 0) == higher_is_better else "slower"
    return "same" if abs(shift.log_ratio) + reach < bound else "cannot tell"


def contradict(shifts: Sequence[Shift], threshold: float) -> bool:
    """Say whether it depends on what disturbed the runs whether a ratio is beyond the threshold, and on which side."""
    bound = math.log1p(threshold)
    return len({(shift.log_ratio > bound, shift.log_ratio < -bound) for shift in shifts}) > 1


def could_tell(shifts: Sequence[Shift], threshold: float, level: float, runs: int) -> bool:
    """Say whether so many runs of each set could tell, of any ratio that these leave possible, with their spread."""
    bound = math.log1p(threshold)
    reach = max(shift.with_runs(runs).half_width(level) for shift in shifts)
    low, high = map(math.log, interval(shifts, ALPHA))
    nearest = 0.0 if low < 0 < high else min(abs(low), abs(high))
    return max(abs(low), abs(high)) > max(bound, reach) or nearest + reach < bound


def runs_to_tell(shifts: Sequence[Shift], threshold: float, level: float) -> int | None:
    """Return how many runs of each set would tell with probability POWER, if these show the true shifts and spread.

    None where MOST_RUNS would not, as when a shift is about as large as the threshold, or shifts contradict each other.
    """
    if contradict(shifts, threshold):
        return None
    needed = [_runs_for(shift, math.log1p(threshold), level) for shift in shifts]
    return None if None in needed else max(runs for runs in needed if runs)


def _runs_for(shift: Shift, bound: float, level: float) -> int | None:
    size, likely = abs(shift.log_ratio), float(special.ndtri(POWER))
    for runs in range(MIN_RUNS, MOST_RUNS + 1):
        then = shift.with_runs(runs)
        reach, slack = then.half_width(level) + likely * then.error, likely * then.error
        if (reach <= size and slack <= size - bound) if size > bound else reach <= bound - size:
            return runs
    return None


def mean_ratio(ratios: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the geometric mean of ratios, and that of their intervals' lower and upper ends.

    That is as wide as it is when all errors go the same way, which holds however the cases depend on each other.
    """
    means = np.exp(np.log(np.array(ratios)).mean(axis=0))
    return float(means[0]), float(means[1]), float(means[2])
