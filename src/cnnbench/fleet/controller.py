"""Bring a plan to its end: hand batches to launchers, see what became of them, and do again what was lost or disturbed.

All that is known is in the fleet's folder, so this may be killed at any moment and started again.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError
from cnnbench.fleet.batch import BatchFile, Ending, Kind, Node, TaskFile
from cnnbench.fleet.checks import digest_workload
from cnnbench.fleet.folder import (
    CANCEL,
    CLOSED,
    SUBMITTED,
    Closed,
    FleetFolder,
    Submitted,
    place_of,
    read_file,
    write_file,
)
from cnnbench.fleet.launcher import Batch, JobState, Launcher, UnavailableError
from cnnbench.fleet.plan import Plan, Task, digest, find_workload
from cnnbench.fleet.run_end import RunEnd
from cnnbench.fleet.spec import Pool
from cnnbench.run.images import digest_package

POLL_S, POLL_BATCH_S = 2.0, 0.02
"""How long to wait between two looks, and how much longer for each batch that is looked at."""
PATIENCE_S = 900.0
"""How long a scheduler may not answer, or refuse for a quota, before the controller ends, if nothing else goes on."""
COLLECT_S = 30.0
"""How often what running batches have left so far is brought in, where machines have folders of their own."""
LIMIT_SLACK_S, LIMIT_FACTOR = 900.0, 3.0
"""A batch may be ended after so many times its estimated time, and this more."""

QUEUED = JobState("queued")
CANCELLED = "cancelled"
"""Why a batch was closed whose runs are not counted as lost for it."""


@dataclass
class OpenBatch:
    """A batch that is not closed; `job`: None until it is handed over. `state`, `node`: as last seen.

    `unfetched_s`: since when what it has left cannot be brought here. `ended_s`: when its machine was done with it.
    """

    file: BatchFile
    slot: int
    job: str | None
    submitted_s: float
    state: JobState = QUEUED
    node: Node | None = None
    unfetched_s: float | None = None
    ended_s: float | None = None

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.file.id


class Controller:
    """One fleet's, from `begin` to the end of its plan.

    `launchers`: by pool. `tell`: takes a line about what happened. `clock`, `sleep`: of the simulation, another time.
    """

    def __init__(
        self,
        plan: Plan,
        folder: FleetFolder,
        launchers: Mapping[str, Launcher],
        base: Path,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._plan, self._folder, self._launchers, self._base = plan, folder, dict(launchers), base
        self._tell, self._clock, self._sleep = tell, clock, sleep
        self._tasks = {task.id: task for task in plan.tasks}
        self._silent: dict[tuple[str, bool], tuple[float, str]] = {}
        self._collected_s = clock()
        self.outcomes: dict[str, Ending] = {}
        self.aside: dict[str, list[Ending]] = {}
        self.open: dict[str, OpenBatch] = {}
        self.closed: dict[str, Closed] = {}
        self._losses: dict[str, list[str]] = {}
        self._closed_of_slot: dict[tuple[str, int], int] = {}
        self._under_way: dict[str, str] = {}
        self._changed = True
        self._digests: dict[str, str] = {}
        self._sources = self._token = ""

    def begin(self) -> None:
        """Read what there is already; the folder must be held, and this plan's."""
        self._sources, self._token = digest_package(), self._folder.token
        self.look()
        self._set_aside_all()

    def look(self) -> None:
        """Read what there is already, and change nothing."""
        self.outcomes = self._folder.find_outcomes(self._plan.tasks)
        self.aside = self._folder.read_set_aside()
        for batch in self._folder.list_batches():
            file, slot = self._folder.read_batch(batch)
            closed = read_file(self._folder.batches / batch / CLOSED, Closed)
            if closed:
                self._note_closed(file, slot, closed)
                continue
            submitted = read_file(self._folder.batches / batch / SUBMITTED, Submitted)
            job, since_s = (submitted.job, submitted.submitted_s) if submitted else (None, self._clock())
            node, ended = self._folder.read_node(batch), self._folder.read_ended(batch)
            self._open(OpenBatch(file, slot, job, since_s, node=node, ended_s=ended.ended_s if ended else None))

    def _open(self, one: OpenBatch) -> None:
        self.open[one.id] = one
        self._under_way |= dict.fromkeys((task.id for task in one.file.tasks), one.id)

    @property
    def done(self) -> bool:
        """Whether every run has its outcome and no batch is open."""
        return len(self.outcomes) == len(self._tasks) and not self.open

    def run(self, seen: Callable[[], None] = lambda: None) -> bool:
        """Go on until all is done; return False where it was cancelled meanwhile. `seen` is called after each look.

        Raises CnnbenchError where all that is left waits for schedulers that have not answered for too long: what runs
        there goes on, and a later call follows it.
        """
        while not self.done:
            if (self._folder.path / CANCEL).exists():
                self.cancel()
                return False
            self.step()
            seen()
            self._end_waiting()
            if not self.done:
                self._sleep(max(POLL_S, POLL_BATCH_S * len(self.open)))
        return True

    def step(self) -> None:
        """Look at all batches once, and hand over what is to be run next."""
        self._poll()
        self._make_batches()
        self._submit()

    def prepare(self) -> dict[str, list[Batch]]:
        """Make the batches that are to be run next, and hand none over; return all that are open, by pool."""
        self._make_batches()
        return {
            pool: [self._batch_of(one) for one in batches]
            for pool, batches in self._by_pool(self.open.values()).items()
        }

    def cancel(self) -> None:
        """End all batches, wherever they are; what has its outcome by then keeps it.

        Raises CnnbenchError, when all others have been ended, for those whose machines or scheduler do not answer.
        """
        problems = []
        for pool, batches in self._by_pool(self.open.values()).items():
            try:
                self._cancel_pool(self._launchers[pool], batches)
            except UnavailableError as error:
                problems.append(f"pool {pool}: {error}")
        (self._folder.path / CANCEL).unlink(missing_ok=True)
        if problems:
            raise CnnbenchError("\n".join([*problems, "call --cancel again when they answer"]))

    def _cancel_pool(self, launcher: Launcher, batches: list[OpenBatch]) -> None:
        jobs = {one.id: one.job for one in batches if one.job is not None}
        if unknown := [one for one in batches if one.job is None]:
            # Handed over, maybe, by a controller that died before it could say so: the launcher finds those by name.
            jobs |= launcher.submit([self._batch_of(one) for one in unknown])
        launcher.cancel(jobs)
        for one in batches:
            one.state = cancelled = JobState("failed", one.state.node, CANCELLED)
            self._fetch(one)
            self._close(one, cancelled)

    def cost_hours(self) -> float:
        """Return the hours that batches have had machines so far."""
        now_s = self._clock()
        running = 0.0
        for one in self.open.values():
            if one.node:
                running += max(0.0, (one.ended_s or now_s) - one.node.began_s)
        return (sum(closed.node_s for closed in self.closed.values()) + running) / 3600

    # What is to be run next.

    def _make_batches(self) -> None:
        if not self._changed:
            return
        self._changed = False
        busy = {(one.file.pool, one.slot) for one in self.open.values()}
        waiting: dict[tuple[str, int], list[Task]] = {}
        for task in self._plan.tasks:
            if task.id not in self.outcomes and task.id not in self._under_way:
                waiting.setdefault((task.pool, self._slot_of(task)), []).append(task)
        for (pool, slot), tasks in waiting.items():
            if (pool, slot) not in busy:
                self._make_batch(self._plan.pools[pool], slot, tasks)

    def _slot_of(self, task: Task) -> int:
        """Return which machine of its pool a task goes to: its own, and another each time it was disturbed."""
        if self._launchers[task.pool].chooses_nodes:
            return task.slot
        disturbed = sum(bool(one.disturbed) for one in self.aside.get(task.id, ()))
        return (task.slot + disturbed) % self._plan.machines[task.pool]

    def _make_batch(self, pool: Pool, slot: int, tasks: list[Task]) -> None:
        run = self._plan.fleet.run
        number = self._closed_of_slot.get((pool.name, slot), 0)
        workloads = {task.work.workload: self._workload_on_node(pool, task.work.workload) for task in tasks}
        file = BatchFile(
            id=digest(self._plan.id, self._token, pool.name, slot, number, [task.id for task in tasks]),
            pool=pool.name,
            launcher=pool.launcher,
            platform=pool.platform.upper(),
            token=self._token if pool.shared else "",
            written_s=self._clock(),
            clock_skew_s=run.clock_skew_s,
            sources=self._sources,
            workloads={path: self._digests_of(written) for written, path in workloads.items()},
            files=run.files,
            images={one: pool.images[one] for one in dict.fromkeys(task.work.image for task in tasks) if one},
            backend=pool.backend,
            cache=pool.cache,
            container_cli=pool.container_cli,
            registry=pool.registry,
            release=pool.release,
            docker_options=pool.docker_options,
            timeout_s=run.timeout_s,
            hang_after_s=run.hang_after_s,
            tasks=[
                TaskFile(
                    id=task.id,
                    place=place_of(task.pool, task.slot, task.id),
                    workload=workloads[task.work.workload],
                    case=task.work.case,
                    parameters=dict(task.work.parameters),
                    not_of=[one.batch for one in self.aside.get(task.id, ())],
                )
                for task in tasks
            ],
        )
        self._folder.add_batch(file, slot)
        self._open(OpenBatch(file, slot, None, self._clock()))

    def _workload_on_node(self, pool: Pool, written: str) -> str:
        if "/" in written:
            return written
        return f"{pool.checkout or REPOSITORY}/workload/{written}"

    def _digests_of(self, written: str) -> str:
        if written not in self._digests:
            self._digests[written] = digest_workload(find_workload(written, self._base))
        return self._digests[written]

    def _batch_of(self, one: OpenBatch) -> Batch:
        tasks = [self._tasks[task.id] for task in one.file.tasks]
        avoid = {outcome.host for task in tasks for outcome in self.aside.get(task.id, ())}
        seconds = sum(task.work.run_s for task in tasks)
        return Batch(one.file, one.slot, tuple(sorted(avoid - {""})), LIMIT_SLACK_S + LIMIT_FACTOR * seconds)

    def _submit(self) -> None:
        for pool, batches in self._by_pool(one for one in self.open.values() if one.job is None).items():
            try:
                jobs = self._launchers[pool].submit([self._batch_of(one) for one in batches])
            except UnavailableError as error:
                self._be_patient(pool, False, error)
                continue
            except CnnbenchError as error:
                self._silent.pop((pool, False), None)
                for one in batches:
                    self._close(one, JobState("failed", "", str(error)))
                continue
            self._silent.pop((pool, False), None)
            for one in batches:
                if one.id in jobs:
                    one.job, one.submitted_s = jobs[one.id], self._clock()
                    note = Submitted(job=one.job, submitted_s=one.submitted_s, slot=one.slot)
                    write_file(self._folder.batches / one.id / SUBMITTED, note)

    # What became of it.

    def _poll(self) -> None:
        collect = self._clock() - self._collected_s >= COLLECT_S
        for pool, batches in self._by_pool(one for one in self.open.values() if one.job is not None).items():
            try:
                states = self._launchers[pool].poll({one.id: one.job for one in batches if one.job is not None})
            except UnavailableError as error:
                self._be_patient(pool, True, error)
                continue
            self._silent.pop((pool, True), None)
            for one in batches:
                one.state = states[one.id]
                over = one.state.state in ("ended", "failed", "lost")
                fetched = self._fetch(one) if over or collect else True
                self._look(one)
                if over and fetched and one.id in self.open:
                    self._close(one, one.state)
        if collect:
            self._collected_s = self._clock()

    def _fetch(self, one: OpenBatch) -> bool:
        """Bring here what a batch has left; return whether nothing more is to be waited for.

        What is lost is not waited for, and what has ended or failed only for so long: it is made again then.
        """
        try:
            self._launchers[one.file.pool].collect(one.file)
        except UnavailableError as error:
            now_s = self._clock()
            one.unfetched_s = one.unfetched_s or now_s
            if one.state.state in ("ended", "failed") and now_s - one.unfetched_s > PATIENCE_S:
                one.state = JobState("lost", one.state.node, str(error))
            return one.state.state == "lost"
        one.unfetched_s = None
        return True

    def _be_patient(self, pool: str, is_poll: bool, error: UnavailableError) -> None:
        """Ask again later: what a scheduler that does not answer has been given may well go on."""
        if (pool, is_poll) not in self._silent:
            self._silent[pool, is_poll] = self._clock(), str(error)
            self._tell(f"pool {pool}: {error}; asking again")

    def _end_waiting(self) -> None:
        now_s, words = self._clock(), dict[str, str]()
        for one in self.open.values():
            since_s, told = self._silent.get((one.file.pool, one.job is not None), (now_s, ""))
            if now_s - since_s <= PATIENCE_S:
                return
            words[one.file.pool] = told
        if words:
            raise CnnbenchError(
                "\n".join(f"pool {pool}: for {PATIENCE_S:g} s: {told}" for pool, told in words.items())
                + "\nno run is counted as lost for this: the same command goes on when they answer"
            )

    def _look(self, one: OpenBatch) -> None:
        """Take down which runs of a batch have ended, and end one whose machine's clock is ahead of ours."""
        for task in one.file.tasks:
            if task.id not in self.outcomes and not self._take_up(task):
                break  # they are made in this order
        one.node = node = one.node or self._folder.read_node(one.id)
        ahead_s = node.began_s - self._clock() if node else 0.0
        if node and ahead_s > one.file.clock_skew_s and one.state.state == "running":
            reason = (
                f"refused: the clock of {node.host} is {ahead_s:.1f} s or more ahead of the controller's (clock_skew_s "
                f"is {one.file.clock_skew_s:g}): have both kept by one time server"
            )
            assert one.job is not None
            try:
                self._launchers[one.file.pool].cancel({one.id: one.job})
            except UnavailableError as error:
                self._tell(f"pool {one.file.pool}: {reason}; it cannot be ended yet: {error}")
                return
            one.state = JobState("failed", node.host, reason)
            for task in one.file.tasks:
                self._fail(self._tasks[task.id], one.id, reason, "refused", node.host)
            self._close(one, one.state)

    def _close(self, one: OpenBatch, state: JobState) -> None:
        """Be done with a batch: note how it ended, and decide about each run that has no outcome, or not a good one."""
        for task in one.file.tasks:
            if task.id not in self.outcomes:
                self._take_up(task)
        node, ended = self._folder.read_node(one.id), self._folder.read_ended(one.id)
        node_s = 0.0
        if node:
            node_s = max(0.0, (ended.ended_s if ended else self._clock()) - node.began_s)
        kind = state.state if state.state in ("ended", "failed", "lost") else "failed"
        closed = Closed.model_validate(
            {"state": kind, "reason": state.reason, "node": node.host if node else state.node, "node_s": node_s}
        )
        write_file(self._folder.batches / one.id / CLOSED, closed)
        self.open.pop(one.id, None)
        for task in one.file.tasks:
            self._under_way.pop(task.id, None)
        self._changed = True
        self._note_closed(one.file, one.slot, closed)
        if state.reason:
            where = f" on {closed.node}" if closed.node else ""
            self._tell(f"pool {one.file.pool}: batch {one.id}{where}: {state.reason}")
        self._set_aside_all(one.file.tasks)
        if state.reason == CANCELLED:
            return
        for task in one.file.tasks:
            self._give_up(self._tasks[task.id], one.id)

    def _take_up(self, task: TaskFile) -> bool:
        """Note how a run ended; return whether it has."""
        if outcome := self._folder.read_outcome(task.place):
            self.outcomes[task.id] = outcome
        return outcome is not None

    def _note_closed(self, file: BatchFile, slot: int, closed: Closed) -> None:
        self.closed[file.id] = closed
        self._closed_of_slot[file.pool, slot] = self._closed_of_slot.get((file.pool, slot), 0) + 1
        if closed.reason == CANCELLED:
            return
        lost = [task.id for task in file.tasks if not self._was_made(task.id, file.id)]
        now = self._folder.read_now(file.id) if lost else None
        if now and now.task in lost:
            lost = [now.task]  # it was at that one; the others were not begun
        elif len(lost) < len(file.tasks):
            lost = lost[:1]
        for task_id in lost:
            self._losses.setdefault(task_id, []).append(closed.reason or "it left no outcome")

    def _was_made(self, task_id: str, batch: str) -> bool:
        outcome = self.outcomes.get(task_id)
        known = [*self.aside.get(task_id, ()), *([outcome] if outcome else [])]
        return any(one.batch == batch for one in known)

    def _give_up(self, task: Task, batch: str) -> None:
        """Count a run as failed that has been begun as often as it may be and has not come to an end."""
        losses = self._losses.get(task.id, [])
        if task.id not in self.outcomes and len(losses) >= self._plan.fleet.run.attempts:
            self._fail(
                task, batch, f"begun {len(losses)} times, and lost each time; the last time: {losses[-1]}", "lost"
            )

    def _fail(self, task: Task, batch: str, reason: str, kind: Kind, host: str = "") -> None:
        if task.id in self.outcomes:
            return
        now_s = self._clock()
        outcome = RunEnd(batch, host, "", now_s, now_s).failed(task.id, reason, kind)
        place = place_of(task.pool, task.slot, task.id)
        self._folder.write_outcome(place, outcome)
        self.outcomes[task.id] = self._folder.read_outcome(place) or Ending.of(outcome)

    def _set_aside_all(self, files: Iterable[TaskFile] | None = None) -> None:
        """Put aside the runs that are to be made again; not those that an open batch may still write."""
        for task_id in [file.id for file in files] if files is not None else list(self.outcomes):
            task, outcome = self._tasks[task_id], self.outcomes.get(task_id)
            if outcome is None or task_id in self._under_way or not self._is_to_repeat(task, outcome):
                continue
            self._folder.put_aside(place_of(task.pool, task.slot, task.id), task.id)
            self.aside.setdefault(task_id, []).append(outcome)
            del self.outcomes[task_id]
            self._tell(f"{task.work} on {outcome.host}: to be made again: {outcome.disturbed or outcome.reason}")

    def _is_to_repeat(self, task: Task, outcome: Ending) -> bool:
        """Say whether another machine may do better: one that others do not use, or that is as it was asked for."""
        before = self.aside.get(task.id, [])
        if outcome.disturbed:
            return sum(bool(one.disturbed) for one in before) < self._plan.fleet.run.repeats
        if outcome.kind == "refused":
            again = self._launchers[task.pool].chooses_nodes
            return again and sum(one.kind == "refused" for one in before) + 1 < self._plan.fleet.run.attempts
        return False

    def retry_failed(self) -> int:
        """Put the failed runs aside, so that they are made again; return how many there were."""
        failed = [task for task in self._plan.tasks if (one := self.outcomes.get(task.id)) and one.verdict == "failed"]
        for task in failed:
            self._folder.put_aside(place_of(task.pool, task.slot, task.id), task.id)
            self.aside.setdefault(task.id, []).append(self.outcomes.pop(task.id))
            self._losses.pop(task.id, None)
        self._changed = True
        return len(failed)

    @staticmethod
    def _by_pool(batches: Iterable[OpenBatch]) -> dict[str, list[OpenBatch]]:
        found: dict[str, list[OpenBatch]] = {}
        for one in batches:
            found.setdefault(one.file.pool, []).append(one)
        return found
