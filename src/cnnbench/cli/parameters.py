"""Describe a workload's parameters, for people and for the READMEs."""

from cnnbench.cases.case import FIXED_BY_NAME
from cnnbench.cases.parameters import FIELDS, MODES, accepted, default_text
from cnnbench.cases.workload import Workload


def describe_parameters(workload: Workload) -> str:
    """Return the table of parameters as aligned markdown, with the workload's own defaults where it has any."""
    rows: list[tuple[str, ...]] = [("parameter", "default", "accepted", "meaning")]
    rows += [
        (name, _describe_default(name, workload), _describe_accepted(name, workload), FIELDS[name].description or "")
        for name in workload.parameters
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows
    )


def _describe_accepted(name: str, workload: Workload) -> str:
    own: dict[str, tuple[str, ...]] = {"TOPOLOGY": workload.networks, "PRECISION": workload.precisions}
    own |= {"FUNCTION": (workload.function,), "MODE": MODES[workload.function]}
    return ", ".join(own[name]) if name in own else accepted(name)


def _describe_default(name: str, workload: Workload) -> str:
    if name in FIXED_BY_NAME and (name != "TOPOLOGY" or workload.topologies):
        return "by the case's name"
    default = workload.engine if name == "ENGINE" else default_text(name)
    own = {glob: settings[name] for glob, settings in workload.defaults.items() if name in settings}
    if all(value == default for value in own.values()):
        return default
    return "; ".join([default, *(f"`{glob}` {value}" for glob, value in own.items())])
