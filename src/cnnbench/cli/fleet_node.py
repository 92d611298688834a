"""`cnnbench fleet-node`: run a batch on this machine; what the launchers of `cnnbench fleet` start there."""

import argparse
import os
import sys
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.launcher import find_launcher
from cnnbench.fleet.node import BatchRun, read_batch_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("batch", metavar="FILE", help="the batch; - reads it from standard input")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="the fleet's folder here")


def run(arguments: argparse.Namespace) -> int:
    """Run the batch, and print why not all of its runs have an outcome; return 1 then."""
    folder = FleetFolder(arguments.folder.absolute())
    end_by_exceptions()
    batch = read_batch_text(_read(arguments.batch), arguments.batch)
    allocation = find_launcher(batch.launcher).identify(os.environ)
    reason = BatchRun(batch, folder, allocation, os.environ).run()
    if reason:
        print(f"cnnbench: {reason}", file=sys.stderr)
    return 1 if reason else 0


def _read(written: str) -> bytes:
    if written == "-":
        return sys.stdin.buffer.read()
    path = Path(written)
    if not path.is_file():
        raise UsageError(f"{path}: no such file on this machine; needed is a batch that `cnnbench fleet` wrote")
    return path.read_bytes()
