"""`cnnbench hotspots`: where a run's processor time went."""

import argparse
from pathlib import Path

from cnnbench.report.hotspots import show_hotspots


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="a logs-<case> (its last run), itr-N or worker-0 directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    print(show_hotspots(arguments.directory, arguments.format))
    return 0
