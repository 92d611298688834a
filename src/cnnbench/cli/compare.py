"""`cnnbench compare`: sets of repeated runs against a first one, and whether any case became slower."""

import argparse
import sys
from pathlib import Path

from cnnbench.cli.comparing import add_measure, better, check_metric, exit_code, read_threshold
from cnnbench.report.comparison import compare_sets
from cnnbench.report.comparison_text import show_comparison
from cnnbench.report.sets import read_sets


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_measure(parser)
    parser.add_argument("--unlike", action="store_true", help="compare cases of other workloads or precisions too")
    parser.add_argument("--format", choices=["table", "csv", "json", "markdown"], default="table")
    parser.add_argument(
        "sets",
        nargs="+",
        type=Path,
        metavar="SET",
        help="the runs to compare with, and those that are compared: folders with logs-<case> in them, or one such, "
        "an itr-N, a run.json or a file of `cnnbench export`",
    )
    parser.epilog = (
        "Exit codes: 4 when a case is slower, else 3 when a set has runs of a case and none is valid, else 1 when "
        "something in a set is no result, else 0."
    )


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
