"""The command line: the only place that parses arguments, prints for people or decides an exit code."""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, SkippedError, UsageError
from cnnbench.base.signals import INTERRUPTED, check_timeout, end_by_exceptions, end_with_parent
from cnnbench.cases.artefacts import find_artefact, load_artefacts
from cnnbench.cases.case import parse_arguments
from cnnbench.cases.platforms import check_platform, detect_platform
from cnnbench.cases.workload import declared_cases, load_workload
from cnnbench.cli import ctest
from cnnbench.cli.judge import judge
from cnnbench.cli.parser import make_parser
from cnnbench.cli.quickstart import quickstart
from cnnbench.engines.builds import choose_build
from cnnbench.engines.registry import AUTO, Engine, find_part
from cnnbench.harness.line import read_launch_line, read_request
from cnnbench.harness.runs import run_request, run_spec
from cnnbench.harness.spec import choose_variants, read_spec
from cnnbench.inputs import procedural
from cnnbench.inputs.networks import EMBEDDED
from cnnbench.launch.container import run_engine
from cnnbench.launch.gramine import find_gramine
from cnnbench.launch.trusted import check_manifest, count_trusted
from cnnbench.machine.ceiling import HOW_TO_GET, PEAK_VARIABLE, find_peak_program, measure_peaks, peak_table
from cnnbench.machine.host import read_cpuinfo
from cnnbench.machine.topology import format_cpu_list, parse_cpu_list, read_topology
from cnnbench.report.layers import show_layers
from cnnbench.report.table import list_kpis
from cnnbench.results.kpi_text import kpi_lines
from cnnbench.results.record import RunResult
from cnnbench.run.container import DOCKER_OPTIONS_VARIABLE, ContainerOptions, ContainerRun
from cnnbench.run.enclaves import TEMPLATE, render_first
from cnnbench.run.images import ImageOptions, bill_of_materials, build_image, image_labels, plan_images
from cnnbench.run.job import (
    PLATFORM_VARIABLE,
    Job,
    PlannedCase,
    describe_case,
    describe_job,
    plan_case,
    prepare_job,
    stage_engine,
    stage_inputs,
)
from cnnbench.run.native import measure_job
from cnnbench.run.serve import overlay_cache, serve_case
from cnnbench.staging.inputs import stage_embedded_model, stage_imagenet_set, stage_procedural
from cnnbench.staging.stage import stage_artefact
from cnnbench.tuning.settings import ranking, settings_file, summary_table
from cnnbench.tuning.space import DEFAULT_CASES, SweepRequest, describe_spaces, plan_sweep
from cnnbench.tuning.sweep import run_sweep

MADE_HERE = ("procedural", EMBEDDED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see errors.py for what the codes mean."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    # What follows `ctest ... --` or `quickstart` is ctest.sh's: argparse must not look for options in it.
    own, rest = words, []
    if words[:1] == ["ctest"] and "--" in words:
        own, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    elif words[:1] in (["quickstart"], ["run"], ["launch"]):
        own, rest = words[:1], words[1:]
    parsed, unknown = parser.parse_known_args(own)
    if unknown and parsed.command not in ("case", "sweep", "manifest"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    parsed.rest = rest or unknown
    try:
        return _COMMANDS[parsed.command](parsed)
    except CnnbenchError as error:
        print(f"cnnbench: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # the disk, a permission, a file that went away: whatever was under way has failed
        print(f"cnnbench: {error}", file=sys.stderr)
        return CnnbenchError.exit_code
    except KeyboardInterrupt:
        print("cnnbench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _check_limits(arguments: argparse.Namespace) -> None:
    if arguments.hang_after is not None and not arguments.hang_after > 0:
        raise UsageError(f"--hang-after {arguments.hang_after:g}: must be more than 0 seconds")
    check_timeout("--timeout", arguments.timeout)


def _split(option: str, text: str) -> list[str]:
    """Split a text into words as a shell does; raise UsageError when a quotation does not end."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}; quote it as for a shell") from error


def _container_cli(arguments: argparse.Namespace) -> list[str]:
    if not (words := _split("--container-cli", arguments.container_cli)):
        raise UsageError(
            f"--container-cli {arguments.container_cli}: names no program; needed docker, podman or the like"
        )
    return words


def _image(arguments: argparse.Namespace) -> int:
    workload, cli = load_workload(arguments.workload), _container_cli(arguments)
    options = ImageOptions(
        registry=arguments.registry,
        release=arguments.release,
        base_image=arguments.base_image,
        dataset_from=arguments.dataset_from,
        models=arguments.models,
        gramine=arguments.gramine,
        more_variants=arguments.more_variants,
    )
    extra = _split("--build-options", arguments.build_options)
    builds = plan_images(arguments.workload.absolute(), workload, options)
    if arguments.action == "list":
        for build in builds.values():
            print(" ".join([build.role, *build.needs]))
    elif arguments.action == "push":
        for build in builds.values():
            run_engine([*cli, "push", build.reference], timeout_s=None)
            print(f"pushed {build.reference}")
    elif arguments.action == "bom":
        print("\n".join([f"# {workload.name}", *bill_of_materials(workload, options).lines()]))
    else:
        if arguments.role not in builds or arguments.log is None:
            raise UsageError(f"image build {arguments.role}: needs a ROLE out of {', '.join(builds)}, and --log FILE")
        build = builds[arguments.role]
        labels = image_labels(workload, build, bill_of_materials(workload, options))
        print(build_image(build, cli, labels, arguments.log.absolute(), extra))
    return 0


def _ctest(arguments: argparse.Namespace) -> int:
    cli = _split("--container-cli", arguments.container_cli)
    return ctest.main(arguments.build_dir, arguments.ctest, arguments.workload, arguments.rest, container_cli=cli)


def _platform(arguments: argparse.Namespace) -> int:
    print(check_platform(arguments.name) if arguments.name else detect_platform(read_cpuinfo()))
    return 0


def _peak(arguments: argparse.Namespace) -> int:
    program = find_peak_program(os.environ)
    if program is None:
        raise CnnbenchError(f"{PEAK_VARIABLE} is not set: it must name the program that measures; {HOW_TO_GET}")
    topology = read_topology()
    cpus = tuple(core.cpus[0] for core in topology.cores)
    if arguments.cpus is not None:
        cpus = parse_cpu_list(arguments.cpus)
        if not cpus or not set(cpus) <= set(topology.cpus):
            raise UsageError(f"--cpus {arguments.cpus}: must be some of {format_cpu_list(topology.cpus)}")
    print(peak_table(measure_peaks(program, cpus), cpus))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    end_by_exceptions()  # instances are ended and the run is recorded as invalid
    if arguments.end_with is not None:
        end_with_parent(arguments.end_with, signal.SIGTERM)
    config = arguments.config or os.environ.get(ctest.CONFIG_VARIABLE)
    words = json.loads(os.environ.get(ctest.OPTIONS_VARIABLE, "[]")) + arguments.rest
    dry_run = arguments.dry_run or os.environ.get(ctest.DRY_RUN_VARIABLE) == "1"
    _check_limits(arguments)
    check_timeout("--pull-timeout", arguments.pull_timeout)
    try:
        planned = plan_case(
            arguments.workload, arguments.case, os.environ, parse_arguments(words), Path(config) if config else None
        )
        run = _run_in_container if arguments.backend == "docker" else _run_here
        return run(planned, arguments, dry_run)
    except SkippedError as error:
        ctest.record_skip(arguments.case, str(error), os.environ)
        raise


def _run_here(planned: PlannedCase, arguments: argparse.Namespace, dry_run: bool) -> int:
    job, cache = prepare_job(planned, os.environ), cache_root(os.environ)
    if dry_run:
        print("\n".join(describe_job(job, cache)))
        return 0
    _print_notes(job.notes)
    return _report(*measure_job(job, cache, arguments.logs_root.absolute(), arguments.hang_after, arguments.timeout))


def _run_line(arguments: argparse.Namespace) -> int:
    end_by_exceptions()
    return run_request(read_request(arguments.rest, read_cpuinfo().flags))


def _launch(arguments: argparse.Namespace) -> int:
    end_by_exceptions()
    return run_request(read_launch_line(arguments.rest, read_cpuinfo().flags))


def _benchmark(arguments: argparse.Namespace) -> int:
    end_by_exceptions()
    variants = choose_variants(read_spec(arguments.spec), arguments.benchmark, arguments.gated)
    if arguments.dry_run:
        print("\n".join(f"{variant.key}: {variant.line}" for variant in variants))
        return 0
    return run_spec(variants, arguments.output.absolute(), arguments.timeout)


def _run_in_container(planned: PlannedCase, arguments: argparse.Namespace, dry_run: bool) -> int:
    run = ContainerRun(
        planned,
        ContainerOptions(
            cli=_container_cli(arguments),
            images=ImageOptions(arguments.registry, arguments.release),
            extra=_split("--docker-options", arguments.docker_options)
            + _split(DOCKER_OPTIONS_VARIABLE, os.environ.get(DOCKER_OPTIONS_VARIABLE, "")),
            hang_s=arguments.hang_after,
            pull_timeout_s=arguments.pull_timeout,
        ),
        arguments.logs_root.absolute(),
    )
    if dry_run:
        print("\n".join([*describe_case(planned), "command line:", f"  {shlex.join(run.command())}"]))
        return 0
    _print_notes(planned.notes)
    return _report(*run.run(arguments.timeout))


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"cnnbench: {note}", file=sys.stderr)


def _report(result: RunResult, logs: Path) -> int:
    print("\n".join(kpi_lines(result)))
    print(f"# logs: {logs}")
    return result.exit_code


def _sweep(arguments: argparse.Namespace) -> int:
    _check_limits(arguments)
    platform = check_platform(
        arguments.platform or os.environ.get(PLATFORM_VARIABLE) or detect_platform(read_cpuinfo())
    )
    output = arguments.output or arguments.state / f"bkm-{platform.lower()}.yaml"
    if output.exists() and not arguments.overwrite and not arguments.dry_run:
        raise UsageError(f"{output}: is there already; --overwrite does so, --output names another")
    if arguments.output and not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no directory {output.parent}")
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

    def measure(job: Job) -> tuple[RunResult, Path]:
        end_by_exceptions()  # anew for each: after a run whose time was up, signals are ignored
        return measure_job(job, cache, state, arguments.hang_after, arguments.timeout)

    outcomes = run_sweep(
        spaces, state, arguments.rounds, measure, lambda text: print(text, file=sys.stderr, flush=True)
    )
    found = [outcome for outcome in outcomes if outcome.best is not None]
    for outcome in outcomes:
        print(ranking(outcome), end="\n\n")
    if not found:
        raise InvalidMeasurementError("no setting of any case has a valid result; the reasons are above")
    text = settings_file(found, declared_cases(arguments.workload, platform), platform, request.command)
    with output.open("w" if arguments.overwrite else "x", encoding="utf-8") as file:
        file.write(text)
    print(f"{summary_table(found, platform)}\n\nwrote {output}")
    return 0 if len(found) == len(outcomes) else InvalidMeasurementError.exit_code


def _manifest(arguments: argparse.Namespace) -> int:
    planned = plan_case(arguments.workload, arguments.case, os.environ, parse_arguments(arguments.rest))
    if not planned.case.sgx:
        raise UsageError(f"{arguments.case}: runs in no enclave and has no manifest; test_*_sgx_* cases have")
    gramine = None if arguments.without_gramine else find_gramine()
    if gramine is None and not arguments.without_gramine:
        raise CnnbenchError(
            "gramine-sgx: not on PATH: the manifest trusts Gramine's own files too; the image ...-inference-sgx has "
            "them unless it was made with GRAMINE=none; --without-gramine leaves them out"
        )
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as directory:
        scratch = Path(directory)
        job = prepare_job(planned, os.environ, enclaves=True)
        inputs = stage_inputs(job, overlay_cache(cache_root(os.environ), scratch / "cache"))
        text = render_first(job, inputs, arguments.workload / TEMPLATE, scratch, gramine)
        problems = check_manifest(text) if arguments.check else []
    if not arguments.check:
        print(text, end="")
    elif problems:
        raise CnnbenchError("\n".join([f"{arguments.case}: {len(problems)} trusted files are amiss:", *problems]))
    else:
        left_out = "; Gramine's own are not among them" if gramine is None else ""
        print(f"{arguments.case}: {count_trusted(text)} trusted files: all there, with their hashes{left_out}")
    return 0


def _stage(arguments: argparse.Namespace) -> int:
    cache, artefacts = cache_root(os.environ), load_artefacts()
    if arguments.list:
        for name in (*MADE_HERE, "imagenet"):
            print(f"{name}: made on this machine")
        for name, artefact in artefacts.items():
            print(f"{name}: {artefact.url}")
        return 0
    names = arguments.names or ([] if arguments.engine else list(MADE_HERE))
    if (arguments.source or arguments.sha256) and len(names) != 1:
        raise UsageError("--from and --sha256 are for one NAME at a time")
    for name in names:
        if arguments.source and name in MADE_HERE:
            raise UsageError(f"--from {arguments.source}: {name} is made on this machine and takes no file")
        print(f"{name}: {_stage_one(name, arguments, cache)}")
    if arguments.engine:
        stage_engine(arguments.engine, read_cpuinfo(), cache)
    return 0


def _stage_one(name: str, arguments: argparse.Namespace, cache: Path) -> Path:
    verify = arguments.verify
    if name == "procedural":
        return [stage_procedural(part, cache, verify=verify).root for part in procedural.IMAGES_PER_CLASS][-1]
    if name == EMBEDDED:
        engine = find_part("embeds")
        return stage_embedded_model(engine, _build_of(engine), cache)
    if name == "imagenet":
        variant = _build_of(find_part("reads_shards")) if arguments.source else ""
        return stage_imagenet_set(cache, arguments.source, variant, verify=verify).root
    artefact, source = find_artefact(name), arguments.source
    if source and source.is_dir():
        source = source / artefact.file_name
    return stage_artefact(artefact, cache, source, arguments.sha256, verify=verify)


def _build_of(engine: Engine) -> str:
    return choose_build(engine, AUTO, read_cpuinfo())


def _list_kpi(arguments: argparse.Namespace) -> int:
    listing = list_kpis(
        arguments.directories, all_kpis=arguments.all, params=arguments.params, output_format=arguments.format
    )
    print(listing.text)
    for failure in listing.failures:
        print(failure, file=sys.stderr)
    return 1 if listing.failures else 0


def _isa(arguments: argparse.Namespace) -> int:
    print(show_layers(arguments.directory, arguments.format))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "platform": _platform,
    "peak": _peak,
    "case": _run,
    "run": _run_line,
    "launch": _launch,
    "benchmark": _benchmark,
    "sweep": _sweep,
    "container": lambda _: serve_case(os.environ),
    "manifest": _manifest,
    "stage": _stage,
    "image": _image,
    "ctest": _ctest,
    "list-kpi": _list_kpi,
    "isa": _isa,
    "judge": judge,
    "quickstart": lambda arguments: quickstart(cache_root(os.environ), arguments.rest),
}
