"""Counters of energy, read from made-up powercap trees, and what readings come to."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cnnbench.machine import energy
from cnnbench.machine.energy import Reader, Series, UnreadableError, find_zones
from cnnbench.machine.meter import parse_reading
from cnnbench.run.energy_seen import mean_power_w
from sysfs import find_zone, make_powercap_tree, write

TWO_PACKAGES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "dram",
}
SECOND_NS = 10**9


@pytest.mark.parametrize(
    ("zones", "names"),
    [
        (TWO_PACKAGES, ["package 0", "DRAM 0", "package 1", "DRAM 1"]),
        ({"intel-rapl:0": "psys"}, ["platform"]),
        (TWO_PACKAGES | {"intel-rapl:2": "psys"}, ["package 0", "DRAM 0", "package 1", "DRAM 1"]),
        ({"intel-rapl:0": "package-0", "intel-rapl:0:0": "core"}, ["package 0"]),  # AMD's: no memory
        ({"intel-rapl:0": "package-0", "intel-rapl-mmio:0": "package-0"}, ["package 0"]),  # shown twice
        (
            {"intel-rapl:10": "package-1-die-0", "intel-rapl:9": "package-0-die-1"},
            ["package 0 die 1", "package 1 die 0"],
        ),
    ],
)
def test_packages_and_their_memory_are_found_and_nothing_is_counted_twice(tmp_path, zones, names):
    found = find_zones(make_powercap_tree(tmp_path, zones))
    assert [zone.name for zone in found] == names
    assert {zone.read() for zone in found} == {1_000_000}


def test_a_platform_that_cannot_be_read_hides_no_package(tmp_path):
    tree = make_powercap_tree(tmp_path, TWO_PACKAGES | {"intel-rapl:2": "psys"})
    (find_zone(tree, "intel-rapl:2") / "energy_uj").unlink()
    assert len(find_zones(tree)) == 4


def test_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(UnreadableError, match="has no RAPL counters: a virtual machine"):
        find_zones(tmp_path / "nothing")
    for number, (change, reason) in enumerate(
        [
            (lambda path: (path.unlink(), path.mkdir()), "energy_uj: Is a directory"),
            (lambda path: path.unlink(), "energy_uj: No such file or directory"),
            (lambda path: path.write_text(""), "energy_uj: '' is no number"),
            (lambda path: path.write_text("-3\n"), "energy_uj: '-3' is no number"),
        ]
    ):
        tree = make_powercap_tree(tmp_path / str(number), TWO_PACKAGES)
        change(find_zone(tree, "intel-rapl:1:0") / "energy_uj")
        with pytest.raises(UnreadableError, match=reason):
            find_zones(tree)


def test_a_counter_that_only_root_may_read_names_the_remedy():
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        tree = make_powercap_tree(Path(directory) / "tree", {"intel-rapl:0": "package-0"})
        Path(directory).chmod(0o755)
        (tree / "intel-rapl:0" / "energy_uj").chmod(0)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            with pytest.raises(UnreadableError, match=r"energy_uj: only root may read it; doc/user-guide\.md, Energy"):
                find_zones(tree)
        finally:
            if was_root:
                os.seteuid(0)


def test_a_reader_keeps_what_it_has_read_of_a_counter_that_vanishes(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "READ_S", 0.001)
    tree = make_powercap_tree(tmp_path, TWO_PACKAGES)
    with Reader(find_zones(tree)) as reader:
        shutil.rmtree(find_zone(tree, "intel-rapl:1"))
        deadline_s = time.monotonic() + 60
        while len(reader._readings[0]) < 20 and time.monotonic() < deadline_s:
            time.sleep(0.001)
    series = {one.name: one for one in reader.series()}
    assert not series["package 0"].failure
    assert len(series["package 0"].values) >= 20
    assert "energy_uj: No such file or directory" in series["package 1"].failure
    with pytest.raises(UnreadableError, match=r"package 1: .*No such file"):
        mean_power_w(series["package 1"], 0, 1)


def test_a_long_run_keeps_few_readings_and_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "READ_S", 1e-4)
    monkeypatch.setattr(energy, "MOST_READINGS", 8)
    tree = make_powercap_tree(tmp_path, {"intel-rapl:0": "package-0"})
    before_ns = time.monotonic_ns()
    with Reader(find_zones(tree)) as reader:
        first_ns = reader._readings[0][0][0]
        while len(reader._readings[0]) < 3:
            time.sleep(0.0001)
        reader.keep()
        idle = reader._readings[0][: reader._whole[0]]
        deadline_s = time.monotonic() + 60
        while reader._interval_s < 1e-3 and time.monotonic() < deadline_s:
            time.sleep(0.001)
    (series,) = reader.series()
    assert reader._interval_s > 1e-3
    assert len(series.values) <= 9
    assert list(series.times_ns[: len(idle)]) == [time_ns for time_ns, _ in idle]
    assert before_ns <= series.times_ns[0] == first_ns
    assert list(series.times_ns) == sorted(series.times_ns)


def series_of(values, unit="uJ", wraps_at=None, step_s=1.0, name="package 0"):
    return Series(name, unit, wraps_at, tuple(round(at * step_s * 1e9) for at in range(len(values))), tuple(values))


@pytest.mark.parametrize(
    ("series", "span_s", "power_w"),
    [
        (series_of([0, 100_000_000, 200_000_000]), (0, 2), 100),
        (series_of([0, 100_000_000, 400_000_000]), (0.5, 1.5), 200),  # half of either step
        (series_of([99_950_000_000, 100_000_000_000, 49_999_999], wraps_at=100_000_000_000), (0, 2), 50),
        (series_of([99_990_000_000, 30_000_000], wraps_at=100_000_000_000), (0, 1), 40),
        (series_of([1000, 3000, 5000], "mJ"), (0, 2), 2),
        (series_of([10, 10.5, 12], "J", name="meter"), (0, 2), 1),
        (series_of([100, 300, 300], "W", name="meter"), (0, 2), 250),
        (series_of([100_000, 300_000, 300_000], "mW"), (0, 1), 200),
    ],
)
def test_readings_come_to_a_power(series, span_s, power_w):
    assert mean_power_w(series, *(round(at * SECOND_NS) for at in span_s)) == pytest.approx(power_w)


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (series_of([100_000_000, 50_000_000, 60_000_000]), "its counter went back from 100.0000 to 50.0000 J"),
        (series_of([5e9, 1e9, 2e9], wraps_at=100_000_000_000), "its counter went back from 5000.0000 to 1000.0000 J"),
        (series_of([7, 7, 7]), "it tells of no energy in 2.00 s"),
        (series_of([0, 0, 0], "W"), "it tells of no energy"),
        (series_of([1, 2]), "its 2 readings do not go from end to end"),
        (series_of([]), "its 0 readings do not go from end to end"),
        (series_of([0, 1e9, 2e9], wraps_at=65_700_000_000, step_s=20), "no reading for 20.0 s, needed one every 16.4"),
        (series_of([5, 5, 5], "W", step_s=30, name="meter"), "no reading for 30.0 s, needed one every 10.0 s"),
    ],
)
def test_readings_that_tell_no_power_say_why(series, reason):
    with pytest.raises(UnreadableError, match=reason):
        mean_power_w(series, 0, 2 * SECOND_NS)


@pytest.mark.parametrize("line", ["", "12", "12 W", "now 12 W", "12 W 12", "1 2 W 3", "1 2 kW", "nan 2 W", "1 inf J"])
def test_a_line_that_is_no_reading_says_what_is(line):
    with pytest.raises(UnreadableError, match="needed lines of `TIME VALUE UNIT`"):
        parse_reading(line)


NVML = r"""
#include <stdlib.h>
#include <string.h>
typedef struct one *handle;
int nvmlInitWithFlags(unsigned flags) { (void)flags; return getenv("FAKE_FAILURE") ? 9 : 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = getenv("FAKE_COUNT") ? 2 : 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned at, handle *one) { *one = (handle)(long)(at + 1); return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, handle *one) {
    *one = (handle)7L;
    return strcmp(uuid, "GPU-7") ? 2 : 0;
}
int nvmlDeviceGetTotalEnergyConsumption(handle one, unsigned long long *mj) {
    *mj = 1000 * (long)one;
    return getenv("FAKE_OLD") ? 3 : 0;
}
int nvmlDeviceGetPowerUsage(handle one, unsigned *mw) { *mw = 250000; (void)one; return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Other"; }
"""
READ = """
import os
from cnnbench.run.energy import find_sources
found = find_sources("", 2, os.environ, cores=1, gpu=True)
print(found.describe(), [(one.unit, one.read()) for one in found.domains])
"""


def test_a_gpu_is_read_by_its_counter_or_else_by_its_power(tmp_path):
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler to make a library with")
    write(tmp_path / "nvml.c", NVML)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml.c"], check=True
    )

    def read(library=tmp_path, **environment):
        kept = {name: text for name, text in os.environ.items() if not name.startswith("CUDA")}
        environment = kept | {"LD_LIBRARY_PATH": str(library)} | environment
        done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert "GPU 0" in (plain := read())
    assert plain.endswith("('mJ', 1000)]")
    assert read(FAKE_OLD="1").endswith("('mW', 250000)]")
    assert "GPU GPU-7" in (named := read(FAKE_COUNT="1", CUDA_VISIBLE_DEVICES="GPU-7,1"))
    assert named.endswith("('mJ', 7000)]")
    assert read(FAKE_COUNT="1", CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID").endswith("('mJ', 2000)]")
    for environment, reason in (
        (
            {"FAKE_COUNT": "1"},
            "there are 2 GPUs, and CUDA's first may be any of them; set CUDA_DEVICE_ORDER=PCI_BUS_ID",
        ),
        ({"FAKE_FAILURE": "1"}, "NVML answers: Driver Not Loaded"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8"}, "NVML answers: "),
    ):
        assert f"not measured: {reason}" in (told := read(**environment)), told
        assert told.endswith("[]")
    assert "not measured: NVML answers: " in read(library=tmp_path / "nothing")
