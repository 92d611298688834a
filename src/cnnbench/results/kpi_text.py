"""Write a run as the text that `kpi.sh` reads: the KPI lines between a header and a footer that prove it whole."""

import math
from pathlib import Path

from cnnbench.results.record import RUN_FILE, Kpi, RunResult

KPI_LOG = "kpi.log"
STATUS = "status"
SCHEMA_LINE = "# cnnbench kpi log, schema 1, run {run_id}"
END_LINE = "# end of run {run_id}: {lines} lines"


def format_number(value: float) -> str:
    """Return a number with four significant digits, or all of those before the point; never with an exponent.

    >>> format_number(14512.3), format_number(13.1163), format_number(2.0)
    ('14512', '13.12', '2.000')
    """
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(3 - magnitude, 0), 9)}f}"


def kpi_line(kpi: Kpi) -> str:
    """Return `key (unit): number`, starred when it is the primary one."""
    return f"{'*' if kpi.primary else ''}{kpi.key} ({kpi.unit}): {format_number(kpi.value)}"


def kpi_lines(run: RunResult) -> list[str]:
    """Return a run's KPI text: comments, effective parameters, verdict, and the KPIs unless the run is invalid."""
    lines = [f"# {run.case}", f"# started {run.started}"]
    lines += [f"## {name}: {value}" for name, value in run.effective.items()]
    lines += [f"# {name}: {value}" for name, value in run.facts.items()]
    lines += [f"# note: {note}" for note in run.notes]
    for criterion in run.criteria:
        needed = f", needed {criterion.needed}" if criterion.needed and not criterion.passed else ""
        lines.append(
            f"# {'ok' if criterion.passed else criterion.severity} {criterion.name}: {criterion.found}{needed}"
        )
    if run.verdict == "invalid":
        return [*lines, f"#INVALID RESULT: {run.reason}"]
    lines.append(f"# verdict: {run.verdict}" + (f" ({run.reason})" if run.reason else ""))
    return lines + [kpi_line(kpi) for kpi in run.kpis]


def write_logs(run: RunResult, directory: Path, status: int) -> None:
    """Write run.json, kpi.log and, last, the exit code as `status`: without it the logs are not whole."""
    (directory / RUN_FILE).write_text(run.model_dump_json(indent=1), encoding="utf-8")
    lines = [one.replace("\n", " ") for one in kpi_lines(run)]
    header, footer = SCHEMA_LINE.format(run_id=run.run_id), END_LINE.format(run_id=run.run_id, lines=len(lines))
    (directory / KPI_LOG).write_text("\n".join([header, *lines, footer]) + "\n", encoding="utf-8")
    (directory / STATUS).write_text(f"{status}\n", encoding="utf-8")
