"""Find steps in a series of figures: where they changed at once and stayed so, as after an update.

Everything is in logarithms, so a step is a ratio. Binary segmentation (Scott, Knott, Biometrics 30:507-512, 1974):

- Where: at the place at which the ranks before and after differ most (Mann, Whitney, Annals of Mathematical Statistics
  18:50-60, 1947), or near there, where figures are nearest to their medians; with LEAST figures on either side at the
  least. Neither cares much how far away an outlier is.
- Whether: by the shift of the medians there (results/shift.py), which must be beyond what is asked for, and have a
  p value below the level over PLACES, as the place is the one of many where it is largest.
- Disturbance: where it is known what share of the cores' time each figure was left, the same must hold for figures
  divided by that share to each power of CLEARINGS, and in the same direction: neighbours make no step.
- Drift is no step: it must describe the figures better than a straight line, by twice what Schwarz's
  criterion asks of one parameter more (Annals of Statistics 6:461-464, 1978), as its place is free.
- Then the same in either part, until there is no step left, or too few figures.

How often it finds a step that is not there, and how often one that is, simulates `benchmarks/trend.py`; doc/history.md
has the tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnnbench.results.finding import ALPHA, p_value
from cnnbench.results.shift import CLEARINGS, OUTLIER, Floats, Shift, estimate_step

LEAST = 5
"""The fewest figures on either side of a step."""
PLACES = 5
"""As how many independent places those of a series count, between which the step with the largest shift is chosen."""
MOST_PAIRED = 400
THRESHOLD = 0.02
"""The smallest step that matters."""


@dataclass(frozen=True)
class Step:
    """A step: `at` is the number of the first figure after it, `begin` and `end` bound the figures that tell of it.

    `shift`: as the figures are, whatever disturbed them.
    """

    at: int
    begin: int
    end: int
    shift: Shift


def find_steps(
    logs: Floats, left: Floats = (), *, sign: int = 1, threshold: float = THRESHOLD, level: float = ALPHA
) -> list[Step]:
    """Return the steps in a series of log figures, in their order.

    `left`: the share of the cores' time that each was left; nothing where it is not known of all. `sign`: 1 of rates,
    which go with that share, -1 of times. `threshold`: 0.02 for steps of 2 % and more. `level`: how likely a step may
    be found in a series without any.
    """
    seen = np.asarray(logs, dtype=np.float64)
    shares = sign * np.log(np.asarray(left, dtype=np.float64))
    each = np.array([seen, *(seen - power * shares for power in CLEARINGS if len(left))])
    places = _divide(each, 0, math.log1p(threshold), level / PLACES)
    bounds = [0, *sorted(places), len(logs)]
    return [
        Step(at, begin, end, estimate_step(logs[begin:at], logs[at:end]))
        for begin, at, end in zip(bounds, bounds[1:], bounds[2:], strict=False)
    ]


def _divide(each: np.ndarray, begin: int, bound: float, level: float) -> list[int]:
    """Return the places of the steps that all of these series have, one with the figures as they are first."""
    size = each.shape[1]
    if size < 2 * LEAST:
        return []
    at = _find_place(each[-1])
    shifts = [estimate_step(logs[:at], logs[at:]) for logs in each]
    if p_value(shifts) > level or min(abs(one.log_ratio) for one in shifts) < bound:
        return []
    if not all(_is_step(logs, at) for logs in each):
        return []
    parts = _divide(each[:, :at], begin, bound, level), _divide(each[:, at:], begin + at, bound, level)
    return [begin + at, *(place for part in parts for place in part)]


def _find_place(logs: np.ndarray) -> int:
    """Return how many figures are before the place at which those before and after differ most."""
    size = len(logs)
    before = np.arange(LEAST, size - LEAST + 1)
    excess = np.cumsum(_ranks(logs) - (size + 1) / 2)[before - 1]
    near = int(before[np.argmax(np.abs(excess) / np.sqrt(before * (size - before)))])
    able = range(max(LEAST, near - LEAST), min(size - LEAST, near + LEAST) + 1)
    return min(able, key=lambda at: (_deviation(logs[:at]) + _deviation(logs[at:]), abs(at - near)))


def _deviation(logs: np.ndarray) -> float:
    return float(np.abs(logs - np.median(logs)).sum())


def _is_step(logs: np.ndarray, at: int) -> bool:
    """Say whether a step describes the figures better than a straight line, with outliers drawn in."""
    place = np.arange(len(logs), dtype=np.float64)
    line = _line(place, logs)
    step = logs - np.where(place < at, np.median(logs[:at]), np.median(logs[at:]))
    reach = OUTLIER * 1.4826 * float(np.median(np.abs(step)))
    losses: Sequence[float] = [float(np.square(np.clip(one, -reach, reach)).sum()) for one in (step, logs - line)]
    return losses[0] < losses[1] * len(logs) ** (-2 / len(logs))


def _line(place: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Return the straight line of the median slope between all pairs (Theil, Sen), at these places.

    Of long series the pairs are of the medians of MOST_PAIRED stretches: all would take long.
    """
    where, values = place, logs
    if len(logs) > MOST_PAIRED:
        stretches = np.array_split(np.column_stack([place, logs]), MOST_PAIRED)
        where, values = np.array([np.median(part, axis=0) for part in stretches]).T
    first, second = np.triu_indices(len(where), 1)
    slope = float(np.median((values[second] - values[first]) / (where[second] - where[first])))
    return slope * place + float(np.median(logs - slope * place))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values from 1 on; the mean rank of those that are alike."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks
