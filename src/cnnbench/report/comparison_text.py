"""Show a comparison: as tables for a terminal, or as records for other programs."""

import json
from collections.abc import Sequence
from typing import Any

from cnnbench.report.comparison import Compared, Comparison
from cnnbench.report.matching import Condition
from cnnbench.report.table import STYLES, TextFormat, common_prefix, format_csv
from cnnbench.report.text import Style, printable
from cnnbench.results.finding import ALPHA, MOST_RUNS, POWER, contradict
from cnnbench.results.kpi_text import format_number
from cnnbench.results.shift import MIN_RUNS

CSV_COLUMNS = (
    "record", "baseline", "set", "case", "kpi", "unit", "value_baseline", "value", "ratio", "low", "high", "level",
    "runs_baseline", "runs", "finding", "runs_needed", "remarks", "conditions",
)  # fmt: skip
"""The columns that a CSV has always; one for each parameter that tells cases apart follows."""


def show_comparison(compared: Compared, output_format: TextFormat) -> str:
    """Return a comparison in the format asked for."""
    if style := STYLES.get(output_format):
        return _tables(compared, style)
    records = _records(compared)
    if output_format == "json":
        return json.dumps(records, indent=2)
    for record in records:  # JSON escapes what a terminal would obey by itself
        record["case"] = printable(record["case"])
        record["conditions"] = "; ".join(
            f"{one['name']}: {one['first'] or 'none'}, now {one['second'] or 'none'}"
            for one in record.get("conditions", ())
        )
        record["parameters"] = {name: printable(value) for name, value in record["parameters"].items()}
    return format_csv(records, CSV_COLUMNS)


def _tables(compared: Compared, style: Style) -> str:
    """Return the sets, the table of cases, the means of groups, and the conditions that differ."""
    found = compared.comparisons
    sets = [f"{one.label}: {one.path} ({_count(len(one.runs), 'run')})" for one in compared.sets]
    parts = [style.items("", sets), _case_table(compared, style)]
    if compared.means:
        rows = []
        for mean in compared.means:
            ratios = [_ratio(value, compared) for value in (mean.ratio, mean.low, mean.high)]
            rows.append([mean.name, mean.label, *ratios, str(mean.cases)])
        parts.append(style.table(["geometric mean of", "over A", "ratio", "from", "to", "cases"], rows))
    parts.append(_condition_tables(compared, style))
    told = [*compared.alone, *(problem for one in compared.sets for problem in _problems(one.label, one.problems))]
    if any(one.shifts and one.places is None for one in found):
        told.append(
            "the sets were not measured in turns, so what else changed between them is in the ratio, and intervals are "
            "wider for it; `cnnbench ab` takes turns"
        )
    parts += [style.paragraph(text) for text in told]
    return "\n\n".join(part for part in parts if part)


def _problems(label: str, problems: Sequence[str]) -> list[str]:
    return [f"{label}: {problem}" for problem in problems]


def _case_table(compared: Compared, style: Style) -> str:
    found, notes = compared.comparisons, style.footnotes()
    prefix = common_prefix([one.match.case for one in found])
    names = list(dict.fromkeys(name for one in found for name in one.match.parameters))
    kpis = list(dict.fromkeys(_kpi(one) for one in found))
    which = ["KPI"] if len(kpis) > 1 else []
    others = ["set", "its"] if len(compared.sets) > 2 else ["B"]
    header = ["case", *map(printable, names), *which, "A", *others, "ratio", "from", "to", "runs", "verdict"]
    rows = []
    for one in found:
        ratios = [one.shifts[0].ratio, *one.interval] if one.shifts else []
        rows.append(
            [
                printable(one.match.case.removeprefix(prefix)),
                *(printable(one.match.parameters.get(name, "")) for name in names),
                *([_kpi(one)] if which else []),
                _value(one.first.value),
                *([one.second.label] if len(others) > 1 else []),
                _value(one.second.value),
                *([_ratio(value, compared) for value in ratios] or [""] * 3),
                f"{len(one.first.figures)}, {len(one.second.figures)}",
                notes.cite(one.finding, explain(one, compared.threshold)),
            ]
        )
    count = sum(bool(one.shifts) for one in found)
    rule = (
        ("" if which else f"{kpis[0]}; ")
        + f"ratio: over A, with the interval that misses the true one {ALPHA:.0%} of the time"
        + (f", in all {count} comparisons together (Holm)" if count > 1 else "")
        + (f", in all {compared.looks} looks together" if compared.looks > 1 else "")
        + f"; faster and slower: it leaves out 1, and the ratio is more than {compared.threshold:.3g} away from 1; "
        "same: it is within that"
    )
    return "\n\n".join([notes.below(style.table(header, rows)), style.paragraph(rule)])


def _kpi(one: Comparison) -> str:
    return printable(f"{one.metric} ({one.unit})" if one.unit else one.metric)


def _value(value: float | None) -> str:
    return "" if value is None else format_number(value)


def _ratio(value: float, compared: Compared) -> str:
    """Return a ratio with digits enough for the threshold."""
    return f"{value:.{3 if compared.threshold >= 0.01 else 5}f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def explain(one: Comparison, threshold: float) -> str:
    """Say what a verdict does not: what was left out, and how many runs would tell what these do not."""
    told = [printable(remark) for remark in one.remarks]
    if one.finding == "cannot tell":
        if not one.shifts and one.needed:
            told.append(f"needs {MIN_RUNS} runs of each at the least")
        elif one.needed:
            told.append(f"{one.needed} runs of each would tell with a probability of {POWER:.0%}")
        elif one.shifts:
            told.append(f"{MOST_RUNS} runs of each would not tell: {_obstacle(one, threshold)}")
    return "; ".join(told)


def _obstacle(one: Comparison, threshold: float) -> str:
    if contradict(one.shifts, threshold):
        return "what disturbed the runs accounts for the difference; measure on a quiet machine, or in turns"
    return f"the ratio is too near to {threshold:.3g} away from 1"


def _condition_tables(compared: Compared, style: Style) -> str:
    """Return what differs between A and each other set, each thing once, with the cases where it is not all."""
    parts = []
    for other in compared.sets[1:]:
        own = [one for one in compared.comparisons if one.second.label == other.label]
        cases: dict[Condition, int] = {}
        for one in own:
            for condition in one.conditions:
                cases[condition] = cases.get(condition, 0) + 1
        if not cases:
            parts.append(style.paragraph(f"A and {other.label}: no condition is known to differ"))
            continue
        rows = [
            [one.name, one.first, one.second, *([f"{count} of {len(own)}"] if len(own) > 1 else [])]
            for one, count in cases.items()
        ]
        header = ["condition that differs", "A", other.label, *(["cases"] if len(own) > 1 else [])]
        parts.append(style.table(header, rows))
    return "\n\n".join(parts)


def _records(compared: Compared) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    base = compared.sets[0].path
    paths = {one.label: one.path for one in compared.sets}
    for one in compared.comparisons:
        record: dict[str, Any] = {
            "record": "case",
            "baseline": base,
            "set": paths[one.second.label],
            "case": one.match.case,
            "parameters": one.match.parameters,
            "kpi": one.metric,
            "unit": one.unit,
            "value_baseline": one.first.value,
            "value": one.second.value,
        }
        if one.shifts:
            low, high = one.interval
            record |= {"ratio": one.shifts[0].ratio, "low": low, "high": high, "level": one.level}
        record |= {
            "runs_baseline": len(one.first.figures),
            "runs": len(one.second.figures),
            "finding": one.finding,
            "runs_needed": one.needed,
            "remarks": "; ".join(map(printable, one.remarks)),
            "conditions": [vars(condition) for condition in one.conditions],
        }
        records.append(record)
    records += [
        {
            "record": "mean",
            "baseline": base,
            "set": paths[mean.label],
            "case": mean.name,
            "parameters": {},
            "ratio": mean.ratio,
            "low": mean.low,
            "high": mean.high,
            "level": ALPHA,
        }
        for mean in compared.means
    ]
    return records
