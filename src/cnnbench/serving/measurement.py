"""Measure a server: the same loop, barrier and judge as for instances, with clients in their place.

The clients are threads of one process on cores of its own, each with one request under way; where they are to send at
moments of their own, it is one thread that sends and does not wait.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cnnbench.base.errors import InvalidMeasurementError, SkippedError
from cnnbench.base.progress import SECONDS, Progress
from cnnbench.cases.variables import NEIGHBOUR_VARIABLE
from cnnbench.launch.beside import Neighbour
from cnnbench.launch.local import (
    Limits,
    Run,
    WorkerLaunch,
    run_workers,
    shared_directory,
    split_environment,
    worker_command,
)
from cnnbench.machine.cgroup import CpuQuota, read_cpu_quotas
from cnnbench.proof.verdict import LATE_BOUND
from cnnbench.results import stats
from cnnbench.results.steps import StepTimes
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job
from cnnbench.run.measured import CLIENT, LATE_MS, METADATA, SERVER
from cnnbench.run.measurement import Measurement, MeasurementKind
from cnnbench.run.rates import search_rate, trial_s
from cnnbench.run.record import CapacitySeen, SecondClientSeen, ServiceCount
from cnnbench.run.watching import Watch
from cnnbench.run.workers import share_images, worker_environment
from cnnbench.serving.perf_analyzer import NAME as PERF_ANALYZER
from cnnbench.serving.perf_analyzer import Asked, PerfAnalyzer, ask, find_perf_analyzer
from cnnbench.serving.programs import EngineServer, Installation, find_installation, find_libpython
from cnnbench.serving.repository import VERSION, write_repository
from cnnbench.serving.server import START_S, Ports, Server
from cnnbench.staging.environments import TRITON_CLIENT, locked_python
from cnnbench.staging.sampler import stage_sampler
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.loadgen import LoadGenSpec
from cnnbench.worker.served import spec_name
from cnnbench.worker.spec import Arrivals, InstanceSpec, WorkerSpec

SEED = 1
"""Of the moments at which requests are sent: the same in every run."""
CONFIRMATIONS, LOWER = 4, 0.95
"""How often the rate found is measured at the most, and what of it each time after the first."""
ATTEMPTS = 3
"""How often a rate is tried at the most, where requests were sent late."""


class ServedMeasurement(Measurement):
    """One run of a job of serving.

    `client`: the Python of what asks; `installation`: the server that answers; `analyzer`: what asks again; None for
    nothing. `neighbour`: the container that the server is to run in; None where it runs here, on loopback.
    """

    def __init__(
        self,
        job: Job,
        inputs: Inputs,
        logs: Path,
        hang_s: float,
        client: Path,
        installation: Installation,
        analyzer: PerfAnalyzer | None = None,
        neighbour: Neighbour | None = None,
    ) -> None:
        super().__init__(job, inputs, logs, hang_s)
        self._client, self._installation, self._analyzer = client, installation, analyzer
        self._neighbour = neighbour
        self._server: Server | None = None
        self._served: WorkerSpec | None = None
        self._model = ""

    def _launch(self, shared: Path) -> None:
        """Start the server, find the rate where that is asked for, and run the clients."""
        job = self._job
        directory = self._logs / SERVER
        directory.mkdir()
        repository = Path(job.parameters.model_repository or shared / "models")
        self._model = write_repository(job, self._inputs, self._run_id, shared, self._logs, repository)
        spec = WorkerSpec.read(repository / self._model / VERSION / spec_name(0))
        environment = worker_environment(job, spec, self._inputs.sampler)
        log, origin = directory / "output.log", EngineServer(self._installation, self._inputs.python, environment)
        ports = Ports.choose(grpc=job.parameters.grpc_port or None)
        start_s = min(START_S, self._hang_s)
        names = [self._model]
        with Server(origin, repository, names, ports, log, start_s, self._neighbour) as server:
            self._server, self._served = server, spec
            (directory / METADATA).write_text(json.dumps(server.metadata), encoding="utf-8")
            if job.parameters.mode == "capacity":
                asked = self._confirm(spec, shared, self._find_rate(spec))
            else:
                asked = self._client_spec(spec, shared, self._logs / CLIENT, float(job.parameters.request_rate or 0))
                asked = replace(asked, loadgen=self._settle_loadgen(asked.loadgen))
                self._measure(asked, shared)
            self._audit(asked.loadgen)
            if self._analyzer is not None and job.parameters.perf_analyzer:
                self._writer.add(self._ask_again(self._analyzer, asked))
            server.check()

    def _measure(self, asked: WorkerSpec, shared: Path) -> None:
        ControlBlock.create(shared, len(asked.instances))
        limits = Limits(self._enough if self._is_timed else None, self._hang_s)
        self._run_client(asked, shared, limits, self._progress(), self._look_at_all, self._watch())

    def _confirm(self, spec: WorkerSpec, shared: Path, found: CapacitySeen) -> WorkerSpec:
        """Measure the rate that was found, and lower ones where such a run, longer than a trial, breaks the bound.

        Where that was the client's doing, which sent late, the same rate is measured again.
        """
        bound_ms = self._job.parameters.latency_bound_ms
        for left in reversed(range(CONFIRMATIONS)):
            self._writer.add(found)
            asked = self._client_spec(spec, shared, self._logs / CLIENT, found.rate_per_s)
            self._measure(asked, shared)
            run = self._measured
            p99 = run.percentiles.get(99)
            if (p99 is not None and p99 <= bound_ms) or not left:
                break
            shutil.rmtree(self._logs / CLIENT)
            trials = (*found.trials, (found.rate_per_s, p99, False))
            late = run.late_share is not None and run.late_share > LATE_BOUND
            found = CapacitySeen(rate_per_s=found.rate_per_s * (1 if late else LOWER), trials=trials)
        return asked

    def _run_loadgen(self, loadgen: LoadGenSpec, logs: Path, name: str) -> None:
        assert self._served is not None
        with shared_directory() as shared:
            asked = replace(self._client_spec(self._served, shared, logs, 0), loadgen=loadgen)
            ControlBlock.create(shared, len(asked.instances))
            self._run_client(asked, shared, Limits(None, self._hang_s), Progress(name, None, "steps"))

    def _run_client(
        self,
        spec: WorkerSpec,
        shared: Path,
        limits: Limits,
        progress: Progress,
        look: Callable[[list[int]], object] = lambda _pids: None,
        watch: Watch | None = None,
    ) -> None:
        assert self._server is not None
        directory = Path(spec.logs) / "process-0"
        directory.mkdir(parents=True)
        spec.write(directory / "spec.json")
        command = worker_command(self._client, directory / "spec.json")
        numbers = tuple(one.index for one in spec.instances)
        launch = WorkerLaunch(command, self._client_environment, directory / "output.log", numbers)
        run_workers(
            [launch],
            shared,
            limits,
            progress,
            look,
            self._server.check,
            watch or (lambda _run: ""),
            count=self._count if watch else Run.count_measured,
            cpus=self._job.cpus,
        )

    @property
    def _client_environment(self) -> dict[str, str]:
        inherited, _ = split_environment(self._job.environment)
        assert self._server is not None
        return inherited | {"OMP_NUM_THREADS": "1"} | dict.fromkeys(("no_proxy", "NO_PROXY"), self._server.address)

    def _where(self) -> str:
        """Return the address and the port that the server is asked at."""
        assert self._server is not None
        return f"{self._server.address}:{getattr(self._server.ports, self._job.parameters.protocol)}"

    def _ask_again(self, analyzer: PerfAnalyzer, spec: WorkerSpec) -> SecondClientSeen:
        """Have perf_analyzer ask as our clients have, from their cores."""
        assert self._server is not None
        assert self._inputs.model is not None
        assert self._inputs.model.form is not None
        p, run = self._job.parameters, self._measured
        asked = Asked(
            address=self._where(),
            model=self._model,
            protocol=p.protocol,
            batch_size=p.batch_size,
            request_bytes=p.batch_size * self._inputs.model.form.image_bytes,
            shared_memory=p.shared_memory,
            concurrency=len(spec.instances),
            due_ns=run.raw_steps[0][:, 0] if spec.arrivals else None,
            seconds=run.window.seconds,
            rate_per_s=sum(map(len, run.steps)) / run.window.seconds,
        )
        directory, cpus = self._logs / PERF_ANALYZER, spec.instances[0].cpus
        return ask(analyzer, asked, directory, self._client_environment, cpus, self._hang_s, self._server.check)

    def _look_at_all(self, pids: list[int]) -> None:
        assert self._server is not None
        self._look([*pids, *self._server.pids()])

    def _quotas(self) -> tuple[CpuQuota, ...]:
        if self._neighbour is None:
            return super()._quotas()
        assert self._server is not None
        process = Path(f"/proc/{self._server.pid}")  # its container has a cgroup of its own
        return super()._quotas() + read_cpu_quotas(process, process / "root")

    def _count_served(self) -> ServiceCount | None:
        return self._server.count(self._model) if self._server else None

    def _client_spec(self, served: WorkerSpec, shared: Path, logs: Path, rate: float) -> WorkerSpec:
        """Return what the client is told; `rate`: requests a second, 0 to wait for answers."""
        job, clients = self._job, self._job.clients
        assert clients is not None
        assert self._server is not None
        p = job.parameters
        dealt = zip(clients.instances, share_images(self._inputs.images, len(clients.instances)), strict=True)
        options = {
            "address": self._where(),
            "model": self._model,
            "protocol": p.protocol,
            "shared_memory": f"{self._server.prefix}-client" if p.shared_memory else "",
            "repeats": p.data_type == "dummy" and not p.scenario,
        }
        return replace(
            served,
            backend="cnnbench.worker.client:TritonClient",
            options_type="cnnbench.worker.client:ServiceOptions",
            options=options,
            whole_steps=False,
            model="",
            on_gpu=False,
            batch_size=p.batch_size,
            micro_batch_size=p.batch_size,
            mode="latency" if p.mode == "capacity" else p.mode,
            instances=[InstanceSpec(one.index, list(one.cpus), share) for one, share in dealt],
            io_threads=len(clients.instances[0].cpus),
            memory_node=clients.instances[0].memory_node,
            shared=str(shared),
            logs=str(logs),
            sampling=None,
            tells=False,
            one_checks=True,
            arrivals=Arrivals(rate, SEED) if rate else None,
        )

    def _find_rate(self, spec: WorkerSpec) -> CapacitySeen:
        """Return the rates tried, and the highest whose 99th percentile is within the bound; raise where none is."""
        bound_ms = self._job.parameters.latency_bound_ms
        most, _, _ = self._try(spec, 0, "as fast as it answers")

        def attempt(rate: float, name: str) -> tuple[float | None, bool]:
            p99 = self._try_undisturbed(spec, rate, name)
            return p99, p99 is not None and p99 <= bound_ms

        found = search_rate(most, attempt)
        if not found.rate_per_s:
            self._writer.add(found)
            tried, p99, _ = found.trials[-1]
            told = "could not be told" if p99 is None else f"is {p99:.4g} ms"
            raise InvalidMeasurementError(
                f"LATENCY_BOUND_MS={bound_ms:g}: at {tried:.3g} requests/s already, the 99th percentile of latency "
                f"{told}: raise the bound, or give smaller requests or a faster network"
            )
        return found

    def _try_undisturbed(self, spec: WorkerSpec, rate: float, name: str) -> float | None:
        """Return the 99th percentile of latency (ms) at a rate, of a trial whose requests were sent when they were due.

        Raises InvalidMeasurementError when ATTEMPTS were not.
        """
        p = self._job.parameters
        for _ in range(ATTEMPTS):
            _, p99, late = self._try(spec, rate, name)
            if late <= LATE_BOUND or (p99 is not None and p99 <= p.latency_bound_ms):
                return p99
        raise InvalidMeasurementError(
            f"at {rate:.4g} requests/s, {late:.1%} of the requests were sent late, {ATTEMPTS} times in turn: what the "
            "server does cannot be told; stop other work on this machine, or have larger requests"
        )

    def _try(self, spec: WorkerSpec, rate: float, name: str) -> tuple[float, float | None, float]:
        """Return the requests a second at a rate, the 99th percentile of latency (ms), and the share sent late.

        With the rate 0, as fast as it answers, so many requests at a time as fill it.
        """
        needed_s = trial_s(rate)
        with shared_directory() as shared, tempfile.TemporaryDirectory(prefix="cnnbench-trial-") as logs:
            asked = self._client_spec(spec, shared, Path(logs), rate)
            if not rate:
                count = 2 * self._job.held_requests
                asked = replace(asked, instances=[replace(asked.instances[0], index=at) for at in range(count)])
            ControlBlock.create(shared, len(asked.instances))

            def enough(steps: list[np.ndarray]) -> bool:
                if any(len(rows) == 0 for rows in steps):
                    return False
                return max(rows[-1, 2] for rows in steps) - min(rows[0, 0] for rows in steps) >= needed_s * 1e9

            progress = Progress(f"trying {name}", needed_s, SECONDS)
            self._run_client(asked, shared, Limits(enough, self._hang_s), progress)
            rows = np.concatenate([StepTimes.read(shared, one.index) for one in asked.instances])
        seconds = (rows[:, 2].max() - rows[:, 0].min()) / 1e9
        times_ms = (rows[:, 2] - rows[:, 0]) / 1e6
        late = float(((rows[:, 1] - rows[:, 0]) / 1e6 > LATE_MS).mean())
        return len(rows) / seconds, stats.percentiles(times_ms).get(99), late


def measurement_of(job: Job, cache: Path) -> MeasurementKind:
    """Return what measures a job; what a server and its client need is staged for one of serving.

    Raises SkippedError where no server can run.
    """
    if job.clients is None:
        return Measurement
    if job.precision.on_gpu:
        raise SkippedError(f"{job.precision.name}: what runs on a GPU is not proven yet where it is served")
    sampler = stage_sampler(job.sampler, cache)
    if sampler.library is None:
        raise SkippedError(
            f"{job.case.name}: what is served is proven by samples alone; there are none: {sampler.reason}"
        )
    installation = find_installation(job.parameters.triton_server, cache)
    find_libpython()
    path = job.environment.get(NEIGHBOUR_VARIABLE)
    return partial(
        ServedMeasurement,
        client=locked_python(TRITON_CLIENT, cache),
        installation=installation,
        analyzer=find_perf_analyzer(cache) if job.parameters.perf_analyzer else None,
        neighbour=Neighbour.find(Path(path)) if path else None,
    )
