"""Declare and check what comparing commands have in common, and say what they end with."""

import argparse
import difflib
import re

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, UsageError
from cnnbench.report.comparison import Compared
from cnnbench.run.kpis import TABLE, Better, find_kind

REGRESSION = 4
"""What a call ends with that found a case to be slower."""


def add_measure(parser: argparse.ArgumentParser) -> None:
    """Add --metric and --threshold."""
    parser.add_argument("--metric", default="", metavar="KPI", help='such as "Latency p99" (default: the primary one)')
    parser.add_argument(
        "--threshold", default="2%", metavar="P%", help="the smallest difference that matters (default: 2%%)"
    )


def read_threshold(text: str) -> float:
    """Return the share that a percentage stands for; raise UsageError for what is none."""
    if not (found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", text)) or not 0.01 <= float(found[1]) <= 100:
        raise UsageError(f"--threshold {text}: must be a percentage of 0.01% to 100%, such as 2%")
    return float(found[1]) / 100


def better(key: str) -> Better:
    """Say which way a KPI is better."""
    return find_kind(key).better


def exit_code(compared: Compared) -> int:
    """Return what a comparison ends with: a regression before all that it could not see."""
    if compared.regressed:
        return REGRESSION
    if any(one.is_broken for one in compared.comparisons):
        return InvalidMeasurementError.exit_code
    return CnnbenchError.exit_code if any(one.problems for one in compared.sets) else 0


def check_metric(name: str) -> None:
    """Raise UsageError for a name that no KPI has."""
    names = list(dict.fromkeys(kind.name for kind in TABLE if kind.better != "neither"))
    if name not in names:
        close = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise UsageError(f"--metric {name}: no KPI that is better high or low; {hint}")
