import os
from pathlib import Path

import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.machine.host import CpuInfo, HostFacts, find_gpu_obstacle, read_cpuinfo, read_host, sample_frequency_mhz
from gpu_driver import FOUND, NO_DEVICE, write_gpu_driver
from sysfs import make_sysfs_tree, write

PROCESSOR = """processor	: {cpu}
vendor_id	: GenuineIntel
cpu family	: 6
model		: 143
model name	: Intel(R) Xeon(R) Platinum 8480+
stepping	: 8
microcode	: 0x2b000571
cpu MHz		: {mhz}
flags		: fpu avx2 avx512f amx_tile amx_bf16{flags}
power management:
"""


@pytest.fixture
def sysfs(tmp_path) -> Path:
    """2 sockets, 2 cores each, SMT, 2 NUMA nodes; no cpufreq, as in a virtual machine."""
    return make_sysfs_tree(tmp_path / "sys", sockets=2, cores_per_socket=2)


@pytest.fixture
def proc(tmp_path) -> Path:
    cpus = [PROCESSOR.format(cpu=cpu, mhz=2000 + 100 * cpu, flags=" hypervisor") for cpu in range(8)]
    write(tmp_path / "proc/cpuinfo", "\n".join(cpus))
    write(tmp_path / "proc/meminfo", "MemTotal:       1000 kB\nMemFree:        900 kB")
    write(tmp_path / "proc/sys/kernel/osrelease", "6.1.0-13-amd64")
    return tmp_path / "proc"


def write_cpufreq(sysfs: Path, cpu: int, khz: str, governor: str) -> None:
    write(sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", khz)
    write(sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", governor)


def test_cpuinfo_is_that_of_the_first_processor(proc):
    assert read_cpuinfo(proc / "cpuinfo") == CpuInfo(
        vendor="GenuineIntel",
        family=6,
        model=143,
        stepping=8,
        model_name="Intel(R) Xeon(R) Platinum 8480+",
        flags=frozenset({"fpu", "avx2", "avx512f", "amx_tile", "amx_bf16", "hypervisor"}),
        microcode="0x2b000571",
    )


def test_cpuinfo_of_another_architecture_leaves_out_what_only_x86_has(tmp_path):
    write(tmp_path / "cpuinfo", "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd40\n")
    assert read_cpuinfo(tmp_path / "cpuinfo") == CpuInfo(flags=frozenset({"fp", "asimd", "bf16"}))


def test_cpuinfo_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(CnnbenchError, match=r"cpuinfo: lists no processor"):
        read_cpuinfo(tmp_path / "cpuinfo")


def test_a_virtual_machine_leaves_out_what_it_does_not_show(sysfs, proc):
    assert read_host(sysfs=sysfs, proc=proc) == HostFacts(
        cpu_model="Intel(R) Xeon(R) Platinum 8480+",
        sockets=2,
        cores=4,
        threads=8,
        smt=True,
        numa_nodes=2,
        governor=None,
        turbo=None,
        microcode="0x2b000571",
        hypervisor=True,
        kernel="6.1.0-13-amd64",
        memory_bytes=1_024_000,
        transparent_hugepages=None,
    )
    assert sample_frequency_mhz(range(8), sysfs, proc) == 2350.0  # the mean of /proc/cpuinfo's


def test_bare_metal_shows_governor_frequency_turbo_and_huge_pages(sysfs, proc):
    for cpu in range(8):
        write_cpufreq(sysfs, cpu, "3800000" if cpu < 4 else "800000", "performance")
    write(sysfs / "devices/system/cpu/intel_pstate/no_turbo", "0")
    write(sysfs / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    facts = read_host(sysfs=sysfs, proc=proc)
    assert sample_frequency_mhz(range(4), sysfs, proc) == 3800.0
    assert facts.governor == "performance"
    assert facts.turbo is True
    assert facts.transparent_hugepages == "madvise"


def test_governors_that_differ_are_all_named(sysfs, proc):
    write_cpufreq(sysfs, 0, "1000000", "powersave")
    write_cpufreq(sysfs, 1, "1000000", "performance")
    assert read_host(sysfs=sysfs, proc=proc).governor == "performance+powersave"


@pytest.mark.parametrize(
    ("file", "text", "turbo"),
    [
        ("intel_pstate/no_turbo", "1", False),
        ("intel_pstate/no_turbo", "0", True),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
    ],
)
def test_turbo(sysfs, proc, file, text, turbo):
    write(sysfs / "devices/system/cpu" / file, text)
    assert read_host(sysfs=sysfs, proc=proc).turbo is turbo


def test_a_driver_that_does_not_know_the_frequency_falls_back_to_cpuinfo(sysfs, proc):
    write_cpufreq(sysfs, 1, "<unknown>", "performance")
    assert sample_frequency_mhz([1, 2], sysfs, proc) == 2150.0


def test_no_frequency_anywhere_is_unknown(sysfs, tmp_path):
    assert sample_frequency_mhz([0], sysfs, tmp_path / "no-proc") is None


def test_this_machine():
    facts = read_host()
    assert facts.threads == os.sysconf("SC_NPROCESSORS_ONLN")
    assert 1 <= facts.sockets <= facts.cores <= facts.threads
    assert facts.kernel == os.uname().release
    assert facts.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_gpu_is_there_when_the_driver_says_so(tmp_path):
    assert find_gpu_obstacle(str(write_gpu_driver(tmp_path, FOUND))) == ""


def test_a_missing_gpu_is_told_with_what_was_looked_for(tmp_path):
    driver = write_gpu_driver(tmp_path, NO_DEVICE)
    reason = f"the driver's {driver} finds none that may be used (cuInit answers CUDA error 100)"
    assert find_gpu_obstacle(str(driver)) == reason
    absent = str(tmp_path / "none" / "libcuda.so.1")
    assert find_gpu_obstacle(absent).startswith(f"there is no {absent}, which NVIDIA's driver brings (")
