"""Run a job: launch its workers, watch the machine meanwhile, write down all that is seen, and have it judged."""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, TimeUpInterrupt
from cnnbench.base.progress import SECONDS, Progress
from cnnbench.engines.layers import TRACE_DIRECTORY
from cnnbench.inputs.image_set import ImageSet
from cnnbench.launch.enclave import Enclaves
from cnnbench.launch.instances import InstancePlan
from cnnbench.launch.local import KilledError, Limits, WorkerLaunch, run_workers, shared_directory, worker_command
from cnnbench.launch.mpi import JOB, MpirunLaunch, RankJob
from cnnbench.machine.ceiling import measure_ceiling
from cnnbench.machine.cgroup import read_cpu_quotas
from cnnbench.machine.contention import sample_cpu_time, with_siblings
from cnnbench.machine.host import sample_frequency_mhz
from cnnbench.machine.topology import read_topology
from cnnbench.proof.trace import TRACE_ENVIRONMENT
from cnnbench.proof.verdict import AUTO_HALF_WIDTH
from cnnbench.results import stats
from cnnbench.results.record import INTERRUPTED_RUN, TIMEOUT, WORKER, Criterion, RunResult, find_iterations
from cnnbench.results.steps import StepTimes
from cnnbench.run.facts import host_facts
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job, ranks_command
from cnnbench.run.judging import judge_run
from cnnbench.run.measured import images_of_steps
from cnnbench.run.record import CeilingSeen, End, Look, RunWriter, describe_run
from cnnbench.worker.spec import InstanceSpec, WorkerSpec

DEFAULT_HANG_S = 300.0
ENCLAVE_HANG_S = 1200.0
"""The same in an enclave, where loading takes longer: its memory is made first, and every file it opens is hashed."""
CEILING_RETRIES, CEILING_PAUSE_S = 5, 2.0
"""How often, and after what pause, the peak is measured again at the most when a run was faster than it."""
LOGS = (
    "the logs need a directory with room that you may write to: give another --logs-root, for ctest.sh configure "
    "another build directory (cmake -B)"
)
"""What to do where a run's logs cannot be written."""
TRACE_STEPS = 3
"""How many steps are traced, of whose times the median counts."""


def new_logs_directory(root: Path, case_name: str) -> Path:
    """Make `logs-<case>/itr-N/worker-0`; nothing is overwritten, and the highest N is always the last run."""
    directory = root / f"logs-{case_name}"
    make_directory(directory, LOGS)
    with explain_refusals(directory, LOGS):
        number = max(find_iterations(directory), default=0) + 1
        while True:
            try:
                (directory / f"itr-{number}").mkdir()
            except FileExistsError:  # a run that began just now has it
                number += 1
            else:
                worker = directory / f"itr-{number}" / WORKER
                worker.mkdir()
                return worker


def _share_images(images: ImageSet | None, shares: int) -> list[list[str]]:
    """Deal the images out to the instances in turn, so that every share is as mixed as the whole."""
    if images is None:
        return [[] for _ in range(shares)]
    paths = images.paths()
    return [paths[share::shares] for share in range(shares)]


def worker_specs(job: Job, inputs: Inputs, run_id: str, shared: Path, logs: Path) -> list[WorkerSpec]:
    """Return what the workers of a run are told, one for each process of the plan."""
    p, plan, model, engine = job.parameters, job.plan, inputs.model, job.engine
    shares = _share_images(inputs.images, len(plan.instances))
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
            micro_batch_size=p.batch_size if p.micro_batch_size == "auto" else p.micro_batch_size,
            mode=p.mode,
            data_type=p.data_type,
            io_threads=max(one.threads for one in process) if p.num_io_threads == "auto" else p.num_io_threads,
            steps=None if p.mode == "accuracy" or p.steps == "auto" else int(p.steps),
            warmup_steps=p.warmup_steps,
            trace_steps=None,
            instances=[InstanceSpec(one.index, list(one.cpus), shares[one.index]) for one in process],
            memory_node=process[0].memory_node if _in_one_node(process) else None,
            check_images=str(model.check_images) if model else "",
            shared=str(shared),
            logs=str(logs),
            verbose=p.verbose,
            enclave=job.case.sgx,
        )
        for process in plan.processes
    ]


def _in_one_node(process: Sequence[InstancePlan]) -> bool:
    return len({one.memory_node for one in process}) == 1


def worker_environment(job: Job, spec: WorkerSpec) -> dict[str, str]:
    """Return a worker's environment: the job's, with as many OpenMP threads as its instances have cores."""
    threads = max(len(instance.cpus) for instance in spec.instances)
    return job.environment | {"OMP_NUM_THREADS": str(threads)} | job.parameters.customer_env


def _trace_spec(spec: WorkerSpec, directory: Path) -> WorkerSpec:
    """Return what the tracing worker is told; an engine that parts steps itself gets one part, which has one order."""
    first = replace(spec.instances[0], files=[])
    batch = spec.proof_batch_size
    size = batch if spec.whole_steps else min(spec.micro_batch_size, batch)
    traced = replace(spec, trace_steps=TRACE_STEPS, instances=[first], logs=str(directory))
    return replace(traced, batch_size=batch, micro_batch_size=size)


class Measurement:
    """One run of a job: launches it in `logs`, in enclaves if given, and has what it left there judged."""

    def __init__(self, job: Job, inputs: Inputs, logs: Path, hang_s: float, enclaves: Enclaves | None = None) -> None:
        self._job, self._inputs, self._logs, self._hang_s, self._enclaves = job, inputs, logs, hang_s, enclaves
        self._run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._load_before = os.getloadavg()[0]
        self._writer = RunWriter(logs)

    def run(self) -> RunResult:
        """Launch, measure and judge; a killed or interrupted run becomes an invalid result, not an exception."""
        with shared_directory() as shared:
            try:
                self._begin()
                self._measure_ceiling()
                self._launch(shared)
                again = self._measure_ceiling_again()
                self._writer.add(End())
                return self._judge(retry=again)
            except (InvalidMeasurementError, KeyboardInterrupt) as error:
                if not self._writer.begun:
                    self._begin()
                self._keep_times(shared)
                self._writer.add(_explain(error))
            except CnnbenchError as error:
                self._writer.add(End(failure=Criterion(name="instances", passed=False, found=str(error), needed="")))
                raise
        return judge_run(self._logs)

    def reject(self, failure: Criterion, seen: str) -> RunResult:
        """Return the result of a run that has not begun, because of this."""
        self._begin()
        self._writer.add(End(failure=failure, seen=seen))
        return judge_run(self._logs)

    def _begin(self) -> None:
        host = host_facts(self._job, self._load_before)
        self._writer.begin(describe_run(self._job, self._inputs, self._run_id, self._started, host), self._inputs)

    def _measure_ceiling(self) -> None:
        """Measure the most that the cores do, where that can be."""
        if self._job.peak_program is not None:
            found = measure_ceiling(self._job.peak_program, self._job.precision.peak, self._job.plan.cpus)
            self._writer.add(CeilingSeen(ceiling=found))

    def _measure_ceiling_again(self) -> bool:
        """Measure it once more, and say whether that went well; if not, what the instances measured is to be kept."""
        try:
            self._measure_ceiling()
        except CnnbenchError as error:
            self._writer.add(CeilingSeen(failure=str(error)))
            return False
        return True

    def _judge(self, *, retry: bool) -> RunResult:
        """Judge the run; where it was faster than can be, the peak is first measured some times more.

        Whatever slowed the cores then has lowered the peak, and can only have lowered it.
        """
        result = judge_run(self._logs)
        for _ in range(CEILING_RETRIES):
            if not retry or not any(failure.name == "ceiling" for failure in result.failures):
                break
            time.sleep(CEILING_PAUSE_S)
            retry = self._measure_ceiling_again()
            result = judge_run(self._logs)
        return result

    def _launch(self, shared: Path) -> None:
        parameters = self._job.parameters
        specs = worker_specs(self._job, self._inputs, self._run_id, shared, self._logs)
        stops_by_itself = parameters.mode == "accuracy" or parameters.steps != "auto"
        launches = [
            self._write_launch(spec, self._logs / f"process-{number}", worker_environment(self._job, spec))
            for number, spec in enumerate(specs)
        ]
        trace = None
        if self._inputs.model is not None and not self._job.precision.on_gpu:
            directory = self._logs / TRACE_DIRECTORY
            environment = worker_environment(self._job, specs[0])
            if not self._job.engine.tells_layers:
                environment |= TRACE_ENVIRONMENT
            trace = self._write_launch(_trace_spec(specs[0], directory), directory, environment)
        if self._job.ranks:
            launches = [self._gather_in_ranks(launches, shared)]
        run_workers(
            launches,
            trace,
            shared,
            Limits(None if stops_by_itself else self._enough, self._hang_s),
            self._progress(),
            self._look,
        )

    def _gather_in_ranks(self, launches: Sequence[WorkerLaunch], shared: Path) -> WorkerLaunch:
        """Return the launch of mpirun in place of the workers' own: its ranks start them, from the same specs."""
        job, python = self._job, self._inputs.ranks_python
        assert python is not None
        directory = self._logs / "mpi"
        directory.mkdir()
        RankJob(
            shared=str(shared),
            python=str(self._inputs.python),
            hang_s=self._hang_s,
            cpus=list(read_topology().cpus),
            numa_aware=job.parameters.numa_aware,
            instances=len(job.plan.instances),
            environments=[launch.environment for launch in launches],
        ).write(shared / JOB)
        indices = tuple(index for launch in launches for index in launch.instances)
        command = ranks_command(job, python, shared / JOB, self._logs)
        return MpirunLaunch(command, job.environment, directory / "output.log", indices)

    def _write_launch(self, spec: WorkerSpec, directory: Path, environment: dict[str, str]) -> WorkerLaunch:
        directory.mkdir()
        spec.write(directory / "spec.json")
        command = worker_command(self._inputs.python, directory / "spec.json")
        instances = tuple(instance.index for instance in spec.instances)
        launch = WorkerLaunch(command, environment, directory / "output.log", instances)
        return self._enclaves.enclose(launch, spec, directory) if self._enclaves else launch

    def _progress(self) -> Progress:
        p, instances = self._job.parameters, len(self._job.plan.instances)
        total: int | None = None
        if p.mode == "accuracy" and self._inputs.images is not None:
            shares = _share_images(self._inputs.images, instances)
            total = sum(-(-len(share) // p.images_per_step) for share in shares)
        elif p.steps == "auto":
            return Progress(f"measuring {p.mode} {p.precision} until it is precise enough", p.max_time, SECONDS)
        else:
            total = int(p.steps) * instances
        return Progress(f"measuring {p.mode} {p.precision}", total, "steps")

    def _look(self, pids: list[int]) -> None:
        """Take down the conditions under load: clock frequency, who uses the cores, and what a quota holds back."""
        cpus = self._job.plan.cpus
        cpu_time = sample_cpu_time(with_siblings(cpus), [os.getpid(), *pids])
        time_s, quotas = time.monotonic(), tuple(read_cpu_quotas())
        frequency_mhz = sample_frequency_mhz(cpus)
        self._writer.add(Look(time_s=time_s, cpu_time=cpu_time, quotas=quotas, frequency_mhz=frequency_mhz))

    def _enough(self, steps: list[np.ndarray]) -> bool:
        """Tell whether STEPS=auto has measured long and precisely enough."""
        p = self._job.parameters
        if any(len(rows) == 0 for rows in steps):
            return False
        window = stats.common_window(steps)
        if window.seconds < p.min_time:
            return False
        width = stats.estimate_throughput(steps, images_of_steps(steps, p.images_per_step), window).relative_half_width
        return window.seconds >= p.max_time or (width is not None and width <= AUTO_HALF_WIDTH)

    def _keep_times(self, shared: Path) -> None:
        """Keep the raw times that the instances of a disturbed run had."""
        for instance in self._job.plan.instances:
            directory = self._logs / f"instance-{instance.index}"
            directory.mkdir(exist_ok=True)
            if StepTimes.path(shared, instance.index).exists():
                np.save(directory / "steps.npy", StepTimes.read(shared, instance.index))


def _explain(error: BaseException) -> End:
    """Return how a run ended that was killed, hung, interrupted or not done in time."""
    if isinstance(error, TimeUpInterrupt):
        return End(failure=out_of_time(error))
    if isinstance(error, KilledError):
        seen, found = error.detail, str(error)
    elif isinstance(error, KeyboardInterrupt):
        seen, found = INTERRUPTED_RUN, str(KilledError(""))
    else:
        seen, found = "", str(error)
    return End(failure=Criterion(name="instances", passed=False, found=found, needed=""), seen=seen)


def out_of_time(error: TimeUpInterrupt) -> Criterion:
    """Return the criterion that a run fails which was not done in time."""
    return Criterion(name=TIMEOUT, passed=False, found=str(error), needed="")
