"""Declare the commands of the command line and their options; what each does is in cli.py."""

import argparse
from pathlib import Path
from typing import Any

from cnnbench.run.measurement import DEFAULT_HANG_S, ENCLAVE_HANG_S
from cnnbench.tuning.decide import DEFAULT_ROUNDS
from cnnbench.tuning.space import DEFAULT_CASES, TUNED


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; which one is in `command`, and what `run` and others leave is for them."""
    parser = argparse.ArgumentParser(prog="cnnbench", description="Benchmark CNN inference on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("platform", help="print the platform code of this machine, or check one")
    command.add_argument("name", nargs="?")

    command = commands.add_parser("peak", help="measure the most that this machine's cores and memory do")
    command.add_argument("--cpus", metavar="LIST", help="such as 0-3,8; default: one CPU of each core that may be used")

    command = _add_case_parser(commands, "case", "run one test case")
    command.add_argument("--logs-root", type=Path, required=True, help="where logs-<case> goes")
    command.add_argument("--backend", choices=["native", "docker"], default="native")
    command.add_argument("--config", type=Path, help="settings file: yaml, globs of case names to parameters")
    command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    command.add_argument("--end-with", type=int, metavar="PID", help="end, as by a Ctrl-C, when this parent dies")
    _add_limits(command)
    command.add_argument("--pull-timeout", type=float, metavar="S", help="seconds that pulling the image may take")
    command.add_argument("--docker-options", default="", help="more options of the engine's run command")
    _add_container_options(command)

    for name, text in (
        ("run", "measure a network as the reference harness does; --help has its options"),
        ("launch", "start several instances of `run`, which comes after --"),
    ):
        commands.add_parser(name, help=text, add_help=False)

    command = commands.add_parser("benchmark", help="run the benchmarks of a spec, and tabulate them")
    command.add_argument("--spec", type=Path, required=True, metavar="FILE", help="benchmarks.yml, or one like it")
    command.add_argument(
        "--benchmark", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    command.add_argument("--gated", action="store_true", help="only those that are short enough for a small machine")
    command.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), metavar="DIR", help="logs, and a CSV of the table"
    )
    command.add_argument("--timeout", type=float, metavar="S", help="seconds until a run is ended as invalid")
    command.add_argument("--dry-run", action="store_true", help="list the runs and stop")

    command = _add_workload_parser(commands, "sweep", "find the fastest settings of cases on this machine")
    command.add_argument("--state", type=Path, required=True, help="where runs are kept, and gone on from")
    command.add_argument(
        "--case",
        action="append",
        metavar="GLOB",
        help=f"cases to tune, each for itself; may be repeated (default: {DEFAULT_CASES})",
    )
    command.add_argument(
        "--set",
        action="append",
        dest="sets",
        default=[],
        metavar='"BATCH_SIZE=1 8/CORES_PER_INSTANCE=1 2"',
        help=f"the settings to try, out of {', '.join(TUNED)}, as ctest.sh takes them (default: made for this machine)",
    )
    command.add_argument(
        "--rounds",
        type=int,
        default=DEFAULT_ROUNDS,
        metavar="N",
        help="runs of a setting that stays in (default: %(default)s)",
    )
    command.add_argument("--config", type=Path, help="settings file for what is not tuned")
    command.add_argument("--platform", help="whose cases to tune (default: detected)")
    command.add_argument("--output", type=Path, metavar="FILE", help="default: bkm-<platform>.yaml in --state")
    command.add_argument("--overwrite", action="store_true", help="overwrite that file")
    command.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    _add_limits(command)

    commands.add_parser("container", help="what an image runs: the case that the environment describes")

    command = _add_case_parser(
        commands, "manifest", "print the Gramine manifest of an SGX case's first worker; needs neither SGX nor Gramine"
    )
    command.add_argument("--check", action="store_true", help="verify its trusted files in place of printing it")
    command.add_argument("--without-gramine", action="store_true", help="leave Gramine's own trusted files out")

    command = commands.add_parser("stage", help="put models and images into the cache, verified")
    command.add_argument("names", nargs="*", metavar="NAME", help="default: what the embedded workload needs")
    command.add_argument("--list", action="store_true", help="list what can be staged")
    command.add_argument("--from", dest="source", type=Path, help="take this file, or the one in this directory")
    command.add_argument("--sha256", help="the digest to expect, for an artefact whose manifest has none")
    command.add_argument("--verify", action="store_true", help="read again what is staged already")
    command.add_argument("--engine", help="besides, prepare the models of this engine for the image sets staged")

    command = commands.add_parser("image", help="plan, make and push a workload's container images")
    command.add_argument("action", choices=["list", "build", "push", "bom"])
    command.add_argument("role", nargs="?", help="for build: which image; `list` has them")
    command.add_argument("--workload", type=Path, required=True, help="the workload's directory")
    command.add_argument("--log", type=Path, help="for build: the file for the engine's output")
    command.add_argument("--base-image", default="", help="in place of the public one of the Dockerfile")
    command.add_argument("--dataset-from", default="embedded", help="embedded, local (dataset/) or url")
    command.add_argument("--models", default="", help="artefacts to have besides the embedded model")
    command.add_argument("--build-options", default="", help="more options of the engine's build command")
    command.add_argument("--gramine", default="none", help="version of the -sgx image's Gramine, such as 1.7")
    command.add_argument("--more-variants", default="", help="builds of the engines besides those of every image")
    _add_container_options(command)

    command = commands.add_parser("ctest", help="what ctest.sh runs")
    command.add_argument("--build-dir", type=Path, required=True)
    command.add_argument("--ctest", required=True)
    command.add_argument("--workload", type=Path, required=True)
    command.add_argument("--container-cli", default="", help="the engine's, where cases run in containers")

    command = commands.add_parser("list-kpi", help="tabulate logs-* directories")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--primary", action="store_true", help="the primary KPI of each run (the default)")
    which.add_argument("--all", action="store_true", help="every KPI")
    command.add_argument("--params", action="store_true", help="the effective parameters too")
    command.add_argument("--format", choices=["table", "csv", "json"], default="table")
    command.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="a logs-<case>, itr-N or worker-0 directory"
    )

    command = commands.add_parser("isa", help="tabulate what each layer of a run ran on, and how long it took")
    command.add_argument("--format", choices=["table", "csv", "json"], default="table")
    command.add_argument(
        "directory", type=Path, metavar="DIR", help="a logs-<case> (its last run), itr-N or worker-0 directory"
    )

    command = commands.add_parser(
        "judge", help="judge runs again from what they left, and say what comes out differently"
    )
    command.add_argument("directory", type=Path, metavar="DIR", help="a logs-<case> (each run), itr-N or worker-0")

    commands.add_parser("quickstart", help="what run.sh runs: from nothing to a KPI table")
    return parser


def _add_case_parser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command that is about one case, whose parameters `main` leaves in `rest`."""
    command = _add_workload_parser(commands, name, text)
    command.add_argument("--case", required=True, help="the test case's name")
    return command


def _add_workload_parser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command about a workload's cases, whose parameters `main` leaves in `rest`."""
    command = commands.add_parser(
        name, help=text, epilog="Parameters are given as --batch_size=1; the workload's README has them."
    )
    command.add_argument("--workload", type=Path, required=True, help="the workload's directory")
    return command


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hang-after",
        type=float,
        metavar="S",
        help=f"seconds without a step that mean hung (default: {DEFAULT_HANG_S:g}, in an enclave {ENCLAVE_HANG_S:g})",
    )
    command.add_argument(
        "--timeout", type=float, metavar="S", help="seconds until a run, staging included, is ended as invalid"
    )


def _add_container_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--container-cli", default="docker", help='the engine\'s command line, such as "podman"')
    command.add_argument("--registry", default="", help="what comes before the images' names, such as host:5000")
    command.add_argument("--release", default="latest", help="the images' tag")
