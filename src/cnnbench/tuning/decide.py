"""Decide what a tuning sweep runs and which settings it drops: pure, from what was measured so far.

A sweep goes in rounds. A round runs every setting that is left once, in an order of its own, so that a machine that
drifts favours none; settings are compared by the ratios of their runs within rounds. After each round those go that
are clearly slower than the fastest.

The rule: a setting's speed over the fastest one's is the median of its logarithm over the rounds they share. Its
one-sided confidence bound is Student's with a scale pooled over all settings, as a few rounds of one setting tell
little of the noise. The pooled scale begins with a prior, PRIOR_SCATTER as if from PRIOR_WEIGHT observations (Smyth,
Statistical Applications in Genetics 3:3, 2004), so that a single round can drop what is far behind, and rounds that
agree by chance drop nothing that is close. The prior is what steady runs scatter, so an unsteady one drops nothing
alone: its setting has a second round. A setting whose bound lies below 1 is dropped. RISK is shared out among all
comparisons of a sweep (Bonferroni), so that it bounds the chance to drop the truly fastest in any of them.
"""

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from cnnbench.results.stats import CONFIDENCE, median_interval

Speeds = Mapping[str, Mapping[int, float]]
"""What was measured: setting to round to speed, of which more is better."""
Unsteady = Collection[tuple[str, int]]
"""The settings and rounds of the runs that were measured, but were not steady."""

RISK = 0.05
PRIOR_SCATTER = 0.1
"""Standard deviation of the logarithm of two runs' ratio before any is known: 7 % a run, as on a shared machine."""
PRIOR_WEIGHT = 8
MEDIAN_FACTOR = math.sqrt(math.pi / 2)
"""By how much a median of normal values scatters more than their mean, at most; up to two values they are the same."""

DEFAULT_ROUNDS = 6
"""The fewest runs that give a median a 95 % interval free of any distribution."""


@dataclass(frozen=True)
class Drop:
    """Why a setting was dropped: its speed over the fastest one's, and the most that it can be."""

    leader: str
    after_round: int
    ratio: float
    at_most: float

    def __str__(self) -> str:
        """Say it in words."""
        rounds = f"{self.after_round} round{'' if self.after_round == 1 else 's'}"
        return f"{self.ratio:.0%} of the speed of {self.leader} after {rounds}, at most {self.at_most:.0%}"


@dataclass(frozen=True)
class Median:
    """The median of some runs with an interval that holds the true one with this confidence; none from one run."""

    value: float
    low: float
    high: float
    confidence: float


def plan_round(speeds: Speeds, rounds: int, unsteady: Unsteady = ()) -> tuple[int, list[str]]:
    """Return the number of the round to run and its settings, in their order; no settings when all is measured.

    `speeds` has every setting, those without a run too, but none that has failed. A round that was interrupted goes on
    with what it lacks; settings that came later join the round after it, beside all others that are left.
    """
    last = _last_round(speeds)
    left = remaining(speeds, rounds, last - 1, unsteady)
    lacking = [name for name in left if last not in speeds[name] and (speeds[name] or last == 1)]
    if last and lacking:
        return last, _shuffle(lacking, last)
    left = remaining(speeds, rounds, last, unsteady)
    if any(len(speeds[name]) < rounds for name in left):
        return last + 1, _shuffle(left, last + 1)
    return last, []


def count_due(speeds: Speeds, rounds: int, unsteady: Unsteady = ()) -> int:
    """Return how many runs it takes to the end if no more settings are dropped."""
    number, names = plan_round(speeds, rounds, unsteady)
    if not names:
        return 0
    left = remaining(speeds, rounds, number - 1, unsteady)
    lacking = max(rounds - len(speeds[name]) - (name in names) for name in left)
    return len(names) + len(left) * max(lacking, 0)


def _last_round(speeds: Speeds) -> int:
    return max((number for runs in speeds.values() for number in runs), default=0)


def _shuffle(names: Sequence[str], seed: int) -> list[str]:
    """Return the names in an order that is random but the same every time."""
    return random.Random(seed).sample(names, len(names))


def remaining(speeds: Speeds, rounds: int, judged: int, unsteady: Unsteady = ()) -> list[str]:
    """Return the settings that are left after the rounds up to `judged`."""
    dropped = find_slow(speeds, rounds, judged, unsteady)
    return [name for name in speeds if name not in dropped]


def find_slow(speeds: Speeds, rounds: int, judged: int | None = None, unsteady: Unsteady = ()) -> dict[str, Drop]:
    """Return the settings that were dropped after the rounds up to `judged`, all of them by default."""
    last = _last_round(speeds)
    level = RISK / (max(rounds, last) * len(speeds)) if speeds else RISK
    dropped: dict[str, Drop] = {}
    for number in range(1, (last if judged is None else judged) + 1):
        known = {
            name: {one: speed for one, speed in runs.items() if one <= number}
            for name, runs in speeds.items()
            if name not in dropped and min(runs, default=number + 1) <= number
        }
        if len(known) > 1:
            dropped |= _judge(known, level, number, unsteady)
    return dropped


def _judge(speeds: Speeds, level: float, number: int, unsteady: Unsteady) -> dict[str, Drop]:
    """Return the settings whose ratio to the fastest has an upper bound below 1."""
    leader = find_fastest(speeds)
    ratios = {
        name: [math.log(speed / speeds[leader][one]) for one, speed in runs.items() if one in speeds[leader]]
        for name, runs in speeds.items()
        if name != leader
    }
    medians = {name: float(np.median(logs)) for name, logs in ratios.items() if logs}
    squares = sum((log - medians[name]) ** 2 for name in medians for log in ratios[name])
    degrees = PRIOR_WEIGHT + sum(len(ratios[name]) - 1 for name in medians)
    scale = math.sqrt((PRIOR_WEIGHT * PRIOR_SCATTER**2 + squares) / degrees)
    quantile = -float(special.stdtrit(degrees, level))
    slow = {}
    for name, median in medians.items():
        count = len(ratios[name])
        if count == 1 and _is_unsteady(speeds, name, leader, unsteady):
            continue
        bound = median + quantile * scale * (MEDIAN_FACTOR if count > 2 else 1) / math.sqrt(count)
        if bound < 0:
            slow[name] = Drop(leader, number, math.exp(median), math.exp(bound))
    return slow


def _is_unsteady(speeds: Speeds, name: str, leader: str, unsteady: Unsteady) -> bool:
    """Say whether one of the two was not steady in a round they share."""
    shared = set(speeds[name]) & set(speeds[leader])
    return any((one, number) in unsteady for one in (name, leader) for number in shared)


def find_fastest(speeds: Speeds) -> str:
    """Return the setting with the highest median speed relative to the others in the same round.

    Only the rounds that all settings share count, so that none is measured against weaker company; all, if none is.
    """
    measured = {name: runs for name, runs in speeds.items() if runs}
    rounds = set.union(*(set(runs) for runs in measured.values()))
    shared = set.intersection(*(set(runs) for runs in measured.values())) or rounds
    typical = {one: np.median([runs[one] for runs in measured.values() if one in runs]) for one in rounds}
    return max(
        measured,
        key=lambda name: np.median([speed / typical[one] for one, speed in measured[name].items() if one in shared]),
    )


def estimate_median(values: Sequence[float]) -> Median:
    """Return the median of runs with its 95 % interval; from fewer than six their range, with its lower confidence."""
    size = len(values)
    if size >= DEFAULT_ROUNDS:
        return Median(*median_interval(values), CONFIDENCE)
    return Median(float(np.median(values)), min(values), max(values), 1 - 0.5 ** (size - 1))
