"""Show how long steps took: their distribution, one after another, and how steady throughput was."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnbench.report.page.charts import HEIGHT, by_series, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs, newest
from cnnbench.results.stats import PERCENTILE_FLOORS, percentiles, slice_rates, steadiness

MOST_CURVES, CURVE_POINTS = 8, 100
MOST_SERIES, SERIES_POINTS, SERIES_INSTANCES = 6, 300, 8
MOST_RATES = 8


def show_distribution(runs: Runs) -> Section | None:
    """Return the latency of each part of the steps, as far as there are samples enough; None without raw times."""
    able = [run for run in runs.counting if run.value("Latency mean") is not None]
    chosen, notes = newest(able, MOST_CURVES)
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in chosen:
        times = runs.read(run, lambda run: np.sort(run.measured.times_ms))
        if times is None or not len(times) or not np.isfinite(times).all() or times[0] <= 0:
            continue
        values += _curve(run, times)
        found = percentiles(times)
        cells = [
            Cell(number_text(found[one]), run.number) if one in found else f"needs {floor}, has {len(times)}"
            for one, floor in PERCENTILE_FLOORS.items()
        ]
        rows.append([Cell(run.label, run.number), str(len(times)), *cells])
    if not values:
        return None
    heads = [f"p{one:g} (ms), of {floor} or more" for one, floor in PERCENTILE_FLOORS.items()]
    table = Table("Percentiles of the time of a step, of all samples", ["run", "samples", *heads], rows)
    text = f"A curve for each of {len(rows)} runs: the time that a share of the steps stayed below."
    figure = Figure("latency-distribution", "Latency by percentile", text, _draw_curves, values, table)
    lead = (
        "How long all but a share of the steps took at the most. A curve ends at the highest percentile for which "
        "there are samples enough: p50 needs 6, p90 64, p95 130, p99 662, p99.9 6,636. Percentiles are of "
        "all samples; of a curve, a part of the points is drawn."
    )
    return Section("latency", "Latency distribution", lead, [figure], notes=notes)


def _curve(run: PageRun, times: np.ndarray) -> list[Value]:
    """Return at most CURVE_POINTS points of `one step in so many takes longer than`."""
    told = [one for one, floor in PERCENTILE_FLOORS.items() if len(times) >= floor]
    if not told:
        return []
    odds = np.geomspace(1.02, 1 / (1 - max(told) / 100), CURVE_POINTS)
    ranks = np.clip(np.ceil((1 - 1 / odds) * len(times)).astype(int) - 1, 0, len(times) - 1)
    return [
        {
            "run": run.number, "series": run.label, "verdict": run.result.verdict, "odds": round(float(odd), 4),
            "percentile": round(100 * (1 - 1 / float(odd)), 3), "ms": round(float(times[rank]), 5),
        }
        for odd, rank in zip(odds, ranks, strict=True)
    ]  # fmt: skip


def _draw_curves(alt: Any, values: list[Value]) -> Any:
    ticks = {2: "p50", 10: "p90", 20: "p95", 100: "p99", 1000: "p99.9"}
    words = "".join(f"datum.value == {odds} ? '{name}' : " for odds, name in ticks.items()) + "''"
    axis = alt.Axis(values=list(ticks), labelExpr=words)
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("odds:Q", title="percentile", scale=alt.Scale(type="log", nice=False), axis=axis),
        y=alt.Y("ms:Q", title="time of a step (ms)", scale=alt.Scale(type="log", nice=False, padding=8)),
        color=by_series(alt),
        tooltip=tip(alt, series="run", percentile__q="percentile", ms__q="within (ms)", verdict="verdict"),
    )
    return (base.mark_line(strokeWidth=2) + base.mark_point(opacity=0, size=60)).properties(height=HEIGHT)


@dataclass(frozen=True)
class _Steps:
    """The steps of a run: when each of an instance's ended (s since the window began), its time (ms), and the window's
    length (s)."""

    instances: list[tuple[int, np.ndarray, np.ndarray]]
    window_s: float


def show_steps(runs: Runs) -> Section | None:
    """Return the steps of runs one after another, and their throughput over time; None without raw times."""
    figures = [figure for figure in (_rates_figure(runs),) if figure]
    able = [run for run in runs.counting if run.mode != "accuracy"]
    chosen, notes = newest(able, MOST_SERIES)
    for run in reversed(chosen):
        steps = runs.read(run, _read_steps)
        if steps is not None and (figure := _steps_figure(run, steps)):
            figures.append(figure)
    if not figures:
        return None
    lead = (
        "Warm-up steps come before the first one here, and no time of theirs is kept. What counts lies between the two "
        "upright lines: from when the last instance began to measure to when the first one ended; the steps outside "
        "are in no figure. The drift is that of a straight line through the throughput of equal slices."
    )
    return Section("steps", "Step by step", lead, figures, notes=notes)


def _read_steps(run: PageRun) -> _Steps:
    measured = run.measured
    start_ns = measured.window.start_ns
    instances = []
    for number, rows in enumerate(measured.raw_steps[:SERIES_INSTANCES]):
        began = rows[:, 0 if measured.record.clients is not None else 1]
        instances.append((number, (rows[:, 2] - start_ns) / 1e9, (rows[:, 2] - began) / 1e6))
    return _Steps(instances, measured.window.seconds)


def _steps_figure(run: PageRun, steps: _Steps) -> Figure | None:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for number, ends_s, times_ms in steps.instances:
        if not len(times_ms):
            continue
        for at in _extremes(times_ms, SERIES_POINTS // min(len(steps.instances), 3)):
            inside = ends_s[at] - times_ms[at] / 1e3 >= 0 and ends_s[at] <= steps.window_s
            values.append(
                {
                    "run": run.number, "series": f"instance {number}", "step": int(at) + 1, "s": round(ends_s[at], 4),
                    "ms": round(times_ms[at], 4), "counts": "yes" if inside else "no", "end": steps.window_s,
                }
            )  # fmt: skip
        parts = [f"{part.mean():.4g}" for part in np.array_split(times_ms, 4) if len(part)]
        rows.append([f"instance {number}", str(len(times_ms)), *(Cell(part, run.number) for part in parts)])
    if not values or len(rows[0]) < 6:
        return None
    table = Table(
        f"Mean time of a step (ms) in each quarter of the steps, {run.label}",
        ["instance", "steps", "first quarter", "second", "third", "last"],
        [row for row in rows if len(row) == 6],
    )
    text = f"Each point is a step; at most {SERIES_POINTS} are drawn, the shortest and longest among them."
    return Figure(f"steps-{run.number}", f"Steps of {run.label}", text, _draw_steps, values, table)


def _extremes(times: np.ndarray, most: int) -> list[int]:
    """Return at most so many indices: the first of each part of a series, its smallest and its largest."""
    if len(times) <= most:
        return list(range(len(times)))
    kept: set[int] = set()
    for part in np.array_split(np.arange(len(times)), most // 3):
        kept |= {int(part[0]), int(part[times[part].argmin()]), int(part[times[part].argmax()])}
    return sorted(kept)


def _draw_steps(alt: Any, values: list[Value]) -> Any:
    end = values[0]["end"]
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("s:Q", title="seconds since all were measuring"),
        y=alt.Y("ms:Q", title="time of a step (ms)", scale=alt.Scale(type="log", nice=False, padding=6)),
        color=by_series(alt),
        opacity=alt.condition("datum.counts == 'yes'", alt.value(0.8), alt.value(0.25)),
        tooltip=tip(alt, series="of", step="step", s__q="at (s)", ms__q="took (ms)", counts="counts"),
    )
    cuts = alt.Chart(alt.Data(values=[{"s": 0, "what": "counted from"}, {"s": end, "what": "to"}]))
    rules = cuts.mark_rule(strokeDash=[4, 3]).encode(x="s:Q", tooltip=tip(alt, what="", s__q="s"))
    return (rules + base.mark_point(filled=True, size=14)).properties(height=190)


def _rates_figure(runs: Runs) -> Figure | None:
    able = [run for run in runs.counting if run.mode != "accuracy" and run.value("Throughput drift") is not None]
    chosen, _ = newest(able, MOST_RATES)
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in chosen:
        rates = runs.read(run, lambda run: slice_rates(run.measured.steps, run.measured.images, run.measured.window))
        if rates is None or len(rates) < 3 or not rates.mean():
            continue
        steady, slice_s = steadiness(rates), run.measured.window.seconds / len(rates)
        assert steady is not None
        for at, rate in enumerate(rates):
            fitted = 1 + steady.drift * (at / (len(rates) - 1) - 0.5)
            values.append(
                {
                    "run": run.number, "series": run.label, "verdict": run.result.verdict,
                    "s": round((at + 0.5) * slice_s, 4), "rate": round(float(rate), 4),
                    "share": round(100 * float(rate / rates.mean()), 3), "line": round(100 * fitted, 3),
                }
            )  # fmt: skip
        shown = [100 * steady.drift, 100 * steady.spread, steady.drift_p]
        cells = [Cell(text, run.number) for text in (f"{shown[0]:+.2f}", f"{shown[1]:.2f}", f"{shown[2]:.2g}")]
        ends = [Cell(number_text(float(rates[at])), run.number) for at in (0, -1)]
        rows.append([Cell(run.label, run.number), str(len(rates)), *ends, *cells])
    if not values:
        return None
    head = ["run", "slices", "first slice (img/s)", "last slice (img/s)", "drift (%)", "spread (%)", "p of the drift"]
    table = Table("Throughput over the window", head, rows)
    text = f"The throughput of {len(rows)} runs in equal slices of their windows, with the drift as a straight line."
    return Figure("drift", "Throughput over time, and its drift", text, _draw_rates, values, table)


def _draw_rates(alt: Any, values: list[Value]) -> Any:
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("s:Q", title="seconds since all were measuring"),
        color=by_series(alt),
        tooltip=tip(alt, series="run", s__q="at (s)", rate__q="img/s", share__q="% of the mean", verdict="verdict"),
    )
    share = alt.Y("share:Q", title="% of the run's mean throughput", scale=alt.Scale(zero=False))
    points = base.mark_line(point=alt.OverlayMarkDef(size=30, filled=True), strokeWidth=1, opacity=0.7).encode(y=share)
    return (points + base.mark_line(strokeDash=[6, 4], strokeWidth=2).encode(y="line:Q")).properties(height=HEIGHT)
