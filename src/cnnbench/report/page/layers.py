"""Show on which instructions layers ran, and where the processor time of runs went."""

import json
from collections import Counter
from typing import Any

from cnnbench.proof.instructions import COPYING, MULTIPLYING, OTHER_KERNELS, WAITING
from cnnbench.report.hotspots import show_hotspots
from cnnbench.report.layers import show_layers as tabulate_layers
from cnnbench.report.page.charts import HEIGHT, by_series, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.roofline import has_trace
from cnnbench.report.page.runs import PageRun, Runs, newest
from cnnbench.results.samples import SAMPLES

KINDS = (MULTIPLYING, OTHER_KERNELS, COPYING, WAITING)
"""The kinds of work that bars begin with."""
MOST_SHARES, MOST_LAYERED, MOST_LAYERS = 10, 2, 200

Record = dict[str, Any]


def show_layers(runs: Runs) -> Section | None:
    """Return the shares of instructions and of kinds of work, and the layers of traced runs; None without any."""
    traced = [run for run in runs.counting if has_trace(run)]
    sampled = [run for run in runs.counting if any(run.directory.glob(f"instance-*/{SAMPLES}"))]
    by_layers, notes = newest(traced, MOST_SHARES)
    by_samples, more = newest(sampled, MOST_SHARES)
    layers = {run.number: found for run in by_layers if (found := runs.read(run, _layers))}
    hot = {run.number: found for run in by_samples if (found := runs.read(run, _hotspots))}
    figures = [
        figure
        for figure in (_instructions(by_layers, layers), _kinds(by_samples, hot), *_layered(by_layers, layers))
        if figure
    ]
    if not figures:
        return None
    told = [f"By instructions: {note}" for note in notes] + [f"By samples: {note}" for note in more]
    tables = [_places(run, hot[run.number]) for run in reversed(by_samples) if run.number in hot][:1]
    lead = (
        "Which instructions the multiply-accumulates of the network's layers are for, by what the engine or oneDNN's "
        "trace tells; and what the cores were at while measuring, by samples. Times of layers are of one step, traced "
        "apart from the measuring, and only oneDNN tells them."
    )
    return Section("layers", "Layers, instructions and time", lead, figures, tables, told)


def _layers(run: PageRun) -> list[Record]:
    found: list[Record] = json.loads(tabulate_layers(run.directory, "json"))
    return found


def _hotspots(run: PageRun) -> list[Record]:
    found: list[Record] = json.loads(show_hotspots(run.directory, "json"))
    return found


def _instructions(chosen: list[PageRun], layers: dict[int, list[Record]]) -> Figure | None:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in (run for run in chosen if run.number in layers):
        shares: Counter[tuple[str, bool]] = Counter()
        for record in layers[run.number]:
            if record["record"] == "implementation":
                shares[_instruction_set(record), bool(record["as_required"])] += record["macs_share"]
        for order, ((name, required), share) in enumerate(shares.most_common()):
            asked = "yes" if required else "NO"
            values.append(
                {
                    "run": run.number, "label": run.label, "series": name, "share": 100 * share, "required": asked,
                    "order": order,
                }
            )  # fmt: skip
            rows.append([Cell(run.label, run.number), name, Cell(f"{100 * share:.2f}", run.number), asked])
    if not values:
        return None
    head = ["run", "instructions and types", "of the multiply-accumulates (%)", "as the precision asks"]
    table = Table("Multiply-accumulates by instructions", head, rows)
    text = "Of each run, the share of the multiply-accumulates that each kind of instruction and type is for."
    return Figure("instructions", "Multiply-accumulates by instructions", text, _draw_shares, values, table)


def _instruction_set(record: Record) -> str:
    """Return the instruction set that an implementation is named for, and the type of the weights."""
    name, types = str(record["implementation"]), str(record["types"]).split(" computed in ")
    weights = types[0].split()[1:2] or types[:1]
    return ", ".join([name.partition(":")[2] or name, *weights, *(f"computed in {one}" for one in types[1:])])


def _kinds(chosen: list[PageRun], hot: dict[int, list[Record]]) -> Figure | None:
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    for run in (run for run in chosen if run.number in hot):
        for record in hot[run.number]:
            if record["record"] == "kind":
                share = 100 * record["share"]
                order = KINDS.index(record["kind"]) if record["kind"] in KINDS else len(KINDS)
                values.append(
                    {"run": run.number, "label": run.label, "series": record["kind"], "share": share, "order": order}
                )
                count = str(record["samples"])
                rows.append([Cell(run.label, run.number), record["kind"], Cell(f"{share:.1f}", run.number), count])
    if not values:
        return None
    table = Table("Processor time by kind of work", ["run", "kind of work", "time (%)", "samples"], rows)
    text = "Of each run, the share of the processor time of its window that went by in each kind of work."
    return Figure("time-by-kind", "Where the time went", text, _draw_shares, values, table)


def _draw_shares(alt: Any, values: list[Value]) -> Any:
    told = {"label": "run", "series": "what", "share__q": "%"}
    if "required" in values[0]:
        told["required"] = "as asked"
    bars = alt.Chart(data(alt, values)).mark_bar(stroke="var(--paper)").encode(
        y=alt.Y("label:N", title=None, sort=None),
        x=alt.X("share:Q", title="%", scale=alt.Scale(domain=[0, 100])),
        order="order:Q",
        color=by_series(alt),
        tooltip=tip(alt, **told),
    )  # fmt: skip
    return bars.properties(height=26 * len({value["label"] for value in values}))


def _layered(chosen: list[PageRun], layers: dict[int, list[Record]]) -> list[Figure]:
    """Return the layers of the newest runs whose trace has times."""
    figures = []
    for run in reversed(chosen):
        records = [one for one in layers.get(run.number, ()) if one["record"] == "layer"]
        if not records or any(one["time_ms"] is None for one in records):
            continue
        values: list[Value] = [
            {
                "run": run.number, "number": one["number"], "series": one["implementation"], "kind": one["kind"],
                "shape": one["shape"], "types": one["types"], "ms": one["time_ms"], "gmacs": one["gmacs"],
            }
            for one in records[:MOST_LAYERS]
        ]  # fmt: skip
        rows = [
            [
                str(one["number"]), one["kind"], one["shape"], one["implementation"], one["types"],
                number_text(one["gmacs"]), Cell(number_text(one["time_ms"]), run.number),
                f"{100 * one['time_share']:.1f}", "yes" if one["as_required"] else "NO",
            ]
            for one in records[:MOST_LAYERS]
        ]  # fmt: skip
        head = ["layer", "kind", "shape", "implementation", "types", "GMAC", "time (ms)", "time (%)", "as asked"]
        table = Table(f"Layers of {run.label}", head, rows)
        text = f"The time of each of {len(records)} layers in one step of {run.batch} images."
        if len(records) > MOST_LAYERS:
            text += f" The first {MOST_LAYERS} are shown."
        figures.append(Figure(f"layers-{run.number}", f"Layers of {run.label}", text, _draw_layers, values, table))
    return figures[:MOST_LAYERED]


def _draw_layers(alt: Any, values: list[Value]) -> Any:
    bars = alt.Chart(data(alt, values)).mark_bar().encode(
        x=alt.X("number:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y("ms:Q", title="time in a step (ms)"),
        color=by_series(alt),
        tooltip=tip(
            alt,
            number="layer",
            kind="kind",
            shape="shape",
            series="implementation",
            types="types",
            gmacs__q="GMAC",
            ms__q="ms",
        ),
    )  # fmt: skip
    return bars.properties(height=HEIGHT - 60)


def _places(run: PageRun, records: list[Record]) -> Table:
    """Return the hottest places of a run, with the instructions there."""
    rows = [
        [
            Cell(f"{100 * one['share']:.1f}", run.number), one["instructions"] or one["kind"],
            f"{one['object']} at {one['offset']}", one["code"],
        ]
        for one in records
        if one["record"] == "place"
    ]  # fmt: skip
    head = ["time (%)", "what", "where", "instructions there"]
    return Table(f"Where {run.label} was met most often", head, rows)
