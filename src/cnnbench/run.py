"""Run one test case: resolve, plan, stage, launch, judge, and write the logs."""

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import stats, validity
from cnnbench.backends import Engine, find_engine
from cnnbench.case import FIELDS, Parameters, TestCase, from_environment
from cnnbench.contention import CpuSample, compare_samples, sample_cpu_time
from cnnbench.datasets.index import ImageSet
from cnnbench.environments import choose_variant, engine_python, environment_path
from cnnbench.errors import CnnbenchError, InvalidMeasurementError, SkippedError, UsageError
from cnnbench.host import CpuInfo, read_cpuinfo, read_host, sample_frequency_mhz
from cnnbench.isa import PRECISIONS, Precision, judge_trace, parse_verbose, require
from cnnbench.launch.local import (
    KilledError,
    Limits,
    WorkerLaunch,
    engine_environment,
    run_workers,
    shared_directory_root,
    split_environment,
    worker_command,
)
from cnnbench.launch.plan import Plan, PlanRequest, plan_instances
from cnnbench.launch.shared import StepTimes
from cnnbench.progress import Progress
from cnnbench.result import Criterion, Kpi, RunResult
from cnnbench.staging.inputs import PreparedModel, find_image_set, prepare_model, stage_embedded_model
from cnnbench.staging.manifest import load_artefacts
from cnnbench.staging.stage import staged_path
from cnnbench.topology import format_cpu_list, read_topology
from cnnbench.worker import InstanceSpec, WorkerSpec
from cnnbench.workload import Workload, load_workload, resolve_parameters

DEFAULT_HANG_S = 300.0
TRACE_STEPS = 1


@dataclass(frozen=True)
class Job:
    """A case made ready to run: what was asked for and what it becomes on this machine."""

    workload: Workload
    case: TestCase
    parameters: Parameters
    precision: Precision
    engine: Engine
    variant: str
    cpu: CpuInfo
    plan: Plan
    environment: dict[str, str]
    notes: tuple[str, ...]

    @property
    def effective(self) -> dict[str, str]:
        """The parameters as they take effect here, by name."""
        values = {name: getattr(self.parameters, name.lower()) for name in FIELDS}
        values |= {
            "INSTANCES": len(self.plan.instances),
            "CORES_PER_INSTANCE": self.plan.cores_per_instance,
            "VARIANT": self.variant,
        }
        return {name: _text(value) for name, value in values.items() if value not in ("", {}, None)}


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={text!r}" if " " in text else f"{name}={text}" for name, text in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def prepare_job(
    workload_dir: Path,
    case_name: str,
    environ: Mapping[str, str],
    arguments: dict[str, str],
    config: Path | None = None,
) -> Job:
    """Resolve and plan a case; raise UsageError for a bad value and SkippedError when this machine cannot run it."""
    workload = load_workload(workload_dir)
    case = TestCase.parse(case_name, workload.slug)
    parameters = resolve_parameters(workload, case, from_environment(environ), arguments, config)
    engine, precision, cpu = find_engine(workload.engine), PRECISIONS[parameters.precision], read_cpuinfo()
    if parameters.mode == "accuracy" and not engine.preparer:
        raise UsageError(f"{case.name}: the engine {workload.engine} has no model whose accuracy could be measured")
    plan = plan_instances(
        read_topology(),
        PlanRequest(
            mode=parameters.mode,
            cores_per_instance=_unless_auto(parameters.cores_per_instance),
            instances=_unless_auto(parameters.instances),
            weight_sharing=parameters.weight_sharing,
        ),
    )
    if case.sgx:
        raise SkippedError(f"{case.name}: SGX cases run in a Gramine container, which BACKEND=native has not")
    require(precision, cpu.flags)
    variant = choose_variant(workload.engine, parameters.variant, cpu, parameters.weight_sharing)
    inherited, left_out = split_environment(environ)
    environment = inherited | engine_environment(plan, precision, parameters.onednn_verbose, parameters.customer_env)
    notes = list(plan.notes)
    missed = [name for name in left_out if not name.startswith("PYTHON")]
    if missed:
        notes.append(f"not passed on from the caller's environment: {' '.join(missed)}; CUSTOMER_ENV would")
    if parameters.onednn_verbose:
        notes.append("oneDNN traced while measuring, which costs throughput")
    return Job(workload, case, parameters, precision, engine, variant, cpu, plan, environment, tuple(notes))


def _unless_auto(value: int | str) -> int | None:
    return None if isinstance(value, str) else value


def describe_job(job: Job, cache: Path) -> str:
    """Return the plan as text: what `--dry-run` prints."""
    lines = [job.case.name, "parameters:"]
    lines += [f"  {name}={value}" for name, value in job.effective.items()]
    lines.append("instances:")
    for instance in job.plan.instances:
        node = "not bound" if instance.memory_node is None else f"node {instance.memory_node}"
        lines.append(
            f"  {instance.index}: process {instance.process}, {instance.threads} threads, "
            f"CPUs {format_cpu_list(instance.cpus)}, sockets {format_cpu_list(instance.sockets)}, "
            f"NUMA nodes {format_cpu_list(instance.nodes)}, memory {node}"
        )
    lines += [f"note: {note}" for note in job.notes]
    lines.append("environment, beyond the caller's:")
    extra = engine_environment(job.plan, job.precision, job.parameters.onednn_verbose, job.parameters.customer_env)
    lines += [f"  {name}={value}" for name, value in extra.items()]
    lines.append("command lines:")
    python = _planned_python(job, cache)
    for number in range(len(job.plan.processes)):
        lines.append("  " + " ".join(worker_command(python, Path(f"LOGS/process-{number}/spec.json"))))
    return "\n".join(lines)


def _planned_python(job: Job, cache: Path) -> Path:
    if not job.variant:
        return engine_python(job.workload.engine, "", cache)
    return environment_path(job.workload.engine, job.variant, cache) / "bin" / "python"


@dataclass(frozen=True)
class Inputs:
    """What a job reads: the engine's Python, the images and the model; no images for dummy data, no model for null."""

    python: Path
    images: ImageSet | None
    model: PreparedModel | None


def stage_inputs(job: Job, cache: Path) -> Inputs:
    """Make or find everything a job reads; what is there already costs next to nothing."""
    python = engine_python(job.workload.engine, job.variant, cache)
    if not job.engine.preparer:
        return Inputs(python, None, None)
    images = find_image_set(job.parameters.dataset, cache)
    model = prepare_model(_find_model(job, python, cache), images, python, job.engine.preparer, cache)
    return Inputs(python, images if job.parameters.data_type == "real" else None, model)


def _find_model(job: Job, python: Path, cache: Path) -> Path:
    if not job.parameters.model:
        return stage_embedded_model(python, job.engine.preparer, cache)
    artefacts = load_artefacts()
    if job.parameters.model in artefacts:
        path = staged_path(artefacts[job.parameters.model], cache)
        if not path.is_file():
            raise CnnbenchError(
                f"MODEL={job.parameters.model}: not staged; run `cnnbench stage {job.parameters.model}`"
            )
        return path
    return Path(job.parameters.model)


def new_logs_directory(root: Path, case_name: str) -> Path:
    """Make `logs-<case>`, or `logs-<case>.1` and so on when earlier runs' logs are there; nothing is overwritten."""
    number = 0
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            directory = root / (f"logs-{case_name}" + (f".{number}" if number else ""))
            try:
                directory.mkdir()
            except FileExistsError:
                number += 1
            else:
                return directory
    except OSError as error:
        raise CnnbenchError(f"{root}: {error.strerror}; the logs need a directory that you may write to") from error


def _share_images(images: ImageSet | None, shares: int) -> list[list[str]]:
    """Deal the images out to the instances in turn, so that every share is as mixed as the whole."""
    if images is None:
        return [[] for _ in range(shares)]
    paths = images.paths()
    return [paths[share::shares] for share in range(shares)]


def _worker_specs(job: Job, inputs: Inputs, run_id: str, shared: Path, logs: Path) -> list[WorkerSpec]:
    p, plan, model = job.parameters, job.plan, inputs.model
    shares = _share_images(inputs.images, len(plan.instances))
    return [
        WorkerSpec(
            run_id=run_id,
            controller=os.getpid(),
            engine=job.workload.engine,
            model=str(model.graph) if model else "",
            precision=p.precision,
            batch_size=p.batch_size,
            mode=p.mode,
            steps=None if p.mode == "accuracy" or p.steps == "auto" else int(p.steps),
            warmup_steps=p.warmup_steps,
            trace_steps=None,
            instances=[InstanceSpec(one.index, list(one.cpus), shares[one.index]) for one in process],
            memory_node=process[0].memory_node if len({one.memory_node for one in process}) == 1 else None,
            check_images=str(model.check_images) if model else "",
            shared=str(shared),
            logs=str(logs),
            verbose=p.verbose,
        )
        for process in plan.processes
    ]


def _write_launch(spec: WorkerSpec, directory: Path, python: Path) -> WorkerLaunch:
    directory.mkdir()
    spec.write(directory / "spec.json")
    instances = tuple(instance.index for instance in spec.instances)
    return WorkerLaunch(worker_command(python, directory / "spec.json"), directory / "output.log", instances)


def _trace_spec(spec: WorkerSpec, directory: Path) -> WorkerSpec:
    first = replace(spec.instances[0], files=[])
    return replace(spec, trace_steps=TRACE_STEPS, instances=[first], logs=str(directory))


def _images_per_step(steps: int, share: int, batch_size: int, accuracy: bool) -> np.ndarray:
    """Return the images of each step; in an accuracy run the last batch of a share may be smaller."""
    images = np.full(steps, batch_size, dtype=np.int64)
    if accuracy and steps:
        images[-1] = share - batch_size * (steps - 1)
    return images


class Measurement:
    """One run of a job: launches it in `logs` and turns what came out into a RunResult."""

    def __init__(self, job: Job, inputs: Inputs, logs: Path, hang_s: float) -> None:
        self._job, self._inputs, self._logs, self._hang_s = job, inputs, logs, hang_s
        self._run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._load_before = os.getloadavg()[0]
        self._frequencies: list[float] = []
        self._looks: list[tuple[float, CpuSample]] = []

    def run(self) -> RunResult:
        """Launch, measure and judge; a killed or interrupted run becomes an invalid result, not an exception."""
        shared = Path(tempfile.mkdtemp(prefix="cnnbench-", dir=shared_directory_root()))
        try:
            self._launch(shared)
            return self._judge()
        except (InvalidMeasurementError, KeyboardInterrupt) as error:
            return self._invalid(error, shared)
        finally:
            shutil.rmtree(shared)

    def _launch(self, shared: Path) -> None:
        job, python = self._job, self._inputs.python
        specs = _worker_specs(job, self._inputs, self._run_id, shared, self._logs)
        launches = [_write_launch(spec, self._logs / f"process-{number}", python) for number, spec in enumerate(specs)]
        trace = None
        if self._inputs.model is not None:
            directory = self._logs / "trace"
            trace = _write_launch(_trace_spec(specs[0], directory), directory, python)
        run_workers(
            launches,
            trace,
            job.environment,
            job.environment | {"ONEDNN_VERBOSE": "1"},
            shared,
            Limits(
                self._enough if job.parameters.mode != "accuracy" and specs[0].steps is None else None, self._hang_s
            ),
            self._progress(),
            self._look,
        )

    def _progress(self) -> Progress:
        p, instances = self._job.parameters, len(self._job.plan.instances)
        total: int | None = None
        if p.mode == "accuracy" and self._inputs.images is not None:
            shares = _share_images(self._inputs.images, instances)
            total = sum(-(-len(share) // p.batch_size) for share in shares)
        elif p.steps != "auto":
            total = int(p.steps) * instances
        return Progress(f"measuring {p.mode} {p.precision}", total, "steps")

    def _look(self, pids: list[int]) -> None:
        """Take down the conditions under load: clock frequency, and who uses the cores."""
        cpus = [cpu for instance in self._job.plan.instances for cpu in instance.cpus]
        self._looks.append((time.monotonic(), sample_cpu_time(cpus, [os.getpid(), *pids])))
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
        p, shares = self._job.parameters, _share_images(self._inputs.images, len(steps))
        return [
            _images_per_step(len(rows), len(share), p.batch_size, p.mode == "accuracy")
            for rows, share in zip(steps, shares, strict=True)
        ]

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
        images = self._images(steps)
        window = stats.common_window(steps)
        throughput = stats.estimate_throughput(steps, images, window)
        steady = stats.steadiness(stats.slice_rates(steps, images, window))
        affinities = {result["index"]: result["affinities"] for result in results}
        criteria = [survival, validity.judge_pinning(job.plan, affinities)]
        kpis = self._timing_kpis(steps, window, throughput, steady)
        (began_s, first), (ended_s, last) = self._looks
        contention = compare_samples(first, last, job.plan.cores, ended_s - began_s)
        kpis.append(Kpi(key="Other load", unit="%", value=100 * contention.others))
        kpis.append(Kpi(key="Stolen time", unit="%", value=100 * contention.steal))
        criteria.append(validity.judge_contention(contention))
        criteria += self._judge_model(directories, kpis)
        if p.mode == "accuracy":
            criteria.append(self._judge_accuracy(directories, kpis))
        else:
            criteria += validity.judge_steadiness(steady)
            if p.steps == "auto":
                criteria.append(validity.judge_interval(throughput, p.max_time))
        processes = {result["pid"]: result["resident_bytes"] for result in results}
        kpis.append(Kpi(key="Resident memory", unit="MiB", value=sum(processes.values()) / 2**20))
        if self._frequencies:
            kpis.append(Kpi(key="CPU frequency", unit="MHz", value=float(np.mean(self._frequencies))))
        facts = {"measured for": f"{window.seconds:.2f} s, {sum(len(rows) for rows in steps)} steps"}
        return self._result(results, kpis, criteria, facts)

    def _timing_kpis(
        self,
        steps: list[np.ndarray],
        window: stats.Window,
        throughput: stats.Estimate,
        steady: stats.Steadiness | None,
    ) -> list[Kpi]:
        mode, times_ms = self._job.parameters.mode, stats.inference_times_ms(steps, window)
        kpis = _estimate_kpis("Throughput", "img/s", throughput, primary=mode == "throughput")
        if len(times_ms):
            kpis += _estimate_kpis("Latency mean", "ms", stats.estimate_latency(times_ms), primary=mode == "latency")
            kpis += [
                Kpi(key=f"Latency p{percentile:g}", unit="ms", value=value)
                for percentile, value in stats.percentiles(times_ms).items()
            ]
        if self._inputs.images is not None:
            share = stats.input_wait_share(steps, window)
            kpis.append(Kpi(key="Input wait", unit="%", value=100 * share))
        if steady is not None:
            kpis.append(Kpi(key="Throughput drift", unit="%", value=100 * steady.drift))
            kpis.append(Kpi(key="Throughput spread", unit="%", value=100 * steady.spread))
        return kpis

    def _judge_model(self, directories: list[Path], kpis: list[Kpi]) -> list[Criterion]:
        """Judge the precision and the outputs of an engine that has a model."""
        model = self._inputs.model
        if model is None:
            return []
        with (self._logs / "trace" / "output.log").open(errors="replace") as trace:
            primitives = parse_verbose(trace)
        needed = model.macs_per_image * self._job.parameters.batch_size * TRACE_STEPS
        proof = judge_trace(self._job.precision, primitives, needed)
        agreement = validity.compare_outputs([directory / "check.npy" for directory in directories], model.reference)
        kpis.append(Kpi(key="Precision share", unit="%", value=100 * proof.share))
        kpis.append(Kpi(key="Outputs top-1 agreement", unit="%", value=100 * agreement.top1))
        return [
            validity.judge_precision(self._job.precision, proof),
            validity.judge_outputs(self._job.precision, agreement),
        ]

    def _judge_accuracy(self, directories: list[Path], kpis: list[Kpi]) -> Criterion:
        """Compare the predictions of all shares with the labels."""
        images = self._inputs.images
        if images is None:
            raise CnnbenchError("an accuracy run needs an engine with a model")
        labels = [images.labels[share :: len(directories)] for share in range(len(directories))]
        predictions = [np.load(directory / "predictions.npy") for directory in directories]
        answered = sum(len(rows) for rows in predictions)
        coverage = validity.judge_coverage(answered, len(images))
        if coverage.passed:
            hits = np.concatenate(predictions) == np.concatenate(labels)[:, None]
            correct = int(hits[:, 0].sum())
            low, high = stats.accuracy_interval(correct, len(hits))
            kpis += [
                Kpi(key="Accuracy top-1", unit="%", value=100 * correct / len(hits), primary=True),
                Kpi(key="Accuracy top-1 95 % low", unit="%", value=100 * low),
                Kpi(key="Accuracy top-1 95 % high", unit="%", value=100 * high),
                Kpi(key="Accuracy top-5", unit="%", value=100 * float(hits.any(axis=1).mean())),
            ]
        return coverage

    def _invalid(self, error: BaseException, shared: Path) -> RunResult:
        """Return the result of a run that was killed, hung or interrupted, keeping the raw times it had."""
        for instance in self._job.plan.instances:
            directory = self._logs / f"instance-{instance.index}"
            directory.mkdir(exist_ok=True)
            if StepTimes.path(shared, instance.index).exists():
                np.save(directory / "steps.npy", StepTimes.read(shared, instance.index))
        if isinstance(error, KilledError):
            detail, found = error.detail, str(error)
        elif isinstance(error, KeyboardInterrupt):
            detail, found = "the run was interrupted", str(KilledError(""))
        else:
            detail, found = "", str(error)
        facts = {"what was seen": detail} if detail else {}
        return self._result([], [], [Criterion(name="instances", passed=False, found=found, needed="")], facts)

    def _result(
        self, results: list[dict[str, Any]], kpis: list[Kpi], criteria: list[Criterion], facts: dict[str, str]
    ) -> RunResult:
        job = self._job
        return RunResult(
            run_id=self._run_id,
            started=self._started,
            workload=job.workload.name,
            case=job.case.name,
            requested={name: _text(getattr(job.parameters, name.lower())) for name in FIELDS},
            effective=job.effective,
            facts=self._host_facts() | self._software_facts(results) | facts,
            plan=job.plan.to_dict(),
            instances=results,
            kpis=_primary_first(kpis),
            criteria=criteria,
            notes=list(job.notes) + self._memory_notes(results),
        )

    def _host_facts(self) -> dict[str, str]:
        host = read_host()
        cores = [cpu for instance in self._job.plan.instances for cpu in instance.cpus]
        facts = {
            "CPU": host.cpu_model,
            "sockets, cores, threads": f"{host.sockets}, {host.cores}, {host.threads}",
            "SMT": "on" if host.smt else "off",
            "NUMA nodes": host.numa_nodes,
            "CPUs used": format_cpu_list(cores),
            "governor": host.governor,
            "turbo": None if host.turbo is None else "on" if host.turbo else "off",
            "microcode": host.microcode,
            "hypervisor": {True: "yes", False: "no", None: None}[host.hypervisor],
            "kernel": host.kernel,
            "memory": f"{host.memory_bytes / 2**30:.1f} GiB" if host.memory_bytes else None,
            "transparent hugepages": host.transparent_hugepages,
            "load average before": f"{self._load_before:.2f}",
        }
        return {name: str(value) for name, value in facts.items() if value is not None}

    def _software_facts(self, results: list[dict[str, Any]]) -> dict[str, str]:
        facts: dict[str, str] = dict(results[0]["versions"]) if results else {}
        trace = self._logs / "trace" / "output.log"
        if trace.is_file():
            with trace.open(errors="replace") as lines:
                version = next((line.split(",")[-1] for line in lines if ",info,oneDNN v" in line), "")
            facts |= {"oneDNN": version.strip().removeprefix("oneDNN ")} if version else {}
        if self._inputs.model is not None:
            facts["model SHA-256"] = self._inputs.model.source_sha256
        if self._inputs.images is not None:
            facts["dataset SHA-256"] = self._inputs.images.sha256
        return facts

    @staticmethod
    def _memory_notes(results: list[dict[str, Any]]) -> list[str]:
        unbound = sorted({str(result["memory"]) for result in results if not result["memory"].startswith("bound")})
        return [f"memory {text}" for text in unbound]


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
