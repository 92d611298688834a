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
from cnnbench.engines.registry import find_engine
from cnnbench.launch.local import split_environment
from cnnbench.machine.topology import format_cpu_list
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import engine_environment_of, plan_case, prepare_job
from cnnbench.serving.repository import SERVICE, Service, export_model, model_name
from cnnbench.serving.server import LOOPBACK, START_S, Ports, Server, find_installation
from cnnbench.staging.environments import engine_python

WORKLOAD = REPOSITORY / "workload" / "CNN-Triton-Public"


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
    serve = actions.add_parser(
        "serve", help="start a server of exported networks, on loopback, until it is told to end"
    )
    serve.add_argument("repository", type=Path, metavar="DIR", help="what `triton export` has written")
    for name in ("http", "grpc", "metrics"):
        serve.add_argument(f"--{name}-port", type=int, metavar="N", help="(any that is free)")
    serve.add_argument(
        "--server", default="", metavar="PATH", help="the program `tritonserver` of another installation"
    )
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
    jobs = []
    for network in dict.fromkeys(arguments.network):
        case = f"test_{workload.slug}_serving_throughput_{arguments.precision}_{network}"
        jobs.append(prepare_job(plan_case(WORKLOAD, case, os.environ, parse_arguments(arguments.rest)), os.environ))
        if jobs[-1].rivals:
            raise UsageError("ENGINE=auto: a repository is of one engine; name it with --engine=NAME")
    before = Service.read(directory) if (directory / SERVICE).is_file() else None
    if before and (before.engine, before.variant) != (jobs[0].engine.name, jobs[0].variant):
        raise UsageError(f"--output {directory}: has models of {before.engine}; give another for {jobs[0].engine.name}")
    make_directory(directory, "give another --output")
    names = [export_model(job, stage_inputs(job, cache), directory) for job in jobs]
    environment = engine_environment_of(jobs[0], jobs[0].variant, cache)
    names = list(dict.fromkeys([*(before.models if before else ()), *names]))
    service = Service(engine=jobs[0].engine.name, variant=jobs[0].variant, environment=environment, models=tuple(names))
    (directory / SERVICE).write_text(service.model_dump_json(indent=1), encoding="utf-8")
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        print(f"cnnbench: {note}", file=sys.stderr)
    for job in jobs:
        cpus = format_cpu_list(job.plan.cpus)
        print(f"{directory}: {job.parameters.topology} as {model_name(job.parameters)}, {service.engine}, CPUs {cpus}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    check_timeout("--start-timeout", arguments.start_timeout)
    directory, cache = arguments.repository.absolute(), cache_root(os.environ)
    service = Service.read(directory)
    ports = Ports.choose(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    installation = find_installation(arguments.server, cache)
    python = engine_python(find_engine(service.engine), service.variant, cache)
    environment = split_environment(os.environ)[0] | service.environment
    log = arguments.log or Path(tempfile.mkstemp(prefix="cnnbench-triton-", suffix=".log")[1])
    server = Server(installation, directory, service.models, ports, python, environment, log, arguments.start_timeout)
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
