"""Write runs as a Parquet file in long form: a row per run and KPI, and one without a KPI for an invalid run."""

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from cnnbench.report.export.formats import need
from cnnbench.report.table import KpiRow, find_interval, kpi_rows
from cnnbench.results.record import RunResult

Column = tuple[str, str, str, Callable[[KpiRow], Any]]

COLUMNS: tuple[Column, ...] = (
    ("logs", "string", "the name of the run's logs, such as `logs-<case>/itr-1`", lambda row: row.logs),
    ("workload", "string", "the workload", lambda row: row.run.workload),
    ("case", "string", "the test case", lambda row: row.run.case),
    ("run_id", "string", "what no other run is called", lambda row: row.run.run_id),
    ("started", "timestamp[us, UTC]", "when the run was started", lambda row: row.run.started_at),
    ("verdict", "string", "`valid`, `unstable` or `invalid`", lambda row: row.run.verdict),
    ("reason", "string", "why it is not valid", lambda row: row.run.reason or None),
    ("kpi", "string", "the KPI; null for an invalid run", lambda row: row.kpi.key if row.kpi else None),
    ("unit", "string", "the KPI's unit", lambda row: row.kpi.unit if row.kpi else None),
    ("value", "double", "the KPI's value", lambda row: row.kpi.value if row.kpi else None),
    ("low", "double", "the lower end of its 95 % interval", lambda row: _end(row, 0)),
    ("high", "double", "the upper end of its 95 % interval", lambda row: _end(row, 1)),
    ("primary", "bool", "whether it is what the run was made for", lambda row: row.kpi.primary if row.kpi else None),
    ("mode", "string", "what was measured, such as `throughput`", lambda row: _parameter(row, "MODE")),
    ("precision", "string", "the precision that was asked for", lambda row: _parameter(row, "PRECISION")),
    ("batch_size", "int32", "the images of a step", lambda row: _count(row, "BATCH_SIZE")),
    ("instances", "int32", "how many instances there were", lambda row: _count(row, "INSTANCES")),
    ("cores_per_instance", "int32", "the cores of each", lambda row: _count(row, "CORES_PER_INSTANCE")),
    (
        "parameters",
        "map<string, string>",
        "all parameters, as they took effect",
        lambda row: list((row.run.requested | row.run.effective).items()),
    ),
    ("facts", "map<string, string>", "machine, software and conditions", lambda row: list(row.run.facts.items())),
    ("notes", "list<string>", "what to know before one compares", lambda row: list(row.run.notes)),
)
"""The columns: name, type, meaning, and how each is read from a row."""

GROUP_ROWS = 10_000
"""How many rows are written at once: of more, the texts would take more memory than the runs."""


def write_parquet(runs: Sequence[tuple[str, RunResult]], _: Sequence[str], stream: BinaryIO) -> None:
    """Write the runs; raise UsageError where what writes Parquet is not installed."""
    arrow, parquet = need("pyarrow", "parquet"), need("pyarrow.parquet", "parquet")
    types = {
        "string": arrow.string(),
        "double": arrow.float64(),
        "bool": arrow.bool_(),
        "int32": arrow.int32(),
        "timestamp[us, UTC]": arrow.timestamp("us", tz="UTC"),
        "map<string, string>": arrow.map_(arrow.string(), arrow.string()),
        "list<string>": arrow.list_(arrow.string()),
    }
    rows = kpi_rows(runs, all_kpis=True)
    schema = arrow.schema(
        [arrow.field(name, types[kind], metadata={"meaning": told}) for name, kind, told, _ in COLUMNS]
    )
    with parquet.ParquetWriter(stream, schema) as writer:
        for start in range(0, len(rows), GROUP_ROWS):
            group = rows[start : start + GROUP_ROWS]
            writer.write_table(
                arrow.table({name: [read(row) for row in group] for name, _, _, read in COLUMNS}, schema=schema)
            )


def _end(row: KpiRow, which: int) -> float | None:
    interval = find_interval(row.run, row.kpi.key) if row.kpi else None
    return interval[which] if interval else None


def _parameter(row: KpiRow, name: str) -> str | None:
    return (row.run.requested | row.run.effective).get(name)


def _count(row: KpiRow, name: str) -> int | None:
    """Return a parameter that is a whole number; None where it is not, such as "auto" of a run that did not begin."""
    text = _parameter(row, name) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
