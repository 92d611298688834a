"""`cnnbench validate`: all cases that this platform has, run to a verdict, and started again where they were ended."""

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.disk import check_directory, explain_refusals, held, make_directory
from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.case import estimate_run_s, parse_arguments
from cnnbench.cases.expectation import expectation_file, load_expectations
from cnnbench.cases.platforms import check_platform, detect_platform
from cnnbench.cases.workload import load_sections, load_workload
from cnnbench.cli.validating import Stand, check_cmake_options, find_workloads
from cnnbench.machine.activity import check_activity, check_throttling, look_at, read_throttled
from cnnbench.machine.checks import Check, Place, check_settings
from cnnbench.machine.contention import with_siblings
from cnnbench.machine.host import HOST_PROC, read_cpuinfo
from cnnbench.machine.topology import HOST_SYSFS, read_topology
from cnnbench.report.page.page import PAGE, end_with_page
from cnnbench.report.text import Footnotes, align, printable, wrap
from cnnbench.results.kpi_text import format_number
from cnnbench.validation.expected import MIN_RUNS, check_writable, write_expected
from cnnbench.validation.outcome import Outcome, count_due, estimate_left_s, next_due, primary
from cnnbench.validation.plan import (
    BUILD,
    DEFAULT_REPEATS,
    RUNS,
    CaseChoice,
    Depth,
    Plan,
    PlannedMachine,
    WorkloadSettings,
    environment_settings,
    read_plan,
    tell_differences,
    write_plan,
)
from cnnbench.validation.verdict import Verdict, judge_expectation, verdict_json, verdict_text, why

VERDICT_FILE = "verdict.json"
LOOK_S = 1.0
"""How long apart the two looks are that tell what goes on on the cores."""
MOST_RUNS, MOST_REPEATS = 100, 20
REMEDY = "make room, or give another directory with -o"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="the gated and pkm cases, for a few seconds each")
    depth.add_argument("--full", action="store_true", help=f"every case {RUNS['full']} times (default: once)")
    depth.add_argument("--check", action="store_true", help="look at the machine only; exit code 1 where it is poor")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="(default: validate-<PLATFORM>-<host>)")
    parser.add_argument("--workload", action="append", default=[], metavar="NAME", help="only this; may be repeated")
    for short, long in (("-R", "--tests-regex"), ("-E", "--exclude-regex"), ("-L", "--label-regex")):
        parser.add_argument(short, long, metavar="REGEX", help="choose cases, as for ctest")
    parser.add_argument("--platform", help="whose cases to run (default: detected)")
    parser.add_argument("--backend", choices=["native", "docker"], default="native")
    parser.add_argument(
        "-D",
        dest="cmake",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of cmake's",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: the platform's bkm-*.yaml)")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each case")
    parser.add_argument(
        "--repeats",
        type=int,
        default=DEFAULT_REPEATS,
        metavar="N",
        help="more of an unstable case (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and how long it takes, and stop")
    parser.add_argument("--replan", action="store_true", help="go on in DIR though its plan or machine was another")
    parser.add_argument("--write-expect", action="store_true", help="write expect/<PLATFORM>.yaml of what was measured")
    parser.add_argument("--overwrite", action="store_true", help="have --write-expect replace what is there")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="of the verdict")
    parser.epilog = (
        "Parameters of all cases are given as --batch_size=1. The same command goes on where it was ended. Exit codes: "
        "4 when a case is below what is expected, else 3 when one is INVALID, else 1 when one has failed, else 0."
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the machine, run what has no result yet, and print the verdict."""
    return validate(arguments, REPOSITORY)


def validate(arguments: argparse.Namespace, root: Path) -> int:
    """Validate with the workloads of a checkout; return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what configures is ended with us
    if arguments.check:
        checks = check_machine(LOOK_S)
        print(checks_text(checks))
        return 1 if any(one.state == "poor" for one in checks) else 0
    depth: Depth = "quick" if arguments.quick else "full" if arguments.full else "default"
    runs = RUNS[depth] if arguments.runs is None else arguments.runs
    _check_counts(runs, arguments.repeats)
    parse_arguments(arguments.rest)
    if arguments.config:
        load_sections(arguments.config)
    options = check_cmake_options(arguments.cmake)
    cpu = read_cpuinfo()
    code = check_platform(arguments.platform) if arguments.platform else detect_platform(cpu)
    directories, lacking = find_workloads(root, arguments.workload, code)
    if arguments.write_expect:
        if runs < MIN_RUNS:
            raise UsageError(
                f"--write-expect: {runs} runs of each case; needed {MIN_RUNS}: --full or --runs {MIN_RUNS}"
            )
        check_writable([expectation_file(path, code) for path in directories], arguments.overwrite)
    for path in directories:  # a slip in what is expected is told before hours of measuring
        load_expectations(path, code)
    machine = PlannedMachine.of(cpu)
    folder: Path = arguments.output or Path(f"validate-{code}-{re.sub(r'[^A-Za-z0-9._-]', '_', machine.host)}")
    settings = [
        WorkloadSettings.choose(path, load_workload(path), code, depth, arguments.config, len(read_topology().cores))
        for path in directories
    ]
    lacking += [one.note for one in settings if one.note]
    before = read_plan(folder)

    def make_plan(cases: Sequence[CaseChoice]) -> Plan:
        return Plan(
            platform=code,
            machine=machine,
            backend=arguments.backend,
            cmake=tuple(arguments.cmake),
            depth=depth,
            runs=runs,
            repeats=arguments.repeats,
            options=tuple(arguments.rest),
            environment=environment_settings(os.environ),
            files={path: digest for one in settings for path, digest in one.files.items()},
            cases=tuple(cases),
        )

    if arguments.dry_run:
        with tempfile.TemporaryDirectory(prefix="cnnbench-plan-") as build:
            listed = Stand.set_up(root, Path(build), code, arguments.backend, options, settings)
            plan = make_plan(listed.list_cases(_filters(arguments), depth))
        _print_plan(Stand(folder / BUILD, listed.settings), plan, folder, before, lacking)
        return 0
    check_directory(f"-o {folder}", folder)
    make_directory(folder, REMEDY)
    with held(folder, f"-o {folder}: another validation is at work there; wait until it ends"):
        if before:  # before anything is configured there
            _refuse_another(folder, before, make_plan(before.cases), arguments.replan)
        stand = Stand.set_up(root, folder / BUILD, code, arguments.backend, options, settings)
        plan = make_plan(stand.list_cases(_filters(arguments), depth))
        _refuse_another(folder, before, plan, arguments.replan)
        with explain_refusals(folder, REMEDY):
            write_plan(folder, plan)
        if arguments.backend == "docker" and not any(text.startswith("REGISTRY=") for text in arguments.cmake):
            stand.make_images()
        return _validate_in(folder, stand, plan, lacking, arguments)


def _refuse_another(folder: Path, before: Plan | None, plan: Plan, replan: bool) -> None:
    """Raise UsageError where a folder is of another plan than this, unless it is to go on with this one."""
    if before and before != plan and not replan:
        told = "\n".join(f"  {text}" for text in tell_differences(before, plan))
        raise UsageError(
            f"{folder}: is of another plan:\n{told}\ngive another -o, or --replan to go on there with this"
        )


def _validate_in(folder: Path, stand: Stand, plan: Plan, lacking: Sequence[str], arguments: argparse.Namespace) -> int:
    checks = check_machine(LOOK_S)
    if arguments.format == "table":
        print(f"{checks_text(checks)}\n", flush=True)
    guesses, throttled = _guess(stand, plan), read_throttled(HOST_SYSFS)
    try:
        outcomes = _run_all(stand, plan, guesses)
    except KeyboardInterrupt:
        _say(f"what has a result is in {folder}; the same command goes on from there")
        raise
    checks.append(_rename(check_throttling(throttled, read_throttled(HOST_SYSFS), "while this was run")))
    verdict = _judge(stand, plan, outcomes, lacking)
    json_text = verdict_json(verdict, checks=[asdict(one) for one in checks])
    with explain_refusals(folder, REMEDY):
        (folder / VERDICT_FILE).write_text(json_text + "\n", encoding="utf-8")
    page = ""
    if logs := [stand.logs(one.choice) for one in outcomes if one.runs]:
        page = end_with_page(logs, folder / PAGE)
    if arguments.format == "json":
        print(json_text)
    else:
        if checks[-1].state == "poor":
            print(f"throttled by heat: {checks[-1].found}\n")
        print(f"{plan.platform}, {plan.machine.cpu}, {plan.machine.host}: {plan.depth} validation\n")
        print(verdict_text(verdict))
    for text in filter(None, [page, f"verdict: {folder / VERDICT_FILE}"]):
        print(text, file=sys.stderr if arguments.format == "json" else sys.stdout)
    if arguments.write_expect:
        _write_expected(stand, plan, outcomes)
    if all(one.state == "skipped" for one in outcomes):
        raise SkippedError("no case of this platform can run here; the reasons are above")
    return verdict.exit_code


def check_machine(seconds: float) -> list[Check]:
    """Look at this machine's settings, and for some time at what goes on on the cores that may be used."""
    place = Place(HOST_SYSFS, HOST_PROC)
    cpus = sorted(with_siblings(cpu for core in read_topology().cores for cpu in core.cpus))
    first = look_at(place, time.monotonic(), cpus)
    time.sleep(seconds)
    last = look_at(place, time.monotonic(), cpus)
    return [*check_settings(place), *check_activity(first, last, cpus, (os.getpid(), os.getppid()))]


def checks_text(checks: Sequence[Check]) -> str:
    """Tabulate what was found of the machine; remedies, and why something is not known, stand below."""
    notes, cells = Footnotes(), []
    for one in checks:
        known = one.state != "not known"
        told = f"{one.knob}: {one.remedy}" if one.remedy else "" if known else one.found
        found = printable(one.found) if known else ""
        cells.append([one.knob, notes.cite(one.state, printable(told)), found, one.wanted])
    return notes.below(align(["knob", "state", "found", "wanted"], cells))


def _rename(check: Check) -> Check:
    return Check("throttling of the cases", check.state, check.found, check.wanted, check.remedy)


def _check_counts(runs: int, repeats: int) -> None:
    if not 1 <= runs <= MOST_RUNS:
        raise UsageError(f"--runs {runs}: must be 1 to {MOST_RUNS}")
    if not 0 <= repeats <= MOST_REPEATS:
        raise UsageError(f"--repeats {repeats}: must be 0 to {MOST_REPEATS}")


def _filters(arguments: argparse.Namespace) -> list[str]:
    given = {"-R": arguments.tests_regex, "-E": arguments.exclude_regex, "-L": arguments.label_regex}
    return [word for option, text in given.items() if text is not None for word in (option, text)]


def _guess(stand: Stand, plan: Plan) -> dict[CaseChoice, float]:
    """Return about how long (s) a run of each case takes; raise UsageError for a setting that no run would take."""
    guesses = {}
    for choice in plan.cases:
        settings = stand.settings[choice.workload]
        case = settings.workload.parse_case(choice.case)
        guesses[choice] = estimate_run_s(settings.resolve(case, plan.options, os.environ))
    return guesses


def _print_plan(stand: Stand, plan: Plan, folder: Path, before: Plan | None, lacking: Sequence[str]) -> None:
    """Print what would be run; `stand`: with the build directory that the folder has or would have."""
    guesses = _guess(stand, plan)
    outcomes = [stand.read_outcome(choice, plan)[0] for choice in plan.cases]
    cells = [
        [
            one.choice.case,
            str(len(one.runs)) if one.runs else "",
            str(count_due(one, plan.runs, plan.repeats)),
            _duration(estimate_left_s([one], plan.runs, plan.repeats, guesses)),
        ]
        for one in outcomes
    ]
    print(align(["case", "runs there", "runs due", "about"], cells))
    total = _duration(estimate_left_s(outcomes, plan.runs, plan.repeats, guesses))
    told = (
        f"{plan.platform}, {plan.backend}, {plan.depth}: {len(plan.cases)} cases, about {total} in all, and up to "
        f"{plan.repeats} more runs of each that is unstable; what is yet to be staged or built takes longer"
    )
    print(f"\n{wrap(told, more='')}")
    for path in plan.files:
        print(f"settings: {path}")
    print(f"folder: {folder}")
    for text in lacking:
        print(text)
    if before and before != plan:
        print("the folder is of another plan, so --replan would be needed:")
        print("\n".join(f"  {text}" for text in tell_differences(before, plan)))


def _run_all(stand: Stand, plan: Plan, guesses: Mapping[CaseChoice, float]) -> list[Outcome]:
    """Run what is due, one case after the other; return what all have come to."""
    found = {choice: stand.read_outcome(choice, plan) for choice in plan.cases}
    outcomes = {choice: outcome for choice, (outcome, _) in found.items()}
    for text in (text for _, told in found.values() for text in told):
        _say(f"not counted: {text}")
    total = plan.runs * len(plan.cases)
    while due := next_due(list(outcomes.values()), plan.runs, plan.repeats):
        left_s = estimate_left_s(list(outcomes.values()), plan.runs, plan.repeats, guesses)
        ended = [one for one in outcomes.values() if one.skipped or one.failed]
        done = sum(min(len(one.runs), plan.runs) for one in outcomes.values() if one not in ended)
        done += plan.runs * len(ended)
        what = f"run {done + 1} of {total}" if len(due.runs) < plan.runs else "again, as it was unstable"
        _say(f"{due.choice.case}: {what}; about {_duration(left_s)} left")
        outcomes[due.choice] = one = stand.run_case(due.choice, plan)
        _say(f"  {_describe(one)}")
    return list(outcomes.values())


def _describe(one: Outcome) -> str:
    """Say what a case's last run came to."""
    if one.failed or one.skipped or not one.runs:
        return f"{'failed' if one.failed else 'skipped'}: {why(Outcome(one.choice, (), one.skipped, one.failed))}"
    run = one.runs[-1].run
    if run.verdict == "invalid":
        return f"INVALID: {run.reason}"
    kpi = primary(run)
    return f"{format_number(kpi.value)} {kpi.unit}, {run.verdict}{f': {run.reason}' if run.reason else ''}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _judge(stand: Stand, plan: Plan, outcomes: Sequence[Outcome], lacking: Sequence[str]) -> Verdict:
    by_case = {(one.choice.workload, one.choice.case): one for one in outcomes}
    judged, without = [], list(lacking)
    for name, one in stand.settings.items():
        expected = load_expectations(one.directory, plan.platform)
        if expected is None:
            without.append(f"{name}: no expectation: {expectation_file(one.directory, plan.platform)} is not there")
        for entry in expected or ():
            precision = one.workload.parse_case(entry.case).precision
            judged.append(judge_expectation(entry, name, precision, by_case.get((name, entry.case))))
    precisions = {key: stand.settings[key[0]].workload.parse_case(key[1]).precision for key in by_case}
    return Verdict(plan.platform, outcomes, precisions, judged, without)


def _write_expected(stand: Stand, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    for name, one in stand.settings.items():
        path, told = write_expected(one.directory, plan, [out for out in outcomes if out.choice.workload == name])
        _say(f"wrote {path}" if path else f"{name}: nothing to expect yet")
        for text in told:
            _say(f"  left out: {text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
