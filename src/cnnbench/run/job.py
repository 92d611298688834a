"""Make a case ready to run: resolve its parameters, plan its instances, and what runs it here."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.base.start import PLACES
from cnnbench.cases.artefacts import load_artefacts
from cnnbench.cases.case import TestCase, settle
from cnnbench.cases.parameters import FIELDS, SERVING, Parameters, options_of
from cnnbench.cases.platforms import GENERIC, check_platform, detect_platform
from cnnbench.cases.precisions import Precision, chosen_precision, fit_to_cpu, require
from cnnbench.cases.workload import Sources, Workload, load_workload
from cnnbench.engines.builds import choose_build
from cnnbench.engines.exported import is_export
from cnnbench.engines.interface import EngineOptions
from cnnbench.engines.registry import AUTO, Engine, Setting, find_engine
from cnnbench.inputs.model_file import check_graph
from cnnbench.launch.gramine import read_wrap_key
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.launch.local import engine_environment, split_environment, worker_command
from cnnbench.launch.mpi import Ranks, find_mpirun, is_root, mpirun_command, plan_ranks
from cnnbench.launch.plan import PlanRequest, plan_instances, reserve_cores
from cnnbench.machine.ceiling import HOW_TO_GET, PEAK_VARIABLE, find_peak_program
from cnnbench.machine.host import CpuInfo, read_cpuinfo
from cnnbench.machine.topology import format_cpu_list, read_topology
from cnnbench.run.compatibility import check_engine, check_network_case
from cnnbench.run.energy import NO_ENERGY, EnergySources, check_meter, find_sources
from cnnbench.run.requests import count_held, note_unused, plan_queue, plan_requests
from cnnbench.staging.environments import (
    RANKS,
    environment_path,
    own_python,
    planned_python,
)
from cnnbench.staging.inputs import require_image_set
from cnnbench.staging.sampler import Sampler, find_sampler
from cnnbench.staging.stage import staged_path

PLATFORM_VARIABLE = "PLATFORM"
"""Environment variable: the platform whose declaration the case comes from; cmake sets it, and `docker run -e` can."""


@dataclass(frozen=True)
class PlannedCase:
    """A case as it is to run on this machine, wherever its instances will live.

    `asked`: the parameters as asked for. `parameters`: those that its mode uses.
    `ranks`: where MPI is to start the plan's processes; None without MPI. `clients`: where a server's are, and one for
    each request that is under way at the same time; None where nothing is served.
    """

    workload: Workload
    case: TestCase
    asked: Parameters
    parameters: Parameters
    precision: Precision
    engine: Engine
    cpu: CpuInfo
    plan: Plan
    ranks: Ranks | None
    clients: Plan | None
    notes: tuple[str, ...]

    @property
    def measuring(self) -> Plan:
        """Return the plan of what times steps: of the clients, where there are any."""
        return self.clients or self.plan

    @property
    def held_requests(self) -> int:
        """How many requests a server's instances compute at once."""
        return count_held(self.parameters, self.plan)

    @property
    def sends_freely(self) -> bool:
        """Whether a client sends at moments of its own, without waiting for answers."""
        p = self.parameters
        return self.clients is not None and (p.mode == "capacity" or p.request_rate != "")

    @property
    def cpus(self) -> tuple[int, ...]:
        """Return the CPUs of all that runs here."""
        return self.plan.cpus + (self.clients.instances[0].cpus if self.clients else ())

    @property
    def options(self) -> EngineOptions:
        """The engine's own options."""
        return options_of(self.parameters, self.engine)

    @property
    def effective(self) -> dict[str, str]:
        """The parameters as they take effect here, by name."""
        values = {name: getattr(self.parameters, name.lower()) for name in self.workload.parameters}
        values |= {"INSTANCES": len(self.plan.instances), "CORES_PER_INSTANCE": self.plan.cores_per_instance}
        if self.clients:
            values["MAX_BATCH_SIZE"] = self.parameters.images_per_execution
            values["CONCURRENCY"] = None if self.sends_freely else len(self.clients.instances)
        return {name: setting_text(value) for name, value in values.items() if value not in ("", {}, None)}

    @property
    def requested(self) -> dict[str, str]:
        """The parameters as they were asked for, defaults included, by name."""
        return {name: setting_text(getattr(self.asked, name.lower())) for name in self.workload.parameters}


@dataclass(frozen=True)
class Job(PlannedCase):
    """A planned case with what runs it here: the engine's build, and the environment of the instances.

    `peak_program`: what measures the machine's ceiling; None where there is none, or nothing to hold against it.
    `sampler`: what samples the instances, or why nothing does. `mpirun`: Open MPI's; None without MPI.
    `energy`: what that is read from.
    `rivals`: where the engine is still to be chosen by a trial, the jobs of all that there are, its own among them.
    """

    variant: str
    environment: dict[str, str]
    peak_program: Path | None
    sampler: Sampler
    mpirun: Path | None
    energy: EnergySources
    rivals: tuple["Job", ...] = ()

    @property
    def effective(self) -> dict[str, str]:
        """The parameters as they take effect here, by name."""
        values = super().effective | {"VARIANT": self.variant}
        return {name: values[name] for name in self.workload.parameters if values.get(name)}


def setting_text(value: object) -> str:
    """Return a parameter's value as it is written down."""
    if isinstance(value, dict):
        return " ".join(f"{name}={shlex.quote(text)}" for name, text in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan_case(
    workload_dir: Path,
    case_name: str,
    environ: Mapping[str, str],
    arguments: dict[str, str],
    config: Path | None = None,
) -> PlannedCase:
    """Resolve and plan a case; raise UsageError for a bad value and SkippedError when this machine cannot run it."""
    workload = load_workload(workload_dir)
    case = workload.parse_case(case_name)
    asked = Sources.read(workload, environ, config).resolve(case, {"argument": arguments})
    parameters, notes = settle(asked)
    of_networks = "ENGINE" in workload.parameters
    by_trial = of_networks and parameters.engine == AUTO
    engine = find_engine(parameters.engine if of_networks and not by_trial else workload.engine)
    cpu = read_cpuinfo()
    precision = fit_to_cpu(chosen_precision(parameters.precision, fp8_arithmetic=parameters.fp8_arithmetic), cpu.flags)
    if of_networks:
        notes += check_network_case(case, parameters)
    elif engine.has_model and Path(parameters.model).is_absolute():  # else, it is an artefact's name, or empty
        check_graph(Path(parameters.model))
    if parameters.mode == "accuracy" and not engine.has_model:
        raise UsageError(f"{case.name}: the engine {engine.name} has no model whose accuracy could be measured")
    if parameters.dataset != FIELDS["DATASET"].default and parameters.data_type != "real":
        notes.append(f"DATASET={parameters.dataset} has no effect with DATA_TYPE={parameters.data_type}")
    topology = whole = read_topology()
    serving = case.function == SERVING
    if serving:
        _, topology = reserve_cores(whole, parameters.client_cores)
    plan = plan_instances(
        topology,
        PlanRequest(
            mode=parameters.mode,
            cores_per_instance=_unless_auto(parameters.cores_per_instance),
            instances=_unless_auto(parameters.instances),
            weight_sharing=parameters.weight_sharing,
            instance_mode=parameters.instance_mode,
            replicas=parameters.replicas,
            numa_aware=parameters.numa_aware,
            num_mpi=parameters.num_mpi or None,
        ),
    )
    if parameters.scenario:
        plan = plan_queue(parameters, plan)
    elif parameters.user_conf or parameters.target_qps != "" or parameters.audit:
        raise UsageError("USER_CONF, TARGET_QPS, AUDIT: are LoadGen's; give SCENARIO, or leave them out")
    clients = plan_requests(parameters, plan, whole) if serving else None
    ranks = None
    if parameters.mpi:
        ranks, plan = plan_ranks(plan, topology, parameters.num_mpi or None, parameters.hostfile)
    if not by_trial:
        notes += check_engine(engine, parameters, plan)
    if not case.sgx or asked.force:  # else, what its precision lacks is told together with what its enclaves lack
        require(precision, cpu.flags, force=asked.force)
    if asked.wrap_key:
        _check_wrap_key(asked.wrap_key, workload)
    check_meter(asked.energy_meter, environ)
    platform, detected = check_platform(environ.get(PLATFORM_VARIABLE) or GENERIC), detect_platform(cpu)
    if platform not in (GENERIC, detected):
        notes.append(f"declared for {platform}, but this machine is {detected}")
    notes = [*notes, *note_unused(parameters), *plan.notes]
    return PlannedCase(workload, case, asked, parameters, precision, engine, cpu, plan, ranks, clients, tuple(notes))


def _check_wrap_key(key: str, workload: Workload) -> None:
    """Raise UsageError for a key that is none, or that there is no model to encrypt with."""
    read_wrap_key(Path(key))
    if not find_engine(workload.engine).has_model:
        raise UsageError(f"WRAP_KEY={key}: the engine {workload.engine} has no model to encrypt; leave it out")


def prepare_job(planned: PlannedCase, environ: Mapping[str, str], *, enclaves: bool = False) -> Job:
    """Choose what runs a planned case in this environment; raise SkippedError when nothing here can.

    `enclaves`: whether this is where SGX cases run. Their instances get nothing of this environment. With ENGINE=auto,
    the job is that of the first engine that can, and has those of all as `rivals`.
    """
    p = planned.parameters
    if p.engine == AUTO and planned.engine.takes == "network":
        return _prepare_rivals(planned, environ)
    if planned.case.sgx and not enclaves:
        raise SkippedError(f"{planned.case.name}: SGX cases run in a Gramine container, which BACKEND=native has not")
    int8 = planned.precision.is_int8
    engine, on_gpu = planned.engine, planned.precision.on_gpu
    if engine.has_model and p.data_type == "real":
        require_image_set(p.dataset, cache_root(environ))
    if engine.has_model and engine.takes == "graph":
        given_model(p.model, cache_root(environ))
    if int8 and not p.model and (obstacle := graph_quantizer_obstacle(engine)):
        # A MODEL may be int8 already, which staging finds out.
        raise SkippedError(f"{planned.precision.name}: {obstacle}")
    asked = engine.asked_build(planned.options)
    variant = choose_build(engine, asked, planned.cpu, weight_sharing=p.weight_sharing, int8=int8, gpu=on_gpu)
    compiled_already = bool(p.network_file) and is_export(Path(p.network_file))
    if not compiled_already and (obstacle := engine.obstacle(environ, on_gpu)):
        raise SkippedError(f"ENGINE={engine.name}: {obstacle}")
    inherited, left_out = split_environment({} if planned.case.sgx else environ)
    environment = inherited | engine_environment_of(planned, variant, cache_root(environ))
    notes = list(planned.notes)
    missed = [name for name in left_out if name in PLACES or (not name.startswith("PYTHON") and name not in FIELDS)]
    if missed:
        notes.append(f"not passed on from the caller's environment: {' '.join(missed)}; CUSTOMER_ENV would")
    if environment["ONEDNN_VERBOSE"] not in ("", "0", "none"):
        notes.append("oneDNN traced while measuring, which costs throughput")
    if variant and (own := own_python(build := engine.build(variant))):
        notes.append(f"{engine.name} is that of {build.own_python}={own}, not that of requirements/{build.lock}.lock")
    peak_program = None
    if on_gpu:
        notes.append("utilization was not measured: what measures peaks here measures CPUs, not GPUs")
    elif engine.has_model and p.mode != "accuracy" and planned.plan.cores > len(planned.plan.cpus):
        notes.append("utilization was not measured: the instances are on several hosts")
    elif engine.has_model and p.mode != "accuracy":
        peak_program = find_peak_program(environ)
        if peak_program is None:
            notes.append(f"utilization was not measured: {PEAK_VARIABLE} names no program; {HOW_TO_GET}")
    fields = {one.name: getattr(planned, one.name) for one in dataclasses.fields(planned)}
    return Job(
        **fields | {"notes": tuple(notes)},
        variant=variant,
        environment=environment,
        peak_program=peak_program,
        sampler=_choose_sampler(planned, environ),
        mpirun=find_mpirun() if planned.ranks else None,
        energy=find_energy_sources(planned, environ),
    )


def _choose_sampler(planned: PlannedCase, environ: Mapping[str, str]) -> Sampler:
    """Return what samples a case's instances, where that tells anything and can be."""
    if planned.precision.on_gpu:
        return Sampler(reason="what samples here samples CPUs, not GPUs")
    if planned.case.sgx:
        return Sampler(reason="nothing samples in an enclave: its code is not to be read, and it has no timers")
    return find_sampler(environ)


def find_energy_sources(planned: PlannedCase, environ: Mapping[str, str]) -> EnergySources:
    """Return what energy is read from while a case is measured, or why it is not."""
    if planned.parameters.mode == "accuracy":  # whose times are no figures
        return NO_ENERGY
    if planned.plan.cores > len(planned.plan.cpus):
        return EnergySources(reason="the instances are on several hosts")
    p = planned.parameters
    return find_sources(p.energy_meter, p.idle_time, environ, cores=len(planned.cpus), gpu=planned.precision.on_gpu)


def ranks_command(job: Job, python: Path, file: Path, logs: Path) -> list[str]:
    """Return the command that starts a job's ranks with their environment's Python; `file` is what they are told."""
    assert job.ranks is not None
    assert job.mpirun is not None
    return mpirun_command(job.mpirun, job.ranks, python, file, logs, root=is_root())


def graph_quantizer_obstacle(engine: Engine) -> str:
    """Say why an engine cannot have a graph quantised to int8 here; empty when it can, or needs none."""
    return engine.quantizes_graphs.obstacle(sys.version_info[:2]) if engine.quantizes_graphs else ""


def _prepare_rivals(planned: PlannedCase, environ: Mapping[str, str]) -> Job:
    """Return the job of the first engine that can run a case, with those of all that can; raise where none can."""
    rivals: list[Job] = []
    obstacles: list[str] = []
    misused = True
    for name in planned.workload.engines:
        engine, parameters = find_engine(name), planned.parameters.model_copy(update={"engine": name})
        if engine.ahead_of_time and not parameters.ahead_of_time:
            continue  # it would compile for minutes what is asked for by AHEAD_OF_TIME
        try:
            notes = (*planned.notes, *check_engine(engine, parameters, planned.plan))
            one = dataclasses.replace(planned, parameters=parameters, engine=engine, notes=notes)
            rivals.append(prepare_job(one, environ))
        except (UsageError, SkippedError) as error:
            obstacles.append(f"{name}: {error}")
            misused = misused and isinstance(error, UsageError)
    if not rivals:
        told = f"ENGINE={AUTO}: no engine can: {'; '.join(obstacles)}"
        raise UsageError(told) if misused else SkippedError(told)
    notes = (*rivals[0].notes, *(f"ENGINE={AUTO}: not tried: {obstacle}" for obstacle in obstacles))
    return dataclasses.replace(rivals[0], notes=notes, rivals=tuple(rivals))


def engine_environment_of(planned: PlannedCase, variant: str, cache: Path) -> dict[str, str]:
    """Return what the instances' environment has beyond the caller's."""
    p = planned.parameters
    setting = Setting(variant, planned.precision.data_type, p.batch_size, planned.options, cache / "compiled")
    return engine_environment(
        planned.plan,
        planned.precision,
        p.onednn_verbose,
        planned.engine.environment(setting),
        p.customer_env,
        enclave=planned.case.sgx,
    )


def _unless_auto(value: int | str) -> int | None:
    return None if isinstance(value, str) else value


def describe_case(planned: PlannedCase) -> list[str]:
    """Return the parameters and the plan as lines of text: what `--dry-run` begins with."""
    lines = [planned.case.name, "parameters:"]
    lines += [f"  {name}={value}" for name, value in planned.effective.items()]
    lines.append("instances:")
    for instance in planned.plan.instances:
        host = f", host {instance.host}" if instance.host else ""
        node = "not bound" if instance.memory_node is None else f"node {instance.memory_node}"
        lines.append(
            f"  {instance.index}: process {instance.process}, {instance.threads} threads, "
            f"CPUs {format_cpu_list(instance.cpus)}, sockets {format_cpu_list(instance.sockets)}, "
            f"NUMA nodes {format_cpu_list(instance.nodes)}, {_caches_text(instance)}memory {node}{host}"
        )
    if planned.clients:
        cpus = format_cpu_list(planned.clients.instances[0].cpus)
        lines.append(f"clients: {len(planned.clients.instances)}, CPUs {cpus}")
    return lines + [f"note: {note}" for note in planned.notes]


def _caches_text(instance: InstancePlan) -> str:
    return f"last-level caches from CPU {format_cpu_list(instance.caches)}, " if instance.caches else ""


def describe_job(job: Job, cache: Path) -> list[str]:
    """Return the plan and what it would start here as lines of text: what `--dry-run` prints."""
    lines = [*describe_case(job)]
    if job.rivals:
        names = ", ".join(rival.engine.name for rival in job.rivals)
        lines.append(f"note: ENGINE={AUTO}: a trial will choose out of {names}; below is what {job.engine.name} gets")
    lines.append("environment, beyond the caller's:")
    lines += [f"  {name}={value}" for name, value in engine_environment_of(job, job.variant, cache).items()]
    if job.clients:
        again = ", then perf_analyzer" if job.parameters.perf_analyzer else ""
        return [*lines, f"would start: Triton Server, whose model's processes are these instances, and a client{again}"]
    lines.append("command lines:")
    if job.ranks:
        python = environment_path(RANKS, cache) / "bin" / "python"
        lines.append("  " + " ".join(ranks_command(job, python, Path("SHARED/job.json"), Path("LOGS"))))
        return lines
    python = planned_python(job.engine, job.variant, cache)
    for number in range(len(job.plan.processes)):
        lines.append("  " + " ".join(worker_command(python, Path(f"LOGS/process-{number}/spec.json"))))
    return lines


def given_model(model: str, cache: Path) -> Path | None:
    """Return the frozen graph that MODEL names, None for the embedded one; raise UsageError for one not staged."""
    if not model:
        return None
    artefact, path = load_artefacts().get(model), Path(model)
    if artefact:
        path = staged_path(artefact, cache)
        if not path.is_file():
            raise UsageError(f"MODEL={model}: not staged; run `cnnbench stage {model}`")
    return path
