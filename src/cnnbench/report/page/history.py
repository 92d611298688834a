"""Show each case over time, session by session, with the steps that are in it and what else changed there."""

from collections.abc import Sequence
from typing import Any

from cnnbench.report.page.charts import HEIGHT, by_series, data, tip
from cnnbench.report.page.model import Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import Runs
from cnnbench.report.table import common_prefix
from cnnbench.report.trends import Change, Series, Trends, follow
from cnnbench.report.trends_text import day, tell_condition, tell_rule
from cnnbench.results.trend import LEAST

FROM_SESSIONS = LEAST
"""A series of fewer sessions is no history."""
MOST_CASES = 12
MOST_SERIES = 8
"""Of a case: as many as there are colours."""
MOST_POINTS = 1200
"""Of the whole section: the newest sessions of each series."""


def show_history(runs: Runs) -> Section | None:
    """Return the figures of cases over time; None where none has been measured in FROM_SESSIONS sessions."""
    trends = follow(runs.everything)
    long = [one for one in trends.series if len(one.sessions) >= FROM_SESSIONS]
    by_case: dict[tuple[str, str, str], list[Series]] = {}
    for one in long:
        by_case.setdefault((one.workload, one.case, one.metric), []).append(one)
    if not by_case:
        return None
    # Cases with steps first, the newest step before the others.
    order = sorted(by_case.values(), key=_newest_step, reverse=True)
    shown = [_choose(own) for own in order[:MOST_CASES]]
    notes = list(trends.notes)
    count = sum(map(len, shown))
    if count < len(long):
        notes.append(f"{count} of {len(long)} series are drawn, those with the newest steps; the table has all steps.")
    most = max(FROM_SESSIONS, MOST_POINTS // count)
    if any(len(one.sessions) > most for own in shown for one in own):
        notes.append(f"the newest {most} sessions of each series are drawn; the tables are of all.")
    prefix = common_prefix([one.case for one in long])
    figures = [_figure(number, own, prefix, most) for number, own in enumerate(shown, start=1)]
    lead = (
        "Each point is the median of one session, the runs of a case with the same parameters on one machine that were "
        "made one after the other; the level lines are the medians between steps, which the dashed lines mark. "
        f"{tell_rule(trends)}. What drifts slowly, or goes with the time that others took, is no step."
    )
    steps = trends.changes
    tables = [_steps(trends, steps, prefix)] if steps else []
    if not steps:
        notes.append("there is no step in any series.")
    return Section("history", "History", lead, figures, tables, notes)


def _newest_step(own: Sequence[Series]) -> float:
    return max(map(_newest_step_of, own))


def _newest_step_of(one: Series) -> float:
    return max((change.first.timestamp() for change in one.changes), default=0.0)


def _choose(own: Sequence[Series]) -> list[Series]:
    """Return the series with the newest steps, in their order, so that a machine has one colour in all charts."""
    chosen = sorted(range(len(own)), key=lambda number: _newest_step_of(own[number]), reverse=True)[:MOST_SERIES]
    return [own[number] for number in sorted(chosen)]


def _label(one: Series) -> str:
    told = " ".join(f"{name}={value}" for name, value in one.parameters.items() if value)
    return ", ".join(text for text in (one.machine, told) if text) or "all runs"


def _figure(number: int, own: Sequence[Series], prefix: str, most: int) -> Figure:
    values: list[Value] = []
    rows: list[list[str]] = []
    for one in own:
        label, last = _label(one), len(one.sessions)
        values += [
            {"kind": "session", "series": label, "time": f"{session.started:%Y-%m-%dT%H:%M:%SZ}",
             "value": session.figure, "runs": len(session.runs)}
            for session in one.sessions[-most:]
        ]  # fmt: skip
        for begin, end, level in one.levels:
            if end > last - most:
                edges = one.sessions[max(begin, last - most)], one.sessions[end - 1]
                values += [
                    {"kind": "level", "series": label, "level": f"{label} {begin}", "value": level,
                     "time": f"{session.started:%Y-%m-%dT%H:%M:%SZ}"}
                    for session in edges
                ]  # fmt: skip
            between = one.sessions[begin], one.sessions[end - 1]
            rows.append([label, *(day(one.started) for one in between), str(end - begin), number_text(level)])
        shown_from = one.sessions[-most:][0].started
        values += [_step_value(label, change) for change in one.changes if change.first >= shown_from]
    first = own[0]
    title = f"{first.metric} ({first.unit})" if first.unit else first.metric
    name = first.case.removeprefix(prefix) or first.case
    head = ["series", "from", "to", "sessions", title]
    table = Table(f"{name}: levels between steps", head, rows)
    count = sum(len(one.changes) for one in own)
    text = f"{title} of {len(own)} series over time, with {count or 'no'} step{'' if count == 1 else 's'}."
    return Figure(f"history-{number}", name, text, lambda alt, values: _draw(alt, values, title), values, table)


def _step_value(label: str, change: Change) -> Value:
    conditions = "; ".join(map(tell_condition, change.conditions)) or "no condition is known to have changed"
    return {
        "kind": "step", "series": label, "time": f"{change.first:%Y-%m-%dT%H:%M:%SZ}", "value": change.after,
        "ratio": f"×{change.ratio:.3f}", "finding": change.finding, "conditions": conditions,  # noqa: RUF001
    }  # fmt: skip


def _steps(trends: Trends, steps: Sequence[tuple[Series, Change]], prefix: str) -> Table:
    header = ["case", "series", "first session after it", "from", "to", "ratio", "interval", "verdict", "what changed"]
    rows = [
        [
            one.case.removeprefix(prefix) or one.case,
            _label(one),
            day(change.first),
            number_text(change.before),
            number_text(change.after),
            f"{change.ratio:.3f}",
            f"{change.low:.3f} to {change.high:.3f}",
            change.finding,
            "; ".join(map(tell_condition, change.conditions)) or "no condition is known to have changed there",
        ]
        for one, change in steps
    ]
    return Table(f"Steps of {trends.threshold:.0%} and more, the newest first", header, rows)


def _draw(alt: Any, values: list[Value], title: str) -> Any:
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("time:T", title=None, scale=alt.Scale(type="utc"), axis=alt.Axis(labelOverlap=True)),
        color=by_series(alt),
    )
    value = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False, padding=12))
    points = base.transform_filter({"field": "kind", "equal": "session"}).mark_point(size=18, filled=True, opacity=0.7)
    points = points.encode(
        y=value,
        tooltip=[alt.Tooltip("time:T", title="session"), *tip(alt, series="series", value__q=title, runs="runs")],
    )
    levels = base.transform_filter({"field": "kind", "equal": "level"}).mark_line(strokeWidth=2)
    levels = levels.encode(y=value, detail="level:N")
    layers = [points, levels]
    if any(one["kind"] == "step" for one in values):
        steps = base.transform_filter({"field": "kind", "equal": "step"})
        told = [
            alt.Tooltip("time:T", title="first session after it"),
            *tip(alt, series="series", ratio="ratio", finding="verdict", conditions="what changed"),
        ]
        layers.append(steps.mark_rule(strokeDash=[5, 3], strokeWidth=1.5).encode(tooltip=told))
        layers.append(
            steps.mark_text(align="left", dx=5, dy=-10, fontWeight="bold").encode(y=value, text="ratio:N", tooltip=told)
        )
    return alt.layer(*layers).properties(height=HEIGHT - 60)
