"""Plan which physical cores each instance gets: a pure function of the topology and what was asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.parameters import InstanceMode
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.machine.topology import UNKNOWN_NODE, Core, Topology, format_cpu_list

_T = TypeVar("_T")
LATENCY_CORES = 4  # the reference document: 4 cores per test instance

Cell = list[Core]  # free cores of one kind that share a socket, a NUMA node and a last-level cache, in topology order


@dataclass(frozen=True)
class PlanRequest:
    """What the case asks for; None is a parameter that was not given, so its default may adapt to the host.

    `instance_mode`: `flex`, or `numa` or `socket` for one instance in each, which leaves no number to be given.
    `replicas`: how many of the planned instances share a process; `instances` are processes then. `numa_aware`: whether
    memory is to be bound to an instance's node. `num_mpi`: instances in each socket, which leaves only their cores
    to be given.
    """

    mode: str
    cores_per_instance: int | None = None
    instances: int | None = None
    weight_sharing: bool = False
    instance_mode: InstanceMode = "flex"
    replicas: int = 1
    numa_aware: bool = True
    num_mpi: int | None = None

    @property
    def count(self) -> int | None:
        """How many instances are to be placed; None for as many as fit."""
        if self.instances is None and (self.replicas == 1 or self.cores_per_instance is not None):
            return None
        return (1 if self.instances is None else self.instances) * self.replicas


def plan_instances(topology: Topology, request: PlanRequest) -> Plan:
    """Place the instances on distinct physical cores, inside one cache (then one node, then one socket) where they fit.

    A default that does not fit shrinks, and a note says so; an explicit value that does not fit is a UsageError.
    """
    _check(topology, request)
    notes: list[str] = []
    explicit = request.cores_per_instance is not None or request.count is not None
    if request.num_mpi is not None:
        groups = _place_in_sockets(topology, request, request.num_mpi)
    elif request.instance_mode == "numa":
        groups = _each_kind(topology.cores_of_node(node) for node in topology.nodes)
    elif request.instance_mode == "socket" or (request.mode != "latency" and not explicit):
        groups = _each_kind(topology.cores_of_socket(socket) for socket in topology.sockets)
    else:
        size = _choose_size(topology, request, notes)
        groups = _place(
            topology,
            size,
            request.count,
            cross=request.count is not None,
            spread=request.mode != "latency" and request.cores_per_instance is None,
            weight_sharing=request.weight_sharing,
            mix=request.cores_per_instance is not None,
        )
    if not (groups := groups[: len(groups) // request.replicas * request.replicas]):
        raise UsageError(f"REPLICAS={request.replicas}: more than the instances that this host has room for")
    instances = _number_instances(groups, request)
    idle_cores = len(topology.cores) - sum(instance.threads for instance in instances)
    notes += _placement_notes(topology, request, instances)
    if idle_cores:
        notes.append(f"{idle_cores} of {_cores(len(topology.cores))} stay idle")
    return Plan(instances, idle_cores, tuple(notes))


def reserve_cores(topology: Topology, count: int) -> tuple[tuple[Core, ...], Topology]:
    """Return a host's last cores, and it without them; raise SkippedError where none would be left."""
    if count >= len(topology.cores):
        raise SkippedError(
            f"CLIENT_CORES={count}: the server needs cores of its own, and this host has {_cores(len(topology.cores))} "
            "usable"
        )
    return topology.cores[-count:], replace(topology, cores=topology.cores[:-count])


def plan_clients(cores: Sequence[Core], count: int) -> Plan:
    """Return so many clients, all of one process and each on any of some cores."""
    return Plan(tuple(place_instance(index, 0, cores, numa_aware=True) for index in range(count)), 0)


def _each_kind(groups: Iterable[Sequence[Core]]) -> list[tuple[Core, ...]]:
    """Return the groups with the kinds of a hybrid processor's cores apart."""
    return [
        tuple(core for core in group if core.kind == kind)
        for group in groups
        for kind in dict.fromkeys(core.kind for core in group)
    ]


def _check(topology: Topology, request: PlanRequest) -> None:
    """Refuse explicit values this host cannot hold."""
    total = len(topology.cores)
    largest_socket = max(len(topology.cores_of_socket(socket)) for socket in topology.sockets)
    size, count = request.cores_per_instance, request.count
    each = f" with REPLICAS={request.replicas}" if request.replicas > 1 else ""
    asked = 1 if request.instances is None else request.instances
    if request.replicas > total:
        raise UsageError(f"REPLICAS={request.replicas}: must be 1 to {total}, the usable physical cores of this host")
    if request.instance_mode == "numa" and request.weight_sharing:
        for node in topology.nodes:
            sockets = sorted({core.socket for core in topology.cores_of_node(node)})
            if len(sockets) > 1:
                raise UsageError(
                    f"INSTANCE_MODE=numa: NUMA node {node} has cores of sockets {format_cpu_list(sockets)}, but "
                    "WEIGHT_SHARING=True keeps an instance in one; use INSTANCE_MODE=socket"
                )
    if size is not None and not 1 <= size <= total:
        raise UsageError(f"CORES_PER_INSTANCE={size}: must be 1 to {total}, the usable physical cores of this host")
    if size is not None and request.weight_sharing and size > largest_socket:
        raise UsageError(
            f"CORES_PER_INSTANCE={size}: must be 1 to {largest_socket}, the usable physical cores of one socket, "
            "because WEIGHT_SHARING=True keeps an instance in one socket"
        )
    if count is not None and not 1 <= count <= total:
        raise UsageError(
            f"INSTANCES={asked}{each}: must be 1 to {total // request.replicas}, the usable physical cores of this host"
            f"{each and ' by the replicas of each'}"
        )
    if size is not None and count is not None and count > (most := _most_instances(topology, size, request)):
        where = " without crossing sockets (WEIGHT_SHARING=True)" if request.weight_sharing else ""
        raise UsageError(
            f"INSTANCES={asked}{each} with CORES_PER_INSTANCE={size}: needs {count * size} physical cores, this host "
            f"has {total} usable; at most {most} instances of {size} fit{where}"
        )


def _place_in_sockets(topology: Topology, request: PlanRequest, count: int) -> list[tuple[Core, ...]]:
    """Place `count` instances in each socket, on its cores in their order, as mpirun maps `ppr:COUNT:socket`."""
    room = min(len(topology.cores_of_socket(socket)) for socket in topology.sockets)
    if count > room:
        raise UsageError(f"NUM_MPI={count}: must be 1 to {room}, the usable cores of this host's smallest socket")
    size = request.cores_per_instance or min(room // count, LATENCY_CORES if request.mode == "latency" else room)
    if count * size > room:
        raise UsageError(
            f"NUM_MPI={count} with CORES_PER_INSTANCE={size}: needs {count * size} cores in each socket, this host's "
            f"smallest has {room} usable"
        )
    groups = []
    for socket in topology.sockets:
        cores = topology.cores_of_socket(socket)
        groups += [cores[at : at + size] for at in range(0, count * size, size)]
    return groups


def _most_instances(topology: Topology, size: int, request: PlanRequest) -> int:
    """Return how many instances the cores suffice for, NUMA nodes left aside."""
    if request.weight_sharing:
        return sum(len(topology.cores_of_socket(socket)) // size for socket in topology.sockets)
    return len(topology.cores) // size


def _most_of_one_kind(topology: Topology, size: int, request: PlanRequest) -> int:
    """Return how many instances the cores suffice for when none has cores of two kinds, NUMA nodes left aside."""
    groups = _group(topology.cores, lambda core: (core.kind, core.socket if request.weight_sharing else None))
    return sum(len(cores) // size for cores in groups)


def _choose_size(topology: Topology, request: PlanRequest, notes: list[str]) -> int:
    """Return the cores per instance, and add a note where the default had to shrink.

    Instances divide the cores of NUMA nodes, not of caches, which would leave many idle.
    """
    if request.cores_per_instance is not None:
        return request.cores_per_instance
    count = request.count or 1
    if request.mode == "latency":
        return _choose_latency_size(topology, request, count, notes)
    return next(
        size
        for size in range(min(len(topology.cores) // count, len(_first_kind(topology))), 0, -1)
        if len(_place(topology, size, count, in_caches=False, weight_sharing=request.weight_sharing)) == count
    )


def _first_kind(topology: Topology) -> list[Core]:
    """Return the usable cores of the first kind: instances are no larger by default, so that it is used."""
    return [core for core in topology.cores if core.kind == topology.kinds[0]]


def _choose_latency_size(topology: Topology, request: PlanRequest, count: int, notes: list[str]) -> int:
    total = len(topology.cores)
    kind = f"usable {topology.kinds[0]} " if topology.kinds[0] else "usable "
    largest_socket = max(len(one) for one in _group(_first_kind(topology), lambda core: core.socket))
    size = min(LATENCY_CORES, largest_socket)
    reason = f"this host has {_cores(total)}"
    if size < min(LATENCY_CORES, total):
        reason = f"no socket of this host has more than {_cores(largest_socket, kind)}"
    if _most_of_one_kind(topology, size, request) < count:
        size = next(n for n in range(size, 0, -1) if _most_of_one_kind(topology, n, request) >= count)
        reason = f"INSTANCES={count} and this host has {_cores(total)}"
    if size < LATENCY_CORES:
        notes.append(f"CORES_PER_INSTANCE: {size} instead of the default {LATENCY_CORES}: {reason}")
    return size


def _place(
    topology: Topology,
    size: int,
    count: int | None,
    *,
    cross: bool = False,
    spread: bool = False,
    weight_sharing: bool = False,
    mix: bool = False,
    in_caches: bool = True,
) -> list[tuple[Core, ...]]:
    """Place up to `count` instances (None: as many as fit) of `size` cores, in the narrowest domain that holds one.

    The domains are the last-level caches (with `in_caches`), then the NUMA nodes, then the sockets, then the machine
    (never with weight sharing), each of one kind of core, one kind after the other, and with `mix` of all at last.
    `cross` lets the instances that are left over go on to wider domains; `spread` balances over domains instead of
    filling in order.
    """
    cells: list[Cell] = _group(topology.cores, lambda core: (core.socket, core.kind, core.node, core.cache))
    limit = len(topology.cores) if count is None else count
    placed: list[tuple[Core, ...]] = []
    for kind in (*topology.kinds, *([None] if mix else [])):
        if kind is None and placed and not cross:
            break
        free = [cell for cell in cells if cell and kind in (None, cell[0].kind)]
        scopes = [
            *([[[cell] for cell in free]] if in_caches else []),
            _group(free, lambda cell: (cell[0].socket, cell[0].node)),
            _group(free, lambda cell: cell[0].socket),
            *([] if weight_sharing else [[free]]),
        ]
        before = len(placed)
        for domains in scopes:
            while len(placed) < limit and (roomy := [domain for domain in domains if _room(domain) >= size]):
                placed.append(_take(max(roomy, key=_room) if spread else roomy[0], size))
            if len(placed) > before and not cross:
                break
    return sorted(placed, key=lambda cores: cores[0].id)


def _group(items: Iterable[_T], key: Callable[[_T], object]) -> list[list[_T]]:
    """Return the items that have one key together, in the order in which the keys come first."""
    groups: dict[object, list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _take(cells: Sequence[Cell], size: int) -> tuple[Core, ...]:
    """Remove `size` cores from the cells: whole cells first, the largest first, then the tightest one in part."""
    taken: list[Core] = []
    while (need := size - len(taken)) > 0:
        open_cells = [cell for cell in cells if cell]
        whole = [cell for cell in open_cells if len(cell) <= need]
        cell = max(whole, key=len) if whole else min(open_cells, key=len)
        taken += cell[:need]
        del cell[:need]
    return tuple(sorted(taken, key=lambda core: core.id))


def _room(domain: Sequence[Cell]) -> int:
    return sum(len(cell) for cell in domain)


def place_instance(index: int, process: int, cores: Sequence[Core], numa_aware: bool, host: str = "") -> InstancePlan:
    """Return an instance on one CPU of each core, its memory bound to their node where wanted and there is but one."""
    nodes, near = tuple(sorted({core.node for core in cores})), sorted({core.binds_to for core in cores})
    return InstancePlan(
        index=index,
        process=process,
        cpus=tuple(core.cpus[0] for core in cores),
        sockets=tuple(sorted({core.socket for core in cores})),
        nodes=nodes,
        memory_node=near[0] if numa_aware and len(near) == 1 and near[0] != UNKNOWN_NODE else None,
        host=host,
        caches=tuple(sorted({core.cache.first_cpu for core in cores if core.cache})),
        kinds=tuple(dict.fromkeys(core.kind for core in cores if core.kind)),
    )


def _number_instances(groups: Iterable[Sequence[Core]], request: PlanRequest) -> tuple[InstancePlan, ...]:
    """Turn groups of cores into numbered instances.

    Replicas share a process, with weight sharing those of a socket and a kind of core, as they share their cores too.
    """
    instances = []
    process_of: dict[tuple[int, frozenset[str]], int] = {}
    for index, cores in enumerate(groups):
        process = index // request.replicas
        if request.weight_sharing:
            where = cores[0].socket, frozenset(core.kind for core in cores)
            process = process_of.setdefault(where, len(process_of))
        instances.append(place_instance(index, process, cores, request.numa_aware))
    return tuple(instances)


def _placement_notes(topology: Topology, request: PlanRequest, instances: Sequence[InstancePlan]) -> list[str]:
    """Say what about the placement could surprise the reader of a KPI."""
    notes = []
    if len({instance.threads for instance in instances}) > 1:
        if request.instance_mode == "numa":
            each = ", ".join(f"{instance.threads} on node {instance.nodes[0]}" for instance in instances)
            notes.append(f"instances differ in cores as the NUMA nodes do: {each}")
        else:
            each = ", ".join(f"{instance.threads} on socket {instance.sockets[0]}" for instance in instances)
            notes.append(f"instances differ in cores as the sockets do: {each}")
    notes += _cache_notes(topology, instances)
    mixed = [instance.index for instance in instances if len(instance.kinds) > 1]
    if mixed:
        notes.append(
            f"{_name(mixed)} cores of kinds {' and '.join(topology.kinds)}, the slower of which the others wait for: "
            "fewer CORES_PER_INSTANCE fit in one kind"
        )
    elif len(topology.kinds) > 1:
        each = "; ".join(f"{instance.index}: {instance.kinds[0]}" for instance in instances)
        notes.append(f"the cores are of kinds {' and '.join(topology.kinds)}; those of the instances: {each}")
    moved = {core.node: core.memory_node for core in topology.cores if core.memory_node is not None}
    bound = {node for instance in instances if instance.memory_node is not None for node in instance.nodes}
    notes += [
        f"NUMA node {node} has no memory: memory is bound to node {near}, the nearest that has"
        for node, near in moved.items()
        if node in bound
    ]
    over_sockets = [instance.index for instance in instances if len(instance.sockets) > 1]
    if over_sockets:
        notes.append(f"{_name(over_sockets)} more than one socket")
    over_nodes = [one.index for one in instances if len(one.nodes) > 1 and one.memory_node is None]
    if over_nodes:
        size = max(instance.threads for instance in instances)
        notes.append(
            f"{_name(over_nodes)} more than one NUMA node, so memory is not bound to one: "
            + _remedy(topology, size, request)
        )
    return notes


def _cache_notes(topology: Topology, instances: Sequence[InstancePlan]) -> list[str]:
    """Say which instances lie in several last-level caches although one could hold as many cores."""
    largest = max((len(cell) for cell in _group(topology.cores, lambda core: core.cache)), default=0)
    over = [one.index for one in instances if len(one.caches) > 1 and one.threads <= largest]
    if not over:
        return []
    level = topology.caches[0].level
    return [f"{_name(over)} more than one last-level (L{level}) cache, as none had cores enough left"]


def _remedy(topology: Topology, size: int, request: PlanRequest) -> str:
    if request.instance_mode != "flex":
        return "with INSTANCE_MODE=numa each would lie in one"
    largest_node = max(len(topology.cores_of_node(node)) for node in topology.nodes)
    if size > largest_node:
        return f"CORES_PER_INSTANCE={largest_node} or less fits in one"
    most = len(_place(topology, size, None, in_caches=False, weight_sharing=request.weight_sharing))
    return f"at most {most} instances of {_cores(size, '')} fit without"


def _name(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"instance {indices[0]} spans"
    return f"instances {format_cpu_list(indices)} span"


def _cores(count: int, kind: str = "usable ") -> str:
    return f"{count} {kind}core{'' if count == 1 else 's'}"
