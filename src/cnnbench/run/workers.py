"""Say what the workers of a job are told, how they are sampled, and what environment they get."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cnnbench.inputs.image_set import ImageSet
from cnnbench.launch.instances import InstancePlan
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job
from cnnbench.staging.sampler import Sampler
from cnnbench.worker.loadgen import LoadGenSpec
from cnnbench.worker.spec import InstanceSpec, Sampling, WorkerSpec

PERIOD_NS = 9_700_000
"""The least CPU time of a thread between two samples: no round number, so as not to keep pace with steps.

Each 4 ms cost OpenVINO a hundredth of its throughput (benchmarks/sampler.py).
"""
ACCURACY_PERIOD_NS = 1_900_000
"""The same where accuracy is measured, which may take few seconds, and no time is a figure."""
MOST_SAMPLES = 40_000
"""How many samples a run has room for: they are rarer where many cores measure for long."""
TRIED_TIMES = 12
"""How many times MAX_TIME the rates may take that are tried before the measured one; samples are kept of all."""
TRACE_STEPS = 3
"""How many steps are traced, of whose times the median counts."""


def share_images(images: ImageSet | None, shares: int) -> list[list[str]]:
    """Deal the images out to the instances in turn, so that every share is as mixed as the whole."""
    if images is None:
        return [[] for _ in range(shares)]
    paths = images.paths()
    return [paths[share::shares] for share in range(shares)]


def worker_specs(job: Job, inputs: Inputs, run_id: str, shared: Path, logs: Path) -> list[WorkerSpec]:
    """Return what the workers of a run are told, one for each process of the plan."""
    p, plan, model, engine = job.parameters, job.plan, inputs.model, job.engine
    shares, sampled = share_images(inputs.images, len(plan.instances)), inputs.sampler.library is not None
    return [
        WorkerSpec(
            run_id=run_id,
            controller=os.getpid(),
            engine=engine.name,
            backend=engine.backend,
            reader=engine.reader,
            options_type=f"{engine.options.__module__}:{engine.options.__qualname__}",
            options=job.options.model_dump(),
            whole_steps=engine.whole_steps(job.options),
            model=str(model.graph) if model else "",
            precision=p.precision,
            number_type=job.precision.data_type,
            on_gpu=job.precision.on_gpu,
            form=model.form if model else None,
            batch_size=p.images_per_step,
            micro_batch_size=p.images_per_part,
            mode=p.mode,
            data_type=p.data_type,
            io_threads=max(one.threads for one in process) if p.num_io_threads == "auto" else p.num_io_threads,
            steps=None if p.mode == "accuracy" or p.scenario or p.steps == "auto" else int(p.steps),
            warmup_steps=p.warmup_steps,
            trace_steps=None,
            instances=[InstanceSpec(one.index, list(one.cpus), shares[one.index]) for one in process],
            memory_node=process[0].memory_node if _in_one_node(process) else None,
            check_images=str(model.check_images) if model else "",
            shared=str(shared),
            logs=str(logs),
            verbose=p.verbose,
            enclave=job.case.sgx,
            sampling=_sampling(job, sum(one.threads for one in process)) if sampled else None,
            loadgen=_loadgen(job, inputs),
            tells=model is not None and (job.precision.on_gpu or (sampled and not p.onednn_verbose)),
        )
        for process in plan.processes
    ]


def _loadgen(job: Job, inputs: Inputs) -> LoadGenSpec | None:
    """Return how LoadGen is run; of a gated case for MIN_TIME, of others for as long as its rules say."""
    p = job.parameters
    if not p.scenario:
        return None
    least_ms, accuracy = int(p.min_time * 1000) if p.case_type == "gated" else 0, p.mode == "accuracy"
    return LoadGenSpec(str(inputs.loadgen), p.scenario, float(p.target_qps or 0), least_ms, p.user_conf, accuracy)


def _sampling(job: Job, threads: int) -> Sampling:
    """Return how a worker of so many threads is sampled, so that there is room for all that is measured in MAX_TIME."""
    all_threads = sum(one.threads for one in job.plan.instances)
    capacity = math.ceil(MOST_SAMPLES * threads / all_threads)
    if job.parameters.mode == "accuracy":
        return Sampling(capacity, ACCURACY_PERIOD_NS)
    tries = job.parameters.mode == "capacity" or job.parameters.scenario == "Server"
    longest_s = job.parameters.max_time * (TRIED_TIMES if tries else 1)
    return Sampling(capacity, max(PERIOD_NS, int(all_threads * longest_s * 1e9 / MOST_SAMPLES)))


def _in_one_node(process: Sequence[InstancePlan]) -> bool:
    return len({one.memory_node for one in process}) == 1


def worker_environment(job: Job, spec: WorkerSpec, sampler: Sampler) -> dict[str, str]:
    """Return a worker's environment: the job's, as many OpenMP threads as its instances have cores, and the sampler."""
    threads = max(len(instance.cpus) for instance in spec.instances)
    environment = job.environment | {"OMP_NUM_THREADS": str(threads)} | job.parameters.customer_env
    if sampler.library is not None:
        environment["LD_PRELOAD"] = ":".join(filter(None, (str(sampler.library), environment.get("LD_PRELOAD"))))
    return environment


def trace_spec(spec: WorkerSpec, directory: Path) -> WorkerSpec:
    """Return what the tracing worker is told; an engine that parts steps itself gets one part, which has one order."""
    first = replace(spec.instances[0], files=[])
    batch = spec.proof_batch_size
    size = batch if spec.whole_steps else min(spec.micro_batch_size, batch)
    traced = replace(spec, trace_steps=TRACE_STEPS, instances=[first], logs=str(directory), sampling=None)
    return replace(traced, batch_size=batch, micro_batch_size=size)
