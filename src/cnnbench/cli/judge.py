"""`cnnbench judge`: runs judged again from what they left, and what comes out differently."""

import argparse
import sys
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError
from cnnbench.results.differences import list_differences
from cnnbench.results.kpi_text import kpi_lines
from cnnbench.results.record import RUN_FILE, find_runs, load_run
from cnnbench.run.judging import judge_run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="a logs-<case> (each of its runs), itr-N or worker-0 directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what each run below a directory comes to, as `case` does, and how that differs from its run.json.

    Return 0, 3 when a result is invalid, or 1 when a run cannot be judged.
    """
    runs = find_runs(arguments.directory)
    if not runs:
        raise CnnbenchError(f"{arguments.directory}: no itr-N there; no run of the case has begun")
    codes = []
    for directory in runs:
        try:
            codes.append(_judge_one(directory))
        except CnnbenchError as error:
            print(f"cnnbench: {error}", file=sys.stderr)
            codes.append(CnnbenchError.exit_code)
    known = (CnnbenchError.exit_code, InvalidMeasurementError.exit_code)
    return next((code for code in known if code in codes), 0)


def _judge_one(directory: Path) -> int:
    result = judge_run(directory)
    print("\n".join(kpi_lines(result)))
    print(f"# logs: {directory}")
    if not (directory / RUN_FILE).is_file():
        print(f"# judged again: there is no {RUN_FILE} to compare with")
        return result.exit_code
    differences = list_differences(load_run(directory), result)
    found = "1 thing differs" if len(differences) == 1 else f"{len(differences)} things differ"
    print(f"# judged again: {found if differences else 'nothing differs'} from {RUN_FILE}")
    for line in differences:
        print(f"#   {line}")
    return result.exit_code
