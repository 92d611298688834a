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
) -> Path:
    """Write the tree below `root` and return it.

    CPUs are numbered as Linux does on x86: the first threads of all cores, socket by socket, then the second threads.
    `nodes` maps node to CPUs where the even split is not wanted; an empty map is a kernel without NUMA.
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
