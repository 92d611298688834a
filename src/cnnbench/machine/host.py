"""Read the facts of this host that a KPI depends on: CPU, governor, memory, kernel; sample the clock frequency.

A fact that cannot be known is None and is left out of reports: inside a virtual machine there is often no cpufreq.
"""

import ctypes
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.machine.topology import HOST_SYSFS, read_online_cpus, read_topology

HOST_PROC = Path("/proc")

GPU_DRIVER = "libcuda.so.1"
"""The part of NVIDIA's driver that CUDA reaches a GPU by; only the driver brings it."""


@dataclass(frozen=True)
class CpuInfo:
    """What /proc/cpuinfo says of the first processor; the fields only x86 has are None elsewhere."""

    vendor: str | None = None
    family: int | None = None
    model: int | None = None
    stepping: int | None = None
    model_name: str | None = None
    flags: frozenset[str] = frozenset()
    microcode: str | None = None


@dataclass(frozen=True)
class HostFacts:
    """The host as a whole (online CPUs, whatever this process may use), as plain data."""

    cpu_model: str | None
    sockets: int
    cores: int
    threads: int
    smt: bool
    numa_nodes: int
    governor: str | None
    turbo: bool | None
    microcode: str | None
    hypervisor: bool | None
    kernel: str | None
    memory_bytes: int | None
    transparent_hugepages: str | None


def read_cpuinfo(path: Path = HOST_PROC / "cpuinfo") -> CpuInfo:
    """Read the identity and flags of the first processor."""
    processors = _read_processors(path)
    if not processors:
        raise CnnbenchError(f"{path}: lists no processor; a Linux /proc/cpuinfo is needed to know the CPU")
    fields = processors[0]
    return CpuInfo(
        vendor=fields.get("vendor_id"),
        family=_to_int(fields.get("cpu family")),
        model=_to_int(fields.get("model")),
        stepping=_to_int(fields.get("stepping")),
        model_name=fields.get("model name"),
        flags=frozenset(fields.get("flags", fields.get("Features", "")).split()),  # Features: Arm
        microcode=fields.get("microcode"),
    )


def sample_frequency_mhz(cpus: Iterable[int], sysfs: Path = HOST_SYSFS, proc: Path = HOST_PROC) -> float | None:
    """Return the mean frequency of the CPUs right now, in MHz; None when nothing reports it.

    Sample while the instances are busy. Without cpufreq the value is /proc/cpuinfo's, in a virtual machine the nominal.
    """
    wanted = tuple(cpus)
    in_khz = [_to_float(_read_cpufreq(sysfs, cpu, "scaling_cur_freq")) for cpu in wanted]
    seen = [khz / 1000 for khz in in_khz if khz]
    if not seen:
        in_mhz = [
            _to_float(fields.get("cpu MHz"))
            for fields in _read_processors(proc / "cpuinfo")
            if _to_int(fields.get("processor")) in wanted
        ]
        seen = [mhz for mhz in in_mhz if mhz]
    return round(statistics.fmean(seen), 1) if seen else None


def read_host(sysfs: Path = HOST_SYSFS, proc: Path = HOST_PROC) -> HostFacts:
    """Read the facts of the host; governors that differ between its CPUs are all named."""
    online = read_online_cpus(sysfs)
    everything = frozenset(online)
    host = read_topology(sysfs, affinity=everything, cgroup_cpus=everything)
    cpu = read_cpuinfo(proc / "cpuinfo")
    governors = {_read_cpufreq(sysfs, number, "scaling_governor") for number in online} - {None, ""}
    return HostFacts(
        cpu_model=cpu.model_name,
        sockets=len(host.sockets),
        cores=len(host.cores),
        threads=len(online),
        smt=host.smt,
        numa_nodes=len(host.nodes),
        governor="+".join(sorted(filter(None, governors))) or None,
        turbo=_read_turbo(sysfs),
        microcode=cpu.microcode,
        hypervisor="hypervisor" in cpu.flags if cpu.flags else None,
        kernel=_read(proc / "sys/kernel/osrelease"),
        memory_bytes=_read_memory_bytes(proc),
        transparent_hugepages=_search(r"\[(\w+)\]", _read(sysfs / "kernel/mm/transparent_hugepage/enabled")),
    )


def find_gpu_obstacle(library: str = GPU_DRIVER) -> str:
    """Say why CUDA can reach no NVIDIA GPU here, as the driver itself answers; empty when it can."""
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        return f"there is no {library}, which NVIDIA's driver brings ({error})"
    if code := driver.cuInit(0):
        return f"the driver's {library} finds none that may be used (cuInit answers CUDA error {code})"
    return ""


def read_available_bytes(proc: Path = HOST_PROC) -> int:
    """Return the memory that could be had now without swapping (MemAvailable)."""
    kibibytes = _to_int(_search(r"MemAvailable:\s*(\d+) kB", _read(proc / "meminfo")))
    if kibibytes is None:
        raise CnnbenchError(f"{proc / 'meminfo'}: no MemAvailable there; needed Linux 3.14 or newer")
    return kibibytes * 1024


def _read_processors(path: Path) -> list[dict[str, str]]:
    blocks = (_read(path) or "").split("\n\n")
    lines = [[line.partition(":") for line in block.splitlines() if ":" in line] for block in blocks]
    processors = [{key.strip(): value.strip() for key, _, value in block} for block in lines]
    return [fields for fields in processors if "processor" in fields]


def _read_turbo(sysfs: Path) -> bool | None:
    """Read the turbo switch: `no_turbo` of intel_pstate, else `boost` of the other drivers."""
    no_turbo = _read(sysfs / "devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = _read(sysfs / "devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _read_memory_bytes(proc: Path) -> int | None:
    kibibytes = _to_int(_search(r"MemTotal:\s*(\d+) kB", _read(proc / "meminfo")))
    return None if kibibytes is None else kibibytes * 1024


def _read_cpufreq(sysfs: Path, cpu: int, name: str) -> str | None:
    return _read(sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq" / name)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # absent, or a driver that refuses to say: either way the fact is unknown
        return None


def _search(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "")
    return match.group(1) if match else None


def _to_int(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _to_float(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text) else None  # some drivers say `<unknown>`
