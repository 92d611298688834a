"""`cnnbench export`: runs in the formats that other programs read."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cli.selecting import SOURCES, add_selection, read_selection
from cnnbench.report.export.formats import BINARY, FORMATS, check_output, choose_format, export, write, write_whole
from cnnbench.report.history import add_runs, check_path
from cnnbench.report.reading import Failure, iterate, read_runs
from cnnbench.report.selection import Sieve
from cnnbench.report.text import printable
from cnnbench.results.exchange import results_schema
from cnnbench.results.record import RunResult


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file; an existing one is replaced")
    parser.add_argument(
        "--format", default="", metavar="NAME",
        help=f"{', '.join(FORMATS)} (default: what the file's suffix says); all but {' and '.join(BINARY)} are printed "
        "without -o",
    )  # fmt: skip
    parser.add_argument(
        "--sqlite", type=Path, metavar="FILE",
        help="add the runs to this history, made where there is none, which list-kpi, report, compare and trend read",
    )  # fmt: skip
    add_selection(parser)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the format json, and no runs")
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS",
        help=SOURCES,
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the runs, and tell on standard error what is not among them; return 1 if something is not."""
    if arguments.schema:
        if arguments.runs or arguments.output or arguments.format or arguments.sqlite:
            raise UsageError("--schema: prints the schema alone; leave out the runs, -o, --format and --sqlite")
        print(json.dumps(results_schema(), indent=1))
        return 0
    if arguments.sqlite:
        return _add_to_history(arguments)
    output: Path | None = arguments.output
    name = choose_format(arguments.format, output)
    if not arguments.runs:
        raise UsageError("needs runs, such as logs-*")
    if output is not None:
        check_output(output)
    found = read_runs(arguments.runs, read_selection(arguments))
    for failure in found.failures:
        print(printable(failure), file=sys.stderr)
    if not found.runs:
        raise CnnbenchError("no run to export; needed logs directories, such as logs-*")
    if output is None:
        sys.stdout.buffer.write(export(name, found))
        sys.stdout.flush()
    else:
        write_whole(output, lambda stream: write(name, found, stream))
        print(f"wrote {output}, {output.stat().st_size / 1e6:.2f} MB, {len(found.runs)} runs")
    return 1 if found.failures else 0


def _add_to_history(arguments: argparse.Namespace) -> int:
    """Add the runs one by one, as there may be more of them than memory has room for."""
    if arguments.output or arguments.format:
        raise UsageError("--sqlite: is a file and a format; leave out -o and --format")
    if not arguments.runs:
        raise UsageError("needs runs, such as logs-*")
    path: Path = arguments.sqlite
    check_path(path)
    if path.exists() and any(one.exists() and path.samefile(one) for one in arguments.runs):
        raise UsageError(f"--sqlite {path}: is among the runs that are to be added; leave it out there")
    sieve, missing = Sieve(read_selection(arguments)), 0

    def take() -> Iterator[tuple[str, RunResult]]:
        nonlocal missing
        for one in iterate(arguments.runs, sieve):
            if isinstance(one, Failure):
                missing += 1
                print(printable(one.told), file=sys.stderr)
            else:
                yield one.name, one.result

    done = add_runs(path, take())
    for told in done.refused:
        print(printable(told), file=sys.stderr)
    if not done.added and not done.there and not done.refused:
        sieve.explain()
        raise CnnbenchError("no run to add; needed logs directories, such as logs-*")
    print(f"{path}: added {done.added} runs; {done.there} were there already, {len(done.refused)} refused")
    return 1 if missing or done.refused else 0
