"""Show the figures that the specifications' documents give beside ours: of other machines, and marked as published."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from cnnbench.base.checkout import REPOSITORY
from cnnbench.cases.expectation import FOLDER, read_expectations
from cnnbench.cases.workload import load_workload
from cnnbench.report.page.charts import HEIGHT, by_series, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs, newest

FILE = Path(__file__).with_name("published.yaml")
MOST_OURS = 40
KINDS = ("measured", "published")


class Published(BaseModel):
    """A row of figures that a document gives: images/s by batch size, of `machine`; `top1` in per cent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: str
    source: str
    machine: str
    what: str
    precision: str
    throughput: dict[int, float]
    top1: float | None = None

    @property
    def name(self) -> str:
        """What it is called in charts."""
        precision = "" if self.precision == "not told" else f"{self.precision}, "
        return f"{self.machine}: {precision}{self.what}"


@cache
def read_published() -> tuple[Published, ...]:
    """Return all that is published."""
    rows = [Published(**row) for row in yaml.safe_load(FILE.read_text(encoding="utf-8"))]
    return (*rows, *(one for path in sorted(REPOSITORY.glob(f"workload/*/{FOLDER}/*.yaml")) for one in _expected(path)))


def _expected(path: Path) -> list[Published]:
    """Return what of a file of expectations is published."""
    directory = path.parent.parent
    workload = load_workload(directory)
    return [
        Published(
            workload=directory.name,
            source=one.source,
            machine=one.machine.name,
            what=one.published,
            precision=workload.parse_case(one.case).precision,
            throughput={int(one.parameters["BATCH_SIZE"]): one.value},
        )
        for one in read_expectations(path)
        if one.published and one.machine and "BATCH_SIZE" in one.parameters
    ]


def show_published(runs: Runs) -> Section | None:
    """Return what is published of the workloads that have runs, beside those; None where nothing is."""
    figures = []
    notes: list[str] = []
    for workload in dict.fromkeys(run.result.workload for run in runs.counting):
        given = [one for one in read_published() if one.workload == workload]
        able = [run for run in runs.counting if run.result.workload == workload and run.value("Throughput")]
        ours, more = newest(able, MOST_OURS)
        notes += more
        if given and ours:
            figures.append(_figure(workload, given, ours))
    if not figures:
        return None
    lead = (
        "What the documents say that these workloads are made after. Published figures are of the machines named, not "
        "of this one, and were measured by other programs, under other rules; none was measured or checked here."
    )
    return Section("published", "Published figures", lead, figures, notes=list(dict.fromkeys(notes)))


def _figure(workload: str, given: Sequence[Published], ours: Sequence[PageRun]) -> Figure:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in ours:
        name = f"measured: {run.precision} {run.engine}, {run.shape} cores"
        values.append(
            {
                "run": run.number, "series": name, "batch": run.batch, "rate": run.value("Throughput"),
                "kind": "measured", "verdict": run.result.verdict, "source": run.label,
            }
        )  # fmt: skip
        machine = run.result.facts.get("CPU", "")
        rate = Cell(run.text("Throughput"), run.number)
        rows.append(["measured", machine, Cell(run.label, run.number), run.precision, str(run.batch), rate, "", ""])
    for one in given:
        for batch, rate_published in one.throughput.items():
            values.append(
                {
                    "series": f"published: {one.name}", "batch": batch, "rate": rate_published, "kind": "published",
                    "verdict": "not ours to judge", "source": one.source,
                }
            )  # fmt: skip
            rows.append(
                [
                    "published", one.machine, one.what, one.precision, str(batch), number_text(rate_published),
                    number_text(one.top1), one.source,
                ]
            )  # fmt: skip
    head = ["", "machine", "what", "precision", "batch", "img/s", "top-1 (%)", "source"]
    table = Table(f"Published figures and ours, {workload}", head, rows)
    text = f"{len(ours)} runs as circles, {len(given)} published rows as triangles."
    name = f"published-{workload.lower()}"
    return Figure(name, f"{workload}: published and measured", text, _draw, values, table)


def _draw(alt: Any, values: list[Value]) -> Any:
    both = alt.Scale(domain=list(KINDS), range=["circle", "triangle-up"])
    base = alt.Chart(data(alt, values)).encode(
        x=alt.X("batch:Q", title="batch", scale=alt.Scale(type="log", base=2, padding=15)),
        y=alt.Y("rate:Q", title="images a second", scale=alt.Scale(type="log", nice=False, padding=15)),
        color=by_series(alt).legend(columns=1),
    )
    points = base.mark_point(size=60, filled=True).encode(
        shape=alt.Shape("kind:N", title=None, scale=both),
        tooltip=tip(alt, kind="", series="what", source="of", batch="batch", rate__q="img/s", verdict="verdict"),
    )
    lines = base.transform_filter("datum.kind == 'published'").mark_line(strokeDash=[4, 3], opacity=0.7)
    return (lines + points).properties(height=HEIGHT)
