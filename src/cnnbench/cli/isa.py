"""`cnnbench isa`: a run's layers."""

import argparse

from cnnbench.cli.options import add_run_to_show as add_options
from cnnbench.report.layers import show_layers

__all__ = ["add_options", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    print(show_layers(arguments.directory, arguments.format))
    return 0
