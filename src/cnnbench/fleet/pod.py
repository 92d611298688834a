"""Refuse in a Pod, before anything runs, what would make its run another than the one that was asked for."""

from pathlib import Path

from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.checks import RefusedError, check_node
from cnnbench.machine.topology import format_cpu_list, read_online_cpus, read_topology
from cnnbench.run.images import digest_package

REFUSED = "refused: "
"""How the reason begins why a Pod did not make its run although it could."""


def check_pod(batch: BatchFile | None, own_cpus: int | None, cache: Path) -> None:
    """Raise RefusedError where this Pod or its node is not what a batch needs.

    The digest of its image has pinned the program and the workload's declarations already.
    """
    try:
        if own_cpus is not None:
            require_own_cpus(own_cpus)
        if batch is not None:
            pinned = {"sources": digest_package(), "workloads": {}, "images": {}}
            check_node(batch.model_copy(update=pinned), cache)
    except RefusedError as error:
        raise RefusedError(f"{REFUSED}{error}") from error


def require_own_cpus(count: int) -> None:
    """Raise RefusedError unless this container has so many logical CPUs, and not all that the node's processes share.

    A kubelet with the static policy always keeps some CPUs for others.
    """
    usable, online = read_topology().cpus, read_online_cpus()
    if len(usable) == count and len(usable) < len(online):
        return
    raise RefusedError(
        f"the container may use {len(usable)} CPUs ({format_cpu_list(usable)}) of the node's {len(online)}, where "
        f"{count} of its own were requested: the node's kubelet needs the static CPU policy "
        "(cpuManagerPolicy: static), and every container whole CPUs with requests equal to limits"
    )
