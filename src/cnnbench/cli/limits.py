"""Declare and check the options that limit how long a run may take."""

import argparse

from cnnbench.base.signals import check_timeout
from cnnbench.run.measurement import DEFAULT_HANG_S, ENCLAVE_HANG_S


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add --hang-after and --timeout."""
    parser.add_argument(
        "--hang-after",
        type=float,
        metavar="S",
        help=f"seconds without a step that mean hung (default: {DEFAULT_HANG_S:g}, in an enclave {ENCLAVE_HANG_S:g})",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds until a run, staging included, is ended as invalid"
    )


def check_limits(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a limit that is none."""
    check_timeout("--hang-after", arguments.hang_after)
    check_timeout("--timeout", arguments.timeout)
