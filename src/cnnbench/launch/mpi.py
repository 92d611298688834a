"""Launch the processes of a plan as ranks of Open MPI's mpirun: where each is to run, the command, and how it ended.

What a rank does is in rank.py. Rank 0 runs on this host and mirrors what all of them do in the run's shared files, so
that the run itself goes on as with any other workers.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cnnbench.base.errors import InvalidMeasurementError, SkippedError, UsageError
from cnnbench.base.start import START
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.launch.local import KilledError, WorkerLaunch, WorkerProcess
from cnnbench.machine.contention import CpuSample
from cnnbench.machine.topology import Topology, format_cpu_list

INSTALL = "apt-get install openmpi-bin libopenmpi3 (on Debian and Ubuntu)"
FAILED, UNFIT = "cnnbench: failed: ", "cnnbench: unfit: "
"""How a rank's last line begins: when its worker did not make it, and when it could not begin or go on."""
KILL_S = 2
"""How long mpirun waits before it tells ranks to end, and again before it kills them: always in full, and all that
twice where there are other hosts. A rank takes some 0.1 s to put things in order."""
GRACE_S = 12.0
"""How long mpirun may take to end its ranks, on all hosts, when it is told to."""
JOB, REPORT = "job.json", "ranks.json"


@dataclass(frozen=True)
class Ranks:
    """Where MPI is to start a run's processes, one rank each.

    `mapping`: mpirun's `--map-by`, without the cores. `cores`: of each rank. `hostfile`: None for this host alone.
    """

    count: int
    mapping: str
    cores: int
    hostfile: Path | None


@dataclass(frozen=True)
class RankJob:
    """What the ranks are told, through rank 0, which reads it from a file; paths are absolute and hold on every host.

    The file lies with the run's shared files, which only its user can read and which go with it: the environments are
    the caller's, secrets included. `shared`: of the run, on the first host. `python`: the engine's. `cpus`: those that
    may be used on the first host. `environments`: of the worker of each rank.
    """

    shared: str
    python: str
    hang_s: float
    cpus: list[int]
    numa_aware: bool
    instances: int
    environments: list[dict[str, str]]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "RankJob":
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))


def read_hostfile(path: Path) -> dict[str, int | None]:
    """Return the hosts of a file such as mpirun reads, in order, with their slots; None where it does not say.

    Raises UsageError when there is no such file, no host in it, or a line that is none.
    """
    if not path.is_file():
        raise UsageError(f"HOSTFILE={path}: no such file; needed are lines such as `node1 slots=2`")
    hosts: dict[str, int | None] = {}
    for line in path.read_text(errors="replace").splitlines():
        words = line.partition("#")[0].split()
        if words:
            found = re.search(r"(?<![\w-])slots\s*=\s*(\S*)", " ".join(words))
            if not re.fullmatch(r"[\w.:%@+-]+", words[0]) or (found and not found[1].isdecimal()):
                raise UsageError(f"HOSTFILE={path}: {line.strip()[:80]!r}; needed are lines such as `node1 slots=2`")
            more = int(found[1]) if found else None
            hosts[words[0]] = more if (before := hosts.get(words[0])) is None or more is None else before + more
    if not hosts:
        raise UsageError(f"HOSTFILE={path}: no host in it; needed are lines such as `node1 slots=2`")
    return hosts


def plan_ranks(plan: Plan, topology: Topology, num_mpi: int | None, hostfile: str) -> tuple[Ranks, Plan]:
    """Return where MPI is to start the processes of a plan, and the plan of all hosts, each like this one.

    Raises UsageError for what mpirun cannot be told: processes that differ in cores, or more than a host has slots.
    """
    sizes = {sum(one.threads for one in process) for process in plan.processes}
    if len(sizes) > 1:
        raise UsageError(
            f"MPI=True: gives every process as many cores, but these have {format_cpu_list(sizes)}; give NUM_MPI, or "
            "CORES_PER_INSTANCE and INSTANCES"
        )
    each = len(plan.processes)
    hosts = read_hostfile(Path(hostfile)) if hostfile else {"": None}
    for host, slots in hosts.items():
        if slots is not None and slots < each:
            raise UsageError(f"HOSTFILE={hostfile}: {host} has slots={slots}, but is to have {each} ranks; raise it")
    mapping = f"ppr:{num_mpi}:socket" if num_mpi else _mapping_of(plan, topology)
    instances = tuple(
        replace(
            one,
            index=one.index + number * len(plan.instances),
            process=one.process + number * each,
            host=host,
        )
        for number, host in enumerate(hosts)
        for one in plan.instances
    )
    ranks = Ranks(each * len(hosts), mapping, sizes.pop(), Path(hostfile) if hostfile else None)
    return ranks, replace(plan, instances=instances, idle_cores=plan.idle_cores * len(hosts))


def _mapping_of(plan: Plan, topology: Topology) -> str:
    """Return the mapping that puts processes where they are planned: evenly on caches, nodes or sockets, else in order.

    In order, MPI takes cores across caches and kinds: `note_moves` tells.
    """
    caches, nodes, sockets = topology.caches, topology.nodes, topology.sockets
    domains = [("socket", "sockets", len(sockets))]
    if len(nodes) > len(sockets):
        domains.insert(0, ("numa", "nodes", len(nodes)))
    if len(nodes) < len(caches) < len(topology.cores) and len({cache.level for cache in caches}) == 1:
        domains.insert(0, (f"l{caches[0].level}cache", "caches", len(caches)))
    for domain, field, number in domains:
        places = [{place for one in process for place in getattr(one, field)} for process in plan.processes]
        counts = Counter(place for some in places for place in some)
        if all(len(some) == 1 for some in places) and len(counts) == number and len(set(counts.values())) == 1:
            return f"ppr:{next(iter(counts.values()))}:{domain}"
    return f"ppr:{len(plan.processes)}:node"


def note_moves(planned: Plan, bound: Plan) -> list[str]:
    """Say which instances MPI bound to cores of several caches or kinds although they were planned on those of one."""
    pairs = list(zip(planned.instances, bound.instances, strict=True))
    notes = []
    for field, name in (("caches", "last-level cache"), ("kinds", "kind of core")):
        moved = [two.index for one, two in pairs if len(getattr(one, field)) < 2 <= len(getattr(two, field))]
        if moved:
            plural = "s" if len(moved) > 1 else ""
            notes.append(
                f"MPI bound instance{plural} {format_cpu_list(moved)} to more than one {name}, other than planned"
            )
    return notes


def refuse_in_container(ranks: Ranks | None) -> None:
    """Raise UsageError when a case that is to run in a container is to be launched through MPI."""
    if ranks:
        raise UsageError("MPI=True: nothing is launched through MPI in a container; choose BACKEND=native")


def find_mpirun() -> Path:
    """Return Open MPI's mpirun; raise SkippedError saying how to get it."""
    found = shutil.which("mpirun")
    if found is None:
        raise SkippedError(f"MPI=True: no mpirun on PATH; needed is Open MPI: {INSTALL}")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" not in done.stdout:
        first = (done.stdout + done.stderr).strip().partition("\n")[0]
        raise SkippedError(f"MPI=True: {found} is {first or 'unknown'}; needed is Open MPI's: {INSTALL}")
    return Path(found)


def mpirun_command(mpirun: Path, ranks: Ranks, python: Path, job: Path, logs: Path, *, root: bool) -> list[str]:
    """Return the command that starts the ranks.

    `python`: of the ranks' environment. `job`: the file of a RankJob. `logs`: the run's. `root`: whether the user is
    root, whom mpirun refuses unless told not to. Single copies between processes are ruled out, as a container may
    forbid them and the messages are small. Ranks have KILL_S to put things in order when they are told to end.
    """
    return [
        *(str(mpirun), *(["--allow-run-as-root"] if root else [])),
        *("-n", str(ranks.count), *(["--hostfile", str(ranks.hostfile)] if ranks.hostfile else [])),
        *("--map-by", f"{ranks.mapping}:pe={ranks.cores}", "--bind-to", "core"),
        *("--mca", "btl_vader_single_copy_mechanism", "none"),
        *("--mca", "odls_base_sigkill_timeout", str(KILL_S)),
        *("-x", "OPENBLAS_NUM_THREADS"),
        *(str(python), "-I", START, "cnnbench.launch.rank", str(job), str(logs)),
    ]


class MpirunProcess(WorkerProcess):
    """A started mpirun, which ends its ranks on all hosts when it is told to, and says what befell them."""

    def __exit__(self, *error: Any) -> None:
        """End it and its ranks; kill it when that takes too long."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        super().__exit__(*error)

    def explain_end(self) -> InvalidMeasurementError:
        """Return what makes a run invalid in which it has ended so: what its ranks say, else what it says itself."""
        lines = [line.strip() for line in self.launch.log.read_text(errors="replace").splitlines()]
        for line in lines:
            if line.startswith(FAILED):
                return KilledError(line.removeprefix(FAILED))
            if line.startswith(UNFIT):
                return InvalidMeasurementError(line.removeprefix(UNFIT))
        for line in lines:
            if "exited on signal" in line:
                return KilledError(line)
        if not (self.launch.log.parent / REPORT).exists():  # not one rank has begun
            said = " ".join(line for line in lines if line.strip("-"))
            return InvalidMeasurementError(f"mpirun could not start the ranks: {said[:500]}; see {self.launch.log}")
        return super().explain_end()


@dataclass(frozen=True)
class MpirunLaunch(WorkerLaunch):
    """The launch of mpirun."""

    def process(self) -> MpirunProcess:
        """Return the process, not yet started."""
        return MpirunProcess(self)


@dataclass(frozen=True)
class RankReport:
    """What the ranks found.

    `placement`: where MPI bound the instances, as fields of InstancePlan. `library`: the MPI there was. `models`: the
    CPU's name of each host. The rest is there once they have measured: `looks`: moments, monotonic in s, with the CPU
    time used until then on the cores of each rank, when measuring began and ended. `clock_error_ns`: how far off times
    of another host can be. `barrier_ns`: how long after the first one the last rank left the barrier.
    """

    placement: list[dict[str, Any]]
    library: str
    models: dict[str, str]
    looks: list[list[tuple[float, dict[str, float]]]]
    clock_error_ns: int = 0
    barrier_ns: int = 0

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "RankReport":
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def bound(self, plan: Plan) -> Plan:
        """Return the plan with the CPUs that MPI bound the instances to."""
        placed = sorted(self.placement, key=lambda fields: fields["index"])
        instances = []
        for fields in placed:
            read: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in fields.items()}
            instances.append(InstancePlan(**read))
        return replace(plan, instances=tuple(instances))

    def cpu_times(self) -> tuple[CpuSample, CpuSample, float]:
        """Return the CPU time used on the cores of all ranks, at the beginning and the end, and the seconds between."""
        samples = [[CpuSample(**sample) for _, sample in looks] for looks in self.looks]
        first, last = (
            CpuSample(*(sum(getattr(one[at], name) for one in samples) for name in ("busy_s", "steal_s", "own_s")))
            for at in (0, 1)
        )
        seconds = [looks[1][0] - looks[0][0] for looks in self.looks]
        return first, last, sum(seconds) / len(seconds)

    def facts(self) -> dict[str, str]:
        """Return what a result tells of them, by name."""
        counts = Counter({fields["process"]: fields["host"] for fields in self.placement}.values())
        hosts = ", ".join(f"{number} on {host}" for host, number in counts.items())
        skew = f"all ranks left the barrier within {self.barrier_ns / 1e3:.0f} µs"
        clocks = f", times of other hosts known to {self.clock_error_ns / 1e3:.0f} µs" if len(counts) > 1 else ""
        return {"MPI": self.library, "MPI ranks": f"{hosts}; {skew}{clocks}"}

    @property
    def hosts(self) -> int:
        """How many hosts there were."""
        return len({fields["host"] for fields in self.placement})

    def notes(self) -> list[str]:
        """Return what a reader should know of the hosts."""
        if len(set(self.models.values())) < 2:
            return []
        found = "; ".join(f"{host}: {model}" for host, model in self.models.items())
        return [f"the hosts' CPUs differ, and facts and proof are of the first: {found}"]


def is_root() -> bool:
    """Say whether the user is root."""
    return os.geteuid() == 0
