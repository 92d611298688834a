"""Run a job: launch its workers, watch the machine meanwhile, write down all that is seen, and have it judged."""

import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, TimeUpInterrupt
from cnnbench.base.progress import SECONDS, Progress
from cnnbench.engines.layers import TRACE_DIRECTORY
from cnnbench.launch.enclave import Enclaves
from cnnbench.launch.local import (
    KilledError,
    Limits,
    Run,
    WorkerLaunch,
    run_tracer,
    run_workers,
    shared_directory,
    worker_command,
)
from cnnbench.launch.mpi import JOB, MpirunLaunch, RankJob
from cnnbench.machine.ceiling import measure_ceiling
from cnnbench.machine.cgroup import CpuQuota, read_cpu_quotas
from cnnbench.machine.contention import sample_cpu_time, with_siblings
from cnnbench.machine.host import sample_frequency_mhz
from cnnbench.machine.topology import read_topology
from cnnbench.proof.trace import TRACE_ENVIRONMENT
from cnnbench.proof.verdict import AUTO_HALF_WIDTH, LEAST_ANSWERED
from cnnbench.results import stats
from cnnbench.results.record import INTERRUPTED_RUN, TIMEOUT, WORKER, Criterion, RunResult, find_iterations
from cnnbench.results.steps import StepTimes
from cnnbench.run.energy_seen import watch_energy
from cnnbench.run.facts import host_facts
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job, ranks_command
from cnnbench.run.judging import judge_run
from cnnbench.run.loadgen import find_target, run_audit
from cnnbench.run.measured import CLIENT, Measured, images_of_steps
from cnnbench.run.record import CeilingSeen, End, Look, RunWriter, ServiceCount, describe_run, read_record, read_seen
from cnnbench.run.watching import SILENT, Reporter, Watch
from cnnbench.run.workers import share_images, trace_spec, worker_environment, worker_specs
from cnnbench.staging.sampler import NO_SAMPLER
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.loadgen import LoadGenSpec
from cnnbench.worker.spec import WorkerSpec

DEFAULT_HANG_S = 300.0
ENCLAVE_HANG_S = 1200.0
"""The same in an enclave, where loading takes longer: its memory is made first, and every file it opens is hashed."""
CEILING_RETRIES, CEILING_PAUSE_S = 5, 2.0
"""How often, and after what pause, the peak is measured again at the most when a run was faster than it."""
ENOUGH_REQUESTS = 2 * stats.PERCENTILE_FLOORS[99]
"""After how many a client that sends freely has measured enough, once its least time is up."""
LOGS = (
    "the logs need a directory with room that you may write to: give another --logs-root, for ctest.sh configure "
    "another build directory (cmake -B)"
)
"""What to do where a run's logs cannot be written."""


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


class Measurement:
    """One run of a job: launches it in `logs`, in enclaves if given, and has what it left there judged."""

    def __init__(self, job: Job, inputs: Inputs, logs: Path, hang_s: float, enclaves: Enclaves | None = None) -> None:
        self._job, self._inputs, self._logs, self._hang_s, self._enclaves = job, inputs, logs, hang_s, enclaves
        self._run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._load_before = os.getloadavg()[0]
        self._writer = RunWriter(logs)
        self._reporter = SILENT

    def run(self, reporter: Reporter = SILENT) -> RunResult:
        """Launch, measure and judge; a killed or interrupted run becomes an invalid result, not an exception.

        `reporter` is told how far it is.
        """
        self._reporter = reporter
        with shared_directory() as shared:
            try:
                self._begin()
                with watch_energy(self._job.energy, self._logs, self._job.cpus, self._writer.add):
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
            self._reporter.begin("measuring the peak of the cores")
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
        self._reporter.begin("judging")
        result = judge_run(self._logs)
        for _ in range(CEILING_RETRIES):
            if not retry or not any(failure.name == "ceiling" for failure in result.failures):
                break
            time.sleep(CEILING_PAUSE_S)
            retry = self._measure_ceiling_again()
            result = judge_run(self._logs)
        return result

    def _launch(self, shared: Path) -> None:
        """Run the instances; what they cannot tell or be sampled of themselves, a tracing process runs for."""
        assert self._job.clients is None, "a job of serving needs its server"
        specs = worker_specs(self._job, self._inputs, self._run_id, shared, self._logs)
        specs[0] = replace(specs[0], loadgen=self._settle_loadgen(specs[0].loadgen))
        ControlBlock.create(shared, len(self._job.measuring.instances))
        launches = [
            self._write_launch(
                spec, self._logs / f"process-{number}", worker_environment(self._job, spec, self._inputs.sampler)
            )
            for number, spec in enumerate(specs)
        ]
        if self._inputs.model is not None and not specs[0].tells:
            self._trace(specs[0])
        if self._job.ranks:
            launches = [self._gather_in_ranks(launches, shared)]
        run_workers(
            launches,
            shared,
            Limits(self._enough if self._is_timed else None, self._hang_s),
            self._progress(),
            self._look,
            watch=self._watch(),
            count=self._count,
            cpus=self._job.cpus,
        )
        if specs[0].tells and not self._is_decided():
            self._trace(specs[0])
        self._audit(specs[0].loadgen)

    @property
    def _is_timed(self) -> bool:
        """Whether it is told here when enough is measured: not by a number of steps or images, or by LoadGen."""
        p = self._job.parameters
        return p.accuracy_time != "all" if p.mode == "accuracy" else p.steps == "auto" and not p.scenario

    def _settle_loadgen(self, spec: LoadGenSpec | None) -> LoadGenSpec | None:
        """Return how LoadGen is to run, with the rate of Server found where nobody has said one."""
        if spec is None or spec.scenario != "Server" or spec.accuracy or spec.has_target:
            return spec
        return replace(spec, target_rate=find_target(spec, self._run_loadgen, self._writer.add))

    def _audit(self, spec: LoadGenSpec | None) -> None:
        """Audit what LoadGen has run, where that is asked for."""
        if spec is not None and (name := self._job.parameters.audit):
            run_audit(spec, name, self._logs, self._run_loadgen)

    def _run_loadgen(self, loadgen: LoadGenSpec, logs: Path, name: str) -> None:
        """Run LoadGen once more, beside the run that counts."""
        with shared_directory() as shared:
            (spec,) = worker_specs(self._job, self._inputs, self._run_id, shared, logs)
            spec = replace(spec, loadgen=loadgen, sampling=None, tells=False)
            ControlBlock.create(shared, len(spec.instances))
            launch = self._write_launch(spec, logs / "process-0", worker_environment(self._job, spec, NO_SAMPLER))
            progress = Progress(name, None, "steps")
            run_workers([launch], shared, Limits(None, self._hang_s), progress, lambda _pids: None)

    @property
    def _measured(self) -> Measured:
        """What the run has left so far."""
        return Measured(self._logs, read_record(self._logs), read_seen(self._logs))

    def _is_decided(self) -> bool:
        """Tell whether what was sampled and told while measuring decides about the precision."""
        run = self._measured
        return run.proof is not None or run.sampled is None or run.sampled.decided

    def _trace(self, spec: WorkerSpec) -> None:
        """Run a process that traces some steps, with the cores to itself."""
        directory = self._logs / TRACE_DIRECTORY
        environment = worker_environment(self._job, spec, NO_SAMPLER)
        if not self._job.engine.tells_layers:
            environment |= TRACE_ENVIRONMENT
        launch = self._write_launch(trace_spec(spec, directory), directory, environment)
        with Progress("tracing", 1, "processes") as progress:
            run_tracer(launch, self._hang_s)
            progress.advance(1)

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
        directory.mkdir(exist_ok=True)
        spec.write(directory / "spec.json")
        command = worker_command(self._inputs.python, directory / "spec.json")
        instances = tuple(instance.index for instance in spec.instances)
        launch = WorkerLaunch(command, environment, directory / "output.log", instances)
        return self._enclaves.enclose(launch, spec, directory) if self._enclaves else launch

    def _progress(self) -> Progress:
        p, instances = self._job.parameters, len(self._job.measuring.instances)
        if p.scenario:
            return Progress(f"measuring {p.scenario} {p.precision}", None, "steps")
        if p.mode == "accuracy" and p.accuracy_time != "all":
            return Progress(f"measuring accuracy {p.precision} for its time", p.accuracy_time, SECONDS)
        if p.mode == "accuracy" and self._inputs.images is not None:
            return Progress(f"measuring accuracy {p.precision}", sum(self._shares), "images")
        if p.steps == "auto":
            return Progress(f"measuring {p.mode} {p.precision} until it is precise enough", p.max_time, SECONDS)
        return Progress(f"measuring {p.mode} {p.precision}", int(p.steps) * instances, "steps")

    @property
    def _shares(self) -> list[int]:
        """How many images each instance has, where it goes through them once; none where it does not."""
        p = self._job.parameters
        if p.mode != "accuracy" or p.accuracy_time != "all" or self._inputs.images is None:
            return []
        return [len(one) for one in share_images(self._inputs.images, len(self._job.measuring.instances))]

    def _count(self, run: Run) -> int:
        """Count what the progress shows: images where each instance goes through its share of them, else steps."""
        shares, size = self._shares, self._job.parameters.images_per_step
        if not shares or self._job.parameters.scenario:
            return run.count_measured()
        return sum(min(steps * size, share) for steps, share in zip(run.measured, shares, strict=True))

    def _watch(self) -> Watch:
        """Return what tells how far the instances are."""
        p, steps = self._job.parameters, list[int]()
        if shares := self._shares:
            steps = [-(-share // p.images_per_step) for share in shares]
        elif not self._is_timed and not p.scenario:
            steps = [int(p.steps)] * len(self._job.measuring.instances)
        return Watch(self._job, self._reporter, steps)

    def _look(self, pids: list[int]) -> None:
        """Take down the conditions under load: clock frequency, who uses the cores, and what a quota holds back."""
        cpus = self._job.cpus
        cpu_time = sample_cpu_time(with_siblings(cpus), [os.getpid(), *pids])
        time_s, quotas = time.monotonic(), self._quotas()
        frequency_mhz, served = sample_frequency_mhz(cpus), self._count_served()
        look = Look(time_s=time_s, cpu_time=cpu_time, quotas=quotas, frequency_mhz=frequency_mhz, served=served)
        self._writer.add(look)

    def _quotas(self) -> tuple[CpuQuota, ...]:
        """Return the quotas that hold for what is measured."""
        return read_cpu_quotas()

    def _count_served(self) -> ServiceCount | None:
        """Return what a server has counted so far; None where there is none."""
        return None

    def _enough(self, steps: list[np.ndarray]) -> bool:
        """Tell whether STEPS=auto has measured long and precisely enough, or accuracy's time is up."""
        p = self._job.parameters
        if any(len(rows) == 0 for rows in steps):
            return False
        if p.mode == "accuracy":
            answered = sum(map(len, steps)) * p.images_per_step
            began_ns, ended_ns = min(rows[0, 0] for rows in steps), max(rows[-1, -1] for rows in steps)
            return ended_ns - began_ns >= float(p.accuracy_time) * 1e9 and answered >= LEAST_ANSWERED
        window = stats.common_window(steps)
        if window.seconds < p.min_time:
            return False
        if self._job.sends_freely:
            seconds = (steps[0][:, 0].max() - steps[0][:, 0].min()) / 1e9
            if p.mode == "capacity" and len(steps[0]) < ENOUGH_REQUESTS:
                return False  # its percentile is what the run is for
            return seconds >= p.max_time or (seconds >= p.min_time and len(steps[0]) >= ENOUGH_REQUESTS)
        images = images_of_steps(steps, p.images_per_step)
        width = stats.estimate_throughput(steps, images, window).relative_half_width
        if window.seconds >= p.max_time or (width is not None and width <= AUTO_HALF_WIDTH):
            return True
        if width is None or width * math.sqrt(window.seconds / p.max_time) <= AUTO_HALF_WIDTH:
            return False  # of steps that are alike it will be narrow enough in time
        return window.seconds >= 2 * p.min_time and not stats.is_narrowing(steps, images, window)

    def _keep_times(self, shared: Path) -> None:
        """Keep the raw times that the instances of a disturbed run had."""
        logs = self._logs / CLIENT if self._job.clients else self._logs
        for instance in self._job.measuring.instances:
            directory = logs / f"instance-{instance.index}"
            directory.mkdir(parents=True, exist_ok=True)
            if StepTimes.path(shared, instance.index).exists():
                np.save(directory / "steps.npy", StepTimes.read(shared, instance.index))


MeasurementKind = Callable[[Job, Inputs, Path, float], Measurement]
"""What makes a measurement of a job, its inputs, its logs and how long an instance may hang (s)."""


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
