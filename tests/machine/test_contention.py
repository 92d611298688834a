"""Contention and throttling, from fake /proc trees and from a real neighbour."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnbench.machine.cgroup import CpuQuota
from cnnbench.machine.contention import (
    Contention,
    CpuSample,
    Throttling,
    compare_quotas,
    compare_samples,
    sample_cpu_time,
    with_siblings,
)
from sysfs import make_sysfs_tree


def write_proc(root, cpu_lines, processes):
    root.mkdir()
    (root / "stat").write_text("cpu  9 9 9 9 9 9 9 9 0 0\n" + "\n".join(cpu_lines) + "\nctxt 1\n")
    for pid, (name, utime, stime) in processes.items():
        (root / str(pid)).mkdir()
        (root / str(pid) / "stat").write_text(f"{pid} ({name}) R 1 1 1 0 -1 0 0 0 0 0 {utime} {stime} 0 0 20 0 1 0\n")


def test_sums_the_wanted_cpus_and_processes_only(tmp_path):
    cpus = ["cpu0 100 1 20 500 7 3 4 50 0 0", "cpu1 200 0 0 500 0 0 0 0 0 0", "cpu10 999 0 0 0 0 0 0 0 0 0"]
    write_proc(tmp_path / "proc", cpus, {7: ("python3 (x) y", 30, 12), 8: ("other", 999, 999)})
    tick = os.sysconf("SC_CLK_TCK")
    sample = sample_cpu_time([0, 1], [7, 4711], tmp_path / "proc")
    assert sample == CpuSample(pytest.approx(328 / tick), pytest.approx(50 / tick), pytest.approx(42 / tick))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (CpuSample(21.0, 3.0, 21.0), Contention(0.0, 0.0)),
        (CpuSample(23.0, 3.5, 21.0), Contention(0.1, 0.025)),
        (CpuSample(20.9, 3.0, 21.0), Contention(0.0, 0.0)),  # ticks of the two files are not read at one moment
    ],
)
def test_share_of_the_cores_that_others_took(last, expected):
    contention = compare_samples(CpuSample(1.0, 3.0, 1.0), last, cores=2, seconds=10.0)
    assert (contention.others, contention.steal) == (pytest.approx(expected.others), pytest.approx(expected.steal))


@pytest.mark.parametrize(("cores", "seconds", "told"), [(2, 0.99, False), (2, 1.0, True), (1, 2.0, True)])
def test_too_short_a_window_tells_nothing(cores, seconds, told):
    sample = CpuSample(0.0, 0.0, 0.0)
    assert (compare_samples(sample, sample, cores, seconds) is not None) == told


def test_siblings_count_with_their_core(tmp_path):
    make_sysfs_tree(tmp_path / "sys", sockets=1, cores_per_socket=4, threads_per_core=2)
    assert with_siblings([0, 2], tmp_path / "sys") == {0, 2, 4, 6}
    assert with_siblings([0, 2], tmp_path / "nothing") == {0, 2}


def test_a_busy_neighbour_shows():
    cpu = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, [{cpu}])\nprint('up', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE, text=True) as neighbour:
        try:
            assert neighbour.stdout.readline() == "up\n"
            first, began = sample_cpu_time([cpu], [os.getpid()]), time.monotonic()
            while time.monotonic() - began < 2.1:
                time.sleep(0.05)
            contention = compare_samples(first, sample_cpu_time([cpu], [os.getpid()]), 1, time.monotonic() - began)
        finally:
            neighbour.kill()
    assert contention.others > 0.1


OWN, ABOVE = Path("pods/job"), Path("pods")


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ([], [], None),
        ([CpuQuota(OWN, 1.5, 3.0)], [CpuQuota(OWN, 1.5, 3.0)], Throttling(1.5, 0.0)),
        ([CpuQuota(OWN, 1.5, 3.0)], [CpuQuota(OWN, 1.5, 8.0)], Throttling(1.5, 0.25)),
        (
            [CpuQuota(OWN, 1.5, 3.0), CpuQuota(ABOVE, 4, 0.0)],
            [CpuQuota(OWN, 1.5, 5.0), CpuQuota(ABOVE, 4, 8.0)],
            Throttling(4, 0.4),  # the level that was throttled most
        ),
        (
            [CpuQuota(OWN, 1.5, 3.0), CpuQuota(ABOVE, 4, 9.0)],
            [CpuQuota(OWN, 1.5, 3.0), CpuQuota(ABOVE, 4, 9.0)],
            Throttling(1.5, 0.0),  # or else the tightest
        ),
        ([CpuQuota(OWN, 1.5, None)], [CpuQuota(OWN, 1.5, None)], None),
        ([], [CpuQuota(OWN, 1.5, 8.0)], None),  # set meanwhile: how much of it is ours, nobody knows
    ],
)
def test_share_of_the_cores_time_that_a_quota_took(first, last, expected):
    assert compare_quotas(first, last, cores=2, seconds=10.0) == expected
