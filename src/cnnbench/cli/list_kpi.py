"""`cnnbench list-kpi`: tables of runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnbench.base.errors import UsageError
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
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a logs-<case>, itr-N or worker-0 directory, or a file of `cnnbench export`",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, and on standard error which directories are missing from them."""
    if arguments.format in WITH_ALL:
        if arguments.primary or arguments.all or arguments.params:
            what = f"--format {arguments.format}"
            raise UsageError(f"{what}: has all KPIs and parameters: leave out --primary, --all and --params")
        return _print_page(arguments) if arguments.format == "html" else _print_junit(arguments)
    listing = list_kpis(
        arguments.directories, all_kpis=arguments.all, params=arguments.params, output_format=arguments.format
    )
    print(listing.text)
    return _tell(listing.failures)


def _tell(failures: Sequence[str]) -> int:
    """Print what is missing, and return the exit code."""
    for failure in failures:
        print(printable(failure), file=sys.stderr)
    return 1 if failures else 0


def _print_junit(arguments: argparse.Namespace) -> int:
    found = read_runs(arguments.directories)
    sys.stdout.buffer.write(export("junit", found))
    sys.stdout.flush()
    return _tell(found.failures)


def _print_page(arguments: argparse.Namespace) -> int:
    from cnnbench.report.page.page import gather, render  # here, as a table does without

    page = gather(arguments.directories)
    print(render(page))
    for note in page.told:
        print(note, file=sys.stderr)
    return 1 if page.failures else 0
