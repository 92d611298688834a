"""Say in what two results of one run differ."""

import json
from typing import Any

from cnnbench.results.record import RunResult

DIGITS = 9
"""Significant digits to which figures are compared: the last bits are another machine's arithmetic."""


def list_differences(before: RunResult, now: RunResult) -> list[str]:
    """Return a line for each KPI, criterion, verdict, fact or other thing that differs, with the old and the new."""
    old, new = _flatten(before), _flatten(now)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name}: {old.get(name, 'not there')}, now {new.get(name, 'not there')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _flatten(run: RunResult) -> dict[str, str]:
    """Return all that a result says, by what a reader would call it."""
    said = {"verdict": run.verdict + (f" ({run.reason})" if run.reason else "")}
    for kpi in run.kpis:
        said[f"KPI {kpi.key} ({kpi.unit})"] = _text(kpi.value) + (" (primary)" if kpi.primary else "")
    for criterion in run.criteria:
        found = f"{criterion.found}, needed {criterion.needed}" if criterion.needed else criterion.found
        said[f"criterion {criterion.name}"] = f"{'ok' if criterion.passed else criterion.severity}: {found}"
    parts: list[tuple[str, Any]] = [
        ("fact", run.facts),
        ("note", {str(number): note for number, note in enumerate(run.notes, start=1)}),
        ("requested", run.requested),
        ("effective", run.effective),
        ("plan", run.plan),
        *((f"instance {number}", one) for number, one in enumerate(run.instances)),
    ]
    for part, values in parts:
        said |= {f"{part} {name}": _text(value) for name, value in values.items()}
    for name in ("run_id", "started", "workload", "case"):
        said[name] = getattr(run, name)
    return said


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
