"""Measure one case with two settings in turns, and stop when it is clear which is faster, or cannot become so.

A round is a run of each, first A and then B in the odd ones, the other way round in the even ones, so that what drifts
steadily favours neither. The ratio is taken within rounds. It is looked at after some of the rounds only, and what may
go wrong in the whole is shared out evenly among these looks (Bonferroni), so that it holds whenever it stops.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cnnbench.base.errors import InvalidMeasurementError, UsageError
from cnnbench.report.comparison import Compared, Direction, compare_rounds
from cnnbench.report.sets import RunSet, SetRun
from cnnbench.results.finding import ALPHA, could_tell
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult
from cnnbench.tuning.turns import Contender, measure_once

FIRST_LOOK = 5
GROWTH = 1.25
"""A look comes when there are so many times the rounds of the one before."""
DEFAULT_ROUNDS = 20
MOST_ROUNDS = 1000
MOST_VOID = 3
"""Rounds in a row with an invalid run after which the case is taken to be none that can be measured."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rules:
    """What is compared, which difference matters, and how many rounds there are at the most."""

    metric: str
    threshold: float
    rounds: int

    def __post_init__(self) -> None:
        """Raise UsageError for a number of rounds that tells nothing, or that nobody waits for."""
        if not FIRST_LOOK <= self.rounds <= MOST_ROUNDS:
            raise UsageError(f"--max-rounds {self.rounds}: must be {FIRST_LOOK} to {MOST_ROUNDS}")

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of rounds after which there is a look at what came out."""
        found = [min(FIRST_LOOK, self.rounds)]
        while found[-1] < self.rounds:
            found.append(min(math.ceil(GROWTH * found[-1]), self.rounds))
        return tuple(found)

    @property
    def level(self) -> float:
        """How often a look's interval may miss."""
        return ALPHA / len(self.looks)


def is_over(compared: Compared, rules: Rules) -> bool:
    """Say whether it is clear after a look, or cannot become so in the rounds that are left."""
    (one,) = compared.comparisons
    if not one.shifts or one.finding != "cannot tell" or len(one.first.figures) >= rules.rounds:
        return True
    return not could_tell(one.shifts, rules.threshold, rules.level, rules.rounds)


def alternate(contenders: Sequence[Contender], rules: Rules, better: Direction, cache: Path, say: Say) -> Compared:
    """Measure two settings until it is over; return what came out.

    A round with an invalid run does not count. Raises InvalidMeasurementError when MOST_VOID in a row do not.
    """
    void = number = 0
    while True:
        number += 1
        if failure := _measure_round(contenders, number, rules.metric, cache, say):
            void += 1
            if void == MOST_VOID:
                raise InvalidMeasurementError(f"{void} rounds in a row have an invalid run, the last for {failure}")
            continue
        void, rounds = 0, len(contenders[0].runs)
        if rounds in rules.looks:
            sets = [_run_set(label, one) for label, one in zip("AB", contenders, strict=True)]
            compared = compare_rounds(
                sets, better, metric=rules.metric, threshold=rules.threshold, looks=len(rules.looks)
            )
            (found,) = compared.comparisons
            if found.shifts:
                low, high = found.interval
                say(f"after {rounds} rounds: {found.finding}: {found.shifts[0].ratio:.4f}, {low:.4f} to {high:.4f}")
            if is_over(compared, rules):
                return compared


def _measure_round(contenders: Sequence[Contender], number: int, metric: str, cache: Path, say: Say) -> str:
    """Measure each once and keep the runs; return why the round does not count, and keep none then."""
    measured: dict[str, RunResult] = {}
    for one in contenders if number % 2 else reversed(contenders):
        try:
            run = measured[one.name] = measure_once(one, cache)
        except InvalidMeasurementError as error:
            say(f"round {number}: {one.name}: invalid, so the round does not count: {error}")
            return str(error)
        kpi = next((kpi for kpi in run.kpis if (kpi.key == metric if metric else kpi.primary)), None)
        if kpi is None:
            raise UsageError(f"--metric {metric}: the run has no such KPI; it has {', '.join(k.key for k in run.kpis)}")
        say(f"round {number}: {one.name}: {format_number(kpi.value)} {kpi.unit}, {run.verdict}")
    for one in contenders:
        one.runs.append(measured[one.name])
    return ""


def _run_set(label: str, one: Contender) -> RunSet:
    runs = [SetRun(f"run {number}", run, _time(run)) for number, run in enumerate(one.runs, start=1)]
    return RunSet(label, one.name.removeprefix(f"{label}: "), tuple(runs), ())


def _time(run: RunResult) -> datetime:
    return datetime.fromisoformat(run.started)
