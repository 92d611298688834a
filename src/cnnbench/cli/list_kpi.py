"""`cnnbench list-kpi`: tables of runs."""

import argparse
import sys
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.report.table import list_kpis


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--primary", action="store_true", help="the primary KPI of each run (the default)")
    which.add_argument("--all", action="store_true", help="every KPI")
    parser.add_argument("--params", action="store_true", help="the effective parameters too")
    parser.add_argument(
        "--format",
        choices=["table", "csv", "json", "html"],
        default="table",
        help="html: the page of `cnnbench report`, with all KPIs (default: %(default)s)",
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="a logs-<case>, itr-N or worker-0 directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, and on standard error which directories are missing from them."""
    if arguments.format == "html":
        return _print_page(arguments)
    listing = list_kpis(
        arguments.directories, all_kpis=arguments.all, params=arguments.params, output_format=arguments.format
    )
    print(listing.text)
    for failure in listing.failures:
        print(failure, file=sys.stderr)
    return 1 if listing.failures else 0


def _print_page(arguments: argparse.Namespace) -> int:
    if arguments.primary or arguments.all or arguments.params:
        raise UsageError("--format html: has all KPIs and parameters: leave out --primary, --all and --params")
    from cnnbench.report.page.page import gather, render  # here, as a table does without

    page = gather(arguments.directories)
    print(render(page))
    for note in page.told:
        print(note, file=sys.stderr)
    return 1 if page.failures else 0
