"""Run a workload's cases through ctest, once for each combination of --set, when all are known to make sense."""

import fnmatch
import itertools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cases.case import Settings, parse_arguments
from cnnbench.cases.sets import Combination, read_sweep
from cnnbench.cases.variables import CONFIG_VARIABLE, DRY_RUN_VARIABLE, OPTIONS_VARIABLE
from cnnbench.cases.workload import Sources, Workload, load_workload
from cnnbench.cli.ctest_process import run_ctest
from cnnbench.cli.selection import list_cases, runs_cases, select_cases
from cnnbench.run.status import Call


@dataclass(frozen=True)
class _Run:
    """One call of ctest: its environment on top of ours, and the line that announces it."""

    settings: Mapping[str, str]
    announcement: str


def run_sets(
    workload_dir: Path,
    build_dir: Path,
    command: Sequence[str],
    sets: Sequence[str],
    loop: int,
    common: Settings,
    go_on: bool,
) -> int:
    """Run the cases that a command of ctest chooses with each combination of `sets`, all of that `loop` times.

    `common`: the environment that every run has. `go_on`: whether to, after a run in which a case failed. Raises
    UsageError before ctest runs any case. Returns the first exit code of ctest's that is not 0.
    """
    workload, combinations = load_workload(workload_dir), read_sweep(sets)
    ctest, *words = command
    if not runs_cases(words):  # a sweep would only repeat what it lists
        return run_ctest(command, build_dir, {**os.environ, **common})
    selected = select_cases(build_dir, command)
    _check_settings(workload, build_dir, ctest, selected, combinations, common)
    shown = ["-V"] if DRY_RUN_VARIABLE in common else []
    runs = _plan_runs(combinations, loop, common)
    call = None if shown else Call(build_dir, selected, len(runs))
    return _run_all([ctest, *shown, *words], build_dir, runs, go_on, call)


def _check_settings(
    workload: Workload,
    build_dir: Path,
    ctest: str,
    selected: Sequence[str],
    combinations: Sequence[Combination],
    common: Settings,
) -> None:
    """Resolve every selected case with every combination, as each run will, so that a bad value stops them all."""
    cases = [workload.parse_case(name) for name in selected]
    config = common.get(CONFIG_VARIABLE)
    sources = Sources.read(workload, {**os.environ, **common}, Path(config) if config else None)
    every_case = list_cases(build_dir, [ctest]) if config else []
    for glob in itertools.chain(*sources.config.values()):
        if not any(fnmatch.fnmatchcase(name, glob) for name in every_case):
            raise UsageError(f"{config}, section {glob}: matches no case of {workload.name} here; -N lists them")
    options = parse_arguments(json.loads(common.get(OPTIONS_VARIABLE, "[]")))
    for case, combination in itertools.product(cases, combinations):
        sources.resolve(case, {"--set": combination, "--options": options})


def _plan_runs(combinations: Sequence[Combination], loop: int, common: Settings) -> list[_Run]:
    count = loop * len(combinations)
    is_sweep = count > 1 or any(combinations)
    return [
        _Run({**common, **combination}, f"run {number} of {count}: {_describe(combination)}" if is_sweep else "")
        for number, combination in enumerate(list(combinations) * loop, start=1)
    ]


def _describe(combination: Combination) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in combination.items()) or "as declared"


def _run_all(command: Sequence[str], build_dir: Path, runs: Sequence[_Run], go_on: bool, call: Call | None) -> int:
    """Run them in order; stop at the first failure unless told to go on. Return the first exit code that is not 0."""
    first_failure = 0
    for number, run in enumerate(runs, start=1):
        if run.announcement:
            print(run.announcement, flush=True)
        if call:
            call.begin_run(number, run.announcement.partition(": ")[2])
        name = call.status.name if call else ""
        code = run_ctest(command, build_dir, {**os.environ, **run.settings}, name)
        first_failure = first_failure or code
        if code >= 128 or (code and not go_on):
            break
    if call:
        call.end(first_failure)
    return first_failure
