"""Show what accuracy a precision costs for the throughput that it gains."""

from dataclasses import dataclass
from typing import Any

from cnnbench.report.page.charts import HEIGHT, by_series, by_verdict, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs

ALLOWED = 0.99
"""The share of float32's accuracy that is to be kept: the bound of MLPerf's rules for image classification."""
ROWS = 3
"""At how many heights names stand beside the points, so that neighbours' do not cover each other."""
REFERENCES = ("avx_fp32", "fp32", "cuda_float32", "float32")


@dataclass(frozen=True)
class _Pair:
    """A run of accuracy with the fastest of the same network, engine and precision; None where none was measured."""

    accuracy: PageRun
    throughput: PageRun | None
    reference: float | None


def show_accuracy(runs: Runs) -> Section | None:
    """Return top-1 against throughput, and the line of 99 % of float32's; None where no accuracy was measured."""
    pairs = _pairs(runs)
    if not pairs:
        return None
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for pair in pairs:
        run, top1 = pair.accuracy, pair.accuracy.value("Accuracy top-1")
        rate = pair.throughput.value("Throughput") if pair.throughput else None
        bound = ALLOWED * pair.reference if pair.reference else None
        kept = "" if bound is None or top1 is None else "yes" if top1 >= bound else "NO"
        speed = Cell(pair.throughput.text("Throughput"), pair.throughput.number) if pair.throughput else ""
        rows.append(
            [
                Cell(run.label, run.number), run.what, Cell(run.text("Accuracy top-1"), run.number), speed,
                number_text(bound), kept,
            ]
        )  # fmt: skip
        if pair.throughput and rate:
            low, high = run.interval("Accuracy top-1") or (top1, top1)
            worst = "valid" if {run.result.verdict, pair.throughput.result.verdict} == {"valid"} else "unstable"
            values.append(
                {
                    "run": run.number, "series": run.network, "precision": f"{run.precision} {run.engine}".strip(),
                    "top1": top1, "low": low, "high": high, "rate": rate, "bound": bound, "kept": kept,
                    "verdict": worst, "of": f"#{run.number} and #{pair.throughput.number}",
                }
            )  # fmt: skip
    head = ["run", "what", "top-1 (%)", "throughput of the fastest run (img/s)", "99 % of fp32's (%)", "kept"]
    table = Table("Accuracy and throughput by precision", head, rows)
    lead = (
        "The accuracy of each precision and the highest throughput measured of the same network, engine and precision. "
        "The dashed line is 99 % of what float32 gets right; bars are 95 % intervals, as wide as the images were few."
    )
    for rank, value in enumerate(sorted(values, key=lambda one: one["rate"])):
        value["row"] = rank % ROWS
    if not values:
        return Section("accuracy", "Accuracy", lead, tables=[table])
    text = f"{len(values)} precisions as points, with the line of 99 % of float32's accuracy."
    figure = Figure("accuracy-throughput", "Accuracy against throughput", text, _draw, values, table)
    return Section("accuracy", "Accuracy against throughput", lead, [figure])


def _pairs(runs: Runs) -> list[_Pair]:
    def same(run: PageRun) -> tuple[str, ...]:
        return (run.result.workload, run.network, run.engine, run.precision)

    latest = {same(run): run for run in runs.counting if run.value("Accuracy top-1") is not None}
    fastest: dict[tuple[str, ...], PageRun] = {}
    for run in runs.counting:
        rate = run.value("Throughput")
        if rate is not None and rate > (fastest[same(run)].value("Throughput") or 0 if same(run) in fastest else 0):
            fastest[same(run)] = run
    references = {
        (run.result.workload, run.network): run.value("Accuracy top-1")
        for name in reversed(REFERENCES)
        for run in latest.values()
        if run.precision == name
    }
    return [_Pair(run, fastest.get(key), references.get((key[0], key[1]))) for key, run in latest.items()]


def _draw(alt: Any, values: list[Value]) -> Any:
    base = alt.Chart(data(alt, values)).encode(color=by_series(alt))
    rate = alt.X("rate:Q", title="images a second", scale=alt.Scale(type="log", nice=False, padding=40))
    top1 = alt.Y("top1:Q", title="top-1 (%)", scale=alt.Scale(zero=False))
    points = base.mark_point(size=80, filled=True).encode(
        x=rate,
        y=top1,
        shape=by_verdict(alt),
        tooltip=tip(
            alt,
            of="runs",
            precision="precision",
            series="network",
            top1__q="top-1 (%)",
            rate__q="img/s",
            bound__q="99 % of fp32 (%)",
            kept="kept",
            verdict="verdict",
        ),
    )
    words = [
        base.transform_filter(f"datum.row == {row}")
        .mark_text(align="left", dx=9, dy=-7 - 14 * row)
        .encode(x=rate, y="top1:Q", text="precision:N", color=alt.value("var(--ink)"))
        for row in range(ROWS)
    ]
    spread = base.mark_rule(opacity=0.6).encode(x=rate, y="low:Q", y2="high:Q")
    bounded = base.transform_filter("isValid(datum.bound)")
    line = bounded.mark_rule(strokeDash=[6, 4], strokeWidth=2).encode(y="bound:Q")
    return alt.layer(line, spread, points, *words).properties(height=HEIGHT)
