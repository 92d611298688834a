"""Show what a server did: latency by rate of requests, the sizes of its batches, and where a request's time went."""

from typing import Any

from cnnbench.report.page.charts import HEIGHT, by_series, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs, newest

MOST_SERVED = 8
TRIED = "tried to find the capacity"
STAGES = ("Queue time", "Input time", "Compute time", "Output time")


def show_serving(runs: Runs) -> Section | None:
    """Return rate against p99, and batches and stages; None where nothing was served."""
    able = [run for run in runs.runs if run.parameter("FUNCTION") == "serving"]
    chosen, notes = newest(able, MOST_SERVED)
    figures = [
        figure for figure in (_rates(runs, chosen, able), _batches(runs, chosen), _stages(chosen)) if figure is not None
    ]
    if not figures:
        return None
    lead = (
        "Rates are of requests at random moments; latency counts from when a request was due. The dashed line is the "
        "bound that a case of capacity holds: its capacity is the highest rate whose 99th percentile lies below it. "
        "Batches and times are what the server counted while it was measured."
    )
    return Section("serving", "Serving", lead, figures, notes=notes)


def _rates(runs: Runs, chosen: list[PageRun], able: list[PageRun]) -> Figure | None:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in chosen:
        if run.mode != "capacity":
            continue
        seen = runs.read(run, lambda run: run.measured.seen.capacity)
        bound = runs.read(run, lambda run: float(run.parameter("LATENCY_BOUND_MS")))
        for rate, p99, held in sorted(seen.trials) if seen else ():
            _add(values, rows, run, TRIED, rate, p99, held, bound)
        if run.value("Capacity") is not None:
            p99 = run.value("Latency p99")
            held = bound is None or p99 is None or p99 <= bound
            _add(values, rows, run, "the capacity, measured", run.value("Capacity"), p99, held, bound)
    for run in able:
        if run.mode == "latency" and run.parameter("REQUEST_RATE") and run.value("Latency p99") is not None:
            p99 = run.value("Latency p99")
            _add(values, rows, run, "a rate asked for", run.value("Requests"), p99, True, None)
    if not values:
        return None
    head = ["run", "what", "requests a second", "p99 (ms)", "bound (ms)", "within"]
    table = Table("99th percentile of latency by the rate of requests", head, rows)
    text = f"{len(values)} rates with their 99th percentile; those above the bound are crosses."
    return Figure("rate-p99", "Rate of requests against p99", text, _draw_rates, values, table)


def _add(
    values: list[Value],
    rows: list[list[str | Cell]],
    run: PageRun,
    what: str,
    rate: float | None,
    p99: float | None,
    held: bool,
    bound: float | None,
) -> None:
    """Add a rate to the chart, if its percentile is told, and to the table."""
    within = "within the bound" if held else "above it"
    shown = [Cell(number_text(rate), run.number), Cell(number_text(p99), run.number) if p99 else "not told"]
    rows.append([Cell(run.label, run.number), what, *shown, number_text(bound), "yes" if held else "NO"])
    if rate and p99:
        values.append(
            {
                "run": run.number, "series": run.label, "what": what, "rate": rate, "p99": p99, "within": within,
                "bound": bound,
            }
        )  # fmt: skip


def _draw_rates(alt: Any, values: list[Value]) -> Any:
    rows = alt.Chart(data(alt, values)).encode(color=by_series(alt))
    base = rows.encode(
        x=alt.X("rate:Q", title="requests a second"),
        y=alt.Y("p99:Q", title="99 % of latency within (ms)", scale=alt.Scale(type="log", nice=False, padding=15)),
    )
    shapes = alt.Scale(domain=["within the bound", "above it"], range=["circle", "cross"])
    points = base.mark_point(size=80, filled=True).encode(
        shape=alt.Shape("within:N", title=None, scale=shapes),
        tooltip=tip(alt, series="run", what="what", rate__q="requests/s", p99__q="p99 (ms)", bound__q="bound (ms)"),
    )
    bound = rows.transform_filter("isValid(datum.bound)").mark_rule(strokeDash=[5, 3]).encode(y="bound:Q")
    layers = [bound, points]
    if any(value["what"] == TRIED for value in values):
        layers.insert(0, base.transform_filter({"field": "what", "equal": TRIED}).mark_line(opacity=0.6))
    return alt.layer(*layers).properties(height=HEIGHT)


def _batches(runs: Runs, chosen: list[PageRun]) -> Figure | None:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in (run for run in chosen if run.counts):
        service = runs.read(run, lambda run: run.measured.service)
        if not service or not service.executions:
            continue
        for size, count in service.batches.items():
            share = 100 * count / service.executions
            values.append({"run": run.number, "series": run.label, "size": size, "count": count, "share": share})
            rows.append([Cell(run.label, run.number), str(size), str(count), Cell(f"{share:.1f}", run.number)])
    if not values:
        return None
    table = Table("Batches that the network was handed", ["run", "images", "times", "of all (%)"], rows)
    text = "How often the server handed the network so many images at once."
    return Figure("batches", "Sizes of batches", text, _draw_batches, values, table)


def _draw_batches(alt: Any, values: list[Value]) -> Any:
    bars = alt.Chart(data(alt, values)).mark_bar().encode(
        x=alt.X("size:O", title="images computed at once", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("share:Q", title="% of the executions"),
        xOffset=alt.XOffset("series:N", sort=None),
        color=by_series(alt),
        tooltip=tip(alt, series="run", size="images", count="times", share__q="%"),
    )  # fmt: skip
    return bars.properties(height=HEIGHT - 80)


def _stages(chosen: list[PageRun]) -> Figure | None:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in chosen:
        found = {stage: value for stage in STAGES if (value := run.value(stage)) is not None}
        if not found:
            continue
        values += [
            {"run": run.number, "label": run.label, "series": name, "ms": ms, "order": order}
            for order, (name, ms) in enumerate(found.items())
        ]
        rows.append([Cell(run.label, run.number), *(Cell(run.text(name), run.number) for name in STAGES)])
    if not values:
        return None
    table = Table("Where a request's time went, in the mean (ms)", ["run", *STAGES], rows)
    text = "The mean time of a request in the server's queue, in copying its input and output, and in being computed."
    return Figure("stages", "Where a request's time went", text, _draw_stages, values, table)


def _draw_stages(alt: Any, values: list[Value]) -> Any:
    bars = alt.Chart(data(alt, values)).mark_bar(stroke="var(--paper)").encode(
        y=alt.Y("label:N", title=None, sort=None),
        x=alt.X("ms:Q", title="ms of a request, in the mean"),
        order="order:Q",
        color=by_series(alt),
        tooltip=tip(alt, label="run", series="stage", ms__q="ms"),
    )  # fmt: skip
    return bars.properties(height=30 * len({value["label"] for value in values}))
