"""`cnnbench triton`: write model repositories for Triton Server, and serve them on loopback."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.disk import make_directory
from cnnbench.base.errors import UsageError
from cnnbench.base.signals import check_timeout, end_by_exceptions
from cnnbench.cases.case import parse_arguments
from cnnbench.cases.workload import load_workload
from cnnbench.cli.options import add_container_cli, container_cli
from cnnbench.engines.registry import TritonBackend, find_engine, triton_backends
from cnnbench.launch.local import split_environment
from cnnbench.machine.topology import format_cpu_list
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, engine_environment_of, plan_case, prepare_job
from cnnbench.serving.image import ImageServer
from cnnbench.serving.programs import PYTHON, EngineServer, OwnServer, find_backend, find_installation
from cnnbench.serving.repository import SERVICE, Service, check_backend, export_file, export_model, model_name
from cnnbench.serving.server import LOOPBACK, START_S, Origin, Ports, Server
from cnnbench.staging.environments import engine_python

WORKLOAD = REPOSITORY / "workload" / "CNN-Triton-Public"
OF_CLIENTS = (
    *("CONCURRENCY", "REQUEST_RATE", "PROTOCOL", "SHARED_MEMORY", "LATENCY_BOUND_MS", "SCENARIO", "TARGET_QPS"),
    *("USER_CONF", "AUDIT", "PERF_ANALYZER", "DATA_TYPE", "DATASET", "NUM_IO_THREADS", "ACCURACY_TIME", "STEPS"),
    *("WARMUP_STEPS", "MIN_TIME", "MAX_TIME"),
)
"""The parameters of what asks a server, and how long: none is exported."""
INSTEAD = {"MODEL_REPOSITORY": "--output", "GRPC_PORT": "`serve --grpc-port`", "TRITON_SERVER": "`serve --server`"}
"""The parameters of cases that these commands have options for."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser(
        "export", help="write networks as a model repository", description="Further --name=value are parameters."
    )
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="the repository")
    networks = load_workload(WORKLOAD).topologies
    export.add_argument("--network", nargs="+", choices=networks, required=True, metavar="NAME")
    export.add_argument(
        "--precision", default="fp32", choices=load_workload(WORKLOAD).precisions, metavar="NAME", help="(%(default)s)"
    )
    export.add_argument(
        "--backend",
        default=PYTHON,
        choices=(PYTHON, *triton_backends()),
        help="Triton's own that has the network: %(choices)s; python, the default, has this program's engine in it",
    )
    serve = actions.add_parser(
        "serve", help="start a server of exported networks, on loopback, until it is told to end"
    )
    serve.add_argument("repository", type=Path, metavar="DIR", help="what `triton export` has written")
    for name in ("http", "grpc", "metrics"):
        serve.add_argument(f"--{name}-port", type=int, metavar="N", help="(any that is free)")
    servers = serve.add_mutually_exclusive_group()
    servers.add_argument(
        "--server", default="", metavar="PATH", help="the program `tritonserver` of another installation"
    )
    servers.add_argument(
        "--server-image", default="", metavar="IMAGE", help="an image with `tritonserver`, run in a container"
    )
    add_container_cli(serve)
    serve.add_argument("--log", type=Path, metavar="FILE", help="the server's own (a passing file, kept when it fails)")
    serve.add_argument(
        "--start-timeout", type=float, default=START_S, metavar="S", help="seconds until it must be ready (%(default)g)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, or serve until a signal comes."""
    end_by_exceptions()
    return _export(arguments) if arguments.action == "export" else _serve(arguments)


def _export(arguments: argparse.Namespace) -> int:
    workload, cache, directory = load_workload(WORKLOAD), cache_root(os.environ), arguments.output.absolute()
    if directory.is_dir() and any(directory.iterdir()) and not (directory / SERVICE).is_file():
        raise UsageError(
            f"--output {directory}: has other files in it; give an empty directory, or a repository of ours"
        )
    backend, settings = arguments.backend, _read_settings(arguments)
    jobs = []
    for network in dict.fromkeys(arguments.network):
        case = f"test_{workload.slug}_serving_throughput_{arguments.precision}_{network}"
        jobs.append(prepare_job(plan_case(WORKLOAD, case, os.environ, settings), os.environ))
        if jobs[-1].rivals:
            raise UsageError("ENGINE=auto: a repository is of one engine; name it with --engine=NAME")
        if backend != PYTHON:
            check_backend(jobs[-1], _own_backend(backend))
    before = Service.read(directory) if (directory / SERVICE).is_file() else None
    if before and (before.engine, before.variant, before.backend) != (jobs[0].engine.name, jobs[0].variant, backend):
        raise UsageError(
            f"--output {directory}: has models of {before.engine}, --backend {before.backend}; give another for "
            f"{jobs[0].engine.name}, --backend {backend}"
        )
    make_directory(directory, "give another --output")
    names = [_write(job, directory, backend, cache) for job in jobs]
    planned = {model_name(job.parameters): job.plan.cpus for job in jobs} if backend != PYTHON else {}
    service = Service(
        engine=jobs[0].engine.name,
        variant=jobs[0].variant,
        environment=engine_environment_of(jobs[0], jobs[0].variant, cache),
        models=tuple(dict.fromkeys([*(before.models if before else ()), *names])),
        backend=backend,
        planned=(before.planned if before else {}) | planned,
    )
    (directory / SERVICE).write_text(service.model_dump_json(indent=1), encoding="utf-8")
    notes = [note for job in jobs for note in job.notes]
    if backend != PYTHON:
        notes += [_own_backend(backend).notes.get(job.precision.data_type, "") for job in jobs]
    for note in filter(None, dict.fromkeys(notes)):
        print(f"cnnbench: {note}", file=sys.stderr)
    what = service.engine if backend == PYTHON else f"Triton's own backend {backend}"
    for job in jobs:
        on = format_cpu_list(job.plan.cpus)
        print(f"{directory}: {job.parameters.topology} as {model_name(job.parameters)}, {what}, CPUs {on}")
    return 0


def _read_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the parameters that were given; raise UsageError for one that a server has not."""
    settings = parse_arguments(arguments.rest)
    for name in settings:
        if name in OF_CLIENTS:
            raise UsageError(f"{name}: is of what asks a server, and is not exported; leave it out")
        if name in INSTEAD:
            raise UsageError(f"{name}: is of cases; give {INSTEAD[name]} instead")
    if arguments.backend == PYTHON:
        return settings
    engine = triton_backends()[arguments.backend].name
    if (given := settings.get("ENGINE") or os.environ.get("ENGINE") or engine) != engine:
        raise UsageError(
            f"ENGINE={given}: --backend {arguments.backend} takes what ENGINE={engine} is handed; leave out ENGINE"
        )
    return settings | {"ENGINE": engine}


def _own_backend(name: str) -> TritonBackend:
    backend = triton_backends()[name].triton
    assert backend is not None
    return backend


def _write(job: Job, directory: Path, backend: str, cache: Path) -> str:
    inputs = stage_inputs(job, cache)
    if backend == PYTHON:
        return export_model(job, inputs, directory)
    return export_file(job, inputs, directory, _own_backend(backend))


def _serve(arguments: argparse.Namespace) -> int:
    check_timeout("--start-timeout", arguments.start_timeout)
    directory = arguments.repository.absolute()
    service = Service.read(directory)
    origin = _find_origin(arguments, service, directory)
    ports = Ports.choose(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    log = arguments.log or Path(tempfile.mkstemp(prefix="cnnbench-triton-", suffix=".log")[1])
    server = Server(origin, directory, service.models, ports, log, arguments.start_timeout)
    try:
        with server:
            print(
                f"ready: {', '.join(service.models)}: gRPC {LOOPBACK}:{ports.grpc}, HTTP {LOOPBACK}:{ports.http}, "
                f"metrics {LOOPBACK}:{ports.metrics}",
                flush=True,
            )
            while True:
                time.sleep(1)
                server.check()
    except KeyboardInterrupt:
        print("ended", flush=True)
    if not arguments.log:
        log.unlink()
    return 0


def _find_origin(arguments: argparse.Namespace, service: Service, directory: Path) -> Origin:
    """Return where the server of a repository comes from; raise UsageError for one that cannot have its models."""
    cache, image, backend = cache_root(os.environ), arguments.server_image, service.backend
    environment = split_environment(os.environ)[0] | service.environment
    own = " or ".join(triton_backends())
    if backend == PYTHON and image:
        raise UsageError(
            f"--server-image {image}: the models of {directory} are this program's engine, whose Python environment "
            f"no other image has; export them with --backend {own}"
        )
    if backend == PYTHON:
        installation = find_installation(arguments.server, cache, "--server ")
        return EngineServer(
            installation, engine_python(find_engine(service.engine), service.variant, cache), environment
        )
    if missing := sorted(set(service.cpus) - os.sched_getaffinity(0)):
        raise UsageError(
            f"{directory}: its models are for CPUs {format_cpu_list(service.cpus)}, of which "
            f"{format_cpu_list(missing)} cannot be used here; export them again"
        )
    if image:
        return ImageServer(container_cli(arguments), image, service.environment, service.cpus)
    if not arguments.server:
        raise UsageError(
            f"{directory}: needs the backend {backend} of Triton's own, which the server that comes with this has not; "
            "give --server PATH or --server-image IMAGE with one that has, as NVIDIA's image tritonserver"
        )
    find_backend(arguments.server, backend, "--server ")
    return OwnServer(Path(arguments.server), environment, service.cpus)
