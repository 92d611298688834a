"""Compare sets of repeated runs: case by case, by the shift between the runs' figures."""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Literal

from cnnbench.base.errors import UsageError
from cnnbench.report.matching import Condition, Match, list_conditions, match_sets
from cnnbench.report.sets import RunSet, SetRun
from cnnbench.report.table import DEFINING_FACTS
from cnnbench.report.text import printable
from cnnbench.results.finding import ALPHA, Finding, interval, judge, mean_ratio, p_value, runs_to_tell, share_out
from cnnbench.results.record import Kpi, RunResult
from cnnbench.results.shift import MIN_RUNS, Shift, centre, estimate_shifts

Direction = Callable[[str], Literal["higher", "lower", "neither"]]
"""Says by a KPI's name which way is better."""


DISTURBANCES = ("Other load", "Stolen time", "Throttled time")
"""The KPIs that say what share of the cores' time others had (%)."""


@dataclass(frozen=True)
class Side:
    """One set's runs of a case: the figures that are used, in order, and what was found of the others.

    `left`: what share of the cores' time each of those runs had; empty where that is not known of all. `value`: the
    figures' middle, None without any.
    """

    label: str
    figures: tuple[float, ...]
    left: tuple[float, ...]
    value: float | None
    runs: int
    unstable: int
    invalid: tuple[str, ...]
    lacking: int


@dataclass(frozen=True)
class Comparison:
    """One case of two sets: what was found, and how sure it is.

    `shifts`: that of the figures, and that of figures without what disturbed the runs where it is known; none where
    there are too few runs, or no ratio. `level`: how often their interval may miss. `needed`: the runs of each set that
    would probably tell what these do not; None where none would that could be made.
    `places`: those of the runs in time, where the sets were measured in turns.
    """

    match: Match
    metric: str
    unit: str
    first: Side
    second: Side
    shifts: tuple[Shift, ...]
    level: float
    finding: Finding
    needed: int | None
    places: tuple[float, ...] | None
    remarks: tuple[str, ...]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """In what else the sets differ."""
        return self.match.conditions

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval of the ratio."""
        return interval(self.shifts, self.level)

    @property
    def is_broken(self) -> bool:
        """Say whether a set has runs of the case, of which none is valid."""
        return any(side.runs and len(side.invalid) == side.runs for side in (self.first, self.second))


@dataclass(frozen=True)
class GroupMean:
    """The geometric mean of the ratios of a workload's cases that have one KPI in common, with its interval's ends."""

    name: str
    label: str
    ratio: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Compared:
    """All that was found; `alone`: what only one of the sets has; `looks`: how many there are at these runs."""

    sets: tuple[RunSet, ...]
    threshold: float
    comparisons: tuple[Comparison, ...]
    means: tuple[GroupMean, ...]
    alone: tuple[str, ...]
    looks: int = 1

    @property
    def regressed(self) -> bool:
        """Say whether any case is slower."""
        return any(one.finding == "slower" for one in self.comparisons)


def compare_sets(
    sets: Sequence[RunSet], better: Direction, *, metric: str = "", threshold: float = 0.02, unlike: bool = False
) -> Compared:
    """Compare each set with the first one, case by case.

    `metric`: a KPI of all cases; empty for the primary one of each. `threshold`: the smallest difference that matters.
    `unlike`: compare other workloads too. Levels are shared out among all comparisons that can be made (Holm). Raises
    UsageError where there is nothing to compare, or no run has the metric.
    """
    if metric and better(metric) == "neither":
        raise UsageError(f"--metric {metric}: is neither better when high nor when low; choose one that is")
    found: list[Comparison] = []
    alone: list[str] = []
    for other in sets[1:]:
        matches, left = match_sets(sets[0], other, unlike=unlike)
        alone += left
        found += [_prepare(match, sets[0].label, other.label, metric) for match in matches]
    if metric and not any(one.first.figures or one.second.figures for one in found):
        raise UsageError(f"--metric {metric}: no run has it; the runs have {', '.join(_known(found, better))}")
    found = [_estimate(one, threshold, better) for one in found]
    levels = iter(share_out([p_value(one.shifts) for one in found if one.shifts]))
    judged = [_judge(one, next(levels), threshold, better) if one.shifts else one for one in found]
    return Compared(tuple(sets), threshold, tuple(judged), tuple(_means(judged)), tuple(dict.fromkeys(alone)))


def compare_rounds(
    sets: Sequence[RunSet], better: Direction, *, metric: str, threshold: float, looks: int = 1
) -> Compared:
    """Compare two sets of one case whose runs with the same number were measured side by side.

    `looks`: how many there are at the same runs, before and after this one: each may go wrong so much less often.
    """
    first, second = sets
    conditions = tuple(list_conditions(first.runs, second.runs))
    run = first.runs[0].run
    match = Match(run.case, run.workload, {}, first.runs, second.runs, conditions)
    one = replace(_prepare(match, first.label, second.label, metric), places=tuple(range(2 * len(first.runs))))
    one = _estimate(one, threshold, better, paired=True)
    judged = _judge(one, ALPHA / looks, threshold, better) if one.shifts else one
    return Compared(tuple(sets), threshold, (judged,), (), (), looks)


def _known(found: Sequence[Comparison], better: Direction) -> list[str]:
    runs = [member.run for one in found for member in (*one.match.first, *one.match.second)]
    names = dict.fromkeys(kpi.key for run in runs for kpi in run.kpis if " 95 % " not in kpi.key)
    return [printable(name) for name in names if better(name) != "neither"]


def _prepare(match: Match, first: str, second: str, metric: str) -> Comparison:
    """Return a match with what there is to compare, not yet compared."""
    kpi = _choose_kpi(match, metric)
    runs = ((first, match.first), (second, match.second))
    sides = [_side(label, own, kpi) for label, own in runs]
    clocks = [remark for label, own in runs if (remark := _clock_remark(label, own))]
    return Comparison(
        match=match,
        metric=kpi.key,
        unit=kpi.unit,
        first=sides[0],
        second=sides[1],
        shifts=(),
        level=ALPHA,
        finding="cannot tell",
        needed=None,
        places=None if clocks else _places(match, kpi.key),
        remarks=(*(remark for side in sides for remark in _remarks(side, kpi.key)), *clocks),
    )


def _estimate(one: Comparison, threshold: float, better: Direction, *, paired: bool = False) -> Comparison:
    """Return a comparison with its shifts, as far as there can be any."""
    sides = (one.first, one.second)
    if any(value <= 0 for side in sides for value in side.figures):
        return replace(
            one, remarks=(*one.remarks, f"{one.metric} has values of 0 or below, of which there is no ratio")
        )
    logs = [[math.log(value) for value in side.figures] for side in sides]
    if min(map(len, logs)) < MIN_RUNS:
        first, second = (
            replace(side, value=centre(own) if own else None) for side, own in zip(sides, logs, strict=True)
        )
        return replace(one, first=first, second=second, needed=MIN_RUNS)
    known = all(side.left for side in sides)
    sign = 1 if better(one.metric) == "higher" else -1
    shifts = estimate_shifts(logs, [side.left for side in sides] if known else (), one.places, sign, paired=paired)
    remarks = list(one.remarks)
    if known and abs(told := shifts[0].log_ratio - shifts[1].log_ratio) > math.log1p(threshold) / 4:
        taken = [f"{1 - statistics.fmean(side.left):.1%} in {side.label}" for side in sides]
        remarks.append(
            f"others took {' and '.join(taken)} of the cores' time: that alone would make it {math.exp(told):.3f}"
        )
    first, second = (replace(side, value=centre(own, shifts[0].trim)) for side, own in zip(sides, logs, strict=True))
    return replace(one, first=first, second=second, shifts=shifts, remarks=tuple(remarks))


def _choose_kpi(match: Match, metric: str) -> Kpi:
    """Return the KPI to compare, as one of the runs has it; raise UsageError where the two sets' are not the same."""
    found = {}
    for runs in (match.first, match.second):
        for kpi in (kpi for one in runs if one.run.verdict != "invalid" for kpi in one.run.kpis):
            if kpi.key == metric if metric else kpi.primary:
                found[kpi.key, kpi.unit] = kpi
    if len(found) > 1:
        told = " and ".join(printable(f"{key} ({unit})") for key, unit in found)
        raise UsageError(printable(f"{match.case}: the runs are of {told}, which do not compare; give --metric"))
    return next(iter(found.values()), Kpi(key=metric, unit="", value=0))


def _side(label: str, runs: Sequence[SetRun], kpi: Kpi) -> Side:
    valid = [one for one in runs if one.run.verdict != "invalid"]
    used = [(one, value) for one in valid if (value := figure_of(one.run, kpi.key)) is not None]
    timed = kpi.unit == "ms" or kpi.unit.endswith("/s")
    left = [time_left(one.run) for one, _ in used] if timed else []
    return Side(
        label=label,
        figures=tuple(value for _, value in used),
        left=() if None in left else tuple(share for share in left if share),
        value=None,
        runs=len(runs),
        unstable=sum(one.run.verdict == "unstable" for one, _ in used),
        invalid=tuple(
            printable(f"{one.name} ({one.run.failures[0].name})") for one in runs if one.run.verdict == "invalid"
        ),
        lacking=len(valid) - len(used),
    )


def figure_of(run: RunResult, key: str) -> float | None:
    """Return the value of a KPI; None where the run has none of that name."""
    return next((kpi.value for kpi in run.kpis if kpi.key == key), None)


def time_left(run: RunResult) -> float | None:
    """Return the share of the cores' time that others left to a run; None where it is not known, or next to nothing."""
    taken = [value for name in DISTURBANCES if (value := figure_of(run, name)) is not None]
    left = 1 - sum(taken) / 100
    return left if taken and left > 0.01 else None


def _remarks(side: Side, key: str) -> list[str]:
    told = []
    if side.invalid:
        told.append(
            f"{side.label}: {len(side.invalid)} of {side.runs} runs invalid, left out: {', '.join(side.invalid)}"
        )
    if side.lacking:
        told.append(f"{side.label}: {side.lacking} of {side.runs} runs have no {key}, left out")
    if side.unstable:
        told.append(f"{side.label}: {side.unstable} of {len(side.figures)} runs unstable")
    return told


def _clock_remark(label: str, runs: Sequence[SetRun]) -> str:
    """Say where an itr-N says that it was started before a lower one; empty where none does."""
    known = [one for one in runs if one.started]
    for before, after in pairwise(known):
        follows = _number(after) > _number(before)  # else they are of two directories, whose order tells nothing
        if follows and before.started and after.started and after.started < before.started:
            return (
                f"{label}: the clock went back: {after.name} was started before {before.name} by it; the order of the "
                "runs is that of their names"
            )
    return ""


def _number(one: SetRun) -> int:
    found = re.fullmatch("itr-([0-9]+)", one.name)
    return int(found[1]) if found else 0


def _places(match: Match, key: str) -> tuple[float, ...] | None:
    """Return each run's place in time, counted in runs, where both sets were measured in turns on one machine."""
    sides = [[one for one in runs if figure_of(one.run, key) is not None] for runs in (match.first, match.second)]
    times = [[one.started for one in side if one.started] for side in sides]
    if not all(times) or [len(own) for own in times] != [len(side) for side in sides]:
        return None
    if times[0][-1] < times[1][0] or times[1][-1] < times[0][0]:
        return None
    if any(one.name in DEFINING_FACTS for one in match.conditions):
        return None
    order: dict[datetime, int] = {}
    for number, time in enumerate(sorted(time for own in times for time in own)):
        order.setdefault(time, number)
    return tuple(float(order[time]) for own in times for time in own)


def _judge(one: Comparison, level: float, threshold: float, better: Direction) -> Comparison:
    direction = better(one.metric)
    if direction == "neither":
        raise UsageError(f"{one.metric}: is neither better when high nor when low; choose another --metric")
    finding = judge(one.shifts, threshold, level, higher_is_better=direction == "higher")
    needed = runs_to_tell(one.shifts, threshold, level) if finding == "cannot tell" else None
    return replace(one, level=level, finding=finding, needed=needed)


def _means(found: Sequence[Comparison]) -> list[GroupMean]:
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in found:
        if one.shifts:
            groups.setdefault((one.match.workload, one.metric, one.second.label), []).append(one)
    return [
        GroupMean(
            printable(f"{metric} of {workload}"),
            label,
            *mean_ratio([(one.shifts[0].ratio, *interval(one.shifts, ALPHA)) for one in own]),
            len(own),
        )
        for (workload, metric, label), own in groups.items()
        if len(own) > 1
    ]
