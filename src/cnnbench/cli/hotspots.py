"""`cnnbench hotspots`: where a run's processor time went."""

import argparse

from cnnbench.cli.options import add_run_to_show as add_options
from cnnbench.report.hotspots import show_hotspots

__all__ = ["add_options", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    print(show_hotspots(arguments.directory, arguments.format))
    return 0
