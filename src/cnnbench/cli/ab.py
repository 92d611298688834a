"""`cnnbench ab`: one case with two settings, measured in turns."""

import argparse
import os
import re
import sys
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.disk import check_directory
from cnnbench.base.errors import UsageError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.case import parse_arguments
from cnnbench.cases.platforms import check_platform, detect_platform
from cnnbench.cases.sets import read_sweep
from cnnbench.cases.workload import declared_cases
from cnnbench.cli.comparing import add_measure, better, check_metric, exit_code, read_threshold
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.comparison_text import show_comparison
from cnnbench.run.job import PLATFORM_VARIABLE, plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S
from cnnbench.run.native import choose_engine
from cnnbench.serving.measurement import measurement_of
from cnnbench.tuning.alternate import DEFAULT_ROUNDS, Rules, alternate
from cnnbench.tuning.turns import Contender


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for which in ("A", "B"):
        parser.add_argument(
            which.lower(), metavar=f'"SETTINGS {which}"', help='such as "BATCH_SIZE=8/ENGINE=auto"; "": as declared'
        )
    parser.add_argument("-R", dest="regex", required=True, metavar="REGEX", help="the one case whose name has this")
    parser.add_argument("--workload", type=Path, help="the workload's directory (default: looks in all)")
    add_measure(parser)
    parser.add_argument("--max-rounds", type=int, default=DEFAULT_ROUNDS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--logs-root", type=Path, metavar="DIR", help="keep the logs, in DIR/a and DIR/b")
    parser.add_argument("--config", type=Path, help="settings file for both")
    parser.add_argument("--platform", help="whose cases to look in (default: detected)")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")
    parser.epilog = "Parameters of both are given as --batch_size=1. Exit code 4 means that B is slower."


def run(arguments: argparse.Namespace) -> int:
    """Measure until it is clear, and print what came out."""
    end_by_exceptions()
    rules = Rules(arguments.metric, read_threshold(arguments.threshold), arguments.max_rounds)
    if arguments.metric:
        check_metric(arguments.metric)
    if arguments.logs_root:
        check_directory(f"--logs-root {arguments.logs_root}", arguments.logs_root)
    platform = check_platform(
        arguments.platform or os.environ.get(PLATFORM_VARIABLE) or detect_platform(read_cpuinfo())
    )
    workload, case = find_case(arguments.regex, arguments.workload, platform)
    common, environ = parse_arguments(arguments.rest), {**os.environ, PLATFORM_VARIABLE: platform}
    contenders = []
    for label, text in (("a", arguments.a), ("b", arguments.b)):
        job = prepare_job(plan_case(workload, case, environ, common | read_settings(text), arguments.config), environ)
        root = (arguments.logs_root / label).absolute() if arguments.logs_root else None
        contenders.append(Contender(f"{label.upper()}: {text or 'as declared'}", job, root))
    cache = cache_root(os.environ)
    for one in contenders:
        assert one.job is not None
        one.job = choose_engine(one.job, cache, DEFAULT_HANG_S, measurement_of(one.job, cache))
    compared = alternate(contenders, rules, better, cache, lambda text: print(text, file=sys.stderr, flush=True))
    print(show_comparison(compared, arguments.format))
    return exit_code(compared)


def read_settings(text: str) -> dict[str, str]:
    """Return the settings of one side; raise UsageError where it has several values of one."""
    combinations = read_sweep([text] if text else [])
    if len(combinations) > 1:
        raise UsageError(f'"{text}": stands for {len(combinations)} settings; needed one of each side')
    return combinations[0]


def find_case(regex: str, workload: Path | None, platform: str) -> tuple[Path, str]:
    """Return the workload and the name of the one case that an expression finds; raise UsageError for none or more."""
    try:
        wanted = re.compile(regex)
    except re.error as error:
        raise UsageError(f"-R {regex}: no regular expression: {error}") from error
    workloads = [workload] if workload else sorted(path.parent for path in REPOSITORY.glob("workload/*/workload.yaml"))
    found: list[tuple[Path, str]] = []
    for directory in workloads:
        if workload is None and not (directory / "cmake" / f"{platform}.cmake").is_file():
            continue
        found += [(directory, case.name) for case in declared_cases(directory, platform) if wanted.search(case.name)]
    if len(found) == 1:
        return found[0]
    names = [name for _, name in found]
    if exact := [one for one in found if one[1] == regex]:
        return exact[0]
    if not found:
        raise UsageError(f"-R {regex}: finds no case of {platform}; give --workload and see its ctest.sh -N")
    told = " ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    raise UsageError(f"-R {regex}: finds {len(found)} cases, needed one: {told}; $ stands for the end of a name")
