"""A launcher whose machines do as a script says, and a controller with it, in time that passes when it is slept."""

from dataclasses import dataclass, field
from pathlib import Path

from cnnbench.fleet.batch import Ended, Node, Outcome
from cnnbench.fleet.controller import Controller
from cnnbench.fleet.folder import ENDED, NODE, FleetFolder, write_file
from cnnbench.fleet.launcher import JobState, UnavailableError
from cnnbench.fleet.plan import plan_fleet
from cnnbench.fleet.spec import Fleet, Pool
from fleet_files import FleetFiles


@dataclass
class Clock:
    now_s: float = 1.8e9

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Scripted:
    """`answer(batch, host)`: what becomes of a batch.

    Changes of each run's outcome; a state without any outcome; or both, where it ended so after its first run.
    """

    pool: Pool
    folder: FleetFolder
    clock: Clock
    answer: object
    hosts: list[str] = field(default_factory=lambda: ["m0", "m1", "m2"])
    chooses_nodes: bool = True
    silent: int = 0
    silent_polls: int = 0
    silent_cancels: int = 0
    quota: int = 0
    unfetched: str = ""
    ahead_s: float = 0.0
    batches: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    states: dict = field(default_factory=dict)

    @property
    def machines(self) -> int:
        return self.pool.machines or 1

    def submit(self, batches):
        if self.silent > 0:
            self.silent -= 1
            raise UnavailableError("the scheduler does not answer")
        taken = batches[: self.quota] if self.quota else batches
        for batch in taken:
            if batch.id in self.states:
                continue
            self.batches.append(batch)
            free = [host for host in self.hosts if host not in batch.avoid] if self.chooses_nodes else self.hosts
            host = free[batch.slot % len(free)]
            node = Node(host=host, allocation=f"job of {batch.file.name}", pid=1, began_s=self.clock() + self.ahead_s)
            write_file(self.folder.batches / batch.id / NODE, node)
            self.states[batch.id] = self._play(batch, host)
        return {batch.id: batch.file.name for batch in taken}

    def _play(self, batch, host) -> JobState:
        found = self.answer(batch, host)
        if isinstance(found, JobState):
            return found
        found, state = found if isinstance(found, tuple) else (found, None)
        for task in batch.file.tasks[: 1 if state else None]:
            now_s = self.clock()
            outcome = {"task": task.id, "batch": batch.id, "verdict": "valid", "host": host, "began_s": now_s}
            self.folder.write_outcome(task.place, Outcome.model_validate(outcome | {"ended_s": now_s} | found))
        if state:
            return state
        write_file(self.folder.batches / batch.id / ENDED, Ended(reason="", ended_s=self.clock() + 60))
        return JobState("ended", host)

    def poll(self, jobs):
        if self.silent_polls > 0:
            self.silent_polls -= 1
            raise UnavailableError("the scheduler does not answer")
        return {batch: self.states[batch] for batch in jobs}

    def cancel(self, jobs):
        if self.silent_cancels > 0:
            self.silent_cancels -= 1
            raise UnavailableError("the scheduler does not answer")
        self.cancelled += jobs

    def collect(self, batch):
        node = self.folder.read_node(batch.id)
        if node and node.host == self.unfetched:
            raise UnavailableError(f"{node.host}: no route")


class ScriptedFleet:
    """A fleet of one pool with such a launcher."""

    def __init__(self, directory: Path, answer, machines: int = 1, runs: dict | None = None, **launcher) -> None:
        self.files = FleetFiles(directory, name="pool", machines=machines)
        self.files.write(**(runs or {}))
        fleet = Fleet.model_validate(self.files.content)
        self.plan = plan_fleet(fleet, directory, {"pool": machines})
        self.folder, self.clock, self.told = FleetFolder(self.files.folder), Clock(), []
        self.launcher = Scripted(fleet.pools[0], self.folder, self.clock, answer, **launcher)
        self.directory = directory

    def run(self) -> Controller:
        """Begin, and go on to the end."""
        with self.folder.held():
            self.folder.adopt(self.plan)
            control = self.control()
            control.begin()
            assert control.run()
            return control

    def control(self) -> Controller:
        launchers = {"pool": self.launcher}
        return Controller(
            self.plan, self.folder, launchers, self.directory, self.told.append, self.clock, self.clock.sleep
        )
