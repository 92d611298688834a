"""Write the sysfs tree of a machine that is not there, for the tests that read one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from cnnbench.machine.topology import format_cpu_list


def make_sysfs_tree(
    root: Path,
    sockets: int = 1,
    cores_per_socket: int = 4,
    threads_per_core: int = 2,
    nodes_per_socket: int = 1,
    offline: Iterable[int] = (),
    nodes: Mapping[int, Iterable[int]] | None = None,
    cache_cores: int = 0,
    atoms: int = 0,
) -> Path:
    """Write the tree below `root` and return it.

    CPUs are numbered as Linux does on x86: the first threads of all cores, socket by socket, then the second threads.
    `nodes` maps node to CPUs where the even split is not wanted; an empty map is a kernel without NUMA. `cache_cores`:
    how many cores share an L3 of 32 MiB, each with an L2 of its own; 0 for a kernel that tells of no caches. `atoms`:
    how many of the last cores are a hybrid processor's small ones.
    """
    cores = sockets * cores_per_socket
    present = range(cores * threads_per_core)
    online = [cpu for cpu in present if cpu not in set(offline)]
    cpu_root = root / "devices/system/cpu"
    write(cpu_root / "present", format_cpu_list(present))
    write(cpu_root / "online", format_cpu_list(online))
    for cpu in present:
        (cpu_root / f"cpu{cpu}").mkdir()
    for cpu in online:
        core = cpu % cores
        topology = cpu_root / f"cpu{cpu}/topology"
        write(topology / "physical_package_id", str(core // cores_per_socket))
        write(topology / "core_id", str(core % cores_per_socket))
        siblings = [core + thread * cores for thread in range(threads_per_core)]
        write(topology / "thread_siblings_list", format_cpu_list(set(siblings) & set(online)))
        if cache_cores:
            first, threads = core // cache_cores * cache_cores, range(threads_per_core)
            sharers = {one + thread * cores for one in range(first, first + cache_cores) for thread in threads}
            for index, (level, shared, size) in enumerate(((2, set(siblings), "1024K"), (3, sharers, "32768K"))):
                cache = cpu_root / f"cpu{cpu}/cache/index{index}"
                write(cache / "level", str(level))
                write(cache / "shared_cpu_list", format_cpu_list(shared & set(online)))
                write(cache / "size", size)
    if atoms:
        small = [cpu for cpu in online if cpu % cores >= cores - atoms]
        write(root / "devices/cpu_atom/cpus", format_cpu_list(small))
        write(root / "devices/cpu_core/cpus", format_cpu_list(set(online) - set(small)))
    if nodes is None:
        per_node = cores_per_socket // nodes_per_socket
        nodes = {
            node: [cpu for cpu in online if cpu % cores // per_node == node]
            for node in range(sockets * nodes_per_socket)
        }
    for node, cpus in nodes.items():
        write(root / f"devices/system/node/node{node}/cpulist", format_cpu_list(cpus))
    return root


def write(path: Path, text: str) -> None:
    """Write one file as the kernel shows it, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def make_powercap_tree(root: Path, zones: Mapping[str, str], range_uj: int = 262_143_328_850) -> Path:
    """Write what powercap shows below `root` and return it; `zones`: names by the kernel's, such as intel-rapl:0:1."""
    for zone, name in zones.items():
        first, *rest = zone.split(":")
        parts = [":".join([first, *rest[: depth + 1]]) for depth in range(len(rest))]
        directory = root.joinpath(*parts)
        write(directory / "name", name)
        write(directory / "max_energy_range_uj", str(range_uj))
        write(directory / "energy_uj", "1000000")
    return root


def find_zone(root: Path, zone: str) -> Path:
    """Return the directory of a zone below `root`."""
    return next(path for path in root.rglob(zone) if path.is_dir())
