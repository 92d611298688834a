"""Show what images cost of energy, against how fast they were computed."""

from typing import Any

from cnnbench.report.page.charts import HEIGHT, by_series, by_verdict, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value
from cnnbench.report.page.runs import PageRun, Runs, newest
from cnnbench.run.energy import ENERGY

MOST_POINTS = 300
TOLD = {
    "throughput (img/s)": "Throughput",
    "power (W)": "Power",
    "idle (W)": "Idle power",
    "energy (J/image)": "Energy per image",
    "efficiency (img/s/W)": "Efficiency",
}
"""The columns of numbers, and their KPIs."""


def show_energy(runs: Runs) -> Section | None:
    """Return efficiency against throughput; None where no run has its energy measured."""
    able = [run for run in runs.counting if run.value("Efficiency") and run.value("Throughput")]
    chosen, notes = newest(able, MOST_POINTS)
    if not chosen:
        return None
    best: dict[tuple[str, str], float] = {}
    for run in chosen:
        best[_kind(run)] = max(best.get(_kind(run), 0.0), run.value("Efficiency") or 0.0)
    values: list[Value] = [_point(run) for run in chosen]
    rows: list[list[str | Cell]] = [
        [
            Cell(run.label, run.number), run.what, str(run.batch or ""), run.shape,
            *(Cell(run.text(key), run.number) for key in TOLD.values()),
            "yes" if run.value("Efficiency") == best[_kind(run)] else "",
            run.result.facts.get(ENERGY, ""),
        ]
        for run in chosen
    ]  # fmt: skip
    head = ["run", "what", "batch", "instances × cores", *TOLD, "best of its kind", "energy"]  # noqa: RUF001
    table = Table("Power and energy of each run", head, rows)
    text = f"{len(chosen)} runs as points; in the table, the most efficient of each network, engine and precision."
    figure = Figure("energy-throughput", "Efficiency against throughput", text, _draw, values, table)
    lead = (
        "Images a second for each watt, which is images a joule, over the common window that throughput is measured "
        "in: up and to the right is better. The power is that of all that was read, idle power included. Runs compare "
        "only where the same was read: the table's last column says what."
    )
    return Section("energy", "Energy", lead, [figure], notes=notes)


def _kind(run: PageRun) -> tuple[str, str]:
    """Return what runs have alike whose efficiency compares: network, engine and precision, and what was read."""
    return run.what, run.result.facts.get(ENERGY, "")


def _point(run: PageRun) -> Value:
    return {
        "run": run.number, "label": run.label, "series": run.what, "verdict": run.result.verdict, "batch": run.batch,
        "shape": run.shape, "throughput": run.value("Throughput"), "efficiency": run.value("Efficiency"),
        "power": run.value("Power"), "energy": run.value("Energy per image"),
    }  # fmt: skip


def _draw(alt: Any, values: list[Value]) -> Any:
    logarithmic = alt.Scale(type="log", nice=False, padding=20)
    points = alt.Chart(data(alt, values)).mark_point(size=70, filled=True, opacity=0.9).encode(
        x=alt.X("throughput:Q", title="images a second, all instances", scale=logarithmic),
        y=alt.Y("efficiency:Q", title="images a second for each watt", scale=alt.Scale(zero=True)),
        color=by_series(alt),
        shape=by_verdict(alt),
        tooltip=tip(
            alt,
            label="run",
            series="what",
            batch="batch",
            shape="instances × cores",  # noqa: RUF001
            throughput__q="img/s",
            power__q="power (W)",
            energy__q="J/image",
            efficiency__q="img/s/W",
            verdict="verdict",
        ),
    )  # fmt: skip
    return points.properties(height=HEIGHT)
