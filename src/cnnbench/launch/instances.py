"""Hold where instances go: plain data, which a run records and judging reads."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class InstancePlan:
    """One instance: the logical CPUs it is pinned to, one per physical core, and where they lie.

    `host`: where MPI launched it; empty without MPI. `caches`: the last-level caches of its cores, each by the first
    CPU that has it; none where they are not known. `kinds`: of its cores; none where all of the host are alike.
    """

    index: int
    process: int
    cpus: tuple[int, ...]
    sockets: tuple[int, ...]
    nodes: tuple[int, ...]
    memory_node: int | None  # the node to bind memory to; None when the cores lie in several or an unknown one
    host: str = ""
    caches: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Return the number of intra-op threads: one for each core."""
        return len(self.cpus)

    def to_dict(self) -> dict[str, object]:
        """Return it as data that JSON can hold, without what is not known or alike for all."""
        fields = {**asdict(self), "threads": self.threads}
        return {name: value for name, value in fields.items() if value or name not in ("host", "caches", "kinds")}


@dataclass(frozen=True)
class Plan:
    """All instances of a run, and what a reader of its KPIs should know about their placement."""

    instances: tuple[InstancePlan, ...]
    idle_cores: int
    notes: tuple[str, ...] = ()

    @property
    def cores_per_instance(self) -> int:
        """Return the cores of an instance; where sockets differ, of the largest (a note says so)."""
        return max(instance.threads for instance in self.instances)

    @property
    def cpus(self) -> tuple[int, ...]:
        """Return the CPUs in use, one of each physical core; where MPI launches on several hosts, on the first."""
        here = self.instances[0].host
        return tuple(cpu for instance in self.instances if instance.host == here for cpu in instance.cpus)

    @property
    def cores(self) -> int:
        """Return the number of physical cores in use, on all hosts."""
        return sum(instance.threads for instance in self.instances)

    @property
    def processes(self) -> tuple[tuple[InstancePlan, ...], ...]:
        """Return the instances of each process, in the order of the process numbers."""
        numbers = sorted({instance.process for instance in self.instances})
        return tuple(tuple(one for one in self.instances if one.process == number) for number in numbers)

    def to_dict(self) -> dict[str, object]:
        """Return the plan as data that JSON can hold."""
        return {
            "instances": [instance.to_dict() for instance in self.instances],
            "processes": [[instance.index for instance in process] for process in self.processes],
            "cores": self.cores,
            "cores_per_instance": self.cores_per_instance,
            "idle_cores": self.idle_cores,
            "notes": list(self.notes),
        }
