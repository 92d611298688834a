"""Find the highest rate of requests that holds what is asked of it, by trials, for a run that confirms it."""

import math
from collections.abc import Callable

from cnnbench.results import stats
from cnnbench.run.record import CapacitySeen

TRIAL_S = 3.0
"""How long a rate is tried at the least; longer where that is needed for a 99th percentile."""
LEAST_REQUESTS = stats.PERCENTILE_FLOORS[99]
MARGIN = 1.1
"""More requests are waited for than the percentile needs, as those at the ends do not count."""
TRIALS = 7
"""How many rates are tried: each halves what is open between the lowest too high and the highest that is not."""
LEAST_SHARE = 0.05
"""Of what the fastest way gets through: where that rate does not hold, there is none to tell."""

Attempt = Callable[[float, str], tuple[float | None, bool]]
"""Tries a rate a second, named for people: returns the 99th percentile of latency (ms), and whether the rate holds."""


def trial_s(rate_per_s: float) -> float:
    """Return how long a rate is tried (s), so that its 99th percentile can be told; 0: as fast as it goes."""
    return max(TRIAL_S, math.ceil(MARGIN * LEAST_REQUESTS / rate_per_s) if rate_per_s else 0)


def search_rate(most_per_s: float, attempt: Attempt) -> CapacitySeen:
    """Return the rates tried below what is got through at the most, and the highest that holds; 0 where none does."""
    low, high, trials = 0.0, most_per_s, []
    for number in range(TRIALS):
        tried = (low + high) / 2
        p99, good = attempt(tried, f"{tried:.4g} requests/s, {number + 1} of {TRIALS} rates")
        trials.append((tried, p99, good))
        low, high = (tried, high) if good else (low, tried)
        if high < LEAST_SHARE * most_per_s:
            break
    return CapacitySeen(rate_per_s=low, trials=tuple(trials))
