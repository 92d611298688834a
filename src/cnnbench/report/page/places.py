"""Show where the instances of a run were, and which of them were slower than the others."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from cnnbench.machine.topology import format_cpu_list
from cnnbench.report.page.charts import by_series, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs, newest

MOST_PLACED, MOST_BARS = 3, 96
STRAGGLING = 0.9
"""An instance below this share of the median throughput is a straggler."""


@dataclass(frozen=True)
class _Placed:
    """An instance: where it was, and what it did."""

    index: int
    place: str
    cpus: str
    images_per_s: float
    latency_ms: float | None


def show_places(runs: Runs) -> Section | None:
    """Return the instances of the newest runs that had several; None where none had."""
    able = [run for run in runs.counting if len(run.result.instances) > 1]
    placed = [(run, found) for run in able if (found := runs.read(run, _place))]
    chosen, notes = newest([run for run, _ in placed], MOST_PLACED)
    figures = [_figure(run, found) for run, found in reversed(placed) if run in chosen]
    if not figures:
        return None
    lead = (
        "The throughput of each instance, by the socket, memory node and last-level cache of its cores. One below "
        f"{STRAGGLING:.0%} of the median (the dashed line) is a straggler: what it shares with others, or what else "
        "runs on its cores, is where to look."
    )
    return Section("places", "Instances on sockets, nodes and caches", lead, figures, notes=notes)


def _place(run: PageRun) -> list[_Placed]:
    """Return the instances in the order of their places; none where there are no figures of each."""
    figures = {int(one["index"]): one for one in run.result.instances if one.get("images_per_s") is not None}
    found = []
    for planned in run.result.plan.get("instances", []):
        one = figures.get(int(planned["index"]))
        if one is None:
            continue
        words = [
            str(planned.get("host", "")),
            f"socket {format_cpu_list(planned['sockets'])}" if planned.get("sockets") else "",
            f"node {format_cpu_list(planned['nodes'])}" if planned.get("nodes") else "",
            f"cache {', '.join(map(str, planned['caches']))}" if planned.get("caches") else "",
            " ".join(map(str, planned.get("kinds", ()))),
        ]
        latency = one.get("latency_mean_ms")
        key = [planned.get("host", ""), list(planned["sockets"]), list(planned["nodes"]), list(planned["cpus"])]
        placed = _Placed(
            int(planned["index"]),
            ", ".join(word for word in words if word) or "place not told",
            format_cpu_list(planned["cpus"]),
            float(one["images_per_s"]),
            None if latency is None else float(latency),
        )
        found.append((key, placed))
    return [placed for _, placed in sorted(found, key=lambda pair: pair[0])]


def _figure(run: PageRun, placed: list[_Placed]) -> Figure:
    middle = median(one.images_per_s for one in placed)
    stragglers = [one for one in placed if one.images_per_s < STRAGGLING * middle]
    slowest = sorted(placed, key=lambda one: one.images_per_s)[:MOST_BARS]
    values: list[Value] = [
        {
            "run": run.number, "name": f"instance {one.index}, CPUs {one.cpus}", "series": one.place,
            "rate": one.images_per_s, "share": 100 * one.images_per_s / middle if middle else 0.0, "median": middle,
            "straggler": "straggler" if one in stragglers else "",
        }
        for one in placed
        if one in slowest
    ]  # fmt: skip
    rows = [
        [
            str(one.index),
            one.cpus,
            one.place,
            Cell(number_text(one.images_per_s), run.number),
            Cell(number_text(one.latency_ms), run.number),
            "straggler" if one in stragglers else "",
        ]
        for one in placed
    ]
    head = ["instance", "CPUs", "where", "throughput (img/s)", "latency, mean (ms)", ""]
    text = f"{len(placed)} instances, {len(stragglers)} of them stragglers"
    text += f"; drawn are the slowest {MOST_BARS}." if len(placed) > MOST_BARS else "."
    table = Table(f"The instances of {run.label}", head, rows)
    return Figure(f"instances-{run.number}", f"Instances of {run.label}", text, _draw_places, values, table)


def _draw_places(alt: Any, values: list[Value]) -> Any:
    base = alt.Chart(data(alt, values)).encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=170)),
        x=alt.X("rate:Q", title="images a second", scale=alt.Scale(zero=True)),
    )
    bars = base.mark_bar().encode(
        color=by_series(alt),
        opacity=alt.condition("datum.straggler == ''", alt.value(1), alt.value(0.6)),
        tooltip=tip(
            alt, name="instance", series="where", rate__q="img/s", share__q="% of the median", straggler="note"
        ),
    )
    words = base.mark_text(align="left", dx=4).encode(text="straggler:N")
    middle = alt.Chart(alt.Data(values=[{"median": values[0]["median"]}]))
    rule = middle.mark_rule(strokeDash=[5, 3]).encode(x="median:Q", tooltip=tip(alt, median__q="median (img/s)"))
    return (bars + rule + words).properties(height=len(values) * max(9, min(26, 700 // len(values))))
