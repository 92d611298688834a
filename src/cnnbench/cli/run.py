"""`cnnbench run`: a network measured, with the reference harness's options; they are read by harness/line.py."""

import argparse

from cnnbench.base.signals import end_by_exceptions
from cnnbench.harness.line import read_request
from cnnbench.harness.runs import run_request
from cnnbench.machine.host import read_cpuinfo


def run(arguments: argparse.Namespace) -> int:
    """Run all that the words ask for."""
    end_by_exceptions()
    return run_request(read_request(arguments.rest, read_cpuinfo().flags))
