"""Show throughput against latency, with the runs that no other is better than, and how it scales with instances."""

import json
from collections import defaultdict
from statistics import median
from typing import Any

import numpy as np

from cnnbench.report.page.charts import HEIGHT, by_series, by_verdict, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs, newest

MOST_POINTS = 300
NOT_COMPARED = (
    *("INSTANCES", "STEPS", "WARMUP_STEPS", "MIN_TIME", "MAX_TIME", "ACCURACY_TIME", "VERBOSE", "ONEDNN_VERBOSE"),
    *("ENERGY_METER", "IDLE_TIME"),
)
"""The parameters in which runs may differ whose scaling is compared."""


def find_front(points: list[tuple[float, float]]) -> set[int]:
    """Return the indices of the points (latency, throughput) that no other one is at least as good as in both."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front, best = set(), float("-inf")
    for index in order:
        if points[index][1] > best:
            front.add(index)
            best = points[index][1]
    return front


def choose_named(points: list[tuple[float, float]], first: set[int]) -> set[int]:
    """Return the indices of the points (latency, throughput) whose names have room beside them, `first` before others.

    A name takes a tenth of the chart's width and a twentieth of its height, on logarithmic scales.
    """
    if not points:
        return set()
    logs = np.log(points)
    reach = np.ptp(logs, axis=0) * (0.1, 0.05)
    named: list[int] = []
    for index in sorted(range(len(points)), key=lambda one: one not in first):
        if all((np.abs(logs[index] - logs[other]) > reach).any() for other in named):
            named.append(index)
    return set(named)


def show_speed(runs: Runs) -> Section | None:
    """Return throughput against mean latency; None without a run that has both."""
    chosen = [run for run in runs.counting if _pair(run)]
    chosen, notes = newest(chosen, MOST_POINTS)
    if not chosen:
        return None
    fronts: set[int] = set()
    for network in dict.fromkeys(run.network for run in chosen):
        own = [run for run in chosen if run.network == network]
        pairs = [pair for run in own if (pair := _pair(run))]
        fronts |= {own[index].number for index in find_front(pairs)}
    on_front = {index for index, run in enumerate(chosen) if run.number in fronts}
    named = choose_named([pair for run in chosen if (pair := _pair(run))], on_front)
    values = [_point(run, index in on_front, index in named) for index, run in enumerate(chosen)]
    rows = [
        [
            Cell(run.label, run.number),
            run.what,
            str(run.batch or ""),
            run.shape,
            Cell(run.text("Latency mean"), run.number),
            Cell(run.text("Throughput"), run.number),
            "yes" if run.number in fronts else "",
        ]
        for run in chosen
    ]
    table = Table(
        "Throughput and mean latency of each run",
        ["run", "what", "batch", "instances × cores", "latency (ms)", "throughput (img/s)", "on the front"],  # noqa: RUF001
        rows,
    )
    text = f"{len(chosen)} runs as points; {len(fronts)} of them are on the front, joined by a line."
    figure = Figure("throughput-latency", "Throughput against latency", text, _draw_speed, values, table)
    lead = (
        "Each point is one run: up and to the left is better. The line joins the Pareto front of a network, the runs "
        "for which no other has both a lower latency and a higher throughput; unstable runs may be among them, and are "
        "drawn as diamonds. Beside a point, where there is room: its batch size, and instances × cores of each."  # noqa: RUF001
    )
    return Section("speed", "Throughput against latency", lead, [figure], notes=notes)


def _pair(run: PageRun) -> tuple[float, float] | None:
    latency, throughput = run.value("Latency mean"), run.value("Throughput")
    return None if not latency or not throughput or latency < 0 or throughput < 0 else (latency, throughput)


def _point(run: PageRun, on_front: bool, named: bool) -> Value:
    latency, throughput = _pair(run) or (0.0, 0.0)
    return {
        "run": run.number,
        "label": run.label,
        "series": run.what,
        "network": run.network,
        "verdict": run.result.verdict,
        "latency": latency,
        "throughput": throughput,
        "batch": run.batch,
        "shape": run.shape,
        "where": f"b{run.batch} {run.shape}",
        "front": on_front,
        "named": named,
    }


def _draw_speed(alt: Any, values: list[Value]) -> Any:
    logarithmic = alt.Scale(type="log", nice=False, padding=20)
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("latency:Q", title="mean latency of a batch (ms)", scale=logarithmic),
        y=alt.Y("throughput:Q", title="images a second, all instances", scale=logarithmic),
    )
    front = base.transform_filter("datum.front")
    line = front.mark_line(interpolate="step-after", color="var(--quiet)", strokeDash=[5, 3]).encode(detail="network:N")
    points = base.mark_point(size=70, filled=True, opacity=0.9).encode(
        color=by_series(alt),
        shape=by_verdict(alt),
        tooltip=tip(
            alt,
            label="run",
            series="what",
            batch="batch",
            shape="instances × cores",  # noqa: RUF001
            latency__q="latency (ms)",
            throughput__q="img/s",
            verdict="verdict",
        ),
    )
    named = base.transform_filter("datum.named")
    words = named.mark_text(align="left", dx=8, dy=-5, fontSize=10, color="var(--quiet)").encode(text="where:N")
    return (line + words + points).properties(height=HEIGHT + 60)


def show_scaling(runs: Runs) -> Section | None:
    """Return throughput over that of one instance; None where no runs differ by the number of instances alone."""
    groups: dict[str, list[PageRun]] = defaultdict(list)
    for run in runs.counting:
        if run.instances and run.value("Throughput"):
            groups[_all_but_instances(run)].append(run)
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for group in groups.values():
        single = [value for run in group if run.instances == 1 and (value := run.value("Throughput"))]
        if not single or all(run.instances == 1 for run in group):
            continue
        one = median(single)
        for run in sorted(group, key=lambda run: run.instances):
            factor = (run.value("Throughput") or 0.0) / one
            share = 100 * factor / run.instances
            series = f"{run.what}, batch {run.batch}, {run.cores} cores each"
            values.append(
                {
                    "run": run.number, "label": run.label, "series": series, "instances": run.instances,
                    "factor": factor, "share": share, "verdict": run.result.verdict,
                }
            )  # fmt: skip
            throughput = Cell(run.text("Throughput"), run.number)
            of_one = [Cell(number_text(number), run.number) for number in (factor, share)]
            rows.append([Cell(run.label, run.number), series, str(run.instances), throughput, *of_one])
    if not values:
        return None
    table = Table(
        "Throughput by the number of instances",
        ["run", "what", "instances", "throughput (img/s)", "times one instance", "efficiency (%)"],
        rows,
    )
    text = f"{len(values)} runs; the dashed line is where n instances do n times as much as one."
    figure = Figure("scaling", "Throughput over that of one instance", text, _draw_scaling, values, table)
    lead = (
        "Runs that differ by the number of instances alone, each instance with the same number of cores. 100 % "
        "efficiency is the dashed line; what is missing is what instances take from each other: caches, memory, power."
    )
    return Section("scaling", "Scaling", lead, [figure])


def _all_but_instances(run: PageRun) -> str:
    settings = {name: text for name, text in run.parameters.items() if name not in NOT_COMPARED}
    return json.dumps([run.result.workload, run.mode, settings], sort_keys=True)


def _draw_scaling(alt: Any, values: list[Value]) -> Any:
    most = max(value["instances"] for value in values)
    ideal = alt.Chart(alt.Data(values=[{"n": 1, "times": 1}, {"n": most, "times": most}]))
    ticks = alt.Axis(values=sorted({value["instances"] for value in values}), format="d")
    line = ideal.mark_line(strokeDash=[5, 3], color="var(--quiet)").encode(x="n:Q", y="times:Q")
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("instances:Q", title="instances", scale=alt.Scale(zero=False, padding=15), axis=ticks),
        y=alt.Y("factor:Q", title="times one instance", scale=alt.Scale(zero=True)),
        color=by_series(alt),
    )
    points = base.mark_point(size=70, filled=True).encode(
        shape=by_verdict(alt),
        tooltip=tip(
            alt,
            label="run",
            series="what",
            instances="instances",
            factor__q="times one",
            share__q="efficiency (%)",
            verdict="verdict",
        ),
    )
    return (line + base.mark_line(opacity=0.6) + points).properties(height=HEIGHT)
