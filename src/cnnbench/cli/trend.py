"""`cnnbench trend`: each case over time, and where it became faster or slower."""

import argparse
import sys
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.cli.comparing import add_measure, check_metric, read_threshold
from cnnbench.cli.selecting import SOURCES, add_selection, read_selection
from cnnbench.report.reading import read_runs
from cnnbench.report.text import printable
from cnnbench.report.trends import follow
from cnnbench.report.trends_text import show_trends


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_measure(parser)
    add_selection(parser)
    parser.add_argument("--format", choices=["table", "csv", "json", "markdown"], default="table")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help=SOURCES)


def run(arguments: argparse.Namespace) -> int:
    """Print the series and their steps, and on standard error what could not be read; return 1 if something is not."""
    threshold = read_threshold(arguments.threshold)
    if arguments.metric:
        check_metric(arguments.metric)
    found = read_runs(arguments.runs, read_selection(arguments), whole=0)
    for told in (*found.failures, *found.repeated):
        print(printable(told), file=sys.stderr)
    if not found.runs:
        raise CnnbenchError("no run to follow; needed logs directories, or a history of `cnnbench export --sqlite`")
    print(show_trends(follow(found.runs, metric=arguments.metric, threshold=threshold), arguments.format))
    return 1 if found.failures else 0
