"""Measure a server: the same loop, barrier and judge as for instances, with clients in their place.

The clients are threads of one process on cores of its own, each with one request under way; where they are to send at
moments of their own, it is one thread that sends and does not wait.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cnnbench.base.errors import InvalidMeasurementError, SkippedError
from cnnbench.base.progress import SECONDS, Progress
from cnnbench.launch.local import Limits, WorkerLaunch, run_workers, shared_directory, split_environment, worker_command
from cnnbench.proof.verdict import LATE_BOUND
from cnnbench.results import stats
from cnnbench.results.steps import StepTimes
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job
from cnnbench.run.measured import CLIENT, LATE_MS, METADATA, SERVER
from cnnbench.run.measurement import Measurement, MeasurementKind
from cnnbench.run.record import CapacitySeen, ServiceCount
from cnnbench.run.workers import worker_environment
from cnnbench.serving.programs import EngineServer, Installation, find_installation, find_libpython
from cnnbench.serving.repository import VERSION, write_repository
from cnnbench.serving.server import LOOPBACK, START_S, Ports, Server
from cnnbench.staging.environments import TRITON_CLIENT, locked_python
from cnnbench.staging.sampler import stage_sampler
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.served import spec_name
from cnnbench.worker.spec import Arrivals, InstanceSpec, WorkerSpec

SEED = 1
"""Of the moments at which requests are sent: the same in every run."""
TRIAL_S = 3.0
"""How long a rate is tried at the least; longer where that is needed for a 99th percentile."""
LEAST_REQUESTS = stats.PERCENTILE_FLOORS[99]
MARGIN = 1.1
"""More requests are waited for than the percentile needs, as those at the ends do not count."""
TRIALS = 7
"""How many rates are tried: each halves what is open between the lowest too high and the highest that is not."""
ATTEMPTS = 3
"""How often a rate is tried at the most, where requests were sent late."""
LEAST_SHARE = 0.05
"""Of what a closed loop gets through: where that rate is over the bound, there is no capacity to tell."""


class ServedMeasurement(Measurement):
    """One run of a job of serving. `client`: the Python of what asks; `installation`: the server that answers."""

    def __init__(
        self, job: Job, inputs: Inputs, logs: Path, hang_s: float, client: Path, installation: Installation
    ) -> None:
        super().__init__(job, inputs, logs, hang_s)
        self._client, self._installation = client, installation
        self._server: Server | None = None
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
        with Server(origin, repository, names, ports, log, start_s) as server:
            self._server = server
            (directory / METADATA).write_text(json.dumps(server.metadata), encoding="utf-8")
            rate = float(job.parameters.request_rate or 0)
            if job.parameters.mode == "capacity":
                rate = self._find_rate(spec)
            asked = self._client_spec(spec, shared, self._logs / CLIENT, rate)
            ControlBlock.create(shared, len(asked.instances))
            timed = job.parameters.steps == "auto" and not job.parameters.scenario
            limits = Limits(self._enough if timed else None, self._hang_s)
            self._run_client(asked, shared, limits, self._progress(), self._look_at_all)
            server.check()

    def _run_client(
        self,
        spec: WorkerSpec,
        shared: Path,
        limits: Limits,
        progress: Progress,
        look: Callable[[list[int]], object] = lambda _pids: None,
    ) -> None:
        assert self._server is not None
        directory = Path(spec.logs) / "process-0"
        directory.mkdir(parents=True)
        spec.write(directory / "spec.json")
        environment = split_environment(self._job.environment)[0] | {"OMP_NUM_THREADS": "1"}
        environment |= dict.fromkeys(("no_proxy", "NO_PROXY"), LOOPBACK)
        command = worker_command(self._client, directory / "spec.json")
        numbers = tuple(one.index for one in spec.instances)
        launch = WorkerLaunch(command, environment, directory / "output.log", numbers)
        run_workers([launch], shared, limits, progress, look, self._server.check)

    def _look_at_all(self, pids: list[int]) -> None:
        assert self._server is not None
        self._look([*pids, *self._server.pids()])

    def _count_served(self) -> ServiceCount | None:
        return self._server.count(self._model) if self._server else None

    def _client_spec(self, served: WorkerSpec, shared: Path, logs: Path, rate: float) -> WorkerSpec:
        """Return what the client is told; `rate`: requests a second, 0 to wait for answers."""
        job, clients = self._job, self._job.clients
        assert clients is not None
        assert self._server is not None
        p = job.parameters
        options = {
            "address": f"{LOOPBACK}:{getattr(self._server.ports, p.protocol)}",
            "model": self._model,
            "protocol": p.protocol,
            "shared_memory": f"{self._server.prefix}-client" if p.shared_memory else "",
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
            instances=[InstanceSpec(one.index, list(one.cpus), []) for one in clients.instances],
            memory_node=clients.instances[0].memory_node,
            shared=str(shared),
            logs=str(logs),
            sampling=None,
            tells=False,
            one_checks=True,
            arrivals=Arrivals(rate, SEED) if rate else None,
        )

    def _find_rate(self, spec: WorkerSpec) -> float:
        """Return the highest rate of those tried whose 99th percentile is within the bound; raise where none is."""
        p = self._job.parameters
        (most, _, _), trials = self._try(spec, 0, "as fast as it answers"), []
        low, high = 0.0, most
        for number in range(TRIALS):
            tried = (low + high) / 2
            p99 = self._try_undisturbed(spec, tried, f"{tried:.4g} requests/s, {number + 1} of {TRIALS} rates")
            good = p99 is not None and p99 <= p.latency_bound_ms
            trials.append((tried, p99, good))
            low, high = (tried, high) if good else (low, tried)
            if high < LEAST_SHARE * most:
                break
        self._writer.add(CapacitySeen(rate_per_s=low, trials=tuple(trials)))
        if not low:
            found = "could not be told" if p99 is None else f"is {p99:.4g} ms"
            raise InvalidMeasurementError(
                f"LATENCY_BOUND_MS={p.latency_bound_ms:g}: at {tried:.3g} requests/s already, the 99th percentile of "
                f"latency {found}: raise the bound, or give smaller requests or a faster network"
            )
        return low

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
        needed_s = max(TRIAL_S, math.ceil(MARGIN * LEAST_REQUESTS / rate) if rate else 0)
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
    return partial(ServedMeasurement, client=locked_python(TRITON_CLIENT, cache), installation=installation)
