"""Start the workers of a run on this machine, take them through the barrier, and leave none behind."""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from cnnbench.base.disk import temporary_root
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError
from cnnbench.base.progress import Progress, bytes_text
from cnnbench.base.signals import uninterrupted
from cnnbench.base.start import START
from cnnbench.cases.precisions import Precision
from cnnbench.launch.instances import Plan
from cnnbench.machine.contention import with_siblings
from cnnbench.results.record import KILLED
from cnnbench.results.steps import StepTimes
from cnnbench.worker.control import ControlBlock, State
from cnnbench.worker.spec import FAILURE

SHARED_PREFIX = ".cnnbench-run-"
SHARED_BYTES = 16_000_000
"""How much room its shared files need, samples among them; an instance with none for its times is killed (SIGBUS)."""
STALE_S = 60.0
"""Age from which a directory of shared files that nobody holds is a killed run's, and not one just being made."""

POLL_S = 0.1
"""How often the controller looks after the instances; each look takes some 0.1 ms of a core."""
JUDGE_S = 1.0
"""How often the times so far are judged: rarely, because the judging takes a core from the measured."""
EXIT_S = 60.0
"""How long a worker may take at least to end its step and write its results once it has been told to stop."""
HEAD_START_NS = 20_000_000
"""How far ahead the start is set, so that instances with short steps have read it when it comes."""

AMBIENT = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "TF_", "ITEX_", "XLA_", "ZEN", "TORCH"),
    *("PYTORCH", "TRITON_", "CUBLAS", "CUDNN_", "CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE"),
    *("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_", "PYTHON"),
)
"""How variables of the caller's begin that would change what is measured; only CUSTOMER_ENV passes such on.

Which GPU is used, CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, is passed on.
"""

BFLOAT16_MATH = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
"""What has oneDNN compute float32 in bfloat16, where nobody says otherwise."""
HUGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=17179869184"
"""Have the C library ask for transparent huge pages and keep what it has (a glibc before 2.35 ignores it).

Tensors of 10 to 100 MiB are made and freed in each step, and a page of 2 MiB spares the address translation of 512
small ones; measured in doc/performance.md.
"""


def split_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the caller's environment without what would change the measurement, and the names left out."""
    left_out = sorted(name for name in environ if name.startswith(AMBIENT))
    return {name: value for name, value in environ.items() if name not in left_out}, left_out


def engine_environment(
    plan: Plan,
    precision: Precision,
    onednn_verbose: bool,
    of_engine: Mapping[str, str],
    customer_env: Mapping[str, str],
    *,
    enclave: bool = False,
) -> dict[str, str]:
    """Return what a worker's environment has beyond the caller's; CUSTOMER_ENV has the last word.

    `of_engine`: what the engine's own declaration gives it.
    In an enclave there are no huge pages to ask for: its memory is made once, before the program starts.
    """
    return {
        "OMP_NUM_THREADS": str(plan.cores_per_instance),
        "OPENBLAS_NUM_THREADS": "1",
        **({} if enclave else {"GLIBC_TUNABLES": HUGE_PAGES}),
        "ONEDNN_MAX_CPU_ISA": precision.max_isa,
        **(BFLOAT16_MATH if precision.fpmath == "bf16" else {}),
        "ONEDNN_VERBOSE": "1" if onednn_verbose else "0",
        **of_engine,
        "PYTHONNOUSERSITE": "1",
        **customer_env,
    }


def worker_command(python: Path, spec: Path) -> list[str]:
    """Return the command that starts a worker."""
    return [str(python), START, "cnnbench.worker", str(spec)]


@dataclass(frozen=True)
class WorkerLaunch:
    """One process to start: its environment, the file for its output, and the instances it holds."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    instances: tuple[int, ...]

    def process(self) -> "WorkerProcess":
        """Return the process, not yet started."""
        return WorkerProcess(self)


class WorkerProcess:
    """A started worker: a session of its own, so that it can be killed whole and a Ctrl-C does not reach it first."""

    def __init__(self, launch: WorkerLaunch) -> None:
        self.launch = launch

    def __enter__(self) -> "WorkerProcess":
        """Start it."""
        with self.launch.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.launch.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.launch.environment,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Kill it with all its threads, if it still runs, and wait until it is gone."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def describe_end(self) -> str:
        """Say how it ended and what its log says last."""
        code = self.exit_code
        how = (
            f"killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"ended with exit code {code}"
        )
        if code == -signal.SIGBUS:
            how += " (no room was left for its step times: make room in /dev/shm, or else set TMPDIR)"
        lines = self.launch.log.read_text(errors="replace").strip().splitlines()
        return f"{how}; last in {self.launch.log}: {lines[-1] if lines else '(nothing)'}"

    def explain_end(self) -> InvalidMeasurementError:
        """Return what makes a run invalid in which it has ended so: what an instance says itself, where it does."""
        logs = self.launch.log.parents[1]
        for path in (logs / f"instance-{index}" / FAILURE for index in self.launch.instances):
            if path.is_file():
                return InvalidMeasurementError(path.read_text(encoding="utf-8"))
        return KilledError(f"process {self.pid} was {self.describe_end()}")


class KilledError(InvalidMeasurementError):
    """An instance was killed, hung or crashed; the message is the documented one, `detail` says what was seen."""

    def __init__(self, detail: str) -> None:
        super().__init__(KILLED)
        self.detail = detail


@dataclass(frozen=True)
class Limits:
    """When to stop measuring and when to give up.

    `enough`: asked with the raw times so far; None when the instances stop by themselves. `hang_s`: how long an
    instance may go without ending a step (or loading) before it counts as hung.
    """

    enough: Callable[[list[np.ndarray]], bool] | None
    hang_s: float


class Run:
    """Some processes of a run, and the control block they share; `instances`: the numbers of those that they hold.

    `watch` is called at each look, and once more with `has_failed` where one has found that the run cannot go on.
    """

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        instances: Sequence[int],
        shared: Path,
        limits: Limits,
        check: Callable[[], object] = lambda: None,
        watch: Callable[["Run"], str] = lambda _run: "",
    ) -> None:
        self._workers, self._instances, self._shared, self._limits = workers, instances, shared, limits
        self._check, self._watch = check, watch
        self._control = ControlBlock(shared)
        self._seen = dict.fromkeys(instances, (0, time.monotonic()))
        self._judged_s = self._read_s = time.monotonic()
        self._times: list[np.ndarray] = []
        self.has_failed = False

    def _states(self) -> list[State]:
        return [self._control.state(index) for index in self._instances]

    @property
    def is_measuring(self) -> bool:
        """Whether the barrier is open."""
        return self._control.start_ns != 0

    @property
    def seen(self) -> list[tuple[State, int, bool]]:
        """How far each instance is, how many steps it has ended, and whether its process has ended too early."""
        dead = {
            index
            for worker in self._workers
            if worker.exit_code is not None
            for index in worker.launch.instances
            if self._control.state(index) is not State.DONE
        }
        return [(self._control.state(index), self._control.steps(index), index in dead) for index in self._instances]

    @property
    def times(self) -> list[np.ndarray]:
        """The raw times of each instance's steps, as they were read last, at the most JUDGE_S ago."""
        if not self._times or time.monotonic() - self._read_s >= JUDGE_S:
            self._read_times()
        return self._times

    def _read_times(self) -> list[np.ndarray]:
        self._read_s = time.monotonic()
        self._times = [StepTimes.read(self._shared, index) for index in self._instances]
        return self._times

    def check_alive(self) -> None:
        """Raise KilledError when a worker has ended early or an instance makes no headway."""
        self._check()
        for worker in self._workers:
            if worker.exit_code is not None:
                raise worker.explain_end()
        now = time.monotonic()
        for index in self._instances:
            steps = self._control.steps(index)
            done = self._control.state(index) is State.DONE
            if steps != self._seen[index][0] or done:
                self._seen[index] = (steps, now)
            elif now - self._seen[index][1] > self._limits.hang_s:
                raise KilledError(f"instance {index} hung: no step for {self._limits.hang_s:g} s")

    def wait_until(self, reached: Callable[[], bool], progress: Progress, done: Callable[[], int]) -> None:
        """Poll until something is reached, while all workers stay alive; `done` counts what the progress shows."""
        shown = 0
        with progress:
            while True:
                ended = reached()
                if (now := done()) != shown:
                    progress.advance(now - shown)
                    shown = now
                if note := self._watch(self):
                    progress.note(note)
                progress.remind()
                if ended:
                    return
                try:
                    self.check_alive()
                except InvalidMeasurementError:
                    self.has_failed = True
                    self._watch(self)
                    raise
                time.sleep(POLL_S)

    def open_barrier(self) -> None:
        """Let all instances begin to measure: at one moment, or when the warm-up step is done that they are in."""
        self._control.start_ns = time.monotonic_ns() + HEAD_START_NS

    def count_ready(self) -> int:
        """Return how many instances stand at the barrier."""
        return sum(state >= State.READY for state in self._states())

    @property
    def measured(self) -> list[int]:
        """How many steps each instance has recorded."""
        return [self._control.measured(index) for index in self._instances]

    def count_measured(self) -> int:
        """Return how many steps have been recorded, by all instances together."""
        return sum(self.measured)

    def measured_enough(self) -> bool:
        """Tell whether the instances are done, or what they have measured is enough."""
        if all(state is State.DONE for state in self._states()):
            return True
        if self._limits.enough is None or time.monotonic() - self._judged_s < JUDGE_S:
            return False
        self._judged_s = time.monotonic()
        return self._limits.enough(self._read_times())

    def finish(self) -> None:
        """Stop the instances and wait until every worker has written its results and ended well."""
        self._control.stop()
        patience_s = max(EXIT_S, self._limits.hang_s)  # the step under way may be a long one
        deadline = time.monotonic() + patience_s
        for worker in self._workers:
            while worker.exit_code is None:
                if time.monotonic() > deadline:
                    raise KilledError(f"process {worker.pid} did not end within {patience_s:g} s of being told to")
                time.sleep(POLL_S)
            if worker.exit_code != 0:
                raise worker.explain_end()


def start_process(stack: ExitStack, launch: WorkerLaunch) -> WorkerProcess:
    """Start a process that is ended with the stack, whenever a signal comes."""
    with uninterrupted():
        return stack.enter_context(launch.process())


def run_program(launch: WorkerLaunch, name: str, check: Callable[[WorkerProcess], object]) -> None:
    """Run a program to its end; raise KilledError when it does not end well.

    `check` is called with it meanwhile, to raise for what it is not to go on after: it is killed then.
    """
    with ExitStack() as stack:
        program = start_process(stack, launch)
        while program.exit_code is None:
            check(program)
            time.sleep(POLL_S)
        if program.exit_code != 0:
            raise KilledError(f"{name} {program.pid} was {program.describe_end()}")


def run_tracer(launch: WorkerLaunch, hang_s: float) -> None:
    """Run the tracing process to its end; its trace must not stand still for longer than an instance's steps may."""
    seen, deadline = 0, time.monotonic() + hang_s

    def check(tracer: WorkerProcess) -> None:
        nonlocal seen, deadline
        if (size := launch.log.stat().st_size) != seen:
            seen, deadline = size, time.monotonic() + hang_s
        if time.monotonic() > deadline:
            raise KilledError(f"the tracing process {tracer.pid} hung: nothing traced for {hang_s:g} s")

    run_program(launch, "the tracing process", check)


def run_workers(
    launches: Iterable[WorkerLaunch],
    shared: Path,
    limits: Limits,
    progress: Progress,
    look: Callable[[list[int]], object],
    check: Callable[[], object] = lambda: None,
    watch: Callable[[Run], str] = lambda _run: "",
    count: Callable[[Run], int] = Run.count_measured,
    cpus: Collection[int] = (),
) -> None:
    """Run all workers from start to end; `shared` has their control block.

    `progress` counts what `count` returns, or the seconds when `limits.enough` decides. `look` is called with the
    workers' process ids when measuring begins and again when it ends, under full load; `check` at each look after
    them, to raise for what they depend on; `watch` too, for what the progress is to show besides. `cpus`: those in use,
    from which this thread keeps away where there are others. Raises KilledError when any process does not make it;
    whatever happens, no process is left when this returns.
    """
    launches = list(launches)
    instances = sum(len(launch.instances) for launch in launches)
    with ExitStack() as stack:
        workers = [start_process(stack, launch) for launch in launches]
        run = Run(workers, range(instances), shared, limits, check, watch)
        stack.enter_context(keep_off(cpus))  # after their start, as what is started inherits it
        loading = Progress("loading and warming up", instances, "instances")
        run.wait_until(lambda: run.count_ready() == instances, loading, run.count_ready)
        run.open_barrier()
        pids = [worker.pid for worker in workers]
        began_s = time.monotonic()
        look(pids)
        if limits.enough is None:
            run.wait_until(run.measured_enough, progress, lambda: count(run))
        else:
            run.wait_until(run.measured_enough, progress, lambda: int(time.monotonic() - began_s))
        look(pids)
        run.finish()


@contextmanager
def keep_off(cpus: Collection[int]) -> Iterator[None]:
    """Have this thread run, for the block, on others than these CPUs and their cores' other threads.

    Where there are only the latter it runs on those, and where there are no others at all, wherever it may.
    """
    before = os.sched_getaffinity(0)
    others = before - with_siblings(cpus) or before - set(cpus)
    if not cpus or not others:
        yield
        return
    os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def shared_directory(root: Path | None = None) -> Iterator[Path]:
    """Make the directory of a run's shared files, and remove it afterwards with those that killed controllers left.

    Unless it is to be below `root`, it is in memory where there is a tmpfs, so that no write-back disturbs a step. A
    living run holds a lock on its own.
    """
    if root is None:
        root = _shared_root()
    for candidate in root.glob(f"{SHARED_PREFIX}*"):
        _remove_if_stale(candidate)
    directory = Path(tempfile.mkdtemp(prefix=SHARED_PREFIX, dir=root))
    try:
        with _held(directory):
            yield directory
    finally:
        shutil.rmtree(directory)


def _shared_root() -> Path:
    """Return where the directory is made: in memory if it can be, else where temporary files go."""
    for root in (memory := Path("/dev/shm"), temporary_root()):  # noqa: S108 - below it, a name nobody can guess
        if os.access(root, os.W_OK | os.X_OK) and shutil.disk_usage(root).free >= SHARED_BYTES:
            return root
    raise CnnbenchError(
        f"{memory} and {root}: neither can be written to and has {bytes_text(SHARED_BYTES)} free, which the files that "
        'instances share need: make room, or set TMPDIR (in a container: DOCKER_OPTIONS="--tmpfs /tmp:size=..." or '
        '"--shm-size ...")'
    )


def _remove_if_stale(directory: Path) -> None:
    """Remove a run's shared files when they are ours, old, and held by no living run."""
    with suppress(FileNotFoundError):  # another run may be removing it at this moment
        state = directory.stat()
        ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
        if ours and time.time() - state.st_mtime > STALE_S:
            with _held(directory) as held:
                if held:
                    shutil.rmtree(directory)


def is_abandoned(directory: Path) -> bool:
    """Say whether the run whose shared files these are has died; one that has removed them ends what it started."""
    try:
        with _held(directory) as held:
            return held
    except FileNotFoundError:
        return False


@contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Hold a directory's lock for the block; yield False when somebody else does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
