"""Run a job: launch its workers, and turn what they measured into a judged result."""

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, TimeUpInterrupt
from cnnbench.base.progress import SECONDS, Progress
from cnnbench.engines.layers import TRACE_DIRECTORY
from cnnbench.inputs.image_set import ImageSet
from cnnbench.launch.enclave import Enclaves
from cnnbench.launch.instances import InstancePlan
from cnnbench.launch.local import KilledError, Limits, WorkerLaunch, run_workers, shared_directory, worker_command
from cnnbench.launch.mpi import JOB, REPORT, MpirunLaunch, RankJob, RankReport
from cnnbench.machine.ceiling import Ceiling, Utilization, measure_ceiling, utilize
from cnnbench.machine.cgroup import CpuQuota, read_cpu_quotas
from cnnbench.machine.contention import CpuSample, compare_quotas, compare_samples, sample_cpu_time, with_siblings
from cnnbench.machine.host import sample_frequency_mhz
from cnnbench.machine.topology import read_topology
from cnnbench.proof import verdict as validity
from cnnbench.proof.precision import judge_trace
from cnnbench.proof.trace import TRACE_ENVIRONMENT, read_trace
from cnnbench.results import stats
from cnnbench.results.record import INTERRUPTED_RUN, SEEN, TIMEOUT, WORKER, Criterion, Kpi, RunResult, find_iterations
from cnnbench.results.steps import StepTimes
from cnnbench.run.facts import host_facts, instance_facts, run_notes, software_facts
from cnnbench.run.job import Inputs, Job, ranks_command
from cnnbench.worker.process import InstanceSpec, WorkerSpec

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
            search_path=str(engine.search_path),
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
    size = spec.batch_size if spec.whole_steps else spec.micro_batch_size
    return replace(spec, trace_steps=TRACE_STEPS, instances=[first], micro_batch_size=size, logs=str(directory))


@dataclass(frozen=True)
class _Look:
    """The counters of the cores' time at one moment, on the monotonic clock."""

    time_s: float
    cpu_time: CpuSample
    quotas: tuple[CpuQuota, ...]


class Measurement:
    """One run of a job: launches it in `logs`, in enclaves if given, and turns what came out into a RunResult."""

    def __init__(self, job: Job, inputs: Inputs, logs: Path, hang_s: float, enclaves: Enclaves | None = None) -> None:
        self._job, self._inputs, self._logs, self._hang_s, self._enclaves = job, inputs, logs, hang_s, enclaves
        self._run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._load_before = os.getloadavg()[0]
        self._frequencies: list[float] = []
        self._looks: list[_Look] = []
        self._ceiling: Ceiling | None = None
        self._ceiling_failure = ""
        self._proof_facts: dict[str, str] = {}
        self._ranks: RankReport | None = None

    def run(self) -> RunResult:
        """Launch, measure and judge; a killed or interrupted run becomes an invalid result, not an exception."""
        with shared_directory() as shared:
            try:
                self._measure_ceiling()
                self._launch(shared)
                self._measure_ceiling_again()
                return self._judge()
            except (InvalidMeasurementError, KeyboardInterrupt) as error:
                return self._invalid(error, shared)

    def _measure_ceiling(self) -> None:
        """Measure the most that the cores do; of two times the larger counts, as other work can only lower it."""
        if self._job.peak_program is not None:
            found = measure_ceiling(self._job.peak_program, self._job.precision.peak, self._job.plan.cpus)
            self._ceiling = self._ceiling.raise_to(found) if self._ceiling else found

    def _measure_ceiling_again(self) -> None:
        """Measure it once more; a failure is left to judging, as what the instances measured is to be kept."""
        try:
            self._measure_ceiling()
        except CnnbenchError as error:
            self._ceiling_failure = str(error)

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

        if self._job.ranks:
            self._ranks = RankReport.read(self._logs / "mpi" / REPORT)
            self._job = replace(self._job, plan=self._ranks.bound(self._job.plan))

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
        self._looks.append(_Look(time.monotonic(), cpu_time, read_cpu_quotas()))
        frequency = sample_frequency_mhz(cpus)
        if frequency is not None:
            self._frequencies.append(frequency)

    def _enough(self, steps: list[np.ndarray]) -> bool:
        """Tell whether STEPS=auto has measured long and precisely enough."""
        p = self._job.parameters
        if any(len(rows) == 0 for rows in steps):
            return False
        window = stats.common_window(steps)
        if window.seconds < p.min_time:
            return False
        width = stats.estimate_throughput(steps, self._images(steps), window).relative_half_width
        return window.seconds >= p.max_time or (width is not None and width <= validity.AUTO_HALF_WIDTH)

    def _images(self, steps: list[np.ndarray]) -> list[np.ndarray]:
        """Return the images of each step: all the same, as no accuracy run with its smaller last batch is timed."""
        return [np.full(len(rows), self._job.parameters.images_per_step, dtype=np.int64) for rows in steps]

    def _instance_results(self) -> list[dict[str, Any]]:
        paths = (self._logs / f"instance-{one.index}" / "result.json" for one in self._job.plan.instances)
        return [json.loads(path.read_text()) for path in paths if path.is_file()]

    def _judge(self) -> RunResult:
        job, p = self._job, self._job.parameters
        results = self._instance_results()
        survival = validity.judge_survival(len(job.plan.instances), len(results))
        if not survival.passed:
            return self._result(results, [], [survival], {})
        directories = [self._logs / f"instance-{one.index}" for one in job.plan.instances]
        steps = [np.load(directory / "steps.npy") for directory in directories]
        window = stats.common_window(steps)
        affinities = {result["index"]: result["affinities"] for result in results}
        criteria = [survival, validity.judge_pinning(job.plan, affinities)]
        kpis: list[Kpi] = []
        # The times of an accuracy run are not judged, so they would be no figures to print.
        timed = [] if p.mode == "accuracy" else self._judge_times(steps, window, kpis)
        if self._inputs.images is not None:
            kpis.append(Kpi(key="Input wait", unit="%", value=100 * stats.input_wait_share(steps, window)))
        first, last = self._looks
        looked_s = last.time_s - first.time_s
        cpu_times = self._ranks.cpu_times() if self._ranks else (first.cpu_time, last.cpu_time, looked_s)
        contention = compare_samples(cpu_times[0], cpu_times[1], job.plan.cores, cpu_times[2])
        if contention is not None:
            kpis.append(Kpi(key="Other load", unit="%", value=100 * contention.others))
            kpis.append(Kpi(key="Stolen time", unit="%", value=100 * contention.steal))
        throttling = compare_quotas(first.quotas, last.quotas, len(job.plan.cpus), looked_s)
        if throttling is not None:
            kpis.append(Kpi(key="Throttled time", unit="%", value=100 * throttling.share))
        criteria += self._judge_model(directories, kpis)
        criteria += self._judge_utilization(steps, window, kpis)
        facts = {"measured for": f"{window.seconds:.2f} s, {sum(len(rows) for rows in steps)} steps"}
        if p.mode == "accuracy":
            criteria += self._judge_accuracy(directories, kpis)
        else:
            criteria += timed
            figures = stats.instance_figures(steps, self._images(steps), window)
            results = [result | figure for result, figure in zip(results, figures, strict=True)]
            facts |= instance_facts(job.plan, figures)
            if contention is not None:
                criteria.append(validity.judge_contention(contention))
            else:
                facts = {"contention": f"not judged: {window.seconds:.2f} s are too short to tell it"} | facts
            if throttling is not None:
                criteria.append(validity.judge_throttling(throttling))
            if self._ranks and self._ranks.hosts > 1:
                criteria.append(validity.judge_clocks(self._ranks.clock_error_ns / 1e9, window.seconds))
        if not any(kpi.primary for kpi in kpis):
            criteria.append(validity.reject_without_steps(p.mode))
        resident = {(result.get("host"), result["pid"]): result["resident_bytes"] for result in results}
        if None not in resident.values():
            kpis.append(Kpi(key="Resident memory", unit="MiB", value=sum(resident.values()) / 2**20))
        if self._frequencies:
            kpis.append(Kpi(key="CPU frequency", unit="MHz", value=float(np.mean(self._frequencies))))
        return self._result(results, kpis, criteria, facts)

    def _judge_times(self, steps: list[np.ndarray], window: stats.Window, kpis: list[Kpi]) -> list[Criterion]:
        """Add the KPIs of throughput and latency, and judge how steadily they were measured."""
        p, images, times_ms = self._job.parameters, self._images(steps), stats.inference_times_ms(steps, window)
        throughput = stats.estimate_throughput(steps, images, window)
        kpis += _estimate_kpis("Throughput", "img/s", throughput, primary=p.mode == "throughput")
        if len(times_ms):
            kpis += _estimate_kpis("Latency mean", "ms", stats.estimate_latency(times_ms), primary=p.mode == "latency")
            kpis += [
                Kpi(key=f"Latency p{percentile:g}", unit="ms", value=value)
                for percentile, value in stats.percentiles(times_ms).items()
            ]
        steady = stats.steadiness(stats.slice_rates(steps, images, window))
        if steady is not None:
            kpis.append(Kpi(key="Throughput drift", unit="%", value=100 * steady.drift))
            kpis.append(Kpi(key="Throughput spread", unit="%", value=100 * steady.spread))
        criteria = validity.judge_steadiness(steady)
        if p.steps == "auto":
            criteria.append(validity.judge_interval(throughput, p.max_time))
        return criteria

    def _judge_utilization(self, steps: list[np.ndarray], window: stats.Window, kpis: list[Kpi]) -> list[Criterion]:
        """Add what the throughput is of the machine's ceiling, where that was measured, and judge whether it can be."""
        if self._ceiling is None or self._inputs.model is None:
            return []
        throughput = stats.estimate_throughput(steps, self._images(steps), window)
        utilization = self._utilize(self._ceiling, throughput.mean, self._inputs.model.macs_per_image)
        if self._ceiling_failure:
            needed = "the peak measured again after the run"
            return [Criterion(name="ceiling", passed=False, found=self._ceiling_failure, needed=needed)]
        compute, memory = utilization.ceiling.compute, utilization.ceiling.memory
        kpis += [
            Kpi(key="Compute utilization", unit="%", value=100 * utilization.share),
            Kpi(key="Achieved", unit=compute.unit, value=utilization.achieved),
            Kpi(key="Peak", unit=compute.unit, value=compute.all_cores),
            Kpi(key="Memory bandwidth", unit=memory.unit, value=memory.all_cores),
        ]
        return [validity.judge_ceiling(utilization)]

    def _utilize(self, ceiling: Ceiling, images_per_s: float, macs_per_image: int) -> Utilization:
        """Return the utilization; where it is more than can be, the peak is first measured some times more.

        Whatever slowed the cores then has lowered the peak, and can only have lowered it.
        """
        utilization = utilize(ceiling, images_per_s, macs_per_image)
        for _ in range(CEILING_RETRIES):
            if utilization.share <= 1 or self._ceiling_failure:
                break
            time.sleep(CEILING_PAUSE_S)
            self._measure_ceiling_again()
            utilization = utilize(self._ceiling or ceiling, images_per_s, macs_per_image)
        return utilization

    def _judge_model(self, directories: list[Path], kpis: list[Kpi]) -> list[Criterion]:
        """Judge the precision and the outputs of an engine that has a model."""
        model = self._inputs.model
        if model is None:
            return []
        step = read_trace(self._logs / TRACE_DIRECTORY)
        proof = judge_trace(self._job.precision, step, model.macs_per_image * self._job.parameters.images_per_step)
        self._proof_facts = proof.facts
        agreement = validity.compare_outputs([directory / "check.npy" for directory in directories], model.reference)
        told = proof.instructions_told
        kpis.append(Kpi(key="ISA share" if told else "Data type share", unit="%", value=100 * proof.share))
        kpis.append(Kpi(key="Outputs top-1 agreement", unit="%", value=100 * agreement.top1))
        return [
            validity.judge_precision(self._job.precision, proof),
            validity.judge_outputs(self._job.precision, agreement),
        ]

    def _judge_accuracy(self, directories: list[Path], kpis: list[Kpi]) -> list[Criterion]:
        """Compare the predictions of all shares with the labels, and with those of the float32 model."""
        images, model = self._inputs.images, self._inputs.model
        if images is None or model is None:
            raise CnnbenchError("an accuracy run needs an engine with a model")
        shares = range(len(directories))
        labels = np.concatenate([images.labels[share :: len(directories)] for share in shares]) + model.label_offset
        predictions = [np.load(directory / "predictions.npy") for directory in directories]
        answered = sum(len(rows) for rows in predictions)
        coverage = validity.judge_coverage(answered, len(images))
        if not coverage.passed:
            return [coverage]
        hits = np.concatenate(predictions) == labels[:, None]
        correct = int(hits[:, 0].sum())
        low, high = stats.accuracy_interval(correct, len(hits))
        kpis += [
            Kpi(key="Accuracy top-1", unit="%", value=100 * correct / len(hits), primary=True),
            Kpi(key="Accuracy top-1 95 % low", unit="%", value=100 * low),
            Kpi(key="Accuracy top-1 95 % high", unit="%", value=100 * high),
            Kpi(key="Accuracy top-5", unit="%", value=100 * float(hits.any(axis=1).mean())),
        ]
        if model.predictions is None:
            return [coverage]
        reference = np.load(model.predictions)
        expected = np.concatenate([reference[share :: len(directories)] for share in shares]) == labels
        loss, low, high = stats.paired_difference(expected, hits[:, 0])
        kpis += [
            Kpi(key="Top-1 loss", unit="%", value=100 * loss),
            Kpi(key="Top-1 loss 95 % low", unit="%", value=100 * low),
            Kpi(key="Top-1 loss 95 % high", unit="%", value=100 * high),
        ]
        return [coverage, validity.judge_loss(loss)]

    def _invalid(self, error: BaseException, shared: Path) -> RunResult:
        """Return the result of a run that was killed, hung or interrupted, keeping the raw times it had."""
        for instance in self._job.plan.instances:
            directory = self._logs / f"instance-{instance.index}"
            directory.mkdir(exist_ok=True)
            if StepTimes.path(shared, instance.index).exists():
                np.save(directory / "steps.npy", StepTimes.read(shared, instance.index))
        if isinstance(error, TimeUpInterrupt):
            return self.reject(out_of_time(error), {})
        if isinstance(error, KilledError):
            detail, found = error.detail, str(error)
        elif isinstance(error, KeyboardInterrupt):
            detail, found = INTERRUPTED_RUN, str(KilledError(""))
        else:
            detail, found = "", str(error)
        facts = {SEEN: detail} if detail else {}
        return self._result([], [], [Criterion(name="instances", passed=False, found=found, needed="")], facts)

    def reject(self, failure: Criterion, facts: dict[str, str]) -> RunResult:
        """Return the result of a run that failed as a whole, which need not have begun."""
        return self._result([], [], [failure], facts)

    def _result(
        self, results: list[dict[str, Any]], kpis: list[Kpi], criteria: list[Criterion], facts: dict[str, str]
    ) -> RunResult:
        job = self._job
        return RunResult(
            run_id=self._run_id,
            started=self._started,
            workload=job.workload.name,
            case=job.case.name,
            requested=job.requested,
            effective=job.effective,
            facts=host_facts(job, self._load_before)
            | software_facts(results, self._logs / TRACE_DIRECTORY / "output.log", self._inputs)
            | (self._ranks.facts() if self._ranks else {})
            | facts
            | self._proof_facts,
            plan=job.plan.to_dict(),
            instances=results,
            kpis=_primary_first(kpis),
            criteria=criteria,
            notes=run_notes(job, results) + (self._ranks.notes() if self._ranks else []),
        )


def out_of_time(error: TimeUpInterrupt) -> Criterion:
    """Return the criterion that a run fails which was not done in time."""
    return Criterion(name=TIMEOUT, passed=False, found=str(error), needed="")


def _primary_first(kpis: list[Kpi]) -> list[Kpi]:
    """Return the KPIs with the primary one in front, followed by those of its kind."""
    kind = next((kpi.key.split()[0] for kpi in kpis if kpi.primary), "")
    return sorted(kpis, key=lambda kpi: (not kpi.primary, kpi.key.split()[0] != kind))


def _estimate_kpis(key: str, unit: str, estimate: stats.Estimate, primary: bool) -> list[Kpi]:
    """Return a mean and, where there is one, its 95 % interval."""
    kpis = [Kpi(key=key, unit=unit, value=estimate.mean, primary=primary)]
    if estimate.half_width is not None:
        kpis.append(Kpi(key=f"{key} 95 % low", unit=unit, value=estimate.mean - estimate.half_width))
        kpis.append(Kpi(key=f"{key} 95 % high", unit=unit, value=estimate.mean + estimate.half_width))
    return kpis
