"""`cnnbench export`: runs in the formats that other programs read."""

import argparse
import json
import sys
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.export.formats import BINARY, FORMATS, check_output, choose_format, export, write, write_whole
from cnnbench.report.reading import read_runs
from cnnbench.report.text import printable
from cnnbench.results.exchange import results_schema


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file; an existing one is replaced")
    parser.add_argument(
        "--format", default="", metavar="NAME",
        help=f"{', '.join(FORMATS)} (default: what the file's suffix says); all but {' and '.join(BINARY)} are printed "
        "without -o",
    )  # fmt: skip
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the format json, and no runs")
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS",
        help="a logs-<case>, itr-N or worker-0 directory, a run.json, or a file that was exported as json",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the runs, and tell on standard error what is not among them; return 1 if something is not."""
    if arguments.schema:
        if arguments.runs or arguments.output or arguments.format:
            raise UsageError("--schema: prints the schema alone; leave out the runs, -o and --format")
        print(json.dumps(results_schema(), indent=1))
        return 0
    output: Path | None = arguments.output
    name = choose_format(arguments.format, output)
    if not arguments.runs:
        raise UsageError("needs runs, such as logs-*")
    if output is not None:
        check_output(output)
    found = read_runs(arguments.runs)
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
