"""Tell how much of the measured cores' time went to somebody else, or was held back by a quota, while measuring.

A neighbour that is busy all the time makes a run slow and steady: no statistic of the run's own times can show it.
Nor can one show a quota.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.machine.cgroup import CpuQuota
from cnnbench.machine.host import HOST_PROC
from cnnbench.machine.topology import HOST_SYSFS, parse_cpu_list

_BUSY_FIELDS = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of a cpu line; see proc_stat(5)
_STEAL_FIELD = 7

MIN_CORE_SECONDS = 2.0


@dataclass(frozen=True)
class CpuSample:
    """Seconds of CPU time so far: of some CPUs as a whole, stolen from them by the hypervisor, and of our processes."""

    busy_s: float
    steal_s: float
    own_s: float


@dataclass(frozen=True)
class Contention:
    """Shares of the cores' time that other processes and, in a virtual machine, other guests took."""

    others: float
    steal: float


@dataclass(frozen=True)
class Throttling:
    """What a CPU quota took: how many CPUs it is worth, and for which share of the cores' time it held work back."""

    quota_cpus: float
    share: float


def sample_cpu_time(cpus: Iterable[int], pids: Iterable[int], proc: Path = HOST_PROC) -> CpuSample:
    """Read the CPU time of these CPUs and of these processes, all threads included; one that is gone has none."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    wanted = {f"cpu{cpu}" for cpu in cpus}
    busy = steal = own = 0
    for line in (proc / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            busy += sum(int(fields[field]) for field in _BUSY_FIELDS)
            steal += int(fields[_STEAL_FIELD])
    for pid in pids:
        path = proc / str(pid) / "stat"
        if path.exists():
            after_name = path.read_text().rpartition(")")[2].split()
            own += int(after_name[11]) + int(after_name[12])  # utime and stime; see proc_pid_stat(5)
    return CpuSample(busy * tick_s, steal * tick_s, own * tick_s)


def with_siblings(cpus: Iterable[int], sysfs: Path = HOST_SYSFS) -> frozenset[int]:
    """Return the CPUs with their hyper-threading siblings: what runs on a sibling takes from the same core."""
    siblings: set[int] = set()
    for cpu in cpus:
        path = sysfs / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.update(parse_cpu_list(path.read_text()) if path.exists() else (cpu,))
    return frozenset(siblings)


def compare_samples(first: CpuSample, last: CpuSample, cores: int, seconds: float) -> Contention | None:
    """Return what others took of so many cores between two samples; None when that was too short to tell.

    Times count in ticks of some 10 ms, of which MIN_CORE_SECONDS hold 200: a share is then good to one per cent.
    """
    capacity_s = cores * seconds
    if capacity_s < MIN_CORE_SECONDS:
        return None
    others_s = (last.busy_s - first.busy_s) - (last.own_s - first.own_s)
    return Contention(max(0.0, others_s) / capacity_s, (last.steal_s - first.steal_s) / capacity_s)


def compare_quotas(
    first: Sequence[CpuQuota], last: Sequence[CpuQuota], cores: int, seconds: float
) -> Throttling | None:
    """Return what quotas took of so many cores between two readings; None when there is no quota, or none that counts.

    The share is throttled CPU time over cores x seconds. Of several cgroups with a quota, one above the other or beside
    it, the one that was throttled most counts, as their times may overlap. What else runs in that cgroup is counted
    along. The kernel counts a period's time (mostly of 0.1 s) when the period ends, so each end may be off by one.
    """
    before = {quota.cgroup: quota.throttled_s for quota in first}
    found = []
    for quota in last:
        throttled_s = before.get(quota.cgroup)
        if throttled_s is not None and quota.throttled_s is not None:
            found.append(Throttling(quota.cpus, (quota.throttled_s - throttled_s) / (cores * seconds)))
    return max(found, key=lambda one: (one.share, -one.quota_cpus), default=None)
