"""Show trends as tables, CSV or JSON."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cnnbench.report.matching import Condition
from cnnbench.report.table import STYLES, TextFormat, common_prefix, format_csv
from cnnbench.report.text import Style, printable
from cnnbench.report.trends import Change, Series, Trends
from cnnbench.results.finding import ALPHA
from cnnbench.results.kpi_text import format_number
from cnnbench.results.trend import LEAST

CSV_COLUMNS = (
    "record", "case", "machine", "kpi", "unit", "begin", "end", "sessions", "value", "value_before", "ratio", "low",
    "high", "finding", "conditions",
)  # fmt: skip
"""The columns that a CSV has always; one for each parameter that tells series apart follows."""


def show_trends(trends: Trends, output_format: TextFormat) -> str:
    """Return trends in the format asked for."""
    if style := STYLES.get(output_format):
        return _tables(trends, style)
    records = [record for one in trends.series for record in _records(one)]
    if output_format == "json":
        return json.dumps(records, indent=2)
    for record in records:
        record["conditions"] = "; ".join(record.get("conditions", ()))
    return format_csv(records, CSV_COLUMNS)


def day(moment: datetime) -> str:
    """Return a moment as tables show it, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M}"


def tell_condition(one: Condition) -> str:
    """Return what changed, in words."""
    return f"{one.name}: {one.first or 'not there'}, then {one.second or 'not there'}"


def tell_rule(trends: Trends) -> str:
    """Say what a step is."""
    return (
        f"A step is where the figures of {LEAST} sessions or more before and after differ by {trends.threshold:.3g} or "
        f"more; all series together have a false one {ALPHA:.0%} of the time at most"
    )


def _tables(trends: Trends, style: Style) -> str:
    prefix = common_prefix([one.case for one in trends.series])
    names = list(dict.fromkeys(name for one in trends.series for name in one.parameters))
    header = ["case", *map(printable, names), "machine", "KPI", "sessions", "last", "level", "steps"]
    rows = [
        [*_which(one, prefix, names), _kpi(one), str(len(one.sessions)), day(one.sessions[-1].started)[:10],
         format_number(one.levels[-1][2]), str(len(one.changes))]
        for one in trends.series
    ]  # fmt: skip
    parts = [style.table(header, rows)] if rows else []
    if trends.changes:
        notes = style.footnotes()
        header = ["case", *map(printable, names), "machine", "first after", "from", "to", "ratio", "low", "high", ""]
        rows = [
            [*_which(one, prefix, names), day(change.first), format_number(change.before), format_number(change.after),
             *(f"{value:.3f}" for value in (change.ratio, change.low, change.high)),
             notes.cite(change.finding, _explain(change))]
            for one, change in trends.changes
        ]  # fmt: skip
        parts.append(notes.below(style.table(header, rows)))
    short = sum(len(one.sessions) < 2 * LEAST for one in trends.series)
    told = [tell_rule(trends)]
    if short:
        told.append(f"{short} of {len(trends.series)} series have fewer than {2 * LEAST} sessions: too few for a step")
    told += trends.notes
    return "\n\n".join([*parts, *(style.paragraph(printable(text)) for text in told)])


def _which(one: Series, prefix: str, names: Sequence[str]) -> list[str]:
    case = one.case.removeprefix(prefix)
    return list(map(printable, [case, *(one.parameters.get(name, "") for name in names), one.machine]))


def _kpi(one: Series) -> str:
    return printable(f"{one.metric} ({one.unit})" if one.unit else one.metric)


def _explain(change: Change) -> str:
    return "; ".join(map(tell_condition, change.conditions)) or "no condition is known to have changed there"


def _records(one: Series) -> list[dict[str, Any]]:
    same: dict[str, Any] = {
        "case": one.case, "machine": one.machine, "parameters": one.parameters, "kpi": one.metric, "unit": one.unit,
    }  # fmt: skip
    levels = [
        {"record": "level", **same, "begin": one.sessions[begin].started.isoformat(),
         "end": one.sessions[end - 1].started.isoformat(), "sessions": end - begin, "value": value}
        for begin, end, value in one.levels
    ]  # fmt: skip
    steps = [
        {"record": "step", **same, "begin": change.last.isoformat(), "end": change.first.isoformat(),
         "value_before": change.before, "value": change.after, "ratio": change.ratio, "low": change.low,
         "high": change.high, "finding": change.finding, "conditions": list(map(tell_condition, change.conditions))}
        for change in one.changes
    ]  # fmt: skip
    return [*levels, *steps]
