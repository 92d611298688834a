"""Run a workload's cases through ctest, once for each combination of a sweep.

What this adds to ctest is checked in full before ctest runs a case; every other argument goes to ctest as it is.
"""

import contextlib
import fnmatch
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from cnnbench.base.errors import UsageError
from cnnbench.base.progress import STREAM_VARIABLE
from cnnbench.base.signals import end_with_parent
from cnnbench.cases.case import FIXED_BY_NAME, Settings, parse_arguments
from cnnbench.cases.parameters import FIELDS, accepted, default_text
from cnnbench.cases.sets import Combination, read_sweep
from cnnbench.cases.workload import DEFAULTS_VARIABLE, DIRECTORY_VARIABLE, Sources, Workload, load_workload
from cnnbench.cli.selection import check_case, list_cases, runs_cases, select_cases
from cnnbench.launch.container import stop_containers

CONFIG_VARIABLE = "CNNBENCH_CONFIG"
OPTIONS_VARIABLE = "CNNBENCH_OPTIONS"
DRY_RUN_VARIABLE = "CNNBENCH_DRY_RUN"
SKIPS_VARIABLE = "CNNBENCH_SKIPS"
"""Environment variable: the file that skipped cases write their reasons to, of which ctest shows nothing."""

HELP = """\
ctest.sh [OPTION]... [CTEST ARGUMENT]...

Run this workload's test cases. Options:
  --set "BATCH_SIZE=1 8 32/CORES_PER_INSTANCE=1 2"
                    run once for each combination of these values. 1 2 4 ...32 is a geometric and 1 3 5 ...9 a linear
                    series. / permutes, the first name changing slowest; several --set zip
  --loop N          do everything N times
  --config FILE     settings file: yaml, globs of case names to parameters
  --testcase NAME   run this case only
  --options "..."   more parameters for each case, such as "--batch_size=1 --weight_sharing"
  --continue        go on after a run in which a case failed; the first failure's exit code stays
  --dry-run         print each case's plan, measure nothing
  --describe-params list the parameters: default, accepted values, meaning
  --stop            end this workload's containers and remove them; other builds' are left alone
  -h, --help        this text
Everything else goes to ctest unchanged, such as -N (list), -R REGEX (choose by name), -L LABEL (choose by mode,
precision, case type or platform) and -V (show what the cases print); see ctest --help. To choose no case at all is an
error, unless --no-tests=ignore says that it may be so.
"""

_GRACE_S = 15.0


@dataclass
class _Options:
    """What the command line asks for; `rest` goes to ctest."""

    sets: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    rest: list[str] = field(default_factory=list)

    @property
    def loop(self) -> int:
        text = self.values.get("--loop", "1")
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--loop {text}: must be a whole number of 1 or more")
        return int(text)

    @property
    def is_plain(self) -> bool:
        """Say whether there is nothing to do but to call ctest."""
        return not (self.sets or self.values or self.flags - {"--continue"})


@dataclass(frozen=True)
class _Run:
    """One call of ctest: its environment on top of ours, and the line that announces it."""

    settings: Mapping[str, str]
    announcement: str


def main(
    build_dir: Path,
    ctest: str,
    workload_dir: Path,
    arguments: Sequence[str],
    defaults: Path | None = None,
    container_cli: Sequence[str] = (),
) -> int:
    """Do what ctest.sh is called for; return the exit code, of ctest's runs the first one that is not 0.

    `build_dir`: the workload's build directory. `ctest`: the program. `defaults`: a settings file weaker than
    `--config`. `container_cli`: the engine's command line, where cases run in containers. Raises UsageError before
    ctest runs any case.
    """
    options = _parse(arguments)
    if options.flags & {"-h", "--help"}:
        print(HELP, end="")
        return 0
    if "--stop" in options.flags:
        return _stop(container_cli, build_dir)
    workload = load_workload(workload_dir)
    if "--describe-params" in options.flags:
        print(describe_parameters(workload))
        return 0
    combinations = read_sweep(options.sets)
    common = _common_settings(options, defaults)
    command = _make_command(build_dir, ctest, options)
    cases = select_cases(build_dir, command) if runs_cases(options.rest) else []
    if options.is_plain or not runs_cases(options.rest):  # a sweep would only repeat what it lists
        return _run_ctest(command, build_dir, {**os.environ, **common})
    _check_settings(workload, build_dir, command[0], cases, combinations, common)
    if DRY_RUN_VARIABLE in common:
        command.insert(1, "-V")
    return _run_all(command, build_dir, _plan_runs(combinations, options.loop, common), "--continue" in options.flags)


def check_choice(build_dir: Path, ctest: str, arguments: Sequence[str]) -> None:
    """Raise UsageError where ctest.sh, called with these arguments, would have no case to run."""
    options = _parse(arguments)
    command = _make_command(build_dir, ctest, options)
    if runs_cases(options.rest):
        select_cases(build_dir, command)


def _make_command(build_dir: Path, ctest: str, options: _Options) -> list[str]:
    """Return the command of ctest that runs the cases chosen."""
    chosen: list[str] = []
    if name := options.values.get("--testcase"):
        check_case(name, list_cases(build_dir, [ctest]))
        chosen = ["-R", f"^{name}$"]
    return [ctest, *options.rest, *chosen]


def _stop(container_cli: Sequence[str], build_dir: Path) -> int:
    if not container_cli:
        raise UsageError("--stop: removes containers, and BACKEND=native has none; a Ctrl-C ends a case")
    for name in stop_containers(container_cli, build_dir):
        print(f"removed {name}")
    return 0


def _parse(arguments: Sequence[str]) -> _Options:
    """Take this module's own options out; by hand, as argparse does not leave the others alone."""
    options = _Options()
    remaining = iter(arguments)
    for word in remaining:
        name, separator, value = word.partition("=")
        if word in ("-h", "--help", "--describe-params", "--continue", "--dry-run", "--stop"):
            options.flags.add(word)
        elif name in ("--set", "--loop", "--config", "--testcase", "--options"):
            text = value if separator else next(remaining, None)
            if not text:
                raise UsageError(f"{name}: needs a value; see --help")
            if name == "--set":
                options.sets.append(text)
            elif name in options.values:
                raise UsageError(f"{name}: given twice; give it once")
            else:
                options.values[name] = text
        elif name.startswith("--") and name[2:].upper().replace("-", "_") in FIELDS and word != "--verbose":  # ctest's
            parameter = name[2:].upper().replace("-", "_")
            raise UsageError(f'{word}: ctest would ignore it; give it as --set "{parameter}=..." or --options "{word}"')
        else:
            options.rest.append(word)
    return options


def _common_settings(options: _Options, defaults: Path | None) -> dict[str, str]:
    """Return the environment that every run has, for `cnnbench case` to read."""
    settings = {DIRECTORY_VARIABLE: str(Path.cwd())}
    if defaults:
        settings[DEFAULTS_VARIABLE] = str(defaults.absolute())
    if config := options.values.get("--config"):
        settings[CONFIG_VARIABLE] = str(Path(config).absolute())
    if text := options.values.get("--options"):
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"--options {text}: {error}; quote it as for a shell") from error
        settings[OPTIONS_VARIABLE] = json.dumps(words)
    if "--dry-run" in options.flags:
        settings[DRY_RUN_VARIABLE] = "1"
    return settings


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


def _run_all(command: Sequence[str], build_dir: Path, runs: Sequence[_Run], go_on: bool) -> int:
    """Run them in order; stop at the first failure unless told to go on. Return the first exit code that is not 0."""
    first_failure = 0
    for run in runs:
        if run.announcement:
            print(run.announcement, flush=True)
        code = _run_ctest(command, build_dir, {**os.environ, **run.settings})
        first_failure = first_failure or code
        if code >= 128 or (code and not go_on):
            break
    return first_failure


def _run_ctest(command: Sequence[str], build_dir: Path, environment: Mapping[str, str]) -> int:
    """Run ctest, then print why cases were skipped; return its exit code, or 128 + N when signal N has ended it."""
    with tempfile.NamedTemporaryFile("r", prefix="cnnbench-skips-") as skips, _lead_progress_around(command) as led:
        weaker = {"CTEST_OUTPUT_ON_FAILURE": "1", **led}
        code = _run_to_the_end(command, build_dir, {**weaker, **environment, SKIPS_VARIABLE: skips.name})
        for line in skips:
            print(f"skipped: {line}", end="", flush=True)
    return code


def record_skip(case: str, reason: str, environ: Mapping[str, str]) -> None:
    """Leave a skipped case's reason to the ctest.sh that it runs under, if any."""
    if path := environ.get(SKIPS_VARIABLE):
        with Path(path).open("a") as file:
            file.write(f"{case}: {reason.removeprefix(f'{case}: ')}\n")


def _run_to_the_end(command: Sequence[str], build_dir: Path, environment: Mapping[str, str]) -> int:
    """Run ctest and leave no process of it; return its exit code, or 128 + N when signal N has ended it.

    ctest neither hands a signal on to its cases nor waits for them. So it gets a session of its own, all of which is
    signalled and waited for here. Where we are killed ourselves, the kernel kills ctest, and its cases end with it.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if process:
            _signal_session(process.pid, number)

    with _handle_signals(forward):
        bound = partial(end_with_parent, os.getpid(), signal.SIGKILL)
        process = subprocess.Popen(command, cwd=build_dir, env=environment, start_new_session=True, preexec_fn=bound)
        if received:  # before there was a process to forward it to
            _signal_session(process.pid, received[0])
        code = process.wait()
        if code < 0 and not received:
            _signal_session(process.pid, signal.SIGTERM)
        if code < 0 or received:
            _end_session(process.pid)
    return 128 + received[0] if received else 128 - code if code < 0 else code


def _copy_lines(lines: TextIO, stream: TextIO) -> None:
    for line in lines:
        print(line, end="", file=stream, flush=True)


@contextlib.contextmanager
def _lead_progress_around(command: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield what leads a case's progress around ctest to our standard error, unless ctest shows all it prints.

    A terminal is written to directly, for the bars. Anything else gets the lines through a pipe of ours: a file that
    two processes have opened each for itself would be overwritten by turns.
    """
    if {"-V", "-VV", "--verbose", "--extra-verbose"}.intersection(command):
        yield {}
    elif sys.stderr.isatty():
        yield {STREAM_VARIABLE: f"/proc/{os.getpid()}/fd/2"}
    else:
        reading, writing = os.pipe()
        with open(reading) as lines, open(writing, "w") as end:  # noqa: PTH123 - descriptors, not paths
            copier = threading.Thread(target=_copy_lines, args=(lines, sys.stderr))
            copier.start()
            try:
                yield {STREAM_VARIABLE: f"/proc/{os.getpid()}/fd/{end.fileno()}"}
            finally:
                end.close()
                copier.join()


@contextlib.contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have this handler called for the signals that ask to stop, except those that we were started to ignore."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _signal_session(session: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, number)  # ctest and its cases share the group that the session began with


def _end_session(session: int) -> None:
    """Wait for the cases to put things in order, and kill what is left when their time is up."""
    deadline_s = time.monotonic() + _GRACE_S
    while _is_session_alive(session) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    _signal_session(session, signal.SIGKILL)


def _is_session_alive(session: int) -> bool:
    """Say whether a process of this session still runs; a zombie, which only waits to be reaped, does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _parent, _group, its_session, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_session) == session and state != "Z":
                return True
    return False


def describe_parameters(workload: Workload) -> str:
    """Return the table of parameters as aligned markdown, with the workload's own defaults where it has any."""
    rows: list[tuple[str, ...]] = [("parameter", "default", "accepted", "meaning")]
    rows += [
        (name, _describe_default(name, workload), _describe_accepted(name, workload), FIELDS[name].description or "")
        for name in workload.parameters
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows
    )


def _describe_accepted(name: str, workload: Workload) -> str:
    own = {"TOPOLOGY": workload.networks, "PRECISION": workload.precisions}
    return ", ".join(own[name]) if name in own else accepted(name)


def _describe_default(name: str, workload: Workload) -> str:
    if name in FIXED_BY_NAME and (name != "TOPOLOGY" or workload.topologies):
        return "by the case's name"
    default = workload.engine if name == "ENGINE" else default_text(name)
    own = {glob: settings[name] for glob, settings in workload.defaults.items() if name in settings}
    if all(value == default for value in own.values()):
        return default
    return "; ".join([default, *(f"`{glob}` {value}" for glob, value in own.items())])
