"""`cnnbench compare`: sets of repeated runs against a first one, and whether any case became slower."""

import argparse
import difflib
import re
import sys
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, UsageError
from cnnbench.report.comparison import Compared, compare_sets
from cnnbench.report.comparison_text import show_comparison
from cnnbench.report.sets import read_sets
from cnnbench.run.kpis import TABLE, Better, find_kind

REGRESSION = 4
"""What a call ends with that found a case to be slower."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--metric", default="", metavar="KPI", help='such as "Latency p99" (default: the primary one)')
    add_threshold(parser)
    parser.add_argument("--unlike", action="store_true", help="compare cases of other workloads or precisions too")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")
    parser.add_argument(
        "sets",
        nargs="+",
        type=Path,
        metavar="SET",
        help="the runs to compare with, and those that are compared: folders with logs-<case> in them, or one such, "
        "an itr-N or a run.json",
    )
    parser.epilog = (
        "Exit codes: 4 when a case is slower, else 3 when a set has runs of a case and none is valid, else 1 when "
        "something in a set is no result, else 0."
    )


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add --threshold."""
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


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison, and on standard error what of the sets could not be read."""
    threshold = read_threshold(arguments.threshold)
    if arguments.metric:
        check_metric(arguments.metric)
    sets = read_sets(arguments.sets)
    compared = compare_sets(sets, better, metric=arguments.metric, threshold=threshold, unlike=arguments.unlike)
    print(show_comparison(compared, arguments.format))
    for one in sets:
        for problem in one.problems:
            print(f"cnnbench: {one.label}: {problem}", file=sys.stderr)
    return exit_code(compared)


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
