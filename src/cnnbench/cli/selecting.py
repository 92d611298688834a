"""Declare and read the options that say which of many runs a command is to look at."""

import argparse

from cnnbench.report.selection import Selection, parse_time

SOURCES = (
    "a logs-<case>, itr-N or worker-0 directory, a folder with logs-<case> in it, or a file or history of "
    "`cnnbench export`"
)
"""What commands read runs from."""


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add --since and --machine."""
    parser.add_argument(
        "--since", default="", metavar="WHEN",
        help="only runs started since then: a day such as 2026-01-31, a time such as 2026-01-31T18:00 (UTC, unless it "
        "says otherwise), or a span before now such as 12h, 7d or 4w",
    )  # fmt: skip
    parser.add_argument("--machine", default="", metavar="NAME", help="only runs on the machine with this host name")


def read_selection(arguments: argparse.Namespace) -> Selection:
    """Return what the options select; raise UsageError for what is no time."""
    since = parse_time("--since", arguments.since) if arguments.since else None
    return Selection(since, arguments.machine)
