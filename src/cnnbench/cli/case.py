"""`cnnbench case`: one test case, natively or in a container; what ctest calls."""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.disk import check_directory
from cnnbench.base.errors import SkippedError
from cnnbench.base.signals import check_timeout, end_by_exceptions, end_with_parent
from cnnbench.cases.case import parse_arguments
from cnnbench.cases.variables import CONFIG_VARIABLE, DRY_RUN_VARIABLE, OPTIONS_VARIABLE, STATUS_VARIABLE
from cnnbench.cli.ctest_process import record_skip
from cnnbench.cli.limits import add_limits, check_limits
from cnnbench.cli.options import add_case, add_container_options, container_cli, split_words
from cnnbench.results.kpi_text import kpi_lines
from cnnbench.results.record import RunResult
from cnnbench.run.container import DOCKER_OPTIONS_VARIABLE, ContainerOptions, ContainerRun
from cnnbench.run.images import ImageOptions
from cnnbench.run.job import PlannedCase, describe_case, describe_job, plan_case, prepare_job
from cnnbench.run.measurement import LOGS
from cnnbench.run.native import measure_job
from cnnbench.run.watching import SILENT, Reporter, report_case
from cnnbench.serving.measurement import measurement_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_case(parser)
    parser.add_argument("--logs-root", type=Path, required=True, help="where logs-<case> goes")
    parser.add_argument("--backend", choices=["native", "docker"], default="native")
    parser.add_argument("--config", type=Path, help="settings file: yaml, globs of case names to parameters")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--end-with", type=int, metavar="PID", help="end, as by a Ctrl-C, when this parent dies")
    add_limits(parser)
    parser.add_argument("--pull-timeout", type=float, metavar="S", help="seconds that pulling the image may take")
    parser.add_argument("--docker-options", default="", help="more options of the engine's run command")
    add_container_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the case, or print its plan; a ctest.sh is told why a case is skipped."""
    end_by_exceptions()  # instances are ended and the run is recorded as invalid
    if arguments.end_with is not None:
        end_with_parent(arguments.end_with, signal.SIGTERM)
    config = arguments.config or os.environ.get(CONFIG_VARIABLE)
    words = json.loads(os.environ.get(OPTIONS_VARIABLE, "[]")) + arguments.rest
    dry_run = arguments.dry_run or os.environ.get(DRY_RUN_VARIABLE) == "1"
    check_limits(arguments)
    check_timeout("--pull-timeout", arguments.pull_timeout)
    check_directory(f"--logs-root {arguments.logs_root}", arguments.logs_root, LOGS)
    logs_root, call = arguments.logs_root.absolute(), os.environ.get(STATUS_VARIABLE, "")
    telling = nullcontext(SILENT) if dry_run else report_case(logs_root, call, arguments.case, arguments.backend)
    try:
        with telling as reporter:
            planned = plan_case(
                arguments.workload, arguments.case, os.environ, parse_arguments(words), Path(config) if config else None
            )
            run_planned = _run_in_container if arguments.backend == "docker" else _run_here
            return run_planned(planned, arguments, dry_run, reporter)
    except SkippedError as error:
        record_skip(arguments.case, str(error), os.environ)
        raise


def _run_here(planned: PlannedCase, arguments: argparse.Namespace, dry_run: bool, reporter: Reporter) -> int:
    job, cache = prepare_job(planned, os.environ), cache_root(os.environ)
    if dry_run:
        print("\n".join(describe_job(job, cache)))
        return 0
    _print_notes(job.notes)
    root, kind = arguments.logs_root.absolute(), measurement_of(job, cache)
    found = measure_job(job, cache, root, arguments.hang_after, arguments.timeout, kind, reporter)
    return _report(*found, reporter)


def _run_in_container(planned: PlannedCase, arguments: argparse.Namespace, dry_run: bool, reporter: Reporter) -> int:
    run = ContainerRun(
        planned,
        ContainerOptions(
            cli=container_cli(arguments),
            images=ImageOptions(arguments.registry, arguments.release),
            extra=split_words("--docker-options", arguments.docker_options)
            + split_words(DOCKER_OPTIONS_VARIABLE, os.environ.get(DOCKER_OPTIONS_VARIABLE, "")),
            hang_s=arguments.hang_after,
            pull_timeout_s=arguments.pull_timeout,
        ),
        arguments.logs_root.absolute(),
    )
    if dry_run:
        commands = [f"  {shlex.join(command)}" for command in run.commands()]
        print("\n".join([*describe_case(planned), "command line:", *commands]))
        return 0
    _print_notes(planned.notes)
    return _report(*run.run(arguments.timeout, reporter), reporter)


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"cnnbench: {note}", file=sys.stderr)


def _report(result: RunResult, logs: Path, reporter: Reporter) -> int:
    reporter.end(result, logs)
    print("\n".join(kpi_lines(result)))
    print(f"# logs: {logs}")
    return result.exit_code
