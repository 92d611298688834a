"""Be one rank of MPI's: hold one worker on the cores that MPI bound this process to.

Started by mpirun as `python -I start.py cnnbench.launch.rank JOB.json LOGS`; LOGS are the run's. The worker is that of
any run and knows nothing of MPI. Rank 0 shows the controller, in the run's shared files, how far the workers of all
ranks are, and passes its start and its stop on; in the end it writes what all workers have left into the run's logs.
While a worker measures, its rank sleeps but for a look each POLL_S: MPI's own waiting would take a core from it.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.launch.instances import InstancePlan
from cnnbench.launch.local import (
    JUDGE_S,
    POLL_S,
    KilledError,
    Limits,
    Run,
    WorkerLaunch,
    is_abandoned,
    shared_directory,
    worker_command,
)
from cnnbench.launch.mirror import CLOCK, COMMAND, PROGRESS, STOP, Communicator, Mirror, map_rows
from cnnbench.launch.mpi import FAILED, REPORT, UNFIT, RankJob, RankReport
from cnnbench.launch.plan import place_instance
from cnnbench.machine.contention import sample_cpu_time, with_siblings
from cnnbench.machine.host import read_cpuinfo
from cnnbench.machine.topology import format_cpu_list, read_topology
from cnnbench.results.samples import SAMPLES, Samples
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.spec import WorkerSpec

ROUNDS = 50
"""How often two hosts ask each other the time; the quickest answer counts."""
LAST_LINES = 20
MOST_OUTPUT_BYTES = 4 << 20
"""How much of a worker's output is kept: what it said last."""


def read_output(path: Path) -> bytes:
    """Return what a worker has said, of more than MOST_OUTPUT_BYTES only the end, after a line that says so."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - MOST_OUTPUT_BYTES))
        end = file.read(MOST_OUTPUT_BYTES)
    cut = f"(cut: of {size} bytes, the last {MOST_OUTPUT_BYTES})\n" if size > MOST_OUTPUT_BYTES else ""
    return cut.encode() + end


class Rank:
    """One rank with its worker; `shared`, `logs`: directories of its own. `run_logs`: of the run, on the first host."""

    def __init__(
        self,
        comm: Communicator,
        host: str,
        leaders: list[int],
        job: RankJob,
        shared: Path,
        logs: Path,
        run_logs: Path,
    ) -> None:
        self._comm, self._host, self._leaders, self._job = comm, host, leaders, job
        self._shared, self._logs, self._run_logs = shared, logs, run_logs
        self._name = f"rank {comm.rank} on {host}"
        self._leader = 0
        self._indices: list[int] = []
        self._plans: list[InstancePlan] = []
        self._sent: list[Any] = []
        self._looks: list[tuple[float, dict[str, float]]] = []
        self._told: dict[int, tuple[int, int]] = {}
        self._told_s = 0.0
        self._offsets, self._error_ns = {0: 0}, 0
        self._offset_ns, self._left_ns = 0, 0

    def run(self, text: str, leader: int, library: str) -> None:
        """Run the worker whose spec is `text` from start to end; `leader`: the first rank of this host."""
        self._leader = leader
        spec = self._fit(text)
        placement = self._comm.gather([asdict(one) for one in self._plans])
        model = read_cpuinfo().model_name or "unknown"
        models = dict(self._comm.gather((self._host, model)) or ())
        report = self._run_logs / "mpi" / REPORT
        if self._comm.rank == 0:
            flat = [one for some in placement for one in some]
            RankReport(flat, library, models, []).write(report)
        self._relate_clocks()
        launch = self._write(spec)
        ControlBlock.create(self._shared, self._job.instances)
        with launch.process() as worker:
            try:
                self._attend(Run([worker], self._indices, self._shared, Limits(None, self._job.hang_s)), worker.pid)
            except BaseException:
                self._keep_logs()
                raise
        with self._watching():  # a gathering waits for the slowest rank, and looks at nothing else
            skew = self._measure_skew()
            looks = self._comm.gather(self._looks)
            left = self._comm.gather(self._collect())
        if self._comm.rank == 0:
            for path, content in (item for files in left for item in files.items()):
                (self._run_logs / path).parent.mkdir(exist_ok=True)
                (self._run_logs / path).write_bytes(content)
            RankReport(flat, library, models, looks, self._error_ns, skew).write(report)

    def _fit(self, text: str) -> WorkerSpec:
        """Return the worker's spec on the cores that MPI gave; raise InvalidMeasurementError where it cannot run."""
        planned = self._shared / "planned.json"
        planned.write_text(text)
        spec = WorkerSpec.read(planned)
        files = [one.files[0] for one in spec.instances if one.files]
        named = self._job.environments[self._comm.rank].get("LD_PRELOAD", "").split(":")
        preloaded = [path for path in named if "/" in path]  # others are looked for by the loader
        for path in filter(None, (self._job.python, spec.model, spec.check_images, *files, *preloaded)):
            if not Path(path).exists():
                raise InvalidMeasurementError(
                    f"{self._name}: {path} is not there; every host needs the checkout, the cache with its "
                    "environments and what is staged, and what parameters name, at the same paths as the first"
                )
        if missing := missing_for_precision(PRECISIONS[spec.precision], read_cpuinfo().flags):
            raise InvalidMeasurementError(f"{self._name}: {missing[0]}")
        cores = list(read_topology().cores)
        needed = sum(len(one.cpus) for one in spec.instances)
        cpus = [core.cpus[0] for core in cores]
        if len(cores) != needed:
            raise InvalidMeasurementError(
                f"{self._name}: MPI bound it to CPUs {format_cpu_list(cpus)}, {len(cores)} cores, but planned are "
                f"{needed}: is this host like the first?"
            )
        if self._leader == 0 and not set(cpus) <= set(self._job.cpus):
            raise InvalidMeasurementError(
                f"{self._name}: MPI bound it to CPUs {format_cpu_list(cpus)}, but this run may use "
                f"{format_cpu_list(self._job.cpus)} only: MPI heeds no mask such as taskset's; lift it"
            )
        self._indices = [one.index for one in spec.instances]
        instances = []
        for one in spec.instances:
            own = [cores.pop(0) for _ in one.cpus]
            self._plans.append(place_instance(one.index, self._comm.rank, own, self._job.numa_aware, self._host))
            instances.append(replace(one, cpus=[core.cpus[0] for core in own]))
        nodes = {plan.memory_node for plan in self._plans}
        return replace(
            spec,
            controller=os.getpid(),
            instances=instances,
            memory_node=nodes.pop() if len(nodes) == 1 else None,
            shared=str(self._shared),
            logs=str(self._logs),
        )

    def _write(self, spec: WorkerSpec) -> WorkerLaunch:
        directory = self._logs / f"process-{self._comm.rank}"
        directory.mkdir(parents=True)
        spec.write(directory / "spec.json")
        command = worker_command(Path(self._job.python), directory / "spec.json")
        environment = self._job.environments[self._comm.rank]
        return WorkerLaunch(command, environment, directory / "output.log", tuple(self._indices))

    def _attend(self, run: Run, worker: int) -> None:
        """Follow the worker from its loading to its end."""
        mirror = Mirror(self._comm, Path(self._job.shared)) if self._comm.rank == 0 else None
        control = ControlBlock(self._shared)
        cpus = with_siblings(cpu for plan in self._plans for cpu in plan.cpus)
        tell = partial(self._tell, control, {index: map_rows(self._shared, index) for index in self._indices})

        def look() -> None:
            self._looks.append((time.monotonic(), asdict(sample_cpu_time(cpus, [os.getpid(), worker]))))

        while True:
            run.check_alive()
            tell()
            if mirror:
                mirror.relay()
            if self._comm.iprobe(source=0, tag=COMMAND):
                if self._comm.recv(source=0, tag=COMMAND) == STOP:
                    break
                self._meet(run)
                look()
            time.sleep(POLL_S)
        look()
        run.finish()
        self._sent.append(self._comm.isend(None, dest=0, tag=PROGRESS))
        if mirror:
            mirror.drain()
        with self._watching():
            for request in self._sent:
                request.wait()
            self._relate_clocks()

    def _meet(self, run: Run) -> None:
        """Meet all ranks at MPI's barrier, and let the worker begin."""
        self._comm.Barrier()
        self._left_ns = time.monotonic_ns() + self._offset_ns
        run.open_barrier()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """End this process, and so all ranks, when the controller dies within the block; on rank 0, which can tell."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_S):
                if is_abandoned(Path(self._job.shared)):
                    for directory in (self._shared, self._logs):  # nothing else would: this ends without a way out
                        shutil.rmtree(directory, ignore_errors=True)
                    _end(f"{UNFIT}{self._name}: the controller is gone")

        if self._comm.rank == 0:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _measure_skew(self) -> int:
        left = self._comm.allgather(self._left_ns)
        return max(left) - min(left)

    def _relate_clocks(self) -> None:
        """Find what to add to this host's monotonic clock to have that of rank 0's host.

        The moment that a host's first rank answers with lies between rank 0's question and the answer's arrival, so
        half of the time between these bounds the error. Asked twice, before the worker is there and when it has ended,
        as it would delay the answers; the first answer counts, and how far the second is from it is error too.
        """
        for leader in self._leaders:
            if leader == 0:
                continue
            found = None
            for _ in range(ROUNDS):
                if self._comm.rank == 0:
                    asked_ns = time.monotonic_ns()
                    self._comm.send(None, dest=leader, tag=CLOCK)
                    theirs_ns = self._comm.recv(source=leader, tag=CLOCK)
                    took_ns = time.monotonic_ns() - asked_ns
                    answer = took_ns, asked_ns + took_ns // 2 - theirs_ns
                    found = min(found or answer, answer)
                elif self._comm.rank == leader:
                    self._comm.recv(source=0, tag=CLOCK)
                    self._comm.send(time.monotonic_ns(), dest=0, tag=CLOCK)
            if found:
                took_ns, offset_ns = found
                drift_ns = abs(offset_ns - self._offsets.get(leader, offset_ns))
                self._error_ns = max(self._error_ns, took_ns // 2 + drift_ns)
                self._offsets.setdefault(leader, offset_ns)
        self._offset_ns = self._comm.bcast(self._offsets)[self._leader]

    def _tell(self, control: ControlBlock, rows: dict[int, np.ndarray]) -> None:
        """Send rank 0 how far the worker is: at once when it has come to another state, else each JUDGE_S."""
        states = {index: int(control.state(index)) for index in self._indices}
        known = {index: self._told.get(index, (-1, 0)) for index in self._indices}
        now_s = time.monotonic()
        if all(known[index][0] == state for index, state in states.items()) and now_s - self._told_s < JUDGE_S:
            return
        progress = []
        for index, state in states.items():
            first, last = known[index][1], control.measured(index)
            news = rows[index][first:last] + self._offset_ns
            progress.append((index, state, control.steps(index), first, news))
            self._told[index] = state, last
        self._told_s = now_s
        self._sent = [request for request in self._sent if not request.test()[0]]
        self._sent.append(self._comm.isend(progress, dest=0, tag=PROGRESS))

    def _collect(self) -> dict[str, bytes]:
        """Return the files that the worker has left, times as those of rank 0's host, by their paths in the logs."""
        files = {}
        for path in self._logs.rglob("*"):
            if path.is_dir():
                continue
            content = read_output(path) if path.name == "output.log" else path.read_bytes()
            if path.name == "steps.npy":
                buffer = BytesIO()
                np.save(buffer, np.load(path) + self._offset_ns)
                content = buffer.getvalue()
            elif path.name == SAMPLES:
                buffer = BytesIO()
                Samples.load(path).save(buffer, self._offset_ns)
                content = buffer.getvalue()
            elif path.name == "result.json":
                where = {"host": self._host, "rank": self._comm.rank}
                content = json.dumps(json.loads(content) | where, indent=1).encode()
            files[str(path.relative_to(self._logs))] = content
        return files

    def _keep_logs(self) -> None:
        """Copy the worker's output into the logs where they are to be seen from here, and its end into mpirun's."""
        name = Path(f"process-{self._comm.rank}", "output.log")
        output = read_output(self._logs / name)
        if self._run_logs.is_dir():
            (self._run_logs / name).write_bytes(output)
        lines = output.decode(errors="replace").splitlines()[-LAST_LINES:]
        print("\n".join(lines), file=sys.stderr)

    def describe(self, error: KilledError) -> str:
        """Say what befell the worker, its files being named as they are in the logs."""
        return f"{self._name}: {error.detail.replace(f'{self._logs}/', '')}"


def main(arguments: list[str]) -> None:
    """Run a rank to its end; whatever goes wrong ends all others too, as mpirun sees to that."""
    from mpi4py import MPI

    end_by_exceptions()
    comm, host = MPI.COMM_WORLD, MPI.Get_processor_name()
    ending = f"rank {comm.rank} on {host}"
    try:
        path, logs = Path(arguments[0]), Path(arguments[1])
        job, texts = comm.bcast(_read_job(path, logs, comm.size, ending) if comm.rank == 0 else None)
        leader = comm.Split_type(MPI.COMM_TYPE_SHARED).bcast(comm.rank)
        leaders = sorted(set(comm.allgather(leader)))
        library = MPI.Get_library_version().partition(",")[0]
        with shared_directory() as shared, shared_directory(Path(tempfile.gettempdir())) as own_logs:
            rank = Rank(comm, host, leaders, job, shared, own_logs, logs)
            try:
                rank.run(texts[comm.rank], leader, library)
            except KilledError as error:
                raise KilledError(rank.describe(error)) from error
    except KilledError as error:
        _end(FAILED + error.detail)
    except CnnbenchError as error:
        told = " ".join(str(error).split())  # the controller reads one line
        _end(UNFIT + (told if told.startswith("rank ") else f"{ending}: {told}"))
    except KeyboardInterrupt:
        _end("")
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other ranks would wait for this one
        traceback.print_exc()
        _end(f"{UNFIT}{ending}: {type(error).__name__}: {' '.join(str(error).split())}")


def _read_job(path: Path, logs: Path, ranks: int, name: str) -> tuple[RankJob, list[str]]:
    """Return what all ranks are told and the text of each one's spec; `name`: of the rank that reads them."""
    if not path.is_file():
        raise InvalidMeasurementError(
            f"{name}: {path} is not there; HOSTFILE is to name the host that the run is started on first"
        )
    return RankJob.read(path), [(logs / f"process-{rank}" / "spec.json").read_text() for rank in range(ranks)]


def _end(line: str) -> None:
    """End without MPI's leave, which would wait for the others."""
    if line:
        print(line, file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
