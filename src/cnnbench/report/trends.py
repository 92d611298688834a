"""Follow each case over time: a figure per session, and where it stepped and what else changed there."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from cnnbench.base.errors import UsageError
from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.comparison import time_left
from cnnbench.report.matching import Condition, list_conditions
from cnnbench.report.reading import FoundRun
from cnnbench.report.sets import SetRun
from cnnbench.report.table import effective_parameters, get_parameter, name_differing, set_parameters
from cnnbench.report.text import printable
from cnnbench.results.finding import ALPHA
from cnnbench.results.record import Kpi
from cnnbench.results.trend import LEAST, THRESHOLD, Step, find_steps
from cnnbench.run.kpis import TABLE, find_kind

SESSION = timedelta(hours=3)
"""Runs of a case that begin within that time of the first one are of one session, and one figure."""
BLUR = 2
"""A step is found at most so many sessions from its place, nearly always."""


@dataclass(frozen=True)
class Session:
    """Runs of a case that were made one after the other. `figure`: their median. `left`: what time others left them."""

    started: datetime
    runs: tuple[SetRun, ...]
    figure: float
    left: float | None


@dataclass(frozen=True)
class Change:
    """A step: between which sessions, the levels on either side, their ratio with its interval, and what else changed.

    `finding`: faster or slower; higher or lower of what is neither better high nor low.
    """

    last: datetime
    first: datetime
    before: float
    after: float
    ratio: float
    low: float
    high: float
    finding: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Series:
    """A case with the same parameters on one machine, over time.

    `parameters`: those in which series of the case differ. `levels`: the medians between steps, with the numbers of
    the first session of each and of the one after its last.
    """

    workload: str
    case: str
    machine: str
    parameters: dict[str, str]
    metric: str
    unit: str
    sessions: tuple[Session, ...]
    changes: tuple[Change, ...] = ()
    levels: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True)
class Trends:
    """All series, and `notes` on what is not in them."""

    series: tuple[Series, ...]
    notes: tuple[str, ...]
    threshold: float

    @property
    def changes(self) -> list[tuple[Series, Change]]:
        """The steps of all series, the newest first."""
        found = [(one, change) for one in self.series for change in one.changes]
        return sorted(found, key=lambda pair: pair[1].first, reverse=True)


def follow(runs: Sequence[FoundRun], *, metric: str = "", threshold: float = THRESHOLD) -> Trends:
    """Return the series of runs with their steps; together they have a false one with probability ALPHA at most.

    `metric`: a KPI of all cases; empty for the primary one of each. Raises UsageError where no run has it.
    """
    known = {kind.name for kind in TABLE}
    dated = [(one, kpi) for one in runs if one.result.started_at and (kpi := _choose(one, metric))]
    used = [(one, kpi) for one, kpi in dated if kpi.key in known]
    if metric and not used:
        raise UsageError(f"--metric {metric}: no run has it")
    notes = _tell_clocks(runs)
    for name in sorted({kpi.key for _, kpi in dated} - known):
        notes.append(f"{printable(name)}: no KPI of this version's, so that it is not followed")
    undated = sum(one.result.started_at is None for one in runs)
    if undated:
        notes.append(f"{undated} of {len(runs)} runs do not say when they were started, and are left out")
    groups: dict[object, list[tuple[FoundRun, Kpi]]] = {}
    for one, kpi in used:
        run = one.result
        alike = set_parameters(effective_parameters(run))
        key = (run.workload, run.case, run.facts.get(HOST_NAME, ""), kpi.key, kpi.unit, alike)
        groups.setdefault(key, []).append((one, kpi))
    series = _name([_gather(members) for members in groups.values()])
    able = sum(len(one.sessions) >= 2 * LEAST for one in series)
    level = ALPHA / max(1, able)
    found = sorted((_mark(one, threshold, level) for one in series), key=lambda one: (one.case, one.machine))
    return Trends(tuple(found), tuple(notes), threshold)


def _choose(one: FoundRun, metric: str) -> Kpi | None:
    """Return the KPI that is followed; None of an invalid run, or where it is 0 or below, of which is no ratio."""
    if one.result.verdict == "invalid":
        return None
    return next(
        (kpi for kpi in one.result.kpis if (kpi.key == metric if metric else kpi.primary) and kpi.value > 0), None
    )


def _tell_clocks(runs: Sequence[FoundRun]) -> list[str]:
    """Return where a run says that it was started before the one that was made before it."""
    told = []
    for before, after in pairwise(runs):
        logs = after.place.parent.parent
        if logs != before.place.parent.parent or before.place == after.place:
            continue
        earlier, later = before.result.started_at, after.result.started_at
        if earlier and later and later < earlier:
            told.append(
                f"{logs}: the clock went back: {after.place.parent.name} was started before {before.place.parent.name} "
                "by it; figures stand where the clock put them"
            )
    return told


def _gather(members: Sequence[tuple[FoundRun, Kpi]]) -> tuple[Series, dict[str, str]]:
    """Return a series with its sessions, and all its parameters."""
    dated = [(one.result.started_at, one, kpi) for one, kpi in members]
    ordered = sorted(((at, one, kpi) for at, one, kpi in dated if at), key=lambda member: member[0])
    sessions: list[list[tuple[datetime, FoundRun, Kpi]]] = []
    for member in ordered:
        if not sessions or member[0] - sessions[-1][0][0] > SESSION:
            sessions.append([])
        sessions[-1].append(member)
    run, kpi = members[0][0].result, members[0][1]
    machine = run.facts.get(HOST_NAME, "")
    found = Series(run.workload, run.case, machine, {}, kpi.key, kpi.unit, tuple(map(_session, sessions)))
    return found, effective_parameters(run)


def _session(members: Sequence[tuple[datetime, FoundRun, Kpi]]) -> Session:
    runs = tuple(SetRun(printable(one.name), one.result, at) for at, one, _ in members)
    left = [time_left(one.run) for one in runs]
    share = statistics.median(known) if len(known := [one for one in left if one]) == len(left) else None
    return Session(members[0][0], runs, statistics.median(kpi.value for _, _, kpi in members), share)


def _name(found: Sequence[tuple[Series, dict[str, str]]]) -> list[Series]:
    """Give series the parameters that tell them from others of their case."""
    by_case: dict[tuple[str, str], list[dict[str, str]]] = {}
    for one, parameters in found:
        by_case.setdefault((one.workload, one.case), []).append(parameters)
    differing = {case: name_differing(each) for case, each in by_case.items()}
    return [
        replace(one, parameters={n: get_parameter(parameters, n) for n in differing[one.workload, one.case]})
        for one, parameters in found
    ]


def _mark(one: Series, threshold: float, level: float) -> Series:
    """Return a series with its steps."""
    logs = [math.log(session.figure) for session in one.sessions]
    left = [session.left for session in one.sessions if session.left]
    timed = one.unit == "ms" or one.unit.endswith("/s")
    better = find_kind(one.metric).better
    known = left if timed and len(left) == len(logs) else ()
    steps = find_steps(logs, known, sign=-1 if better == "lower" else 1, threshold=threshold, level=level)
    bounds = [0, *(step.at for step in steps), len(logs)]
    levels = [
        (begin, end, statistics.median(session.figure for session in one.sessions[begin:end]))
        for begin, end in pairwise(bounds)
    ]
    changes = [
        _change(one, step, before[2], after[2], better, level)
        for step, (before, after) in zip(steps, pairwise(levels), strict=True)
    ]
    return replace(one, changes=tuple(changes), levels=tuple(levels))


def _change(one: Series, step: Step, before: float, after: float, better: str, level: float) -> Change:
    low, high = step.shift.interval(level)
    up = step.shift.log_ratio > 0
    words = {"higher": ("slower", "faster"), "lower": ("faster", "slower"), "neither": ("lower", "higher")}
    conditions = _conditions(one.sessions[step.begin : step.at], one.sessions[step.at : step.end])
    edge = one.sessions[step.at - 1], one.sessions[step.at]
    return Change(
        edge[0].started, edge[1].started, before, after, step.shift.ratio, low, high, words[better][up], conditions
    )


def _conditions(before: Sequence[Session], after: Sequence[Session]) -> tuple[Condition, ...]:
    """Return what changed within BLUR sessions of a step, and stayed changed."""
    lasting = {one.name for one in list_conditions(_runs(before[:-BLUR]), _runs(after[BLUR:]))}
    here = list_conditions(before[-1 - BLUR].runs, after[BLUR].runs)
    return tuple(one for one in here if one.name in lasting)


def _runs(sessions: Iterable[Session]) -> list[SetRun]:
    return [run for session in sessions for run in session.runs]
