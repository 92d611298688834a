"""The comparison of engines: what it is asked for, and its table; the runs themselves are the product's own."""

import subprocess
import sys
from dataclasses import replace

import pytest

from checkout import ROOT
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.results.record import Criterion, Kpi, RunResult

UNSTEADY = Criterion(name="drift", passed=False, found="+9 %", needed="less", severity="unstable")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return __import__("peers")


def run_of(images_per_s, *criteria):
    kpis = [
        Kpi(key="Throughput", unit="img/s", value=images_per_s, primary=True),
        Kpi(key="ISA share", unit="%", value=99.5),
    ]
    fields = dict.fromkeys(("run_id", "started", "workload", "case"), "x")
    fields |= {key: {} for key in ("requested", "effective", "facts", "plan")}
    return RunResult(**fields, instances=[], kpis=kpis, criteria=list(criteria), notes=[])


def test_settings_are_for_all_engines_or_one_and_others_are_refused(peers):
    found = peers.read_settings(["WARMUP_STEPS=2", "openvino:BATCH_SIZE=16"])
    assert found == {"": {"WARMUP_STEPS": "2"}, "openvino": {"BATCH_SIZE": "16"}}
    for word in ("BATCH_SIZE", "caffe:BATCH_SIZE=1", "SIZE=1"):
        with pytest.raises(UsageError, match=word.split(":")[-1].split("=")[0]):
            peers.read_settings([word])


def test_the_table_pairs_ratios_within_rounds_and_says_what_was_not_measured(peers):
    first = peers.Contender("tensorflow", runs=[run_of(value) for value in (10, 20, 10, 20, 10, 20)])
    second = peers.Contender("openvino", runs=[run_of(value, UNSTEADY) for value in (5, 10, 5, 10, 5, 10)])
    third, fourth = replace(first, name="pytorch"), peers.Contender("inductor")
    third.refuse(CnnbenchError("it broke"))
    fourth.refuse(SkippedError("no compiler"))
    lines = peers.table([first, second, third, fourth], "Throughput").splitlines()
    assert "over tensorflow" in lines[1]
    rows = {line.split()[0]: line for line in lines[2:6]}
    assert "15.00 [10.00, 20.00]" in rows["tensorflow"]
    assert rows["tensorflow"].rstrip().endswith("valid")
    assert "0.500 [0.500, 0.500]" in rows["openvino"]
    assert "6 of 6 unstable" in rows["openvino"]
    assert "NOT MEASURED" in rows["pytorch"]
    assert lines[-2:] == ["pytorch: it broke", "inductor: no compiler"]
    assert (third.failed, fourth.failed) == (True, False)


def test_too_few_rounds_are_refused_before_anything_is_staged():
    command = [sys.executable, ROOT / "benchmarks" / "peers.py", "--rounds", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--rounds 5: 6 or more are needed" in done.stderr
