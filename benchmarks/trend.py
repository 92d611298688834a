"""Simulate the steps that `cnnbench trend` marks: how often it finds one that is not there, and one that is.

.venv/bin/python benchmarks/trend.py [--repeats 1000] [--seed 1]

The figures are made up, under the conditions of benchmarks/compare.py and two that only a series has; what judges them
is the product. Conditions marked with * are beyond what is promised.
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np
from compare import CONDITIONS, Condition, Make, Series, outliers

from cnnbench.report.text import align
from cnnbench.results.trend import Step, find_steps

LENGTHS = (10, 20, 60, 200)
NEAR = 2
"""A step counts as found at most so many figures from where it is."""


def ramp(size: float) -> Make:
    """Return figures that get slower evenly, by so much over the whole series."""

    def make(chance: np.random.Generator, runs: int) -> Series:
        figures, _ = outliers(chance, runs)
        return figures + math.log(1 - size) * np.arange(runs) / runs, None

    return make


def waves(chance: np.random.Generator, runs: int) -> Series:
    """Return figures that go up and down by 2 % once in a series, as with the seasons or a room's temperature."""
    wave = np.sin(2 * np.pi * (np.arange(runs) / runs + chance.random()))
    return chance.normal(0, 0.02, runs) + 0.02 * wave, None


SERIES = (
    *CONDITIONS,
    Condition("slower by 5 % evenly, a tenth slowed", ramp(0.05)),
    Condition("slower by 10 % evenly, a tenth slowed *", ramp(0.1), promised=False),
    Condition("wave as large as the scatter, 2 % *", waves, promised=False),
)


def find(figures: np.ndarray, left: np.ndarray | None) -> list[Step]:
    """Return the steps that the product finds in made-up figures."""
    return find_steps(figures, () if left is None else left)


def share_alarmed(condition: Condition, length: int, repeats: int, seed: int) -> float:
    """Return the share of series without a step in which one or more is found."""
    chance = np.random.default_rng([seed, length])
    return sum(bool(find(*condition.make(chance, length))) for _ in range(repeats)) / repeats


def share_found(
    condition: Condition, length: int, ratio: float, after: int, repeats: int, seed: int
) -> tuple[float, float]:
    """Return the share of series in which a step is found where it is, and how many others are found besides.

    `after`: how many figures there are after the step.
    """
    chance, found, others = np.random.default_rng([seed, length, after]), 0, 0
    for _ in range(repeats):
        figures, left = condition.make(chance, length)
        stepped = figures + np.where(np.arange(length) < length - after, 0, math.log(ratio))
        near = [abs(step.at - (length - after)) <= NEAR for step in find(stepped, left)]
        found += any(near)
        others += len(near) - any(near)
    return found / repeats, others / repeats


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table under its title."""
    return f"{title}\n\n{align(header, rows)}\n"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="series of each kind (default: 1000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    repeats, seed = arguments.repeats, arguments.seed
    rows = [
        [one.name, *(f"{100 * share_alarmed(one, length, repeats, seed):.1f}" for length in LENGTHS)] for one in SERIES
    ]
    title = "series without a step in which one is found (%), by how many figures they have"
    print(table(title, ["condition", *map(str, LENGTHS)], rows), flush=True)
    for ratio in (0.95, 0.9):
        rows = []
        for one in (one for one in SERIES if one.promised):
            shares = [
                share_found(one, length, ratio, after, repeats // 4, seed)
                for length, after in ((20, 10), (60, 30), (60, 5), (60, 10), (200, 100))
            ]
            rows.append([one.name, *(f"{100 * found:.0f}" for found, _ in shares), f"{shares[1][1]:.2f}"])
        header = ["condition", "10 + 10", "30 + 30", "55 + 5", "50 + 10", "100 + 100", "others, 30 + 30"]
        title = f"a step to {ratio} found within {NEAR} figures of its place (%), by the figures before and after it"
        print(table(title, header, rows), flush=True)


if __name__ == "__main__":
    main()
