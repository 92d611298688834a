"""`cnnbench container`: what an image runs."""

import argparse
import os

from cnnbench.base.errors import UsageError
from cnnbench.base.signals import check_timeout
from cnnbench.fleet.node import read_batch_text
from cnnbench.fleet.pod import check_pod
from cnnbench.run.serve import PRINT, Unreached, serve_case
from cnnbench.serving.measurement import measurement_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options for where nobody reaches into the container; the case comes by the environment."""
    parser.add_argument(
        "--export", metavar="FILE", help=f"write the logs into a file, an archive, and end; {PRINT}: print it"
    )
    parser.add_argument("--own-cpus", type=int, metavar="N", help="refuse to run on other than N CPUs of its own")
    parser.add_argument("--batch", metavar="JSON", help="refuse to run where this batch of a fleet is not to")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds that the case may take")


def run(arguments: argparse.Namespace) -> int:
    """Run the case that the environment describes."""
    check_timeout("--timeout", arguments.timeout)
    if arguments.own_cpus is not None and arguments.own_cpus < 1:
        raise UsageError(f"--own-cpus {arguments.own_cpus}: must be a number of CPUs, from 1 on")
    if arguments.export is None:
        for option, value in (("--own-cpus", arguments.own_cpus), ("--batch", arguments.batch)):
            if value is not None:
                raise UsageError(f"{option}: is for where nobody reaches into the container; needs --export")
        return serve_case(os.environ, choose=measurement_of)
    batch = read_batch_text(arguments.batch.encode(), "--batch") if arguments.batch else None
    unreached = Unreached(
        arguments.export, lambda cache: check_pod(batch, arguments.own_cpus, cache), arguments.timeout
    )
    return serve_case(os.environ, choose=measurement_of, unreached=unreached)
