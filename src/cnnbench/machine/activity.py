"""Check what goes on on the cores between two looks at the machine: other processes, other guests, throttling."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.machine.checks import Check, Place

BUSY_SHARE = 0.05
"""What part of a core's time makes a process a busy one."""
STEAL_SHARE = 0.01
_THROTTLE_FILES = {"core_throttle_count": "core", "package_throttle_count": "package"}
_STEAL_FIELD = 7  # of a cpu line of /proc/stat; see proc_stat(5)
_FLAGS_FIELD, _KERNEL_THREAD = 6, 0x00200000  # PF_KTHREAD among a process's flags; see proc_pid_stat(5)
_MOST_NAMED = 3


@dataclass(frozen=True)
class Process:
    """A process: its name, the CPU it was last on, the CPU time (s) it has had, whether it is a kernel's thread."""

    name: str
    cpu: int
    cpu_s: float
    is_kernel: bool = False


@dataclass(frozen=True)
class Look:
    """What a look at the machine saw. `throttled`: how often by kind; None where no file counts it."""

    time_s: float
    processes: Mapping[int, Process]
    steal_s: float | None
    throttled: Mapping[str, int] | None


def look_at(place: Place, time_s: float, cpus: Sequence[int]) -> Look:
    """Look at the processes, and at these CPUs; `time_s`: by a clock that only goes forward."""
    return Look(time_s, _read_processes(place.proc), _read_steal_s(place.proc, cpus), read_throttled(place.sysfs))


def check_activity(first: Look, last: Look, cpus: Sequence[int], own: Sequence[int] = ()) -> list[Check]:
    """Compare two looks; `own`: processes that do not count, this one and those that it was started by."""
    seconds = last.time_s - first.time_s
    return [
        _check_busy(first, last, seconds, cpus, own),
        _check_steal(first, last, seconds, len(cpus)),
        check_throttling(first.throttled, last.throttled, f"in {seconds:.1f} s"),
    ]


def read_throttled(sysfs: Path) -> dict[str, int] | None:
    """Return how often cores and packages were throttled by heat since the machine was started; None if not told.

    Each CPU counts for its core and package, so a package's count is the most that any of its CPUs has.
    """
    found: dict[str, dict[str, int]] = {kind: {} for kind in _THROTTLE_FILES.values()}
    for name, kind in _THROTTLE_FILES.items():
        for path in sysfs.glob(f"devices/system/cpu/cpu[0-9]*/thermal_throttle/{name}"):
            topology = path.parents[1] / "topology"
            package = _read(topology / "physical_package_id")
            place = package if kind == "package" else f"{package}/{_read(topology / 'core_id')}"
            found[kind][place] = max(found[kind].get(place, 0), int(_read(path) or 0))
    return {kind: sum(counts.values()) for kind, counts in found.items()} if any(found.values()) else None


def check_throttling(first: Mapping[str, int] | None, last: Mapping[str, int] | None, when: str) -> Check:
    """Say whether heat has throttled the processor between two readings, and how often since the start."""
    wanted = "none"
    if first is None or last is None:
        return Check("throttling", "not known", "no thermal_throttle below /sys/devices/system/cpu/cpu*", wanted)
    rises = {kind: last[kind] - first.get(kind, 0) for kind in last}
    told = ", ".join(f"{kind} {count}" for kind, count in last.items())
    if any(rise > 0 for rise in rises.values()):
        rose = ", ".join(f"{kind} {rise}" for kind, rise in rises.items())
        remedy = "check fans, air and power limits; sudo turbostat --show PkgTmp,PkgWatt"
        return Check("throttling", "poor", f"{rose} times {when}", wanted, remedy)
    return Check("throttling", "good", f"none {when} (since the start: {told})", wanted)


def _check_busy(first: Look, last: Look, seconds: float, cpus: Sequence[int], own: Sequence[int]) -> Check:
    shares = {
        pid: (process.cpu_s - first.processes[pid].cpu_s) / seconds
        for pid, process in last.processes.items()
        if pid in first.processes and pid not in own and process.cpu in cpus
    }
    busy = sorted((pid for pid, share in shares.items() if share >= BUSY_SHARE), key=lambda pid: -shares[pid])
    if not busy:
        return Check("other processes", "good", f"none above {BUSY_SHARE:.0%} of a core", "none")
    told = ", ".join(
        f"{last.processes[pid].name} ({pid}) {shares[pid]:.0%} on CPU {last.processes[pid].cpu}"
        for pid in busy[:_MOST_NAMED]
    )
    more = f" and {len(busy) - _MOST_NAMED} more" if len(busy) > _MOST_NAMED else ""
    pids = [str(pid) for pid in busy[:_MOST_NAMED] if not last.processes[pid].is_kernel]
    remedy = f"stop them, or wait: kill {' '.join(pids)}" if pids else "wait: the kernel is at work for other processes"
    return Check("other processes", "poor", told + more, "none", remedy)


def _check_steal(first: Look, last: Look, seconds: float, cpus: int) -> Check:
    wanted = f"{STEAL_SHARE:.0%} or less"
    if first.steal_s is None or last.steal_s is None:
        return Check("steal", "not known", "/proc/stat tells none", wanted)
    share = (last.steal_s - first.steal_s) / (seconds * cpus)
    remedy = "ask for a dedicated host, or cores that are pinned"
    state = "good" if share <= STEAL_SHARE else "poor"
    return Check(
        "steal", "good" if state == "good" else "poor", f"{share:.1%}", wanted, "" if state == "good" else remedy
    )


def _read_processes(proc: Path) -> dict[int, Process]:
    """Return the processes that there are; one that ends meanwhile is none."""
    tick_s, found = 1 / os.sysconf("SC_CLK_TCK"), {}
    for path in proc.glob("[0-9]*/stat"):
        if not (text := _read(path)):
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        cpu_s = (int(fields[11]) + int(fields[12])) * tick_s
        is_kernel = bool(int(fields[_FLAGS_FIELD]) & _KERNEL_THREAD)
        found[int(path.parent.name)] = Process(name, int(fields[36]), cpu_s, is_kernel)
    return found


def _read_steal_s(proc: Path, cpus: Sequence[int]) -> float | None:
    wanted, ticks = {f"cpu{cpu}" for cpu in cpus}, list[int]()
    for line in _read(proc / "stat").splitlines():
        words = line.split()
        if words and words[0] in wanted and len(words) > _STEAL_FIELD + 1:
            ticks.append(int(words[_STEAL_FIELD + 1]))
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _read(path: Path) -> str:
    """Return a file's text; nothing of one that is gone or may not be read."""
    try:
        return re.sub(r"\s+$", "", path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
