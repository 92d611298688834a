"""`cnnbench list-kpi`: tables of runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cli.selecting import SOURCES, add_selection, read_selection
from cnnbench.report.export.formats import export
from cnnbench.report.reading import read_runs
from cnnbench.report.table import list_kpis
from cnnbench.report.text import printable

WITH_ALL = ("junit", "html")
"""The formats that show whole runs."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--primary", action="store_true", help="the primary KPI of each run (the default)")
    which.add_argument("--all", action="store_true", help="every KPI")
    parser.add_argument("--params", action="store_true", help="the effective parameters too")
    parser.add_argument(
        "--format",
        choices=["table", "csv", "json", "markdown", "junit", "html"],
        default="table",
        help="junit, html: all KPIs, for CI systems and as the page of `cnnbench report` (default: %(default)s)",
    )
    add_selection(parser)
    parser.add_argument("directories", nargs="+", type=Path, metavar="RUNS", help=SOURCES)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, and on standard error which directories are missing from them."""
    if arguments.format in WITH_ALL:
        if arguments.primary or arguments.all or arguments.params:
            what = f"--format {arguments.format}"
            raise UsageError(f"{what}: has all KPIs and parameters: leave out --primary, --all and --params")
        return _print_page(arguments) if arguments.format == "html" else _print_junit(arguments)
    listing = list_kpis(
        arguments.directories,
        read_selection(arguments),
        all_kpis=arguments.all,
        params=arguments.params,
        output_format=arguments.format,
    )
    print(listing.text)
    return _tell(listing.failures, listing.repeated)


def _tell(failures: Sequence[str], repeated: Sequence[str]) -> int:
    """Print what is missing, and what is there more than once; return the exit code."""
    for told in (*failures, *repeated):
        print(printable(told), file=sys.stderr)
    return 1 if failures else 0


def _print_junit(arguments: argparse.Namespace) -> int:
    found = read_runs(arguments.directories, read_selection(arguments), whole=0)
    sys.stdout.buffer.write(export("junit", found))
    sys.stdout.flush()
    return _tell(found.failures, found.repeated)


def _print_page(arguments: argparse.Namespace) -> int:
    from cnnbench.report.page.page import gather, render  # here, as a table does without

    page = gather(arguments.directories, read_selection(arguments))
    print(render(page))
    for note in page.told:
        print(note, file=sys.stderr)
    return 1 if page.failures else 0
