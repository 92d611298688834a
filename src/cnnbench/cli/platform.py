"""`cnnbench platform`: this machine's platform code, or one made sure of."""

import argparse

from cnnbench.cases.platforms import check_platform, detect_platform
from cnnbench.machine.host import read_cpuinfo


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a code to check; default: detect this machine's")


def run(arguments: argparse.Namespace) -> int:
    """Print the code as the table has it."""
    print(check_platform(arguments.name) if arguments.name else detect_platform(read_cpuinfo()))
    return 0
