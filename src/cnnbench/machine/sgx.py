"""Say what this host lacks to run a case in SGX enclaves, each thing with what to do about it."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import SkippedError
from cnnbench.machine.host import HOST_PROC, read_cpuinfo
from cnnbench.machine.topology import HOST_SYSFS

HOST_DEV = Path("/dev")

CPU_FLAGS = ("sgx", "sgx_lc")
"""What /proc/cpuinfo shows once the BIOS has enabled SGX and the kernel may launch enclaves of any signer."""

GRAMINE_TOOLS = ("gramine-sgx", "gramine-sgx-sign", "gramine-sgx-gen-private-key")
LAUNCH_TOOLS = ("setpriv", "taskset")
"""Of util-linux: what ties an enclave's process to its controller and its CPUs from outside."""


@dataclass(frozen=True)
class SgxRoots:
    """Where a host shows what it has of SGX."""

    dev: Path = HOST_DEV
    sysfs: Path = HOST_SYSFS
    proc: Path = HOST_PROC

    @property
    def device(self) -> Path:
        """The device that makes enclaves."""
        return self.dev / "sgx_enclave"


HOST_SGX = SgxRoots()


def missing_on_host(roots: SgxRoots = HOST_SGX) -> list[str]:
    """Return what this host lacks for enclaves in any container; empty when one may have them.

    Whether they fit, and whether a container's user may use the device, can only be told inside of it.
    """
    return [*_missing_flags(roots.proc), *_missing_device(roots.device)]


def missing_for_enclaves(needed_bytes: int, roots: SgxRoots = HOST_SGX) -> list[str]:
    """Return what enclaves of `needed_bytes` together lack where this process runs; empty when they can run.

    An EPC whose size the kernel does not show (`read_epc_bytes` is None) does not count as missing.
    """
    return [*missing_on_host(roots), *_missing_access(roots.device), *_missing_epc(roots.sysfs, needed_bytes)]


def missing_tools(path: str | None = None) -> list[str]:
    """Return which programs that start an enclave are not on PATH (or on another `path`)."""
    advice = {"Gramine": GRAMINE_TOOLS, "util-linux": LAUNCH_TOOLS}
    return [
        f"{tool}: not on PATH: needed from {package}, which the image ...-inference-sgx has"
        for package, tools in advice.items()
        for tool in tools
        if shutil.which(tool, path=path) is None
    ]


def read_epc_bytes(sysfs: Path = HOST_SYSFS) -> int | None:
    """Return the size of the enclave page cache (EPC) of all NUMA nodes.

    None when the kernel does not show it: it does from Linux 5.17 on, and only where SGX works.
    """
    files = list(sysfs.glob("devices/system/node/node*/x86/sgx_total_bytes"))
    return sum(int(file.read_text()) for file in files) if files else None


def epc_notes(sysfs: Path = HOST_SYSFS) -> list[str]:
    """Return what a reader of a run should know when the size of the EPC could not be checked."""
    if read_epc_bytes(sysfs) is not None:
        return []
    return ["EPC size: not shown by this kernel (Linux 5.17 does): enclaves that do not fit into it run very slowly"]


def require_sgx(case_name: str, missing: Sequence[str]) -> None:
    """Raise SkippedError naming every missing thing, if there is one."""
    if missing:
        raise SkippedError(f"{case_name}: cannot run in SGX enclaves here: {'; '.join(missing)} (see doc/sgx.md)")


def _missing_flags(proc: Path) -> list[str]:
    cpuinfo = proc / "cpuinfo"
    lacking = [flag for flag in CPU_FLAGS if flag not in read_cpuinfo(cpuinfo).flags]
    if not lacking:
        return []
    return [
        f"CPU flags {' and '.join(lacking)}: not in {cpuinfo}: needed is a CPU with SGX, enabled in the BIOS together "
        "with flexible launch control"
    ]


def _missing_device(device: Path) -> list[str]:
    if not device.exists():
        return [
            f"{device}: not there: needed is Linux 5.11 or later with CONFIG_X86_SGX, and in a container "
            f"--device {device}"
        ]
    return []


def _missing_access(device: Path) -> list[str]:
    if not device.exists() or os.access(device, os.R_OK | os.W_OK):
        return []
    group = device.stat().st_gid
    return [f"{device}: user {os.getuid()} may not read and write it: join group {group} (--group-add {group})"]


def _missing_epc(sysfs: Path, needed_bytes: int) -> list[str]:
    found = read_epc_bytes(sysfs)
    if found is None or found >= needed_bytes:
        return []
    return [
        f"EPC: found {found / 2**30:.1f} GiB, needed {needed_bytes / 2**30:.1f} GiB: give SGX more memory in the BIOS, "
        "or choose fewer INSTANCES or a smaller BATCH_SIZE"
    ]
