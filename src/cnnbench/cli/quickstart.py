"""`cnnbench quickstart`, what run.sh runs: from nothing to a table of the KPIs that characterise this machine."""

import argparse
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import PrecisionName
from cnnbench.cases.platforms import detect_platform
from cnnbench.cases.precisions import PRECISIONS, Precision, missing_for_precision
from cnnbench.cases.workload import load_workload
from cnnbench.cli import ctest
from cnnbench.cli.configuring import configure, find_tool
from cnnbench.cli.selection import list_cases
from cnnbench.engines.registry import Engine, find_engine
from cnnbench.machine.host import CpuInfo, read_cpuinfo
from cnnbench.report.page.page import PAGE, end_with_page
from cnnbench.report.precisions import precision_table
from cnnbench.report.table import kpi_table
from cnnbench.report.text import align
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, load_run
from cnnbench.run.inputs import stage_engine
from cnnbench.run.job import graph_quantizer_obstacle
from cnnbench.run.kpis import primary_kind
from cnnbench.run.status import read_build

WORKLOAD = "ResNet50-TensorFlow-Xeon-Public"

DEFAULTS = "quick.yaml"
"""A workload's settings file of how the quick start differs from the cases' own defaults."""

CHOOSING = ("-R", "--tests-regex", "-E", "--exclude-regex", "-L", "--label-regex", "-LE", "--label-exclude", "-I",
            "--tests-information", "--rerun-failed", "--testcase", "-N", "--show-only",
            "--describe-params")  # fmt: skip


HELP = """\
run.sh [OPTION]... [CTEST ARGUMENT]...

Stage, configure and build what is not there yet, run the cases that characterise this machine, and tabulate their KPIs.
With arguments that choose cases, such as -R REGEX, those are run in their place. --timings tells at the end where the
time went. All other arguments are those of ctest.sh:

"""

TIMINGS = "--timings"
SETUP_VARIABLE = "CNNBENCH_SETUP_S"
"""Environment variable: how many seconds run.sh took to set up what this runs with."""


def run(arguments: argparse.Namespace) -> int:
    """Do what run.sh is called for."""
    if {"-h", "--help"} & set(arguments.rest):
        print(HELP + ctest.HELP, end="")
        return 0
    if "--status" in arguments.rest:
        source, build = REPOSITORY / "workload" / WORKLOAD, REPOSITORY / "build" / "workload" / WORKLOAD
        return ctest.run_script(build, "ctest", source, arguments.rest)
    rest = [word for word in arguments.rest if word != TIMINGS]
    timings = Timings(_setup_s(os.environ)) if len(rest) < len(arguments.rest) else None
    return quickstart(cache_root(os.environ), rest, timings)


def _setup_s(environ: Mapping[str, str]) -> float:
    given = environ.get(SETUP_VARIABLE) or "0"
    if not given.isdecimal():
        raise UsageError(f"{SETUP_VARIABLE}={given}: needed whole seconds, as run.sh sets it; leave it out")
    return float(given)


class Timings:
    """Where the time of a quick start goes; `setup_s`: what run.sh took before it (s)."""

    def __init__(self, setup_s: float) -> None:
        self._parts = [("set up", setup_s)]
        self._last_s = time.monotonic()

    def note(self, what: str) -> None:
        """Take down that something has been done since the last note."""
        now_s = time.monotonic()
        self._parts.append((what, now_s - self._last_s))
        self._last_s = now_s

    def table(self, runs: Mapping[Path, RunResult]) -> str:
        """Return the parts, and of each case how long it took from its record to its result, loaded and measured."""
        parts = [[what, f"{seconds:.1f}"] for what, seconds in self._parts]
        parts.append(["together", f"{sum(seconds for _, seconds in self._parts):.1f}"])
        cases = [
            [
                " ".join(run.requested[name] for name in ("MODE", "PRECISION")),
                f"{(path / RUN_FILE).stat().st_mtime - datetime.fromisoformat(run.started).timestamp():.1f}",
                f"{max((one.get('load_s', 0.0) for one in run.instances), default=0.0):.1f}",
                run.facts.get("measured for", "").partition(" s,")[0],
            ]
            for path, run in runs.items()
        ]
        tables = [align(["part", "seconds"], parts)]
        return "\n\n".join([*tables, *([align(["case", "seconds", "loading", "measuring"], cases)] if cases else [])])


def quickstart(
    cache: Path, arguments: Sequence[str], timings: Timings | None = None, root: Path = REPOSITORY, name: str = WORKLOAD
) -> int:
    """Run a workload's quick cases and print the table; return ctest's exit code. `arguments` are those of ctest.sh."""
    timings, told = timings or Timings(0), timings
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what stages or configures is ended with us
    source, build = root / "workload" / name, root / "build"
    workload, cpu = load_workload(source), read_cpuinfo()
    int8 = any(one.is_int8 and not missing_for_precision(one, cpu.flags) for one in PRECISIONS.values())
    # The directory may have been configured for containers, which cmake remembers.
    configure(root, build, detect_platform(cpu), ["-DBACKEND=native"])
    timings.note("configure")
    directory, tool = build / "workload" / name, find_tool("ctest")
    is_choice = any(word.split("=")[0] in CHOOSING for word in arguments)
    if arguments:
        ctest.check_choice(directory, tool, arguments)  # a slip is told before minutes of staging
    stage_engine(workload.engine, cpu, cache, int8=int8)  # before the first of the quick cases is timed by ctest
    timings.note("stage")
    before, foreign = _runs(directory), set[Path]()

    def run_choice(choice: Sequence[str]) -> int:
        code = ctest.run_script(directory, tool, source, [*choice, *arguments], source / DEFAULTS)
        foreign.update(_runs_of_others(directory))  # the next call removes what tells of those that are over
        return code

    def new_runs() -> dict[Path, RunResult]:
        logs = _runs(directory) - before - foreign
        return {path: load_run(path) for path in sorted(logs, key=lambda path: (path / RUN_FILE).stat().st_mtime)}

    precisions: list[PrecisionName] = []
    lacking: list[str] = []
    if is_choice:
        code = run_choice([])
    else:
        declared = [workload.parse_case(case) for case in list_cases(directory, [tool])]
        precisions, lacking = _split_precisions(declared, cpu, find_engine(workload.engine))
        code = run_choice(_choose(_first_cases(workload.slug, precisions)))
        if code < 128:  # else it was interrupted
            fastest = TestCase(workload.slug, "latency", _fastest(precisions, new_runs().values()))
            code = run_choice(_choose([fastest])) or code
    timings.note("run the cases")
    if runs := new_runs():
        results = list(runs.values())
        repeated = len(results) > len({result.case for result in results})  # by --set or --loop
        print("\n" + (precision_table(results, precisions) if precisions and not repeated else kpi_table(results)))
        print("\nlogs:")
        print("\n".join(f"  {path}" for path in runs))
        print(f"\n{end_with_page(list(runs), directory / PAGE)}")
        timings.note("write the page")
    for reason in lacking:
        print(f"not run: {reason}")
    if told:
        print(f"\n{told.table(runs)}")
    return code


def _split_precisions(
    declared: Iterable[TestCase], cpu: CpuInfo, engine: Engine
) -> tuple[list[PrecisionName], list[str]]:
    """Return the platform's precisions that can run here, in its order, and why the others cannot."""
    missing = {case.precision: _obstacles(PRECISIONS[case.precision], cpu, engine) for case in declared}
    runnable = [precision for precision, reasons in missing.items() if not reasons]
    lacking = [reason for reasons in missing.values() for reason in reasons]
    if not runnable:
        raise SkippedError("\n".join(["no precision of this platform can run here:", *lacking]))
    return runnable, lacking


def _obstacles(precision: Precision, cpu: CpuInfo, engine: Engine) -> list[str]:
    """Return why a precision's cases would be skipped here; empty when they can run."""
    missing = missing_for_precision(precision, cpu.flags)
    if not missing and precision.is_int8 and (obstacle := graph_quantizer_obstacle(engine)):
        return [f"{precision.name}: {obstacle}"]
    return missing


def _first_cases(slug: str, precisions: Iterable[PrecisionName]) -> list[TestCase]:
    """Return the cases that every precision has its row of the table from."""
    return [
        case
        for precision in precisions
        for case in (TestCase(slug, "throughput", precision, "pkm"), TestCase(slug, "accuracy", precision))
    ]


def _choose(cases: Iterable[TestCase]) -> list[str]:
    """Return ctest's choice of these cases."""
    return ["-R", "|".join(f"^{case.name}$" for case in cases)]


def _fastest(precisions: Sequence[PrecisionName], runs: Iterable[RunResult]) -> PrecisionName:
    """Return the precision of the highest throughput measured, the first one when there is none."""
    throughput = primary_kind("throughput").name
    rates = {
        run.requested["PRECISION"]: kpi.value
        for run in runs
        for kpi in run.kpis
        if kpi.primary and kpi.key == throughput and run.verdict != "invalid"
    }
    return max(precisions, key=lambda precision: rates.get(precision, 0.0))


def _runs_of_others(directory: Path) -> set[Path]:
    """Return the logs of the runs of other calls than those of this process, in the same directory meanwhile."""
    seen = read_build(directory)
    ended = [end for one in seen.calls if one.call.pid != os.getpid() for end in one.ended]
    return {Path(end.logs) for end in (*ended, *seen.ended_alone) if end.logs}


def _runs(directory: Path) -> set[Path]:
    return {path.parent for path in directory.glob(f"logs-*/itr-*/{WORKER}/{RUN_FILE}")}
