"""Tabulate a machine's precisions: one row each, put together from its runs of throughput, latency and accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnnbench.report.table import find_interval
from cnnbench.report.text import WORDS, Footnotes, align
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult


@dataclass(frozen=True)
class _Column:
    """One column: the mode of the run that it is from, the KPI's key, and whether it shows the 95 % interval."""

    name: str
    mode: str
    key: str
    interval: bool = False


COLUMNS = (
    _Column("throughput (img/s)", "throughput", "Throughput", interval=True),
    _Column("latency (ms)", "latency", "Latency mean", interval=True),
    _Column("top-1 (%)", "accuracy", "Accuracy top-1", interval=True),
    _Column("loss (%)", "accuracy", "Top-1 loss"),
    _Column("ISA share (%)", "throughput", "ISA share"),
    _Column("of peak (%)", "throughput", "Compute utilization"),
)


def precision_table(runs: Sequence[RunResult], precisions: Sequence[str]) -> str:
    """Tabulate runs, of which there is one for each precision and mode; the rows are in the order of `precisions`.

    What was not measured is a dash, and an invalid run shows no number. The verdict is the worst of the row's runs;
    it cites why each that is not valid is not.
    """
    found: dict[str, dict[str, RunResult]] = {}
    for run in sorted(runs, key=lambda run: precisions.index(run.requested["PRECISION"])):
        found.setdefault(run.requested["PRECISION"], {})[run.requested["MODE"]] = run
    cells, notes = [], Footnotes()
    for precision, modes in found.items():
        word = max((WORDS[run.verdict] for run in modes.values()), key=list(WORDS.values()).index)
        for mode, run in modes.items():
            if run.verdict != "valid":
                word = notes.cite(word, f"{mode}: {WORDS[run.verdict]}: {run.reason}")
        cells.append([precision, *(_figure(modes.get(column.mode), column) for column in COLUMNS), word])
    return notes.below(align(["precision", *(column.name for column in COLUMNS), "verdict"], cells))


def _figure(run: RunResult | None, column: _Column) -> str:
    """Return a column's KPI of a run and how far its interval goes at the most; INVALID in place of a number."""
    if run is None:
        return ""
    if run.verdict == "invalid":
        return WORDS["invalid"]
    values = {kpi.key: kpi.value for kpi in run.kpis}
    if (value := values.get(column.key)) is None:
        return ""
    interval = find_interval(run, column.key) if column.interval else None
    if interval is None:
        return format_number(value)
    half_width = max(value - interval[0], interval[1] - value)
    return f"{format_number(value)} ±{half_width:.{0 if half_width >= 10 else 2}f}"
