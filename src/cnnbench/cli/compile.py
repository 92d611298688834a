"""`cnnbench compile`: a network as files that an engine loads ahead of time, without the network's own code."""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import UsageError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.workload import load_workload
from cnnbench.engines.exported import Exported, check_batch
from cnnbench.engines.registry import AUTO, engines
from cnnbench.harness.line import DIRECTORY
from cnnbench.inputs.networks import ARCHITECTURES
from cnnbench.report.text import wrap
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S
from cnnbench.run.native import choose_engine
from cnnbench.staging.networks import give_export


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    able = [name for name, engine in engines().items() if engine.exports_networks]
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where a directory for each file goes"
    )
    parser.add_argument("--network", choices=tuple(ARCHITECTURES), default="resnet50", help="(%(default)s)")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="of the network, in place of seeded ones: a state dict with timm's names, .safetensors, .npz, .pth or .pt",
    )
    parser.add_argument(
        "--precision", choices=load_workload(DIRECTORY).precisions, default="fp32", help="(%(default)s)", metavar="NAME"
    )
    parser.add_argument(
        "--batch", nargs="+", default=["1"], metavar="N|N-M", help="images of a call, or a range; a file for each (1)"
    )
    parser.add_argument(
        "--engine", choices=(AUTO, *able), default=AUTO, help="auto (the default): the fastest, by a trial of each"
    )
    parser.add_argument(
        "--replaceable-weights", action="store_true", help="keep them apart, to be replaced without compiling again"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of an instance that runs it (all cores of a socket)")
    parser.add_argument("--max-autotune", action="store_true", help="choose kernels by trying them")
    parser.add_argument(
        "--tuning-jobs",
        type=int,
        default=1,
        metavar="N",
        help="compile so many at once, each on its share of the cores",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compile, and tell what was written."""
    end_by_exceptions()
    cache, cpus = cache_root(os.environ), sorted(os.sched_getaffinity(0))
    if not 1 <= arguments.tuning_jobs <= len(cpus):
        raise UsageError(f"--tuning-jobs {arguments.tuning_jobs}: must be 1 to {len(cpus)}, the cores that there are")
    jobs = [plan(arguments, batch) for batch in dict.fromkeys(arguments.batch)]
    jobs = [choose_engine(job, cache, DEFAULT_HANG_S) for job in jobs]
    shares = [cpus[at :: arguments.tuning_jobs] for at in range(arguments.tuning_jobs)]

    def make(job: Job) -> tuple[Exported, Path, float]:
        began_s = time.monotonic()
        network = stage_inputs(job, cache).model
        assert network is not None
        assert network.compiled is not None
        took_s = time.monotonic() - began_s
        asked = network.compiled.asked
        words = [job.parameters.topology, job.precision.name, asked.batch, job.engine.name]
        words += ["replaceable"] * asked.replaceable + ["tuned"] * asked.tuned
        return network.compiled, give_export(network, arguments.output / "-".join(words)), took_s

    # A thread's affinity is that of the processes that it starts.
    with ThreadPoolExecutor(len(shares), initializer=lambda: os.sched_setaffinity(0, shares.pop())) as pool:
        for job, (compiled, file, took_s) in zip(jobs, pool.map(make, jobs), strict=True):
            for note in job.notes:
                if note.startswith(f"ENGINE={AUTO}"):
                    print(wrap(note))
            size = f"{file.stat().st_size / 1e6:.1f} MB"
            print(wrap(f"{file}: {compiled.describe()}, {size}, {took_s:.1f} s"), flush=True)
    return 0


def plan(arguments: argparse.Namespace, batch: str) -> Job:
    """Return the case that a file is for, prepared; raise UsageError for what cannot be compiled."""
    try:
        least, _, most = check_batch(batch).partition("-")
    except ValueError as error:
        raise UsageError(f"--batch {error}") from error
    settings = {
        "ENGINE": arguments.engine,
        "WEIGHTS": str(arguments.weights.absolute()) if arguments.weights else "",
        "BATCH_SIZE": most or least,
        "COMPILED_BATCH": batch,
        "AHEAD_OF_TIME": "True",
        "REPLACEABLE_WEIGHTS": str(arguments.replaceable_weights),
        "MAX_AUTOTUNE": str(arguments.max_autotune),
        "CORES_PER_INSTANCE": "auto" if arguments.threads is None else str(arguments.threads),
        "INSTANCES": "1",
    }
    case = f"test_{load_workload(DIRECTORY).slug}_inference_throughput_{arguments.precision}_{arguments.network}"
    return prepare_job(plan_case(DIRECTORY, case, os.environ, settings), os.environ)
