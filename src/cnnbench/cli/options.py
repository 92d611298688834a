"""Declare and read the options that several commands have."""

import argparse
import shlex
from pathlib import Path

from cnnbench.base.errors import UsageError


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Add --workload, of a command whose `rest` are the parameters of cases."""
    parser.add_argument("--workload", type=Path, required=True, help="the workload's directory")
    parser.epilog = "Parameters are given as --batch_size=1; the workload's README has them."


def add_case(parser: argparse.ArgumentParser) -> None:
    """Add --workload and --case, of a command whose `rest` are the case's parameters."""
    add_workload(parser)
    parser.add_argument("--case", required=True, help="the test case's name")


def add_container_cli(parser: argparse.ArgumentParser) -> None:
    """Add what tells the engine that runs containers."""
    parser.add_argument("--container-cli", default="docker", help='the engine\'s command line, such as "podman"')


def add_container_options(parser: argparse.ArgumentParser) -> None:
    """Add what tells images and the engine that runs them."""
    add_container_cli(parser)
    parser.add_argument("--registry", default="", help="what comes before the images' names, such as host:5000")
    parser.add_argument("--release", default="latest", help="the images' tag")


def add_run_to_show(parser: argparse.ArgumentParser) -> None:
    """Add the run that a command shows, and the format that it does so in."""
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="a logs-<case> (its last run), itr-N or worker-0 directory"
    )


def split_words(option: str, text: str) -> list[str]:
    """Split a text into words as a shell does; raise UsageError when a quotation does not end."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}; quote it as for a shell") from error


def container_cli(arguments: argparse.Namespace) -> list[str]:
    """Return the words of --container-cli, which must name a program."""
    if not (words := split_words("--container-cli", arguments.container_cli)):
        raise UsageError(
            f"--container-cli {arguments.container_cli}: names no program; needed docker, podman or the like"
        )
    return words
