"""`cnnbench sweep`: the fastest settings of cases, found by measuring."""

import argparse
import os
import sys
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.disk import check_directory, explain_refusals
from cnnbench.base.errors import InvalidMeasurementError, UsageError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.platforms import check_platform, detect_platform
from cnnbench.cases.workload import declared_cases
from cnnbench.cli.limits import add_limits, check_limits
from cnnbench.cli.options import add_workload
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.page.page import PAGE, end_with_page
from cnnbench.results.record import RunResult
from cnnbench.run.job import PLATFORM_VARIABLE, Job
from cnnbench.run.native import measure_job
from cnnbench.serving.measurement import measurement_of
from cnnbench.tuning.decide import DEFAULT_ROUNDS
from cnnbench.tuning.settings import ranking, settings_file, summary_table
from cnnbench.tuning.space import DEFAULT_CASES, TUNED, SweepRequest, describe_spaces, plan_sweep
from cnnbench.tuning.sweep import run_sweep


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_workload(parser)
    parser.add_argument("--state", type=Path, required=True, help="where runs are kept, and gone on from")
    parser.add_argument(
        "--case",
        action="append",
        metavar="GLOB",
        help=f"cases to tune, each for itself; may be repeated (default: {DEFAULT_CASES})",
    )
    parser.add_argument(
        "--set",
        action="append",
        dest="sets",
        default=[],
        metavar='"BATCH_SIZE=1 8/CORES_PER_INSTANCE=1 2"',
        help=f"the settings to try, out of {', '.join(TUNED)}, as ctest.sh takes them (default: made for this machine)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=DEFAULT_ROUNDS,
        metavar="N",
        help="runs of a setting that stays in (default: %(default)s)",
    )
    parser.add_argument("--config", type=Path, help="settings file for what is not tuned")
    parser.add_argument("--platform", help="whose cases to tune (default: detected)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: bkm-<platform>.yaml in --state")
    parser.add_argument("--overwrite", action="store_true", help="overwrite that file")
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    add_limits(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure the settings, print how they came out, and write the file of the best."""
    check_limits(arguments)
    platform = check_platform(
        arguments.platform or os.environ.get(PLATFORM_VARIABLE) or detect_platform(read_cpuinfo())
    )
    output = arguments.output or arguments.state / f"bkm-{platform.lower()}.yaml"
    check_directory(f"--state {arguments.state}", arguments.state)
    if output.exists() and not arguments.overwrite:
        raise UsageError(f"{output}: is there already; --overwrite does so, --output names another")
    if arguments.output and not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no directory {output.parent}")
    check_directory(f"--output {output}", output.parent)
    request = SweepRequest(
        workload=arguments.workload,
        platform=platform,
        globs=tuple(arguments.case or [DEFAULT_CASES]),
        sets=tuple(arguments.sets),
        rounds=arguments.rounds,
        config=arguments.config,
        words=tuple(arguments.rest),
    )
    cache, state = cache_root(os.environ), arguments.state.absolute()
    spaces = plan_sweep(request, os.environ)
    if arguments.dry_run:
        print("\n".join(describe_spaces(spaces)))
        return 0

    another = "make room, or name another file with --output"

    def measure(job: Job) -> tuple[RunResult, Path]:
        end_by_exceptions()  # anew for each: after a run whose time was up, signals are ignored
        kind = measurement_of(job, cache)
        return measure_job(job, cache, state, arguments.hang_after, arguments.timeout, kind)

    outcomes = run_sweep(
        spaces, state, arguments.rounds, measure, lambda text: print(text, file=sys.stderr, flush=True)
    )
    found = [outcome for outcome in outcomes if outcome.best is not None]
    for outcome in outcomes:
        print(ranking(outcome), end="\n\n")
    print(end_with_page([state / f"logs-{outcome.case.name}" for outcome in outcomes], state / PAGE), end="\n\n")
    if not found:
        raise InvalidMeasurementError("no setting of any case has a valid result; the reasons are above")
    text = settings_file(found, declared_cases(arguments.workload, platform), platform, request.command)
    opened = "w" if arguments.overwrite else "x"
    with explain_refusals(output, another), output.open(opened, encoding="utf-8") as file:
        file.write(text)
    print(f"{summary_table(found, platform)}\n\nwrote {output}")
    return 0 if len(found) == len(outcomes) else InvalidMeasurementError.exit_code
