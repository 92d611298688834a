"""Bring batches to machines by Slurm: each is a task of an array, on a node of its own.

By `sbatch` itself: `submitit` tells states by `sacct` alone, so that without an accounting database a cancelled job is
unknown for ever, has no name to find a job again by, and needs its own Python and a shared folder on every node.
"""

import fcntl
import hashlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import UsageError
from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.folder import LOCK, LOG, REMEDY, FleetFolder
from cnnbench.fleet.launcher import Batch, JobState, JobStateName, UnavailableError, node_command
from cnnbench.fleet.process import is_locked
from cnnbench.fleet.slurm_queue import (
    QueuedTask,
    cancel_tasks,
    is_in_service,
    read_exit_code,
    read_largest_array,
    read_longest_minutes,
    read_queue,
    run_on_node,
    submit_script,
    try_request,
)
from cnnbench.fleet.slurm_script import LARGEST_BYTES, NO_FOLDER, array_script, fetch_script, script_bytes
from cnnbench.fleet.spec import Pool, Runs, Strict, read_options
from cnnbench.fleet.stageout import install_archive, missing_places

ARRAYS = "slurm"
"""The directory in a fleet's folder that has a file for each array, with the ids of its batches in order."""

_ON_NODE = "slurm-node"
"""The file of a batch that says which node it went to, where that has a folder of its own."""

_OWN_OPTIONS = (
    *("--array", "--chdir", "--exclude", "--exclusive", "--job-name", "--nodes", "--no-requeue", "--ntasks"),
    *("--open-mode", "--output", "--parsable", "--requeue", "--signal", "--test-only", "--time", "--wait", "--wrap"),
)
"""Options of sbatch that a pool cannot have, as they are the launcher's."""

_TERM_S = 120
"""How long before its limit a task is asked to end, so that its run is recorded; Slurm may do so 60 s earlier still.

A quarter of the limit where that is less.
"""

_STATES: Mapping[str, JobStateName] = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"), "queued"),
    "SPECIAL_EXIT": "queued",
    **dict.fromkeys(("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"), "running"),
    "COMPLETED": "ended",
    **dict.fromkeys(("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"), "failed"),
    **dict.fromkeys(("PREEMPTED", "REVOKED", "TIMEOUT"), "failed"),
}
"""What the states that Slurm prints are for a fleet; a task that it has requeued is queued again."""


def _in_slurms_words(task: QueuedTask) -> str:
    return f"Slurm: {task.state}" + ("" if task.reason == "None" else f" ({task.reason})")


def _check_option(option: str) -> str:
    name = option.partition("=")[0]
    if not re.fullmatch("--[a-z][a-z-]*", name):
        raise ValueError("must be an option of sbatch in one word, such as --mem=0")
    if name in _OWN_OPTIONS:
        raise ValueError(f"{name} is set by the fleet; leave it out")
    return option


class SlurmOptions(Strict):
    """What `options:` of a pool of launcher slurm may have.

    `partition`, `account`, `qos`: as of sbatch; empty for the user's defaults. `extra`: more options of sbatch.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    extra: tuple[Annotated[str, AfterValidator(_check_option)], ...] = ()


class SlurmLauncher:
    """Has Slurm run batches on nodes that it chooses."""

    Options: ClassVar[type[BaseModel]] = SlurmOptions
    chooses_nodes: ClassVar[bool] = True

    def __init__(self, pool: Pool, folder: FleetFolder) -> None:
        self._pool, self._folder = pool, folder
        self._options = read_options(SlurmOptions, pool)
        self._arrays = folder.path / ARRAYS / pool.name
        self._remote = pool.folder or str(folder.path)
        self._polled: dict[str, QueuedTask | None] = {}  # so that a thousand batches are not asked for one by one

    @property
    def machines(self) -> int:
        """How many nodes the pool's batches go to at once."""
        return self._pool.machines or 1

    def check(self, run: Runs) -> None:  # noqa: ARG002 - as every launcher
        """Raise UsageError, in Slurm's words, where it has no such nodes, or not so many that are up.

        A fleet that has begun goes on with what there is: a node that has died meanwhile may come back.
        """
        if self._array_names():
            return
        with self._explained():
            try_request([*self._request(), "--nodes=1"])
        if self.machines > 1:
            with self._explained(f"machines is {self.machines}, and so many nodes cannot be had: "):
                try_request([*self._request(), f"--nodes={self.machines}"])

    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Submit arrays of the batches that Slurm has no task for."""
        with self._submitting() as lock:
            with self._explained():
                jobs = self._find_jobs([batch.id for batch in batches])
            for array in self._split([batch for batch in batches if batch.id not in jobs]):
                try:
                    with self._explained():
                        jobs |= self._submit_array(array, lock)
                except UnavailableError:
                    if not jobs:
                        raise
                    break  # the others are asked for again
        return jobs

    def poll(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Ask Slurm; what it has forgotten is told by what its node has left."""
        tasks = {task.job: task for task in read_queue(self._array_names())}
        states = {}
        for batch, job in jobs.items():
            task = tasks.get(job) or tasks.get(job.partition("_")[0])
            self._polled[batch] = task
            if task:
                self._note_node(batch, task.node)
            states[batch] = self._state(batch, job, task)
        return states

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """Cancel tasks, whatever they are in the middle of."""
        cancel_tasks(jobs.values())
        self._polled.clear()

    def collect(self, batch: BatchFile) -> None:
        """Fetch what a batch has left on a node with a folder of its own, once that does not measure any more.

        A node that cannot be had, as it is down or drained, keeps what it has: those runs are made again elsewhere.
        """
        if self._pool.shared:
            return
        node, measuring = self._find_node(batch.id)
        if not node or measuring:
            return
        if not is_in_service(node):
            self._note(batch, f"{node} is down or drained, and keeps what it has")
            return
        script = fetch_script(batch, self._remote, missing_places(self._folder, batch))
        with (
            explain_refusals(self._folder.path, REMEDY),
            tempfile.NamedTemporaryFile(dir=self._folder.path, prefix=".fetch-", suffix=".tar") as archive,
        ):
            path = Path(archive.name)
            try:
                run_on_node(node, script, self._place(), archive)
            except UsageError as error:
                self._note(batch, f"what it left on {node} cannot be fetched: {error}")
                return
            if path.stat().st_size:
                install_archive(self._folder, batch, path)

    @staticmethod
    def identify(environ: Mapping[str, str]) -> str:
        """Return the job, the node and the allocation that this process is of."""
        array = [environ[name] for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in environ]
        told = {
            "task": "_".join(array),
            "job": environ.get("SLURM_JOB_ID"),
            "node": environ.get("SLURMD_NODENAME"),
            "cluster": environ.get("SLURM_CLUSTER_NAME"),
            "partition": environ.get("SLURM_JOB_PARTITION"),
            "account": environ.get("SLURM_JOB_ACCOUNT"),
            "restart": environ.get("SLURM_RESTART_COUNT"),
        }
        return "Slurm " + ", ".join(f"{name} {text}" for name, text in told.items() if text)

    def _place(self) -> list[str]:
        """Return the options that say where in Slurm's accounts and partitions."""
        options = self._options
        asked = {"partition": options.partition, "account": options.account, "qos": options.qos}
        return [f"--{name}={text}" for name, text in asked.items() if text]

    def _request(self) -> list[str]:
        """Return the options that say which nodes may be had, and all of each."""
        constraint = self._pool.constraint or self._pool.platform.upper()
        wanted = [f"--constraint={constraint}"] if constraint else []
        return ["--exclusive", "--mem=0", *wanted, *self._place(), *self._options.extra]

    def _split(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        """Part batches into arrays: those of one have the same nodes to avoid, and are no more than Slurm takes."""
        alike: dict[tuple[str, ...], list[Batch]] = {}
        for batch in batches:
            alike.setdefault(batch.avoid, []).append(batch)
        size = read_largest_array() if batches else 1
        for members in alike.values():
            array: list[Batch] = []
            length = 0
            for batch in members:
                more = 0 if self._pool.shared else script_bytes(batch.file)
                if array and (len(array) == size or length + more > LARGEST_BYTES):
                    yield array
                    array, length = [], 0
                array.append(batch)
                length += more
            yield array

    def _submit_array(self, batches: Sequence[Batch], lock: int) -> dict[str, str]:
        """Note which array it will be, then submit it: it is found by that name, whatever happens in between."""
        ids = [batch.id for batch in batches]
        name = f"cnnbench-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}"
        path = self._arrays / name
        with explain_refusals(path, REMEDY):
            path.write_text("\n".join(ids), encoding="utf-8")
        minutes = math.ceil((max(batch.limit_s for batch in batches) + _TERM_S + 60) / 60)
        # The plan's limit is generous, and Slurm has a task that asks for more than there is wait for ever.
        minutes = min(minutes, read_longest_minutes(self._options.partition) or minutes)
        options = [
            *(f"--job-name={name}", f"--array=0-{len(batches) - 1}", "--nodes=1", "--ntasks=1", f"--time={minutes}"),
            *(
                "--requeue",
                "--open-mode=append",
                "--output=/dev/null",
                f"--signal=B:TERM@{min(_TERM_S, 15 * minutes)}",
                "--chdir=/",
            ),
        ]
        # The nodes' own environment, as ssh has it, not that of whoever started the controller.
        options += ["--export=HOME,LANG,LOGNAME,PATH,SHELL,USER", *self._request()]
        command = node_command(self._pool, sys.executable, self._remote)
        script = array_script([batch.file for batch in batches], self._remote, command, shared=self._pool.shared)
        job = submit_script(script, [*options, *self._avoiding(batches[0].avoid)], lock)
        return {batch: f"{job}_{index}" for index, batch in enumerate(ids)}

    def _avoiding(self, nodes: Sequence[str]) -> list[str]:
        """Return the option that keeps a job from nodes; none where no others would be left."""
        if not nodes:
            return []
        option = f"--exclude={','.join(nodes)}"
        try:
            try_request([*self._request(), "--nodes=1", option])
        except UsageError:
            return []
        return [option]

    def _note(self, batch: BatchFile, text: str) -> None:
        (self._folder.batches / batch.id / LOG).write_text(f"cnnbench: {text}\n", encoding="utf-8")

    def _note_node(self, batch: str, node: str) -> None:
        """Keep which node has what a batch leaves: Slurm will forget it."""
        path = self._folder.batches / batch / _ON_NODE
        if node and not self._pool.shared and (not path.exists() or path.read_text(encoding="utf-8") != node):
            path.write_text(node, encoding="utf-8")

    def _find_node(self, batch: str) -> tuple[str, bool]:
        """Return the node that has, or has had, a batch, empty where there is none, and whether it is at work on it."""
        if batch not in self._polled:
            self.poll(self._find_jobs([batch]))
        task = self._polled.get(batch)
        path = self._folder.batches / batch / _ON_NODE
        noted = path.read_text(encoding="utf-8") if path.exists() else ""
        return (task.node if task else "") or noted, task is not None and task.state == "RUNNING"

    def _array_names(self) -> list[str]:
        return sorted(path.name for path in self._arrays.glob("cnnbench-*"))

    def _find_jobs(self, batches: Sequence[str]) -> dict[str, str]:
        """Return the tasks that there are for batches: in the queue, or by what their nodes have said of themselves."""
        queued: dict[tuple[str, int | None], QueuedTask] = {}
        for task in sorted(read_queue(self._array_names()), key=lambda task: task.number):
            queued[task.name, task.index] = task
        jobs: dict[str, str] = {}
        for name in self._array_names():
            for index, batch in enumerate((self._arrays / name).read_text(encoding="utf-8").split()):
                if found := queued.get((name, index)):
                    jobs[batch] = found.job
        for batch in set(batches) - set(jobs):
            if (node := self._folder.read_node(batch)) and (told := re.search("task ([0-9_]+)", node.allocation)):
                jobs[batch] = told[1]
        return {batch: jobs[batch] for batch in batches if batch in jobs}

    def _state(self, batch: str, job: str, task: QueuedTask | None) -> JobState:
        """Return how far a batch is; `task`: as Slurm has it, None where it has forgotten it."""
        node, ended = self._folder.read_node(batch), self._folder.read_ended(batch)
        name = task.node if task else node.host if node else ""
        state = _STATES.get(task.state, "running") if task else "lost"
        if task and state in ("queued", "running"):
            return JobState(state, name, "" if task.reason == "None" else task.reason)
        if task and state == "ended" and not self._pool.shared:
            return JobState("ended", name)  # what it has left is still there
        if ended is not None and not ended.reason:
            return JobState("ended", name)
        if ended is not None:
            said = _in_slurms_words(task) if task and state == "failed" else ""
            return JobState("failed", name, f"{ended.reason}; {said}" if said else ended.reason)
        if is_locked(self._folder.batches / batch / LOCK):
            return JobState("running", name, "on a node that Slurm has given up")
        return JobState("lost" if task is None else "failed", name, self._explain_end(batch, job, task))

    def _explain_end(self, batch: str, job: str, task: QueuedTask | None) -> str:
        """Say, in Slurm's words and the task's last ones, how one ended that did not come to its end."""
        if task is None:
            return f"Slurm knows nothing more of task {job}"
        code = read_exit_code(job) if task.state == "FAILED" else ""
        said = _in_slurms_words(task)
        if code == f"{NO_FOLDER}:0":
            needed = (
                "needed is a folder that all nodes share, or `shared: false` and a `folder` in the pool"
                if self._pool.shared
                else "needed is a `folder` in which its user may write"
            )
            return f"{said}: node {task.node} does not have {self._remote}/batches/{batch}; {needed}"
        words = self._folder.last_words(batch)
        return "; ".join(part for part in (said, code and f"exit code {code.partition(':')[0]}", words) if part)

    @contextmanager
    def _submitting(self) -> Iterator[int]:
        """Hold a lock that `sbatch` holds too: where a controller was killed, what it was submitting is waited for."""
        make_directory(self._arrays, REMEDY)
        descriptor = os.open(self._arrays / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _explained(self, found: str = "") -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            raise UsageError(f"pool {self._pool.name}: {found}{error}") from error
