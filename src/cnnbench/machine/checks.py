"""Check what of this machine's settings makes figures lower or unsteady, and say how to change it: nothing is changed.

Each knob has a function of the two file systems that the kernel shows it in. What cannot be read is not known, and is
told with the reason. What needs two looks, some time apart, is in activity.py.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnnbench.machine.dimms import Dimm, parse_smbios, read_channels
from cnnbench.machine.topology import format_cpu_list, read_online_cpus, read_topology

State = Literal["good", "poor", "not known"]

MIN_MARGIN_C = 10.0
"""How far below its limit the hottest sensor should be before a run: under load it gets warmer by more than that."""
_LIMITS = ("max", "crit")


@dataclass(frozen=True)
class Check:
    """What was found of a knob, and what is wanted. `remedy`: the command that changes it; empty where none is due."""

    knob: str
    state: State
    found: str
    wanted: str
    remedy: str = ""


@dataclass(frozen=True)
class Place:
    """Where a machine shows itself: its sysfs and its proc."""

    sysfs: Path
    proc: Path

    def read(self, path: Path) -> str:
        """Return a file's text; raise UnreadableError with the reason."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise UnreadableError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error

    def read_number(self, path: Path) -> int:
        """Return the whole number in a file; raise UnreadableError with the reason."""
        text = self.read(path)
        if not re.fullmatch(r"-?\d+", text):
            raise UnreadableError(f"{path}: {text!r:.40} is no whole number")
        return int(text)


class UnreadableError(Exception):
    """A knob cannot be read, for the reason told."""


@dataclass(frozen=True)
class Knob:
    """A knob: its name, what is wanted of it, and what looks at it; `look` raises UnreadableError."""

    name: str
    wanted: str
    look: Callable[[Place], tuple[State, str, str]]

    def check(self, place: Place) -> Check:
        """Look at it."""
        try:
            state, found, remedy = self.look(place)
        except UnreadableError as error:
            return Check(self.name, "not known", str(error), self.wanted)
        return Check(self.name, state, found, self.wanted, "" if state == "good" else remedy)


def _governor(place: Place) -> tuple[State, str, str]:
    found: dict[str, list[int]] = {}
    for cpu in read_online_cpus(place.sysfs):
        path = place.sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"
        found.setdefault(place.read(path), []).append(cpu)
    told = ", ".join(
        f"{name}{f' (CPUs {format_cpu_list(cpus)})' if len(found) > 1 else ''}" for name, cpus in found.items()
    )
    return "good" if set(found) == {"performance"} else "poor", told, "sudo cpupower frequency-set -g performance"


def _turbo(place: Place) -> tuple[State, str, str]:
    cpus = place.sysfs / "devices/system/cpu"
    intel, others = cpus / "intel_pstate/no_turbo", cpus / "cpufreq/boost"
    if intel.exists():
        on, remedy = place.read(intel) == "0", f"echo 0 | sudo tee {intel}"
    else:
        on, remedy = place.read(others) == "1", f"echo 1 | sudo tee {others}"
    return "good" if on else "poor", "on" if on else "off", remedy


def _smt(place: Place) -> tuple[State, str, str]:
    online = frozenset(read_online_cpus(place.sysfs))
    per_core = Counter(len(core.cpus) for core in read_topology(place.sysfs, online, online).cores)
    if len(per_core) == 1:
        threads = next(iter(per_core))
        return "good", f"on, {threads} threads a core" if threads > 1 else "off", ""
    told = ", ".join(f"{count} cores of {threads}" for threads, count in sorted(per_core.items()))
    return "poor", f"threads online: {told}", f"echo on | sudo tee {place.sysfs / 'devices/system/cpu/smt/control'}"


def _numa_balancing(place: Place) -> tuple[State, str, str]:
    nodes = [path.name for path in place.sysfs.glob("devices/system/node/node[0-9]*")]
    if len(nodes) < 2:
        return "good", "one NUMA node, so there is nothing to balance", ""
    on = place.read(place.proc / "sys/kernel/numa_balancing") != "0"
    return "poor" if on else "good", "on" if on else "off", "sudo sysctl kernel.numa_balancing=0"


def _transparent_hugepages(place: Place) -> tuple[State, str, str]:
    path = place.sysfs / "kernel/mm/transparent_hugepage/enabled"
    text = place.read(path)
    chosen = re.search(r"\[(\w+)\]", text)
    if not chosen:
        raise UnreadableError(f"{path}: {text!r:.60} marks no choice")
    return "poor" if chosen[1] == "never" else "good", chosen[1], f"echo madvise | sudo tee {path}"


def _huge_pages(place: Place) -> tuple[State, str, str]:
    folder = place.sysfs / "kernel/mm/hugepages"
    if not folder.is_dir():
        raise UnreadableError(f"{folder}: no such directory")
    held = {}
    for path in sorted(folder.glob("hugepages-*kB")):
        size = int(path.name.removeprefix("hugepages-").removesuffix("kB"))
        if count := place.read_number(path / "nr_hugepages"):
            held[size] = count
    if not held:
        return "good", "none", ""
    told = ", ".join(f"{count} of {size >> 10} MiB" for size, count in held.items())
    gibibytes = sum(size * count for size, count in held.items()) / 2**20
    remedy = "; ".join(f"echo 0 | sudo tee {folder}/hugepages-{size}kB/nr_hugepages" for size in held)
    return "poor", f"{told} held, {gibibytes:.1f} GiB that no case can use", remedy


def _swap(place: Place) -> tuple[State, str, str]:
    rows = [line.split() for line in place.read(place.proc / "swaps").splitlines()[1:]]
    size, used = (sum(int(row[column]) for row in rows if len(row) >= 5) / 2**20 for column in (2, 3))
    if not rows:
        return "good", "none", ""
    return "poor" if used else "good", f"{used:.1f} of {size:.1f} GiB in use", "sudo swapoff -a"


def _load(place: Place) -> tuple[State, str, str]:
    load, cpus = float(place.read(place.proc / "loadavg").split()[0]), len(read_online_cpus(place.sysfs))
    allowed = max(0.5, 0.02 * cpus)
    return (
        "good" if load <= allowed else "poor",
        f"{load:.2f} on {cpus} CPUs",
        "wait until what runs has ended; top -b -n 1",
    )


def _thermal_margin(place: Place) -> tuple[State, str, str]:
    margins, hottest = [], None
    sensors = sorted(place.sysfs.glob("class/hwmon/hwmon[0-9]*/name"))
    names = {path: place.read(path) for path in sensors}
    chosen = [path.parent for path, name in names.items() if name in ("coretemp", "k10temp", "zenpower")]
    for folder in chosen:
        for path in sorted(folder.glob("temp[0-9]*_input")):
            now_c = place.read_number(path) / 1000
            hottest = now_c if hottest is None else max(hottest, now_c)
            limits = [path.with_name(path.name.replace("_input", f"_{which}")) for which in _LIMITS]
            known = [place.read_number(limit) / 1000 for limit in limits if limit.exists()]
            if known:
                margins.append(min(known) - now_c)
    if hottest is None:
        drivers = ", ".join(sorted(set(names.values()))) or "none"
        raise UnreadableError(f"no sensor of the processor below {place.sysfs / 'class/hwmon'} (there is {drivers})")
    if not margins:
        raise UnreadableError(f"{hottest:.0f} °C, and the sensors tell no limit")
    least = min(margins)
    remedy = "check fans and air; sudo ipmitool sdr type Fan"
    return "good" if least >= MIN_MARGIN_C else "poor", f"{hottest:.0f} °C, {least:.0f} °C below the limit", remedy


def _memory(place: Place) -> tuple[State, str, str]:
    channels = read_channels(place.sysfs)
    table = place.sysfs / "firmware/dmi/tables/DMI"
    reason, dimms = "", list[Dimm]()
    try:
        dimms = parse_smbios(table.read_bytes())
    except OSError as error:
        reason = f"{table}: {os.strerror(error.errno or 0).lower()}"
    filled = [one for one in dimms if one.size_bytes]
    if not filled and not channels:
        raise UnreadableError(reason or f"{table}: tells of no memory module")
    told, poor = [], False
    if filled:
        gibibytes = sum(one.size_bytes for one in filled) / 2**30
        speeds = sorted({speed for one in filled if (speed := one.set_mts or one.rated_mts)})
        rated = sorted({one.rated_mts for one in filled if one.rated_mts})
        told.append(f"{len(filled)} modules in {len(dimms)} slots, {gibibytes:.0f} GiB")
        if speeds:
            told.append(f"{' and '.join(map(str, speeds))} MT/s")
            poor = len(speeds) > 1 or bool(rated and speeds[0] < rated[-1])
            told += [f"rated {rated[-1]}"] if poor and rated else []
    if channels:
        told.append(f"{len(channels)} channels")
        poor = poor or len(set(channels.values())) > 1 or _is_uneven(channels)
    return "poor" if poor else "good", ", ".join(told), "populate all channels alike, and set the speed in the firmware"


def _is_uneven(channels: Counter[str]) -> bool:
    return len(set(Counter(name.split()[0] for name in channels).values())) > 1


KNOBS = (
    Knob("governor", "performance", _governor),
    Knob("turbo", "on", _turbo),
    Knob("SMT", "alike on all cores", _smt),
    Knob("NUMA balancing", "off", _numa_balancing),
    Knob("transparent huge pages", "madvise or always", _transparent_hugepages),
    Knob("huge pages", "none", _huge_pages),
    Knob("swap", "unused", _swap),
    Knob("load", "2 % of the CPUs, or 0.5", _load),
    Knob("thermal margin", f"{MIN_MARGIN_C:.0f} °C or more", _thermal_margin),
    Knob("memory", "alike, rated speed", _memory),
)
"""What one look tells."""


def check_settings(place: Place) -> list[Check]:
    """Look at every knob that one look is enough for."""
    return [knob.check(place) for knob in KNOBS]
