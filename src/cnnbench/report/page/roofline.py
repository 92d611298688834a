"""Show how close runs came to what their cores and memory were measured to do."""

import re
from collections.abc import Sequence
from typing import Any

from cnnbench.engines.layers import LAYERS, TRACE_DIRECTORY, Primitive
from cnnbench.proof.trace import read_trace
from cnnbench.report.page.charts import HEIGHT, by_series, by_verdict, data, tip
from cnnbench.report.page.model import Cell, Figure, Section, Table, Value, number_text
from cnnbench.report.page.runs import PageRun, Runs, newest

MOST_POINTS = 40
LEAST, MOST = 0.1, 1_000.0
"""From which intensity to which roofs are drawn (operations a byte); further where a run lies further."""
UNITS = ("GFLOP/s", "GOP/s")

_BYTES = {"f64": 8, "f32": 4, "s32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "f8_e4m3": 1, "f8_e5m2": 1}
_CONVOLUTION = re.compile(
    r"(?:g(?P<g>\d+))?mb(?P<mb>\d+)_ic(?P<ic>\d+)oc(?P<oc>\d+)_ih(?P<ih>\d+)oh(?P<oh>\d+)kh(?P<kh>\d+)\S*?"
    r"_iw(?P<iw>\d+)ow(?P<ow>\d+)kw(?P<kw>\d+)"
)


def show_roofline(runs: Runs) -> Section | None:
    """Return achieved arithmetic below the measured ceilings; None where no run was held against any."""
    able = [run for run in runs.counting if _ceiling(run)]
    chosen, notes = newest(able, MOST_POINTS)
    if not chosen:
        return None
    values: list[Value] = []
    rows: list[list[str | Cell]] = []
    roofs: dict[str, tuple[float, float]] = {}
    for run in chosen:
        unit, achieved, peak, bandwidth = _ceiling(run) or ("", 0.0, 0.0, 0.0)
        intensity = runs.read(run, _intensity) if has_trace(run) else None
        name = f"{run.precision}, {run.shape} cores"
        roof = roofs.get(name, (0.0, 0.0))
        roofs[name] = (max(peak, roof[0]), max(bandwidth, roof[1]))
        values.append(
            {
                "run": run.number, "label": run.label, "series": name, "what": run.what, "achieved": achieved,
                "unit": unit, "intensity": intensity, "share": 100 * achieved / peak, "verdict": run.result.verdict,
                "peak": peak, "bandwidth": bandwidth, "from": LEAST, "to": LEAST,
            }
        )  # fmt: skip
        numbers = [Cell(number_text(one), run.number) for one in (achieved, peak, 100 * achieved / peak, bandwidth)]
        intense = Cell(number_text(intensity), run.number) if intensity else "not told"
        rows.append([Cell(run.label, run.number), run.what, unit, *numbers, intense])
    told = sum(value["intensity"] is not None for value in values)
    lines = {
        value["series"]: value for value in sorted(values, key=lambda one: one["achieved"]) if not value["intensity"]
    }
    for value in values:
        value["level"] = lines.get(value["series"]) is value
    head = ["run", "what", "unit", "achieved", "peak", "of peak (%)", "memory (GB/s)", "intensity (operations/byte)"]
    text = (
        f"{len(values)} runs below their roofs: {told} as points; of the {len(values) - told} whose intensity is not "
        f"told the highest under each roof, {len(lines)}, as level lines."
    )
    most = max(MOST, *(2 * (value["intensity"] or 0) for value in values))
    values = [value | {"to": most} for value in values]
    for roof_name, (peak, bandwidth) in roofs.items():
        values += [{"roof": roof_name, **point} for point in _roof(peak, bandwidth, most)]
    figure = Figure("roofline", "Roofline", text, _draw, values, Table("Achieved and measured ceilings", head, rows))
    lead = (
        "Ceilings are those that the same cores were measured to have, of the precision's instructions and of memory, "
        "as the run began and ended. Intensity is operations over the bytes that the layers' inputs, weights and "
        "outputs take, each moved once, so the most that it may be; it is told where the trace has the layers' shapes. "
        "The highest run without it under each roof is a level line: how high it came is known, not where it stands."
    )
    return Section("roofline", "Roofline", lead, [figure], notes=notes)


def _ceiling(run: PageRun) -> tuple[str, float, float, float] | None:
    """Return the unit, what was achieved, the peak and memory's bandwidth (GB/s)."""
    kpis, bandwidth = run.kpis, run.value("Memory bandwidth")
    if "Achieved" not in kpis or "Peak" not in kpis or not bandwidth:
        return None
    achieved, peak = kpis["Achieved"].value, kpis["Peak"].value
    return (kpis["Peak"].unit, achieved, peak, bandwidth) if achieved > 0 and peak > 0 else None


def _roof(peak: float, bandwidth: float, most: float) -> list[Value]:
    ridge = min(max(peak / bandwidth, LEAST), most)
    return [{"x": x, "y": min(peak, bandwidth * x)} for x in (LEAST, ridge, most)]


def has_trace(run: PageRun) -> bool:
    """Tell whether a run has left what its layers were."""
    trace = run.directory / TRACE_DIRECTORY
    return (trace / "output.log").is_file() or (trace / LAYERS).is_file()


def _intensity(run: PageRun) -> float | None:
    return find_intensity(read_trace(run.directory / TRACE_DIRECTORY).layers)


def find_intensity(layers: Sequence[Primitive]) -> float | None:
    """Return the operations of layers over the bytes that they move at the least; None where a shape is not told."""
    moved = [count_bytes(layer) for layer in layers if layer.macs]
    total = sum(size for size in moved if size is not None)
    if not total or None in moved:
        return None
    return 2 * sum(layer.macs for layer in layers) / total


def count_bytes(layer: Primitive) -> int | None:
    """Return the bytes of a layer's input, weights and output, each once; None where shape or types are not told."""
    sizes = [_BYTES.get(name) for name in (layer.source_type, layer.weights_type, layer.destination_type)]
    elements = _count_elements(layer)
    if elements is None or None in sizes:
        return None
    return sum(count * size for count, size in zip(elements, sizes, strict=True) if size)


def _count_elements(layer: Primitive) -> tuple[int, int, int] | None:
    if found := _CONVOLUTION.match(layer.shape):
        n = {key: int(value) if value else 1 for key, value in found.groupdict().items()}
        source = n["mb"] * n["ic"] * n["ih"] * n["iw"]
        return source, n["oc"] * n["ic"] // n["g"] * n["kh"] * n["kw"], n["mb"] * n["oc"] * n["oh"] * n["ow"]
    if found := re.fullmatch(r"mb(\d+)ic(\d+)oc(\d+)", layer.shape):
        images, ins, outs = map(int, found.groups())
        return images * ins, ins * outs, images * outs
    if found := re.match(r"(\d+)x(\d+):(\d+)x(\d+)", layer.shape):
        rows, inner, _, columns = map(int, found.groups())
        return rows * inner, inner * columns, rows * columns
    return None


def _draw(alt: Any, values: list[Value]) -> Any:
    x = alt.Scale(type="log", nice=False)
    chart = alt.Chart(data(alt, values))
    y = alt.Y("y:Q", title="billion operations a second", scale=alt.Scale(type="log", nice=False, padding=20))
    roofs = chart.transform_filter("isValid(datum.roof)").mark_line(strokeWidth=2).encode(
        x=alt.X("x:Q", title="operations a byte", scale=x),
        y=y,
        color=by_series(alt, "roof"),
        tooltip=tip(alt, roof="roof of", y__q="billion operations/s"),
    )  # fmt: skip
    told = tip(
        alt,
        label="run",
        what="what",
        achieved__q="achieved (billion/s)",
        share__q="% of peak",
        intensity__q="operations/byte",
        verdict="verdict",
    )
    runs = chart.transform_filter("isValid(datum.run)")
    points = runs.transform_filter("isValid(datum.intensity)").mark_point(size=70, filled=True).encode(
        x="intensity:Q", y="achieved:Q", color=by_series(alt), shape=by_verdict(alt), tooltip=told
    )  # fmt: skip
    levels = runs.transform_filter("datum.level").mark_rule(strokeDash=[3, 3], opacity=0.8).encode(
        x="from:Q", x2="to:Q", y="achieved:Q", color=by_series(alt), tooltip=told
    )  # fmt: skip
    return (roofs + levels + points).properties(height=HEIGHT + 40)
