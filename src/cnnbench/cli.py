"""The command line: the only place that parses arguments, prints for people or decides an exit code."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cnnbench import ctest
from cnnbench.backends import ENGINES
from cnnbench.case import parse_arguments
from cnnbench.datasets import procedural
from cnnbench.environments import choose_variant, engine_python
from cnnbench.errors import CnnbenchError, InvalidMeasurementError, SkippedError, TimeUpInterrupt, UsageError
from cnnbench.host import read_cpuinfo
from cnnbench.job import NOTHING_STAGED, Job, describe_job, prepare_job, stage_inputs
from cnnbench.platforms import check_platform, detect_platform
from cnnbench.quickstart import quickstart
from cnnbench.report.kpi_log import kpi_lines, write_logs
from cnnbench.report.table import list_kpis
from cnnbench.result import RunResult
from cnnbench.run import DEFAULT_HANG_S, Measurement, new_logs_directory
from cnnbench.staging.cache import cache_root
from cnnbench.staging.inputs import stage_embedded_model, stage_imagenet_set, stage_procedural
from cnnbench.staging.manifest import find_artefact, load_artefacts
from cnnbench.staging.stage import stage_artefact

INTERRUPTED = 130
"""The exit code after a Ctrl-C that no measurement had to record: 128 + SIGINT, as shells have it."""

MOST_TIMEOUT_S = 1e9
"""Some thirty years: a timer may refuse more."""

EMBEDDED = ("procedural", "resnet50v1_5")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see errors.py for what the codes mean."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _make_parser()
    # What follows `ctest ... --` or `quickstart` is ctest.sh's: argparse must not look for options in it.
    own, rest = words, []
    if words[:1] == ["ctest"] and "--" in words:
        own, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    elif words[:1] == ["quickstart"]:
        own, rest = words[:1], words[1:]
    parsed, unknown = parser.parse_known_args(own)
    if unknown and parsed.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    parsed.rest = rest or unknown
    try:
        return parsed.run(parsed)
    except CnnbenchError as error:
        print(f"cnnbench: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # the disk, a permission, a file that went away: whatever was under way has failed
        print(f"cnnbench: {error}", file=sys.stderr)
        return CnnbenchError.exit_code
    except KeyboardInterrupt:
        print("cnnbench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cnnbench", description="Benchmark CNN inference on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("platform", help="print the platform code of this machine, or check one")
    command.add_argument("name", nargs="?")
    command.set_defaults(run=_platform)

    command = commands.add_parser(
        "run",
        help="run one test case",
        epilog="Parameters are given as --batch_size=1; the workload's README has them.",
    )
    command.add_argument("--workload", type=Path, required=True, help="the workload's directory")
    command.add_argument("--case", required=True, help="the test case's name")
    command.add_argument("--logs-root", type=Path, required=True, help="where logs-<case> goes")
    command.add_argument("--backend", choices=["native"], default="native")
    command.add_argument("--config", type=Path, help="settings file: yaml, globs of case names to parameters")
    command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    command.add_argument(
        "--hang-after", type=float, default=DEFAULT_HANG_S, metavar="S", help="seconds without a step that mean hung"
    )
    command.add_argument(
        "--timeout", type=float, metavar="S", help="seconds until a run, staging included, is ended as invalid"
    )
    command.set_defaults(run=_run)

    command = commands.add_parser("stage", help="put models and images into the cache, verified")
    command.add_argument("names", nargs="*", metavar="NAME", help="default: what the embedded workload needs")
    command.add_argument("--list", action="store_true", help="list what can be staged")
    command.add_argument("--from", dest="source", type=Path, help="take this file (imagenet: TFRecord directory)")
    command.add_argument("--sha256", help="the digest to expect, for an artefact whose manifest has none")
    command.add_argument("--verify", action="store_true", help="read again what is staged already")
    command.set_defaults(run=_stage)

    command = commands.add_parser("ctest", help="what ctest.sh runs")
    command.add_argument("--build-dir", type=Path, required=True)
    command.add_argument("--ctest", required=True)
    command.add_argument("--workload", type=Path, required=True)
    command.set_defaults(run=lambda a: ctest.main(a.build_dir, a.ctest, a.workload, a.rest))

    command = commands.add_parser("list-kpi", help="tabulate logs-* directories")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--primary", action="store_true", help="the primary KPI of each run (the default)")
    which.add_argument("--all", action="store_true", help="every KPI")
    command.add_argument("--params", action="store_true", help="the effective parameters too")
    command.add_argument("--format", choices=["table", "csv", "json"], default="table")
    command.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    command.set_defaults(run=_list_kpi)

    command = commands.add_parser("quickstart", help="what run.sh runs: from nothing to a KPI table")
    command.set_defaults(run=lambda a: quickstart(cache_root(os.environ), a.rest))
    return parser


def _platform(arguments: argparse.Namespace) -> int:
    print(check_platform(arguments.name) if arguments.name else detect_platform(read_cpuinfo()))
    return 0


def _end_by(interrupt: BaseException) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the ending of the instances
    raise interrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _end_by(KeyboardInterrupt())


@contextmanager
def _time_limit(timeout_s: float | None) -> Iterator[None]:
    """Raise TimeUpInterrupt inside the block when it takes longer."""
    if timeout_s is not None:
        interrupt = TimeUpInterrupt(timeout_s)
        signal.signal(signal.SIGALRM, lambda _number, _frame: _end_by(interrupt))
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _run(arguments: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # instances are ended and the run is recorded as invalid
        signal.signal(number, _interrupt)
    cache = cache_root(os.environ)
    config = arguments.config or os.environ.get(ctest.CONFIG_VARIABLE)
    words = json.loads(os.environ.get(ctest.OPTIONS_VARIABLE, "[]")) + arguments.rest
    if not arguments.hang_after > 0:
        raise UsageError(f"--hang-after {arguments.hang_after:g}: must be more than 0 seconds")
    if arguments.timeout is not None and not 0 < arguments.timeout <= MOST_TIMEOUT_S:
        raise UsageError(f"--timeout {arguments.timeout:g}: must be more than 0 and at most {MOST_TIMEOUT_S:g} seconds")
    try:
        job = prepare_job(
            arguments.workload, arguments.case, os.environ, parse_arguments(words), Path(config) if config else None
        )
    except SkippedError as error:
        ctest.record_skip(arguments.case, str(error), os.environ)
        raise
    if arguments.dry_run or os.environ.get(ctest.DRY_RUN_VARIABLE) == "1":
        print(describe_job(job, cache))
        return 0
    for note in job.notes:
        print(f"cnnbench: {note}", file=sys.stderr)
    result, logs = _measure(job, cache, arguments)
    status = InvalidMeasurementError.exit_code if result.verdict == "invalid" else 0
    write_logs(result, logs, status)
    print("\n".join(kpi_lines(result)))
    print(f"# logs: {logs}")
    return status


def _measure(job: Job, cache: Path, arguments: argparse.Namespace) -> tuple[RunResult, Path]:
    """Stage and measure; return the result, which is invalid when the time is up before, and its logs directory."""
    try:
        with _time_limit(arguments.timeout):
            inputs = stage_inputs(job, cache)
            logs = new_logs_directory(arguments.logs_root.absolute(), job.case.name)
            return Measurement(job, inputs, logs, arguments.hang_after).run(), logs
    except TimeUpInterrupt as error:  # outside of Measurement.run, which makes a result of it by itself
        logs = new_logs_directory(arguments.logs_root.absolute(), job.case.name)
        facts = {"what was seen": "the time was up while staging"}
        return Measurement(job, NOTHING_STAGED, logs, arguments.hang_after).reject(error, facts), logs


def _stage(arguments: argparse.Namespace) -> int:
    cache, artefacts = cache_root(os.environ), load_artefacts()
    if arguments.list:
        for name in (*EMBEDDED, "imagenet"):
            print(f"{name}: made on this machine")
        for name, artefact in artefacts.items():
            print(f"{name}: {artefact.url}")
        return 0
    names = arguments.names or list(EMBEDDED)
    if (arguments.source or arguments.sha256) and len(names) != 1:
        raise UsageError("--from and --sha256 are for one NAME at a time")
    for name in names:
        if arguments.source and name in EMBEDDED:
            raise UsageError(f"--from {arguments.source}: {name} is made on this machine and takes no file")
        print(f"{name}: {_stage_one(name, arguments, cache)}")
    return 0


def _stage_one(name: str, arguments: argparse.Namespace, cache: Path) -> Path:
    verify = arguments.verify
    if name == "procedural":
        return [stage_procedural(part, cache, verify=verify).root for part in procedural.IMAGES_PER_CLASS][-1]
    if name == "resnet50v1_5":
        return stage_embedded_model(_tensorflow_python(cache), ENGINES["tensorflow"].preparer, cache)
    if name == "imagenet":
        python = _tensorflow_python(cache) if arguments.source else None
        return stage_imagenet_set(cache, arguments.source, python, verify=verify).root
    artefact = find_artefact(name)
    return stage_artefact(artefact, cache, arguments.source, arguments.sha256, verify=verify)


def _tensorflow_python(cache: Path) -> Path:
    return engine_python("tensorflow", choose_variant("tensorflow", "auto", read_cpuinfo()), cache)


def _list_kpi(arguments: argparse.Namespace) -> int:
    listing = list_kpis(
        arguments.directories, all_kpis=arguments.all, params=arguments.params, output_format=arguments.format
    )
    print(listing.text)
    for failure in listing.failures:
        print(failure, file=sys.stderr)
    return 1 if listing.failures else 0
