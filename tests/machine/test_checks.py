"""What is checked of a machine before it is measured: fake trees of two sockets, in good order and out of it."""

import os
import struct

import pytest

from cnnbench.machine.activity import Look, Process, check_activity, look_at
from cnnbench.machine.checks import Place, check_settings
from sysfs import make_sysfs_tree, write

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def place(tmp_path):
    """A machine of two sockets of four cores, all of whose knobs are as they should be."""
    sysfs, proc = make_sysfs_tree(tmp_path / "sys", sockets=2), tmp_path / "proc"
    cpus = sysfs / "devices/system/cpu"
    for cpu in range(16):
        write(cpus / f"cpu{cpu}/cpufreq/scaling_governor", "performance")
        write(cpus / f"cpu{cpu}/thermal_throttle/core_throttle_count", "3")
        write(cpus / f"cpu{cpu}/thermal_throttle/package_throttle_count", "7")
    write(cpus / "intel_pstate/no_turbo", "0")
    write(sysfs / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    write(sysfs / "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0")
    for socket in range(2):
        sensor = sysfs / f"class/hwmon/hwmon{socket}"
        write(sensor / "name", "coretemp")
        write(sensor / "temp1_input", f"{40 + socket}000")
        write(sensor / "temp1_crit", "100000")
        for channel in range(8):
            dimm = sysfs / f"devices/system/edac/mc/mc{socket}/dimm{channel}"
            write(dimm / "dimm_location", f"channel {channel} slot 0")
            write(dimm / "size", "32768")
    table = sysfs / "firmware/dmi/tables/DMI"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"".join(smbios_dimm(32768, 4800, 4800) for _ in range(16)) + smbios_dimm(0, 0, 0) + END)
    write(proc / "sys/kernel/numa_balancing", "0")
    write(proc / "swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 8388608 0 -2")
    write(proc / "loadavg", "0.10 0.20 0.30 1/500 1234")
    write_stat(proc, steal=0)
    return Place(sysfs, proc)


END = bytes([127, 4, 0, 0, 0, 0])
"""The structure that an SMBIOS table ends with."""


def smbios_dimm(mebibytes, rated, current):
    body = bytearray(0x22)
    body[0], body[1], body[0x10], body[0x11] = 17, len(body), 1, 2
    struct.pack_into("<H", body, 0x0C, mebibytes if mebibytes < 0x7FFF else 0x7FFF)
    struct.pack_into("<I", body, 0x1C, mebibytes)
    struct.pack_into("<H", body, 0x15, rated)
    struct.pack_into("<H", body, 0x20, current)
    return bytes(body) + b"DIMM_A1\0BANK 0\0\0"


def write_stat(proc, steal):
    write(proc / "stat", "\n".join(["cpu 0", *(f"cpu{cpu} 10 0 10 1000 0 0 0 {steal} 0 0" for cpu in range(16))]))


def write_process(proc, pid, name, ticks, cpu, flags=0):
    fields = ["S", *["0"] * 5, str(flags), *["0"] * 4, str(ticks), "0", *["0"] * 23, str(cpu), *["0"] * 5]
    write(proc / str(pid) / "stat", f"{pid} ({name}) {' '.join(fields)}")


def find(checks, knob):
    (found,) = [one for one in checks if one.knob == knob]
    return found


def test_a_machine_in_good_order_has_nothing_to_remedy(place):
    checks = check_settings(place)
    assert {one.state for one in checks} == {"good"}, checks
    assert not any(one.remedy for one in checks)
    assert find(checks, "SMT").found == "on, 2 threads a core"
    assert find(checks, "thermal margin").found == "41 °C, 59 °C below the limit"
    assert find(checks, "memory").found == "16 modules in 17 slots, 512 GiB, 4800 MT/s, 16 channels"


POOR = {
    "governor": (
        [("sysfs", "devices/system/cpu/cpu5/cpufreq/scaling_governor", "powersave")],
        "performance (CPUs 0-4,6-15), powersave (CPUs 5)",
        "sudo cpupower frequency-set -g performance",
    ),
    "turbo": ([("sysfs", "devices/system/cpu/intel_pstate/no_turbo", "1")], "off", "echo 0 | sudo tee"),
    "NUMA balancing": ([("proc", "sys/kernel/numa_balancing", "1")], "on", "sudo sysctl kernel.numa_balancing=0"),
    "transparent huge pages": (
        [("sysfs", "kernel/mm/transparent_hugepage/enabled", "always madvise [never]")], "never", "echo madvise",
    ),
    "huge pages": (
        [("sysfs", "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1024")],
        "1024 of 2 MiB held, 2.0 GiB that no case can use",
        "hugepages-2048kB/nr_hugepages",
    ),
    "swap": ([("proc", "swaps", "Filename\n/dev/sda2 partition 8388608 1048576 -2")], "1.0 of 8.0 GiB", "swapoff"),
    "load": ([("proc", "loadavg", "3.50 3 3 1/1 1")], "3.50 on 16 CPUs", "wait until"),
    "thermal margin": ([("sysfs", "class/hwmon/hwmon1/temp1_input", "95000")], "95 °C, 5 °C below the limit", "fans"),
    "memory": (
        [("sysfs", "devices/system/edac/mc/mc1/dimm7/size", "0")], "15 channels", "populate all channels alike",
    ),
}  # fmt: skip


@pytest.mark.parametrize("knob", POOR)
def test_a_knob_that_is_not_as_it_should_be_is_told_with_its_remedy(place, knob):
    changes, found, remedy = POOR[knob]
    for root, path, text in changes:
        write(getattr(place, root) / path, text)
    check = find(check_settings(place), knob)
    assert check.state == "poor"
    assert found in check.found
    assert remedy in check.remedy
    assert [one.knob for one in check_settings(place) if one.state != "good"] == [knob]


UNKNOWN = {
    "governor": ("sysfs", "devices/system/cpu/cpu0/cpufreq/scaling_governor", "no such file or directory"),
    "turbo": ("sysfs", "devices/system/cpu/intel_pstate/no_turbo", "boost: no such file or directory"),
    "transparent huge pages": ("sysfs", "kernel/mm/transparent_hugepage/enabled", "no such file or directory"),
}


@pytest.mark.parametrize("knob", UNKNOWN)
def test_what_cannot_be_read_is_not_known_with_the_reason(place, knob):
    root, path, reason = UNKNOWN[knob]
    (getattr(place, root) / path).unlink()
    check = find(check_settings(place), knob)
    assert check.state == "not known"
    assert reason in check.found
    assert not check.remedy


def test_sensors_without_a_limit_or_of_other_things_are_no_margin(place):
    for socket in range(2):
        (place.sysfs / f"class/hwmon/hwmon{socket}/temp1_crit").unlink()
    assert find(check_settings(place), "thermal margin").found == "41 °C, and the sensors tell no limit"
    for socket in range(2):
        write(place.sysfs / f"class/hwmon/hwmon{socket}/name", "nvme")
    check = find(check_settings(place), "thermal margin")
    assert check.state == "not known"
    assert "there is nvme" in check.found
    write(place.sysfs / "class/hwmon/hwmon0/name", "k10temp")
    write(place.sysfs / "class/hwmon/hwmon0/temp1_input", "hot")
    assert "'hot' is no whole number" in find(check_settings(place), "thermal margin").found


def test_memory_below_its_rated_speed_is_told_and_a_cut_off_table_is_not_known(place):
    table = place.sysfs / "firmware/dmi/tables/DMI"
    table.write_bytes(smbios_dimm(65536, 5600, 4400) * 2 + END)
    check = find(check_settings(place), "memory")
    assert (check.state, check.found) == ("poor", "2 modules in 2 slots, 128 GiB, 4400 MT/s, rated 5600, 16 channels")
    for path in place.sysfs.glob("devices/system/edac/mc/mc*/dimm*/dimm_location"):
        path.unlink()
    table.write_bytes(smbios_dimm(65536, 5600, 4400)[:20])
    check = find(check_settings(place), "memory")
    assert (check.state, check.found) == ("not known", f"{table}: tells of no memory module")


def test_cores_that_have_lost_a_thread_are_told(tmp_path):
    sysfs = make_sysfs_tree(tmp_path / "sys", sockets=2, offline=[15])
    check = find(check_settings(Place(sysfs, tmp_path / "proc")), "SMT")
    assert (check.state, check.found) == ("poor", "threads online: 1 cores of 1, 7 cores of 2")


def test_busy_processes_steal_and_throttling_are_told_from_two_looks(place):
    cpus = range(8)
    for pid, cpu in ((10, 2), (11, 3), (12, 12), (13, 2)):
        write_process(place.proc, pid, f"job ({pid})", 100, cpu)
    first = look_at(place, 5.0, cpus)
    for pid, cpu, busy in ((10, 2, 0.5), (11, 3, 0.01), (12, 12, 1.0), (13, 2, 0.9)):
        write_process(place.proc, pid, f"job ({pid})", 100 + round(2 * busy * TICKS), cpu)
    write_process(place.proc, 14, "new", 10 * TICKS, 2)
    write_stat(place.proc, steal=round(0.1 * TICKS * 2))
    write(place.sysfs / "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "5")
    busy, steal, throttled = check_activity(first, look_at(place, 7.0, cpus), cpus, own=[13])
    assert (busy.state, busy.found) == ("poor", "job (10) (10) 50% on CPU 2")
    assert busy.remedy == "stop them, or wait: kill 10"
    assert (steal.state, steal.found) == ("poor", "10.0%")
    assert (throttled.state, throttled.found) == ("poor", "core 2, package 0 times in 2.0 s")


def test_a_thread_of_the_kernels_is_not_to_be_killed(place):
    cpus, kernel = range(8), 0x04208060
    write_process(place.proc, 20, "kworker/1:0H", 0, 1, kernel)
    write_process(place.proc, 21, "job", 0, 1)
    first = look_at(place, 5.0, cpus)
    write_process(place.proc, 20, "kworker/1:0H", TICKS, 1, kernel)
    write_process(place.proc, 21, "job", TICKS // 2, 1)
    busy = check_activity(first, look_at(place, 6.0, cpus), cpus)[0]
    assert busy.found == "kworker/1:0H (20) 100% on CPU 1, job (21) 50% on CPU 1"
    assert busy.remedy == "stop them, or wait: kill 21"
    busy = check_activity(first, look_at(place, 6.0, cpus), cpus, own=[21])[0]
    assert busy.remedy == "wait: the kernel is at work for other processes"


def test_a_quiet_machine_says_how_often_it_was_throttled_before(place):
    cpus = range(8)
    look = look_at(place, 5.0, cpus)
    last = look_at(place, 6.0, cpus)
    checks = check_activity(look, last, cpus)
    assert [one.state for one in checks] == ["good"] * 3
    assert checks[2].found == "none in 1.0 s (since the start: core 24, package 14)"


def test_counters_that_there_are_none_of_are_not_known():
    bare = Look(0.0, {1: Process("a", 0, 1.0)}, None, None)
    checks = check_activity(bare, Look(1.0, {}, None, None), [0])
    assert [one.state for one in checks] == ["good", "not known", "not known"]
