"""Tabulate a machine's precisions: one row each, put together from its runs of throughput, latency and accuracy."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cnnbench.report.table import WIDTH, align, find_interval
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult, Verdict


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
    _Column("utilization (%)", "throughput", "Compute utilization"),
)
_WORDS: dict[Verdict, str] = {"valid": "valid", "unstable": "unstable", "invalid": "INVALID"}
"""The verdicts as they are shown, from good to bad."""


def precision_table(runs: Sequence[RunResult], precisions: Sequence[str]) -> str:
    """Tabulate runs, of which there is one for each precision and mode; the rows are in the order of `precisions`.

    What was not measured is left blank, and an invalid run shows no number. The verdict is the worst of the row's runs;
    below the table is why a run is not valid.
    """
    found: dict[str, dict[str, RunResult]] = {}
    for run in sorted(runs, key=lambda run: precisions.index(run.requested["PRECISION"])):
        found.setdefault(run.requested["PRECISION"], {})[run.requested["MODE"]] = run
    cells = [
        [precision, *(_figure(modes.get(column.mode), column) for column in COLUMNS), _worst(modes.values())]
        for precision, modes in found.items()
    ]
    reasons = [
        f"{precision} {mode}: {_WORDS[run.verdict]}: {run.reason}"
        for precision, modes in found.items()
        for mode, run in modes.items()
        if run.verdict != "valid"
    ]
    table = align(["precision", *(column.name for column in COLUMNS), "verdict"], cells)
    return "\n".join([table, *(textwrap.fill(reason, WIDTH, subsequent_indent="    ") for reason in reasons)])


def _figure(run: RunResult | None, column: _Column) -> str:
    """Return a column's KPI of a run, with its interval in parentheses; INVALID in place of a number."""
    if run is None:
        return ""
    if run.verdict == "invalid":
        return _WORDS["invalid"]
    figure = {kpi.key: format_number(kpi.value) for kpi in run.kpis}.get(column.key, "")
    interval = find_interval(run, column.key) if column.interval else None
    return f"{figure} ({' to '.join(map(format_number, interval))})" if interval else figure


def _worst(runs: Iterable[RunResult]) -> str:
    return max((_WORDS[run.verdict] for run in runs), key=list(_WORDS.values()).index)
