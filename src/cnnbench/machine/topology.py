"""Read the processor layout this process may use: sockets, NUMA nodes, caches, physical cores, SMT siblings.

The source is sysfs (kernel Documentation/admin-guide/cputopology.rst), cut down to the affinity mask and the cgroup
cpuset. Inside a container sysfs, `lscpu` and `numactl -H` show every CPU of the host, so the cut is what counts.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.cgroup import PROC_SELF, find_cgroups

HOST_SYSFS = Path("/sys")
UNKNOWN_NODE = -1  # a CPU that no NUMA node lists although the machine has nodes: never bind its memory
_HYBRID_KINDS = ("core", "atom", "lowpower")  # by the counters that the kernel has for each kind of core, cpu_core etc.
_SAME_KIND = 0.9  # of the next larger capacity: the fastest cores of a kind are a few percent faster than its others
_SIZE_SHIFTS = {"K": 10, "M": 20, "G": 30}
_CPUSET_FILES = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")  # of v2, of v1, of an old v1


@dataclass(frozen=True, order=True)
class Cache:
    """The last-level cache of a core: the first CPU of the host that has it, its level, and its size where known."""

    first_cpu: int
    level: int
    size_bytes: int | None


@dataclass(frozen=True)
class Core:
    """A physical core of which at least one logical CPU is usable.

    `cache`: None where the kernel does not tell, as in many virtual machines. `kind`: what tells the cores of a hybrid
    processor apart (core and atom, or a capacity), empty where all are alike. `memory_node`: the node itself, or the
    nearest with memory where it has none.
    """

    id: int  # dense index over the usable cores, socket by socket, node by node and cache by cache
    cpus: tuple[int, ...]  # usable SMT siblings, lowest first
    socket: int
    node: int
    cache: Cache | None = None
    kind: str = ""
    memory_node: int | None = None

    @property
    def binds_to(self) -> int:
        """Return the node whose memory is nearest."""
        return self.node if self.memory_node is None else self.memory_node


@dataclass(frozen=True)
class Topology:
    """The usable physical cores, with the few facts of the host that the cut would hide."""

    cores: tuple[Core, ...]
    threads_per_core: int  # online SMT siblings of a core on the host, usable or not

    @property
    def sockets(self) -> tuple[int, ...]:
        """Return the sockets that have a usable core."""
        return tuple(sorted({core.socket for core in self.cores}))

    @property
    def nodes(self) -> tuple[int, ...]:
        """Return the NUMA nodes that have a usable core."""
        return tuple(sorted({core.node for core in self.cores}))

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Return the last-level caches that usable cores have; none where the kernel does not tell."""
        return tuple(sorted({core.cache for core in self.cores if core.cache is not None}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of the usable cores, in the cores' order; one where all are alike."""
        return tuple(dict.fromkeys(core.kind for core in self.cores))

    @property
    def cpus(self) -> tuple[int, ...]:
        """Return every usable logical CPU, in ascending order."""
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def smt(self) -> bool:
        """Say whether SMT is on: some core of the host has more than one online sibling."""
        return self.threads_per_core > 1

    def cores_of_socket(self, socket: int) -> tuple[Core, ...]:
        """Return the usable cores of one socket."""
        return tuple(core for core in self.cores if core.socket == socket)

    def cores_of_node(self, node: int) -> tuple[Core, ...]:
        """Return the usable cores of one NUMA node."""
        return tuple(core for core in self.cores if core.node == node)

    def memory_nodes(self, cpus: Iterable[int]) -> frozenset[int]:
        """Return the nodes that the memory of work on these CPUs comes from: never one without memory."""
        wanted = frozenset(cpus)
        return frozenset(core.binds_to for core in self.cores if not wanted.isdisjoint(core.cpus))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse the kernel's list format, e.g. `0-3,8`, into ascending numbers; an empty list is allowed."""
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or (dash and int(last) < int(first)):
            raise UsageError(f"CPU list {text.strip()!r}: {part!r} is neither a number nor an ascending range like 0-3")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Format CPU numbers as the kernel does: `(0, 1, 2, 3, 8)` becomes `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def read_topology(
    sysfs: Path = HOST_SYSFS,
    affinity: frozenset[int] | None = None,
    cgroup_cpus: frozenset[int] | None = None,
) -> Topology:
    """Read the topology below `sysfs`, cut down to the CPUs in both `affinity` and `cgroup_cpus`.

    None means the limits of this process for `/sys`. Another tree describes another machine, for which the limits
    of this process mean nothing: there None is no limit.
    """
    if sysfs == HOST_SYSFS:
        affinity = frozenset(os.sched_getaffinity(0)) if affinity is None else affinity
        cgroup_cpus = read_cgroup_cpus() if cgroup_cpus is None else cgroup_cpus
    online = read_online_cpus(sysfs)
    usable = frozenset(online)
    for limit in (affinity, cgroup_cpus):
        usable = usable if limit is None else usable & limit
    if not usable:
        raise UsageError(
            f"no usable CPU: online are {format_cpu_list(online)}, the affinity mask has {_describe(affinity)}, "
            f"the cgroup cpuset has {_describe(cgroup_cpus)}; widen the mask (taskset) or the cpuset"
        )
    node_of, kind_of = _read_nodes(sysfs), _read_kinds(sysfs, online)
    memory_of = _read_memory_nodes(sysfs)
    siblings_of_core = _read_siblings(sysfs, online)
    found = []
    for siblings in siblings_of_core:
        cpus = tuple(cpu for cpu in siblings if cpu in usable)
        if cpus:
            node = node_of.get(cpus[0], UNKNOWN_NODE) if node_of else 0
            cache = _read_cache(sysfs, cpus[0])
            order = _read_socket(sysfs, cpus[0]), node, cache.first_cpu if cache else siblings[0], siblings[0]
            found.append((order, cpus, cache))
    return Topology(
        cores=tuple(
            Core(id_, cpus, socket, node, cache, kind_of.get(cpus[0], ""), memory_of.get(node))
            for id_, ((socket, node, *_), cpus, cache) in enumerate(sorted(found, key=lambda one: one[0]))
        ),
        threads_per_core=max(len(siblings) for siblings in siblings_of_core),
    )


def read_online_cpus(sysfs: Path = HOST_SYSFS) -> tuple[int, ...]:
    """Return the online logical CPUs of the host, whether this process may use them or not."""
    return parse_cpu_list(_read_text(sysfs / "devices/system/cpu/online"))


def read_cgroup_cpus(proc_self: Path = PROC_SELF) -> frozenset[int] | None:
    """Return the CPUs the cpuset of this process's cgroups (v1 and v2) allows, None without such a limit."""
    limits = [_read_cpuset(levels) for levels in find_cgroups("cpuset", proc_self)]
    known = [limit for limit in limits if limit is not None]
    return frozenset.intersection(*known) if known else None


def _read_cpuset(levels: Iterable[Path]) -> frozenset[int] | None:
    """Read the nearest cpuset of a cgroup and those above it: a cgroup without the controller inherits."""
    for path in (directory / name for directory in levels for name in _CPUSET_FILES):
        if path.is_file() and (cpus := parse_cpu_list(_read_text(path))):
            return frozenset(cpus)
    return None


def _read_siblings(sysfs: Path, online: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the online siblings of each physical core.

    The sibling set is the identity of a core: `core_id` repeats across packages, and across dies on some.
    """
    cores = set()
    for cpu in online:
        topology = _cpu_directory(sysfs, cpu) / "topology"
        names = (topology / "thread_siblings_list", topology / "core_cpus_list")  # the first is the older name
        path = next((path for path in names if path.is_file()), names[0])
        cores.add(tuple(sibling for sibling in parse_cpu_list(_read_text(path)) if sibling in online))
    return sorted(cores)


def _read_socket(sysfs: Path, cpu: int) -> int:
    # The kernel writes -1 where the firmware names no package (some VMs, some Arm machines): one socket then.
    return max(0, int(_read_text(_cpu_directory(sysfs, cpu) / "topology/physical_package_id")))


def _read_nodes(sysfs: Path) -> dict[int, int]:
    """Map CPU to NUMA node; empty for a kernel without NUMA. Nodes of memory only (HBM, CXL) list no CPU."""
    nodes = sysfs / "devices/system/node"
    lists = {int(path.parent.name[4:]): path for path in nodes.glob("node[0-9]*/cpulist")}
    return {cpu: node for node, path in sorted(lists.items()) for cpu in parse_cpu_list(_read_text(path))}


def _read_memory_nodes(sysfs: Path) -> dict[int, int]:
    """Map each NUMA node without memory to the nearest that has some, of equally near ones the first."""
    directory = sysfs / "devices/system/node"
    numbers = sorted(int(path.name[4:]) for path in directory.glob("node[0-9]*"))
    empty = {number for number in numbers if _has_no_memory(directory / f"node{number}")}
    nearest = {}
    for number in empty if set(numbers) - empty else ():
        distances = [int(word) for word in _read_text(directory / f"node{number}/distance").split()]
        with_memory = [(far, other) for far, other in zip(distances, numbers, strict=True) if other not in empty]
        nearest[number] = min(with_memory)[1]
    return nearest


def _has_no_memory(node: Path) -> bool:
    """Say whether a node is known to have no memory of its own (MemTotal)."""
    path = node / "meminfo"
    return path.is_file() and re.search(r"MemTotal:\s*0 kB", _read_text(path)) is not None


def _read_kinds(sysfs: Path, online: tuple[int, ...]) -> dict[int, str]:
    """Map each CPU to its kind of core where there are several: by Intel's devices of each, or else by capacity."""
    kinds: dict[int, str] = {}
    for name in _HYBRID_KINDS:
        path = sysfs / f"devices/cpu_{name}/cpus"
        if path.is_file():
            kinds |= dict.fromkeys(parse_cpu_list(_read_text(path)), name)
    kinds = kinds or _read_capacities(sysfs, online)
    found = {cpu: kinds.get(cpu, "other") for cpu in online}
    return found if len(set(found.values())) > 1 else {}


def _read_capacities(sysfs: Path, online: tuple[int, ...]) -> dict[int, str]:
    """Map each CPU that has a capacity to the kind of that capacity, named by its fastest."""
    paths = {cpu: _cpu_directory(sysfs, cpu) / "cpu_capacity" for cpu in online}
    capacities = {cpu: int(_read_text(path)) for cpu, path in paths.items() if path.is_file()}
    kind_of: dict[int, int] = {}
    before = kind = 0
    for capacity in sorted(set(capacities.values()), reverse=True):
        kind = kind if kind and capacity >= _SAME_KIND * before else capacity
        kind_of[capacity], before = kind, capacity
    return {cpu: f"capacity {kind_of[capacity]}" for cpu, capacity in capacities.items()}


def _read_cache(sysfs: Path, cpu: int) -> Cache | None:
    """Return a CPU's cache of the highest level; None where the kernel tells of none."""
    found = []
    for index in (_cpu_directory(sysfs, cpu) / "cache").glob("index[0-9]*"):
        if (index / "level").is_file() and (index / "shared_cpu_list").is_file():
            shared = parse_cpu_list(_read_text(index / "shared_cpu_list"))
            size = _read_text(index / "size") if (index / "size").is_file() else ""
            size_bytes = int(size[:-1]) << _SIZE_SHIFTS[size[-1]] if re.fullmatch(r"\d+[KMG]", size) else None
            found.append(Cache(shared[0] if shared else cpu, int(_read_text(index / "level")), size_bytes))
    return max(found, key=lambda cache: cache.level, default=None)


def _cpu_directory(sysfs: Path, cpu: int) -> Path:
    return sysfs / f"devices/system/cpu/cpu{cpu}"


def _describe(limit: frozenset[int] | None) -> str:
    return "no limit" if limit is None else (format_cpu_list(limit) or "no CPU")


def _read_text(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).strip()  # mount points may hold any byte
    except OSError as error:
        raise CnnbenchError(f"{path}: {error.strerror}; the CPU topology is read from Linux sysfs") from error
