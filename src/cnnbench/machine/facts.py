"""Gather the facts that all runs on this machine share."""

from cnnbench.machine.cgroup import read_cpu_quotas
from cnnbench.machine.host import read_host


def machine_facts() -> dict[str, str | None]:
    """Return the facts that all runs on this machine share, by name; None for what cannot be known or is not there."""
    host = read_host()
    quota = min((quota.cpus for quota in read_cpu_quotas()), default=None)
    return {
        "CPU": host.cpu_model,
        "sockets, cores, threads": f"{host.sockets}, {host.cores}, {host.threads}",
        "SMT": "on" if host.smt else "off",
        "NUMA nodes": str(host.numa_nodes),
        "CPU quota": None if quota is None else f"{quota:.4g} CPU{'' if quota == 1 else 's'}",
        "governor": host.governor,
        "turbo": None if host.turbo is None else "on" if host.turbo else "off",
        "microcode": host.microcode,
        "hypervisor": {True: "yes", False: "no", None: None}[host.hypervisor],
        "kernel": host.kernel,
        "memory": f"{host.memory_bytes / 2**30:.1f} GiB" if host.memory_bytes else None,
        "transparent hugepages": host.transparent_hugepages,
    }
