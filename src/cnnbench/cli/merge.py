"""`cnnbench merge`: the runs of several machines in one folder, with one report and a table of platforms."""

import argparse
import sys
from pathlib import Path

from cnnbench.base.disk import check_directory
from cnnbench.cli.comparing import better
from cnnbench.report.merge import Merged, merge_runs
from cnnbench.report.page.page import PAGE, end_with_page
from cnnbench.report.platforms import platforms_table, stand
from cnnbench.report.sets import NEEDED, read_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the runs go: a folder for each machine",
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="FOLDER", help=f"what `cnnbench validate` leaves, or {NEEDED}"
    )
    parser.epilog = "What DIR has already is kept: the same command goes on where it was ended, and others add to it."


def run(arguments: argparse.Namespace) -> int:
    """Merge, write the page, and print the table of platforms; return 1 where something is not in it."""
    output: Path = arguments.output
    check_directory(f"-o {output}", output)
    merged = merge_runs(arguments.sources, output)
    for text in (*merged.problems, *merged.told_apart):
        print(f"cnnbench: {text}", file=sys.stderr)
    print(describe(merged))
    machines = [(one, read_folder(one.name, output / one.name)) for one in merged.machines]
    print(f"\n{platforms_table(stand(machines, better))}")
    print(f"\n{end_with_page(merged.directories, output / PAGE)}")
    return 1 if merged.problems else 0


def describe(merged: Merged) -> str:
    """Say what a merge has done."""
    count = len(merged.machines)
    runs = f"{merged.added} run{'' if merged.added == 1 else 's'}"
    parts = [f"{merged.output}: {count} machine{'' if count == 1 else 's'}, {runs} added"]
    if merged.known:
        parts.append(f"{merged.known} were there")
    if merged.interrupted:
        parts.append(f"{merged.interrupted} left out that were interrupted")
    return ", ".join(parts)
