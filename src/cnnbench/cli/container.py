"""`cnnbench container`: what an image runs."""

import argparse
import os

from cnnbench.run.serve import serve_case
from cnnbench.serving.measurement import measurement_of


def add_options(_parser: argparse.ArgumentParser) -> None:
    """Declare no options: the case and its parameters come by the environment."""


def run(_arguments: argparse.Namespace) -> int:
    """Run the case that the environment describes."""
    return serve_case(os.environ, choose=measurement_of)
