"""Run a batch on this machine: each run as `cnnbench case` does it, and its folder moved whole to its place."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.cases.parameters import FIELDS
from cnnbench.fleet.batch import BatchFile, Ended, Kind, Node, Now, Outcome, TaskFile
from cnnbench.fleet.checks import RefusedError, check_folder, check_node
from cnnbench.fleet.folder import BATCH, ENDED, LOCK, NODE, NOW, OUTCOME, REMEDY, FleetFolder, write_file
from cnnbench.fleet.run_end import RunEnd
from cnnbench.machine.ceiling import name_own_program
from cnnbench.machine.facts import ALLOCATION_VARIABLE, NODE_VARIABLE, read_host_name
from cnnbench.results.record import RUN_FILE, find_last_run, load_run
from cnnbench.run.job import PLATFORM_VARIABLE

CASE_LOG = "case.log"
GRACE_S = 60.0
"""How long a case may take to end its instances when the batch is ended."""


class BatchRun:
    """One batch, on this machine, in a fleet's folder; `allocation`: the scheduler's identity of this job."""

    def __init__(self, batch: BatchFile, folder: FleetFolder, allocation: str, environ: Mapping[str, str]) -> None:
        self._batch, self._folder, self._allocation, self._environ = batch, folder, allocation, environ
        self._host = read_host_name()
        self._directory = folder.batches / batch.id
        self._done = 0

    def run(self) -> str:
        """Make all runs that have no outcome yet; return why not all of them have one now, empty where they have.

        A batch that another process is at work on is left to it, and one that has ended is not begun again.
        """
        check_folder(self._batch, self._folder)
        make_directory(self._directory, REMEDY)
        with _locked(self._directory / LOCK) as (lock, free):
            if not free or (self._directory / ENDED).exists():
                return ""
            if not (self._directory / BATCH).exists():
                write_file(self._directory / BATCH, self._batch)
            began = Node(host=self._host, allocation=self._allocation, pid=os.getpid(), began_s=time.time())
            write_file(self._directory / NODE, began)
            try:
                reason = self._run_alone(lock)
            except KeyboardInterrupt:
                self._end("ended from outside")
                raise
            except (CnnbenchError, OSError) as error:
                self._end(str(error))
                raise
            self._end(reason)
            return reason

    def _run_alone(self, lock: int) -> str:
        """Wait until no other batch is at work on this machine, check it, and make the runs."""
        self._tell("")
        with _machine_held() as machine:
            try:
                check_node(self._batch, self._cache)
            except RefusedError as error:
                for task in self._missing():
                    end = self._end_now(time.time())
                    self._leave(task, end.failed(task.id, f"refused by {self._host}: {error}", "refused"))
                return ""
            for task in self._missing():
                if self._is_made(task):  # meanwhile, by a batch that was given up and went on
                    continue
                self._tell(task.id)
                self._run_task(task, (machine, lock))
                self._done += 1
        left = len(self._missing())
        return f"{left} of {len(self._batch.tasks)} runs were ended from outside" if left else ""

    @property
    def _cache(self) -> Path:
        return Path(self._batch.cache) if self._batch.cache else cache_root(self._environ)

    def _missing(self) -> list[TaskFile]:
        return [task for task in self._batch.tasks if not self._is_made(task)]

    def _is_made(self, task: TaskFile) -> bool:
        outcome = self._folder.read_outcome(task.place)
        return (self._folder.results / task.place).exists() and not (outcome and outcome.batch in task.not_of)

    def _tell(self, task: str) -> None:
        write_file(self._directory / NOW, Now(task=task, since_s=time.time(), done=self._done))

    def _end(self, reason: str) -> None:
        write_file(self._directory / ENDED, Ended(reason=reason, ended_s=time.time()))

    def _run_task(self, task: TaskFile, locks: tuple[int, ...]) -> None:
        """Run a case in a folder of its own; it holds this machine's locks too, until its last process has ended."""
        part = self._folder.path / "partial" / f"{task.id}.{self._batch.id}"
        self._clear(task)
        if part.exists():
            shutil.rmtree(part)
        make_directory(part, REMEDY)
        began_s = time.time()
        with explain_refusals(part, REMEDY), (part / CASE_LOG).open("wb") as log:
            code = _run_case(self.case_command(task, part), self.case_environment(), log.fileno(), locks)
        outcome = self._judge(task, part, self._end_now(began_s), code)
        if outcome is None:
            shutil.rmtree(part)
            return
        with explain_refusals(part, REMEDY):
            write_file(part / OUTCOME, outcome)
            self._folder.install(part, task.place)

    def case_command(self, task: TaskFile, logs_root: Path) -> list[str]:
        """Return the product's own command for a case."""
        batch = self._batch
        command = [sys.executable, "-I", "-m", "cnnbench", "case", "--workload", task.workload, "--case", task.case]
        command += ["--logs-root", str(logs_root), "--timeout", f"{batch.timeout_s:g}", "--end-with", str(os.getpid())]
        if batch.hang_after_s is not None:
            command += ["--hang-after", f"{batch.hang_after_s:g}"]
        if batch.backend == "container":
            command += ["--backend", "docker", "--container-cli", batch.container_cli, "--release", batch.release]
            command += ["--registry", batch.registry, f"--docker-options={batch.docker_options}"]
        return command + [f"--{name.lower()}={value}" for name, value in task.parameters.items()]

    def case_environment(self) -> dict[str, str]:
        """Return this environment without what would set parameters, and with what the batch says."""
        kept = {name: text for name, text in self._environ.items() if name not in FIELDS}
        kept = {name: text for name, text in kept.items() if not name.startswith("CNNBENCH_")}
        own = {"CNNBENCH_CACHE": str(self._cache), ALLOCATION_VARIABLE: self._allocation, NODE_VARIABLE: self._host}
        own |= name_own_program({})
        return kept | own | ({PLATFORM_VARIABLE: self._batch.platform} if self._batch.platform else {})

    def _judge(self, task: TaskFile, part: Path, end: RunEnd, code: int) -> Outcome | None:
        """Return how a case ended; None where it was ended from outside, so that it is to be made again."""
        logs = part / f"logs-{task.case}"
        try:
            worker = find_last_run(logs)
            run = load_run(worker)
        except CnnbenchError as error:
            if code < 0 or code == 130:
                return None
            words = _last_words(part / CASE_LOG) or str(error)
            kind: Kind = "skipped" if code == SkippedError.exit_code else "failed"
            return end.failed(task.id, f"{kind} (exit code {code}): {words}", kind)
        if run.interrupted:
            return None
        return end.judged(task.id, run, (worker / RUN_FILE).relative_to(part).as_posix())

    def _end_now(self, began_s: float) -> RunEnd:
        return RunEnd(self._batch.id, self._host, self._allocation, began_s, time.time())

    def _clear(self, task: TaskFile) -> None:
        """Remove a run that was put aside, from a folder that is this machine's own."""
        place = self._folder.results / task.place
        if place.exists() and not self._is_made(task):
            shutil.rmtree(place)

    def _leave(self, task: TaskFile, outcome: Outcome) -> None:
        self._clear(task)
        self._folder.write_outcome(task.place, outcome)


def _run_case(command: list[str], environment: dict[str, str], log: int, locks: tuple[int, ...]) -> int:
    """Run a case to its end; when this process is asked to end, the case is, and is waited for."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=locks, cwd="/"
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _last_words(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("cnnbench: ") if lines else ""


@contextmanager
def _locked(path: Path) -> Iterator[tuple[int, bool]]:
    """Take a lock that its holder's children may keep; yield it, and whether it was free."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield descriptor, False
        else:
            yield descriptor, True
    finally:
        os.close(descriptor)


@contextmanager
def _machine_held() -> Iterator[int]:
    """Wait until this user has no other batch at work on this machine: runs side by side would disturb each other."""
    path = Path(tempfile.gettempdir(), f".cnnbench-fleet-node-{os.getuid()}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def read_batch_text(text: bytes, origin: str) -> BatchFile:
    """Read a batch that came from a controller; raise UsageError for what is none of this version."""
    try:
        return BatchFile.model_validate_json(text)
    except ValueError as error:
        raise UsageError(f"{origin}: not a batch that this version of cnnbench knows: {str(error)[:200]}") from error
