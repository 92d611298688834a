"""Which settings are tried unless told, and the settings files that are shipped."""

import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from checkout import ROOT, WORKLOAD
from cmake_build import find_tool, run_cmake
from cnnbench.base.errors import UsageError
from cnnbench.cases.platforms import check_platform
from cnnbench.cases.workload import Sources, declared_cases, load_sections, load_workload
from cnnbench.machine.topology import read_topology
from cnnbench.tuning.space import default_space
from sysfs import make_sysfs_tree

SHIPPED = sorted(ROOT.glob("workload/*/bkm-*.yaml"))


def test_the_default_space_follows_from_the_machine(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=14))
    space = default_space(topology, "throughput", ["itex", "stock"])
    assert sorted({int(one["CORES_PER_INSTANCE"]) for one in space}) == [1, 2, 7, 14]
    assert {one["VARIANT"] for one in space} == {"itex", "stock"}
    batches = {cores: [int(s["BATCH_SIZE"]) for s in space if s["CORES_PER_INSTANCE"] == cores] for cores in ("1", "7")}
    assert max(batches["1"]) == 32
    assert max(batches["7"]) == 128
    assert min(batches["7"]) == 1


def test_the_default_space_of_latency_has_one_batch_size_and_an_engine_without_builds_no_variant(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, cores_per_socket=2))
    assert default_space(topology, "latency", []) == [
        {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "1"},
        {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "2"},
    ]


def test_what_is_given_is_not_tuned(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, cores_per_socket=2))
    assert default_space(topology, "throughput", ["itex"], {"BATCH_SIZE": "8"}) == [
        {"CORES_PER_INSTANCE": "1", "VARIANT": "itex"},
        {"CORES_PER_INSTANCE": "2", "VARIANT": "itex"},
    ]


@pytest.mark.parametrize("platform", ["GENERIC", "SPR", "TURIN"])
def test_declared_cases_are_those_that_cmake_makes(tmp_path, platform):
    done = run_cmake(tmp_path, Path(sys.executable), f"-DPLATFORM={platform}", f"-DBENCHMARK={WORKLOAD.name}")
    assert done.returncode == 0, done.stderr
    listing = subprocess.run(
        [find_tool("ctest"), "-N"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    made = [line.split(": ")[1] for line in listing.splitlines() if " Test " in line and "_sgx_" not in line]
    assert [case.name for case in declared_cases(WORKLOAD, platform)] == made


def test_a_platform_without_cases_lists_those_that_have(tmp_path):
    with pytest.raises(UsageError, match=r"PLATFORM=Z80: .* is not available on it; it is on BERGAMO, .*SPR"):
        declared_cases(WORKLOAD, "Z80")


def test_a_declaration_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "cmake").mkdir()
    (tmp_path / "workload.yaml").write_text("name: X\nslug: x\ntitle: x\nengine: 'null'\ndefaults: {}\n")
    (tmp_path / "cmake" / "SPR.cmake").write_text("include(other.cmake)\n")
    with pytest.raises(UsageError, match=r"SPR\.cmake: 0 lines `set\(PRECISIONS \.\.\.\)`, needed one"):
        declared_cases(tmp_path, "SPR")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_settings_load_and_are_of_cases_that_there_are(path):
    platform = check_platform(path.stem.removeprefix("bkm-"))
    assert path.name == f"bkm-{platform.lower()}.yaml"
    cases = declared_cases(path.parent, platform)
    sources = Sources.read(load_workload(path.parent), {}, path)
    for glob in load_sections(path):
        matching = [case for case in cases if fnmatchcase(case.name, glob)]
        assert matching, glob
        for case in matching:
            assert sources.resolve(case, {}).batch_size == int(load_sections(path)[glob]["BATCH_SIZE"])


def test_the_published_settings_are_shipped():
    sections = load_sections(WORKLOAD / "bkm-spr.yaml")
    published = {
        "amx_int8": ("64", "14"),
        "amx_bfloat16": ("32", "14"),
        "avx_int8": ("32", "7"),
        "avx_fp32": ("128", "4"),
    }
    for precision, setting in published.items():
        for kind in ("", "_pkm"):
            section = sections[f"*_throughput_{precision}{kind}"]
            assert (section["BATCH_SIZE"], section["CORES_PER_INSTANCE"]) == setting
