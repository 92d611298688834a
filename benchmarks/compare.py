"""Simulate `cnnbench compare` and `cnnbench ab`: how often they find what is not there, and what is.

.venv/bin/python benchmarks/compare.py [--repeats 2000] [--seed 1]

The figures of runs are made up, under conditions such as a shared machine has; what judges them is the product. Each
table has a row for a condition and a column for the numbers of runs of A and of B: the share of comparisons that end
with this verdict, in per cent. Conditions marked with * are beyond what is promised.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cnnbench.report.text import align
from cnnbench.results.finding import ALPHA, could_tell, judge, p_value, share_out
from cnnbench.results.shift import Shift, estimate_shifts
from cnnbench.tuning.alternate import Rules

SIZES = ((3, 3), (5, 5), (5, 20), (20, 5), (8, 12), (10, 10), (20, 20))
THRESHOLD = 0.02
ROUNDS = 20
CASES = 12

Series = tuple[np.ndarray, np.ndarray | None]
"""The log figures of runs in the order of time, and the share of the cores' time that each was left, if it is known."""
Make = Callable[[np.random.Generator, int], Series]


@dataclass(frozen=True)
class Condition:
    """What runs scatter by; `promised`: whether false alarms are to be within ALPHA under it, one set after the other.

    `spread`: by how much more the first set scatters.
    """

    name: str
    make: Make
    promised: bool = True
    spread: float = 1.0


def scattered(sigma: float) -> Make:
    """Return runs that scatter by a normal distribution."""
    return lambda chance, runs: (chance.normal(0, sigma, runs), None)


def skewed(chance: np.random.Generator, runs: int) -> Series:
    """Return runs that are slow by an exponential distribution."""
    return -0.03 * chance.exponential(1, runs), None


def slowed(chance: np.random.Generator, runs: int) -> np.ndarray:
    """Return what a tenth of the runs is slowed by: up to 30 %."""
    return np.where(chance.random(runs) < 0.1, np.log1p(-chance.uniform(0, 0.3, runs)), 0)


def outliers(chance: np.random.Generator, runs: int) -> Series:
    """Return runs a tenth of which something slowed."""
    return chance.normal(0, 0.02, runs) + slowed(chance, runs), None


def alike(correlation: float) -> Make:
    """Return runs that are alike if they follow each other, a tenth of which something slowed."""

    def make(chance: np.random.Generator, runs: int) -> Series:
        values = np.empty(runs)
        values[0] = chance.normal()
        for number in range(1, runs):
            values[number] = correlation * values[number - 1] + chance.normal(0, math.sqrt(1 - correlation**2))
        return 0.03 * values + slowed(chance, runs), None

    return make


def drifting(size: float) -> Make:
    """Return runs on a machine that gets slower and faster again every 40 runs, by so much of their scatter."""

    def make(chance: np.random.Generator, runs: int) -> Series:
        wave = np.sin(2 * np.pi * (np.arange(runs) / 40 + chance.random()))
        return 0.03 * (chance.normal(0, 1, runs) + size * wave), None

    return make


def neighbours(cost: float) -> Make:
    """Return runs beside other work that comes and goes, and takes up to 70 % of the cores, which is known to 2 %.

    `cost`: the power of the share left that the figure goes with; 0: it does not care. Here it was 1.07.
    """

    def make(chance: np.random.Generator, runs: int) -> Series:
        taken, busy, left = 0.0, False, np.empty(runs)
        for number in range(runs):
            if chance.random() < 0.15:
                busy = not busy
                taken = chance.uniform(0.2, 0.7) if busy else 0.0
            left[number] = 1 - np.clip(taken + chance.normal(0, 0.05) * busy, 0, 0.9)
        seen = np.clip(left * np.exp(chance.normal(0, 0.02, runs)), 0.05, 1)
        return chance.normal(0, 0.02, runs) + cost * np.log(left), seen

    return make


CONDITIONS = (
    Condition("scatter 1 %", scattered(0.01)),
    Condition("scatter 3 %", scattered(0.03)),
    Condition("skewed, 3 %", skewed),
    Condition("A three times B's 1 %", scattered(0.01), spread=3),
    Condition("2 %, a tenth slowed", outliers),
    Condition("alike by 0.5, 3 %, a tenth slowed", alike(0.5)),
    Condition("alike by 0.6, 3 %, a tenth slowed", alike(0.6)),
    Condition("drift of half the scatter, 3 %", drifting(0.5)),
    Condition("neighbours, known", neighbours(1.07)),
    Condition("neighbours who cost no time", neighbours(0)),
    Condition("alike by 0.8, a tenth slowed *", alike(0.8), promised=False),
    Condition("drift as large as the scatter *", drifting(1), promised=False),
)


def draw(
    condition: Condition, chance: np.random.Generator, sizes: tuple[int, int], shift: float, *, in_turns: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray], list[float] | None]:
    """Return two sets of log figures, the second one shifted, what each run was left, and their places in time."""
    figures, left = condition.make(chance, sum(sizes))
    order = np.arange(sum(sizes))
    if in_turns:
        order = np.argsort(np.concatenate([np.linspace(0, 1, size) + 1e-9 * size for size in sizes]), kind="stable")
    place = np.argsort(order)
    own = (place[: sizes[0]], place[sizes[0] :])
    samples = [figures[own[0]] * condition.spread, figures[own[1]] + shift]
    return (
        samples,
        [] if left is None else [left[one] for one in own],
        [float(one) for one in place] if in_turns else None,
    )


def estimate(
    condition: Condition, chance: np.random.Generator, sizes: tuple[int, int], shift: float, *, in_turns: bool = False
) -> tuple[Shift, ...]:
    """Return the shifts that the product finds in made-up runs."""
    samples, left, places = draw(condition, chance, sizes, shift, in_turns=in_turns)
    return estimate_shifts(samples, [list(map(float, one)) for one in left], places)


def share_found(
    condition: Condition,
    sizes: tuple[int, int],
    ratio: float,
    findings: Sequence[str],
    repeats: int,
    seed: int,
    *,
    in_turns: bool = False,
) -> float:
    """Return the share of comparisons that come to one of some findings, where B is `ratio` times A."""
    chance = np.random.default_rng([seed, *sizes, round(1000 * ratio)])
    found = 0
    for _ in range(repeats):
        shifts = estimate(condition, chance, sizes, math.log(ratio), in_turns=in_turns)
        found += judge(shifts, THRESHOLD, ALPHA, higher_is_better=True) in findings
    return found / repeats


def share_of_calls(condition: Condition, sizes: tuple[int, int], repeats: int, seed: int) -> float:
    """Return the share of calls with CASES cases that do not differ, of which one or more is said to."""
    chance = np.random.default_rng([seed, *sizes])
    found = 0
    for _ in range(repeats):
        cases = [estimate(condition, chance, sizes, 0) for _ in range(CASES)]
        levels = share_out([p_value(one) for one in cases])
        findings = {
            judge(one, THRESHOLD, level, higher_is_better=True) for one, level in zip(cases, levels, strict=True)
        }
        found += bool(findings & {"faster", "slower"})
    return found / repeats


def race(condition: Condition, ratio: float, chance: np.random.Generator, rules: Rules) -> tuple[str, int]:
    """Return what `ab` finds of made-up runs, and after how many rounds."""
    figures, left = condition.make(chance, 2 * rules.rounds)
    first = np.array([2 * number + number % 2 for number in range(rules.rounds)])  # A B, B A, A B, ...
    own = (first, first + 1 - 2 * (np.arange(rules.rounds) % 2))
    samples = [figures[own[0]] * condition.spread, figures[own[1]] + math.log(ratio)]
    for rounds in rules.looks:
        known = [] if left is None else [list(map(float, left[one[:rounds]])) for one in own]
        shifts = estimate_shifts([one[:rounds] for one in samples], known, paired=True)
        finding = judge(shifts, rules.threshold, rules.level, higher_is_better=True)
        if finding != "cannot tell" or not could_tell(shifts, rules.threshold, rules.level, rules.rounds):
            return finding, rounds
    return "cannot tell", rules.rounds


def race_shares(condition: Condition, ratio: float, repeats: int, seed: int) -> tuple[dict[str, float], float]:
    """Return the shares of what `ab` finds, and the mean number of rounds."""
    chance, rules = np.random.default_rng([seed, round(1000 * ratio)]), Rules("", THRESHOLD, ROUNDS)
    races = [race(condition, ratio, chance, rules) for _ in range(repeats)]
    findings = [finding for finding, _ in races]
    shares = {name: findings.count(name) / repeats for name in ("faster", "slower", "same", "cannot tell")}
    return shares, sum(rounds for _, rounds in races) / repeats


def table(title: str, ratio: float, findings: Sequence[str], repeats: int, seed: int, *, in_turns: bool = False) -> str:
    """Return one table: conditions down, numbers of runs across."""
    rows = [
        [
            condition.name,
            *(
                f"{100 * share_found(condition, sizes, ratio, findings, repeats, seed, in_turns=in_turns):.1f}"
                for sizes in SIZES
            ),
        ]
        for condition in CONDITIONS
    ]
    return f"{title}\n\n" + align(["condition", *(f"{n},{m}" for n, m in SIZES)], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="comparisons of each kind (default: 2000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    repeats, seed, different = arguments.repeats, arguments.seed, ("faster", "slower")
    print(table("false alarms (%): no difference, B after A", 1, different, repeats, seed), end="\n\n")
    print(table("false alarms (%): no difference, in turns", 1, different, repeats, seed, in_turns=True), end="\n\n")
    for ratio in (0.97, 0.95, 0.9):
        title = f"power (%): B has {ratio} of A's throughput and is found slower, B after A"
        print(table(title, ratio, ("slower",), repeats // 4, seed), end="\n\n")
    print(table("B has 0.95, in turns", 0.95, ("slower",), repeats // 4, seed, in_turns=True), end="\n\n")
    print(table("same (%): no difference, B after A", 1, ("same",), repeats // 4, seed), end="\n\n")
    print(table("wrongly same (%): B has 0.98, B after A", 1 / 1.02, ("same",), repeats, seed), end="\n\n")
    rows = [
        [
            one.name,
            *(f"{100 * share_of_calls(one, sizes, repeats // 8, seed):.1f}" for sizes in ((5, 5), (10, 10))),
        ]
        for one in CONDITIONS
    ]
    print(f"calls with a false alarm (%): {CASES} cases, no difference, B after A\n")
    print(align(["condition", "5,5", "10,10"], rows), end="\n\n")
    rows = []
    for one in CONDITIONS:
        row = [one.name]
        for ratio in (1, 0.95, 0.9):
            shares, rounds = race_shares(one, ratio, repeats // 2, seed)
            shown = shares["slower"] + (shares["faster"] if ratio == 1 else 0)
            row += [f"{100 * shown:.1f}", *([f"{100 * shares['same']:.1f}"] if ratio == 1 else []), f"{rounds:.1f}"]
        rows.append(row)
    print(f"ab, at most {ROUNDS} rounds: no difference, B has 0.95, B has 0.9\n")
    header = ["condition", "false (%)", "same (%)", "rounds", "0.95 (%)", "rounds", "0.9 (%)", "rounds"]
    print(align(header, rows))


if __name__ == "__main__":
    main()
