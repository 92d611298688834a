"""Gather the facts that all runs on this machine share."""

import os
import platform
from collections import Counter
from pathlib import Path

from cnnbench.machine.cgroup import read_cpu_quotas
from cnnbench.machine.dimms import parse_smbios
from cnnbench.machine.host import read_host
from cnnbench.machine.topology import HOST_SYSFS, Topology, read_topology

HOST_NAME = "host name"
"""The fact that says which machine a run was made on."""
NODE_VARIABLE = "CNNBENCH_NODE"
"""Environment variable: what a scheduler calls this machine, where that need not be its own name."""
ALLOCATION, ALLOCATION_VARIABLE = "allocation", "CNNBENCH_ALLOCATION"
"""The fact that says in which of a scheduler's jobs a run was made, and the environment variable that tells it."""
POWER_OF = "power of "
"""What the facts begin with that tell what each domain drew."""


def read_host_name() -> str:
    """Return what this machine is called: by the scheduler, where one has told it, else by itself."""
    return os.environ.get(NODE_VARIABLE) or platform.node()


def describe_caches(topology: Topology) -> str | None:
    """Return how many last-level caches the usable cores have and of what size; None where the kernel does not tell."""
    if not (caches := topology.caches):
        return None
    cores = Counter(core.cache for core in topology.cores if core.cache)
    shared = sorted(set(cores.values()))
    sizes = sorted({cache.size_bytes for cache in caches if cache.size_bytes})
    size = f" of {' and '.join(f'{size / 2**20:g} MiB' for size in sizes)}" if sizes else ""
    usable = "usable core" if shared == [1] else "usable cores"
    return f"{len(caches)} x L{caches[0].level}{size} for {' or '.join(map(str, shared))} {usable} each"


def describe_kinds(topology: Topology) -> str | None:
    """Return how many usable cores a hybrid processor has of each kind; None where all are alike."""
    kinds = Counter(core.kind for core in topology.cores)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) if len(kinds) > 1 else None


def describe_memory_speed(table: Path = HOST_SYSFS / "firmware/dmi/tables/DMI") -> str | None:
    """Return how fast the memory modules are set (MT/s); None where the firmware does not tell this user."""
    try:
        dimms = parse_smbios(table.read_bytes())
    except OSError:  # shown to root alone, and not there in many virtual machines
        return None
    speeds = sorted({speed for one in dimms if one.size_bytes and (speed := one.set_mts or one.rated_mts)})
    return f"{' and '.join(map(str, speeds))} MT/s" if speeds else None


def machine_facts() -> dict[str, str | None]:
    """Return the facts that all runs on this machine share, by name; None for what cannot be known or is not there."""
    host, topology = read_host(), read_topology()
    quota = min((quota.cpus for quota in read_cpu_quotas()), default=None)
    return {
        HOST_NAME: read_host_name() or None,
        ALLOCATION: os.environ.get(ALLOCATION_VARIABLE) or None,
        "CPU": host.cpu_model,
        "sockets, cores, threads": f"{host.sockets}, {host.cores}, {host.threads}",
        "SMT": "on" if host.smt else "off",
        "NUMA nodes": str(host.numa_nodes),
        "last-level caches": describe_caches(topology),
        "kinds of cores": describe_kinds(topology),
        "CPU quota": None if quota is None else f"{quota:.4g} CPU{'' if quota == 1 else 's'}",
        "governor": host.governor,
        "turbo": None if host.turbo is None else "on" if host.turbo else "off",
        "microcode": host.microcode,
        "hypervisor": {True: "yes", False: "no", None: None}[host.hypervisor],
        "kernel": host.kernel,
        "memory": f"{host.memory_bytes / 2**30:.1f} GiB" if host.memory_bytes else None,
        "memory speed": describe_memory_speed(),
        "transparent hugepages": host.transparent_hugepages,
    }
