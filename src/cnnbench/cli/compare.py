"""`cnnbench compare`: sets of repeated runs against a first one, and whether any case became slower."""

import argparse
import sys
from pathlib import Path

from cnnbench.cli.comparing import add_measure, better, check_metric, exit_code, read_threshold
from cnnbench.cli.selecting import add_selection, read_selection
from cnnbench.report.comparison import compare_sets
from cnnbench.report.comparison_text import show_comparison
from cnnbench.report.selection import parse_time
from cnnbench.report.sets import RunSet, read_sets, split_at, split_by


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_measure(parser)
    parser.add_argument("--unlike", action="store_true", help="compare cases of other workloads or precisions too")
    parser.add_argument("--format", choices=["table", "csv", "json", "markdown"], default="table")
    add_selection(parser)
    within = parser.add_mutually_exclusive_group()
    within.add_argument(
        "--by", default="", metavar="FACT",
        help='compare the runs of all SETs by a fact or parameter that they have, such as machine, kernel, "CPU" or '
        "ENGINE: each value is a set, in the order in which they were first seen",
    )  # fmt: skip
    within.add_argument(
        "--split-at", default="", metavar="WHEN",
        help="compare the runs of all SETs since then with those before; times as for --since",
    )  # fmt: skip
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


def _read_sets(arguments: argparse.Namespace) -> list[RunSet]:
    """Return the sets as they are given, or those that the options make of all of them."""
    selection = read_selection(arguments)
    if arguments.by:
        return split_by(arguments.sets, arguments.by, selection)
    if arguments.split_at:
        return split_at(arguments.sets, parse_time("--split-at", arguments.split_at), selection)
    return read_sets(arguments.sets, selection)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison, and on standard error what of the sets could not be read."""
    threshold = read_threshold(arguments.threshold)
    if arguments.metric:
        check_metric(arguments.metric)
    sets = _read_sets(arguments)
    compared = compare_sets(sets, better, metric=arguments.metric, threshold=threshold, unlike=arguments.unlike)
    print(show_comparison(compared, arguments.format))
    for one in sets:
        for problem in one.problems:
            print(f"cnnbench: {one.label}: {problem}", file=sys.stderr)
    return exit_code(compared)
