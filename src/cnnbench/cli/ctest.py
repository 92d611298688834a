"""`cnnbench ctest`: what ctest.sh does besides calling ctest; every argument that is not its own goes there as it is.

Listing the cases needs no more than ctest, and running them as they are declared no more than that and their status:
both are done without the modules that know parameters and workloads, which take longer to import than ctest to answer.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cases.variables import (
    CONFIG_VARIABLE,
    DEFAULTS_VARIABLE,
    DIRECTORY_VARIABLE,
    DRY_RUN_VARIABLE,
    OPTIONS_VARIABLE,
)
from cnnbench.cli.ctest_process import run_ctest
from cnnbench.cli.options import split_words
from cnnbench.cli.selection import FLAGS, VALUED, check_case, list_cases, runs_cases, select_cases

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
  --status [DIR]... tell from another terminal what runs here, and in other workloads' build directories, how far it is,
                    and what ran last
  --describe-params list the parameters: default, accepted values, meaning
  --stop            end this workload's containers, remove them and their networks; other builds' are left alone
  -h, --help        this text
Everything else goes to ctest unchanged, such as -N (list), -R REGEX (choose by name), -L LABEL (choose by mode,
precision, case type or platform) and -V (show what the cases print); see ctest --help. To choose no case at all is an
error, unless --no-tests=ignore says that it may be so.
"""


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; those of ctest.sh come after --."""
    parser.add_argument("--build-dir", type=Path, required=True, help="the workload's build directory")
    parser.add_argument("--ctest", required=True, metavar="PROGRAM", help="which ctest")
    parser.add_argument("--workload", type=Path, required=True, help="the workload's directory")
    parser.add_argument("--container-cli", default="", help="the engine's, where cases run in containers")
    parser.epilog = "What follows -- is for ctest.sh: cnnbench ctest ... -- --help has its options."


def run(arguments: argparse.Namespace) -> int:
    """Do what ctest.sh is called for."""
    cli = split_words("--container-cli", arguments.container_cli)
    return run_script(arguments.build_dir, arguments.ctest, arguments.workload, arguments.rest, container_cli=cli)


def run_script(
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
    if "--status" in options.flags:
        return _print_status(build_dir, options)
    if "--describe-params" in options.flags:
        return _describe_parameters(workload_dir)
    common = _common_settings(options, defaults)
    command = _make_command(build_dir, ctest, options)
    if options.is_plain:
        environment = {**os.environ, **common}
        if not runs_cases(options.rest):
            return run_ctest(command, build_dir, environment)
        return _run_told(command, build_dir, environment, select_cases(build_dir, command))
    from cnnbench.cli.ctest_sets import run_sets

    go_on = "--continue" in options.flags
    return run_sets(workload_dir, build_dir, command, options.sets, options.loop, common, go_on)


def _run_told(command: Sequence[str], build_dir: Path, environment: Mapping[str, str], cases: Sequence[str]) -> int:
    """Run ctest once, and tell how far its cases are."""
    from cnnbench.run.status import Call

    call = Call(build_dir, cases, runs=1)
    code = run_ctest(command, build_dir, environment, call.status.name)
    call.end(code)
    return code


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
    from cnnbench.launch.container import stop_containers

    for name in stop_containers(container_cli, build_dir):
        print(f"removed {name}")
    return 0


def _print_status(build_dir: Path, options: _Options) -> int:
    """Print how far the cases of this build and of others are; return 1 where a file that tells it cannot be read."""
    others = [Path(word) for word in options.rest if not word.startswith("-")]
    if options.flags != {"--status"} or options.sets or options.values or len(others) < len(options.rest):
        raise UsageError("--status: goes alone, or with the build directories of other workloads")
    from cnnbench.report.status import status_lines
    from cnnbench.run.status import read_build

    builds = [read_build(directory) for directory in (build_dir, *others)]
    told = [status_lines(build) for build in builds]
    if others:
        told = [
            [f"{build.directory}:", *(f"  {line}" for line in lines)] for build, lines in zip(builds, told, strict=True)
        ]
    print("\n".join(line for lines in told for line in lines))
    complaints = [complaint for build in builds for complaint in build.complaints]
    for complaint in complaints:
        print(f"cnnbench: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


def _describe_parameters(workload_dir: Path) -> int:
    from cnnbench.cases.workload import load_workload
    from cnnbench.cli.parameters import describe_parameters

    print(describe_parameters(load_workload(workload_dir)))
    return 0


def _parse(arguments: Sequence[str]) -> _Options:
    """Take this module's own options out; by hand, as argparse does not leave the others alone."""
    options = _Options()
    remaining = iter(arguments)
    for word in remaining:
        name, separator, value = word.partition("=")
        if word in FLAGS:
            options.flags.add(word)
        elif name in VALUED:
            text = value if separator else next(remaining, None)
            if not text:
                raise UsageError(f"{name}: needs a value; see --help")
            if name == "--set":
                options.sets.append(text)
            elif name in options.values:
                raise UsageError(f"{name}: given twice; give it once")
            else:
                options.values[name] = text
        else:
            options.rest.append(word)
    _refuse_parameters(options.rest)
    return options


def _refuse_parameters(words: Sequence[str]) -> None:
    """Raise UsageError for an option that is a parameter of the cases."""
    names = {word: word.partition("=")[0][2:].upper().replace("-", "_") for word in words if word.startswith("--")}
    suspects = {word: name for word, name in names.items() if word != "--verbose" and runs_cases([word])}
    if not suspects:
        return
    from cnnbench.cases.parameters import FIELDS

    for word, name in suspects.items():
        if name in FIELDS:
            raise UsageError(f'{word}: ctest would ignore it; give it as --set "{name}=..." or --options "{word}"')


def _common_settings(options: _Options, defaults: Path | None) -> dict[str, str]:
    """Return the environment that every run has, for `cnnbench case` to read."""
    settings = {DIRECTORY_VARIABLE: str(Path.cwd())}
    if defaults:
        settings[DEFAULTS_VARIABLE] = str(defaults.absolute())
    if config := options.values.get("--config"):
        settings[CONFIG_VARIABLE] = str(Path(config).absolute())
    if text := options.values.get("--options"):
        settings[OPTIONS_VARIABLE] = json.dumps(split_words("--options", text))
    if "--dry-run" in options.flags:
        settings[DRY_RUN_VARIABLE] = "1"
    return settings
