"""Find the control groups of this process, v1, v2 or both side by side, and read the CPU quotas that they set.

A quota (docker `--cpus`, a Kubernetes limit, systemd's CPUQuota) lets all processes of a cgroup together run for so
long in each period, and then takes them off their CPUs until the next one: sysfs and the affinity mask show nothing
of it. Sources: kernel Documentation/scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC_SELF = Path("/proc/self")
_THROTTLED_TIMES = {"throttled_usec": 1e6, "throttled_time": 1e9}  # v2, v1: name in cpu.stat, units of a second


@dataclass(frozen=True)
class CpuQuota:
    """The CPU quota of one cgroup: how many CPUs its time is worth, and for how long it has been throttled so far.

    `throttled_s`: as the kernel counts, for each CPU how long the cgroup had work there that was not let run, added up;
    None where nothing counts it.
    """

    cgroup: Path
    cpus: float
    throttled_s: float | None


def find_cgroups(controller: str, proc_self: Path = PROC_SELF) -> list[tuple[Path, ...]]:
    """Return the directories of this process's cgroup and those above it, for each hierarchy with this controller.

    The own directory comes first and the mount point last; a v2 hierarchy is always among them. Formats:
    `hierarchy:controllers:path` per line of `cgroup` (cgroups(7)), and proc_pid_mountinfo(5).
    """
    memberships = [line.split(":", 2) for line in _read(proc_self / "cgroup").splitlines()]
    mounts = [line.split(" ") for line in _read(proc_self / "mountinfo").splitlines()]
    found = []
    for mount in mounts:
        separator = mount.index("-")
        kind, options = mount[separator + 1], mount[separator + 3].split(",")
        root, mount_point = PurePosixPath(mount[3]), Path(mount[4].replace("\\040", " "))
        for hierarchy, controllers, path in memberships:
            inside = PurePosixPath(path)
            # A path outside the mounted root belongs to another cgroup namespace; its top is the nearest we can see.
            below = inside.relative_to(root) if inside.is_relative_to(root) and ".." not in inside.parts else ""
            v1 = kind == "cgroup" and controller in options and controller in controllers.split(",")
            if v1 or (kind == "cgroup2" and hierarchy == "0"):
                levels = [mount_point / below, *(mount_point / below).parents]
                found.append(tuple(levels[: levels.index(mount_point) + 1]))
    return found


def read_cpu_quotas(proc_self: Path = PROC_SELF, root: Path = Path("/")) -> tuple[CpuQuota, ...]:
    """Read the quotas of this process's cgroup and those above it, all of which hold; none where there is no limit.

    Of a process in another container, `proc_self` is what /proc has of it, and `root` what it has as the root.
    """
    levels = [
        root / directory.relative_to("/") for hierarchy in find_cgroups("cpu", proc_self) for directory in hierarchy
    ]
    quotas = [_read_cpu_quota(directory) for directory in levels]
    return tuple(quota for quota in quotas if quota is not None)


def _read_cpu_quota(directory: Path) -> CpuQuota | None:
    """Read one cgroup's quota; the root of the host and a directory that is not visible from here have none."""
    v1 = f"{_read(directory / 'cpu.cfs_quota_us')} {_read(directory / 'cpu.cfs_period_us')}"
    quota_us, _, period_us = (_read(directory / "cpu.max") or v1).partition(" ")
    if not (quota_us.isdecimal() and period_us.isdecimal()):  # v2 says `max`, v1 -1
        return None
    times = dict(line.split() for line in _read(directory / "cpu.stat").splitlines())
    seconds = [int(times[name]) / unit for name, unit in _THROTTLED_TIMES.items() if name in times]
    return CpuQuota(directory, int(quota_us) / int(period_us), seconds[0] if seconds else None)


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).strip()  # mount points may hold any byte
    except OSError:  # absent or not for us to see: a kernel without cgroups limits nothing through them
        return ""
