"""Show machines side by side: what each comes to in each case, as a whole, per core, per socket and for its energy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cnnbench.report.machines import Machine
from cnnbench.report.page.charts import by_series, data, tip
from cnnbench.report.page.model import Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import Runs
from cnnbench.report.platforms import THRESHOLD, Standing, by_machine, describe_value, stand
from cnnbench.report.sets import SetRun
from cnnbench.report.table import common_prefix, shorten
from cnnbench.run.kpis import find_kind

MOST_MACHINES, MOST_CASES = 12, 30
"""How many machines and cases the charts have; the table has all."""
_BAR, _GAP = 14, 12
"""The height of a bar, and of what is between cases."""

_Pick = Callable[[Standing], tuple[float, float, float] | None]


def show_platforms(runs: Runs) -> Section | None:
    """Return the machines' standings; None where all runs are of one machine."""
    members = [SetRun(run.label, run.result, run.result.started_at) for run in runs.runs]
    machines = by_machine(members)
    if len(machines) < 2:
        return None
    standings = stand(machines, lambda key: find_kind(key).better)
    names = name_machines([machine for machine, _ in machines])
    lead = (
        "Each machine's runs of each case; the bar is their mean, and the line on it the 95 % interval: over the runs "
        "where there are three or more, else the one run's own. "
    )
    return show_standings(Section("platforms", "Platforms", lead), "machine", standings, names)


def show_standings(section: Section, what: str, standings: Sequence[Standing], names: Mapping[str, str]) -> Section:
    """Return a section with what machines, or pools of them, come to.

    `section` is added to; `what`: what they are called; `names`: what charts call each, the first in front.
    """
    prefix = common_prefix([one.case for one in standings])
    kinds = {(one.kpi, one.unit): "" for one in standings if one.kpi}
    figures: list[Figure] = []
    for number, (kpi, unit) in enumerate(kinds):
        own = [one for one in standings if (one.kpi, one.unit) == (kpi, unit)]
        name = section.name if number == 0 else f"{section.name}-{number + 1}"
        figures += _figures(name, what, f"{kpi} by {what}", f"{kpi} ({unit})", own, names, prefix, _whole)
        if unit.endswith("/s"):
            for part, pick in (("core", _per_core), ("socket", _per_socket)):
                title = f"{kpi} per {part}"
                figures += _figures(f"{name}-{part}", what, title, f"{title} ({unit})", own, names, prefix, pick)
    for key, unit in dict.fromkeys((key, unit) for one in standings for key, (_, unit) in one.energy.items()):
        own = [one for one in standings if key in one.energy]
        name = f"{section.name}-{key.lower().replace(' ', '-').replace('/', '-')}"
        figures += _figures(name, what, f"{key} by {what}", f"{key} ({unit})", own, names, prefix, _of_energy(key))
    lead = (
        f"{section.lead}Per core and per socket: of those that the instances were on. Ratios are over "
        f"{next(iter(names.values()))}, with the verdict of cnnbench compare (threshold {THRESHOLD:.0%})."
    )
    notes = list(section.notes)
    if len(names) > MOST_MACHINES:
        notes.append(f"the charts have the first {MOST_MACHINES} of {len(names)} {what}s, the table has all.")
    tables = [_table(standings, what, names, prefix), *section.tables]
    return replace(section, lead=lead, figures=[*figures, *section.figures], tables=tables, notes=notes)


def name_machines(machines: Sequence[Machine]) -> dict[str, str]:
    """Return what charts call each machine: its name, and its CPU where that is known."""
    return {one.name: f"{one.name}: {shorten('CPU', one.cpu)}" if one.cpu else one.name for one in machines}


def _figures(
    name: str,
    what: str,
    title: str,
    axis: str,
    standings: Sequence[Standing],
    names: Mapping[str, str],
    prefix: str,
    pick: _Pick,
) -> list[Figure]:
    """Return a chart of what `pick` finds; none where it finds nothing."""
    shown = list(names)[:MOST_MACHINES]
    able = [(one, found) for one in standings if one.machine.name in shown and (found := pick(one))]
    cases = list(dict.fromkeys(_case(one, prefix) for one, _ in able))[:MOST_CASES]
    values: list[Value] = [
        {
            "case": _case(one, prefix), "series": names[one.machine.name], "value": value, "low": low, "high": high,
            "axis": axis, "runs": one.runs, "finding": one.finding, "ratio": one.ratio,
        }
        for one, (value, low, high) in able
        if _case(one, prefix) in cases
    ]  # fmt: skip
    if not values:
        return []
    rows = [
        [str(row["case"]), str(row["series"]), *(number_text(row[key]) for key in ("value", "low", "high"))]
        for row in values
    ]
    table = Table(title, ["case", what, axis, "from", "to"], rows)
    count = len({row["series"] for row in values})
    text = f"Bars of {count} {what}{'s' * (count > 1)} in {len(cases)} case{'s' * (len(cases) > 1)}."
    return [Figure(name, title, text, partial(_draw, what), values, table)]


def _case(one: Standing, prefix: str) -> str:
    """Return a case's name with the precision in front, so that narrow charts do not cut it off."""
    rest = one.case.removeprefix(prefix).replace(f"_{one.precision}", "", 1)
    settings = [f"{name}={text}" for name, text in one.parameters.items()]
    return " ".join(word for word in (one.precision, rest, *settings) if word)


def _whole(one: Standing) -> tuple[float, float, float] | None:
    if one.value is None:
        return None
    low, high = one.interval or (one.value, one.value)
    return one.value, low, high


def _share(one: Standing, part: float | None) -> tuple[float, float, float] | None:
    if part is None or not one.value:
        return None
    low, high = one.interval or (one.value, one.value)
    return part, low * part / one.value, high * part / one.value


def _per_core(one: Standing) -> tuple[float, float, float] | None:
    return _share(one, one.per_core)


def _per_socket(one: Standing) -> tuple[float, float, float] | None:
    return _share(one, one.per_socket)


def _of_energy(key: str) -> _Pick:
    def pick(one: Standing) -> tuple[float, float, float] | None:
        value = one.energy[key][0]
        return value, value, value

    return pick


def _draw(what: str, alt: Any, values: list[Value]) -> Any:
    machines = len({row["series"] for row in values})
    cases = len({row["case"] for row in values})
    place = alt.Y("case:N", title=None, sort=None, scale=alt.Scale(paddingInner=0.2))
    offset = alt.YOffset("series:N", sort=None)
    base = alt.Chart(data(alt, values)).encode(y=place, yOffset=offset)
    hint = tip(
        alt, case="case", series=what, value__q="value", low__q="from", high__q="to", runs="runs",
        ratio__q="ratio", finding="verdict",
    )  # fmt: skip
    bars = base.mark_bar().encode(
        x=alt.X("value:Q", title=str(values[0]["axis"]), scale=alt.Scale(zero=True)),
        color=by_series(alt).legend(columns=1),
        tooltip=hint,
    )
    whiskers = base.mark_rule(color="var(--ink)", strokeWidth=1.5).encode(
        x=alt.X("low:Q"), x2=alt.X2("high:Q"), tooltip=hint
    )
    return (bars + whiskers).properties(height=max(90, cases * (machines * _BAR + _GAP)))


def _table(standings: Sequence[Standing], what: str, names: Mapping[str, str], prefix: str) -> Table:
    kpis = list(dict.fromkeys(f"{one.kpi} ({one.unit})" for one in standings if one.kpi))
    which = ["KPI"] if len(kpis) > 1 else []
    energy = ["energy"] if any(one.energy for one in standings) else []
    header = ["case", what, *which, "value", "per core", "per socket", "ratio", "from", "to", "verdict", "runs",
              *energy]  # fmt: skip
    rows = [
        [
            _case(one, prefix),
            names[one.machine.name],
            *([f"{one.kpi} ({one.unit})" if one.kpi else ""] if which else []),
            describe_value(one),
            number_text(one.per_core),
            number_text(one.per_socket),
            *(("" if of is None else f"{of:.3f}") for of in (one.ratio, one.low, one.high)),
            "; ".join(text for text in (one.finding, one.remark) if text),
            _count_runs(one),
            *(["; ".join(_energy_texts(one))] if energy else []),
        ]
        for one in standings
    ]
    return Table(f"{what.capitalize()}s side by side{'' if which else f': {kpis[0]}' if kpis else ''}", header, rows)


def _energy_texts(one: Standing) -> list[str]:
    return [f"{key} {number_text(value)} {unit}" for key, (value, unit) in one.energy.items()]


def _count_runs(one: Standing) -> str:
    told = [f"{count} {word}" for count, word in ((one.unstable, "unstable"), (one.invalid, "INVALID")) if count]
    return f"{one.runs}, {' and '.join(told)}" if told else str(one.runs)
