"""`cnnbench isa`: a run's layers."""

import argparse
from pathlib import Path

from cnnbench.report.layers import show_layers


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="a logs-<case> (its last run), itr-N or worker-0 directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    print(show_layers(arguments.directory, arguments.format))
    return 0
