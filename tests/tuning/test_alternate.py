"""`cnnbench ab`: a case with two settings in turns, as a user calls it, on the null engine."""

import json
import subprocess
import sys

import pytest

from checkout import ROOT
from cnnbench.base.errors import UsageError
from cnnbench.cli.ab import find_case
from cnnbench.tuning.alternate import Rules
from null_workload import THROUGHPUT, NullWorkload, clean_environment

QUICK = ["--steps=40", "--warmup_steps=1", "--batch_size=1"]


@pytest.fixture
def workload(tmp_path):
    made = NullWorkload(tmp_path).directory
    (made / "CMakeLists.txt").write_text("add_workload(CASES throughput throughput_pkm)\n")
    (made / "cmake").mkdir()
    (made / "cmake" / "GENERIC.cmake").write_text("set(PRECISIONS avx_fp32)\n")
    return made


@pytest.fixture
def ab(workload):
    """Call the command on the null engine; return its exit code, its output and its errors."""

    def call(*words, regex=f"{THROUGHPUT}$"):
        command = [sys.executable, "-m", "cnnbench", "ab", *words, "-R", regex, "--workload", str(workload)]
        done = subprocess.run(
            [*command, "--platform", "GENERIC"], capture_output=True, text=True, env=clean_environment(), timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    return call


def step(milliseconds):
    return f"CUSTOMER_ENV=CNNBENCH_NULL_STEP_MS={milliseconds}"


def test_a_setting_that_is_much_slower_is_found_at_the_first_look(ab, tmp_path):
    code, output, errors = ab(step(2), step(8), *QUICK, "--logs-root", str(tmp_path / "kept"), "--format", "json")
    (record,) = json.loads(output)
    assert (code, record["finding"], record["runs"]) == (4, "slower", 5), errors
    assert 0.2 < record["ratio"] < 0.4
    changed = {one["name"]: one["second"] for one in record["conditions"]}
    assert changed["CUSTOMER_ENV"] == "CNNBENCH_NULL_STEP_MS=8"
    told = [line.split(": ")[1] for line in errors.splitlines() if line.startswith("round ")]
    assert told[:4] == ["A", "B", "B", "A"]
    compared = subprocess.run(
        [sys.executable, "-m", "cnnbench", "compare", tmp_path / "kept" / "a", tmp_path / "kept" / "b"],
        capture_output=True,
        text=True,
    )
    assert (compared.returncode, "in turns" in compared.stdout) == (4, False), compared.stdout


def test_a_case_that_cannot_be_measured_is_not_measured_for_ever(ab):
    code, output, errors = ab(step(2), "CUSTOMER_ENV=CNNBENCH_NULL_STEP_MS=none", *QUICK)
    assert (code, output) == (3, "")
    assert "3 rounds in a row have an invalid run" in errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["BATCH_SIZE=1 2", ""], "stands for 2 settings"),
        (["BATCHSIZE=1", ""], "BATCHSIZE"),
        (["BATCH_SIZE=0", ""], "BATCH_SIZE=0"),
        (["PRECISION=avx_int8", ""], "fixed by a case's name"),
        (["", "", "--max-rounds", "4"], "must be 5 to 1000"),
        (["", "", "--threshold", "2"], "must be a percentage"),
        (["", "", "--metric", "Speed"], "there are Capacity"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(ab, words, told):
    code, output, errors = ab(*words)
    assert (code, output) == (2, "")
    assert told in errors


def test_a_case_is_found_by_a_part_of_its_name_that_no_other_has(workload):
    assert find_case("put_avx_fp32$", workload, "GENERIC") == (workload, THROUGHPUT)
    assert find_case(THROUGHPUT, workload, "GENERIC") == (workload, THROUGHPUT)
    found, name = find_case("cnn_pytorch.*latency_avx_fp32_resnet18$", None, "GENERIC")
    assert (found, name.endswith("latency_avx_fp32_resnet18")) == (ROOT / "workload" / "CNN-PyTorch-Public", True)
    for regex, told in (("throughput", "finds 2 cases"), ("thruput", "finds no case"), ("(", "no regular expression")):
        with pytest.raises(UsageError, match=told):
            find_case(regex, workload, "GENERIC")


def test_looks_get_further_apart_and_share_one_level():
    assert Rules("", 0.02, 20).looks == (5, 7, 9, 12, 15, 19, 20)
    assert Rules("", 0.02, 5).looks == (5,)
    assert Rules("", 0.02, 20).level == pytest.approx(0.05 / 7)
