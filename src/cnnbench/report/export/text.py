"""Write runs as text: JSON, csv and Markdown."""

from collections.abc import Sequence
from typing import BinaryIO

from cnnbench.report.table import TextFormat, show_kpis
from cnnbench.results.exchange import write_results
from cnnbench.results.record import RunResult

Runs = Sequence[tuple[str, RunResult]]


def write_json(runs: Runs, _: Sequence[str], stream: BinaryIO) -> None:
    """Write the whole results."""
    write_results(runs, stream)


def write_csv(runs: Runs, _: Sequence[str], stream: BinaryIO) -> None:
    """Write the table that `list-kpi --all --format csv` prints."""
    _write(runs, "csv", stream)


def write_markdown(runs: Runs, _: Sequence[str], stream: BinaryIO) -> None:
    """Write the tables that `list-kpi --all --format markdown` prints."""
    _write(runs, "markdown", stream)


def _write(runs: Runs, output_format: TextFormat, stream: BinaryIO) -> None:
    text = show_kpis(runs, all_kpis=True, output_format=output_format)
    stream.write(f"{text}\n".encode("utf-8", "backslashreplace"))
