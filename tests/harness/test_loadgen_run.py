"""MLPerf's LoadGen itself, which has real engines infer: its scenarios, their accuracy, and their audits."""

import json
import re

import numpy as np
import pytest

from cnnbench.results.loadgen import AUDITS, read_answers
from cnnbench.results.record import load_run
from network_cases import ACCURACY, CASE, kpis

pytestmark = pytest.mark.engine

USER_CONF = """
*.*.min_duration = 2000
*.*.min_query_count = 100
*.MultiStream.min_query_count = 1
*.Offline.min_query_count = 1
"""

# By scenario: LoadGen's figure of a run, what its summary calls it, in which unit, and the figure of ours beside it.
FIGURES = {
    "Offline": ("LoadGen samples", "Samples per second", 1, "Throughput"),
    "SingleStream": ("LoadGen p90", r"90.00 percentile latency \(ns\)", 1e-6, "Latency p90"),
}


@pytest.mark.parametrize(
    ("scenario", "mode", "options"),
    [
        ("Offline", "throughput", ("--batch_size=8", "--cores_per_instance=1")),
        ("Server", "throughput", ("--batch_size=4", "--target_qps=20", "--cores_per_instance=1")),
        ("SingleStream", "latency", ()),
        ("MultiStream", "latency", ()),
    ],
)
def test_loadgen_sends_what_is_inferred_and_says_of_its_run_what_we_say(run_case, tmp_path, scenario, mode, options):
    (config := tmp_path / "user.conf").write_text(USER_CONF)
    words = ("--engine=openvino", f"--scenario={scenario}", f"--user_conf={config}", *options)
    done, logs = run_case("mobilenet_v3_small", *words, case=CASE.replace("throughput", mode))
    assert done.returncode in (0, 3), done.stdout + done.stderr  # so short a run is not always VALID
    run, summary = load_run(logs), (logs / "loadgen" / "mlperf_log_summary.txt").read_text()
    assert f"Scenario : {scenario}" in summary
    assert "No errors encountered during test." in summary
    assert run.facts["LoadGen"].startswith(f"{scenario}, ")
    (judged,) = (one for one in run.criteria if one.name == "LoadGen")
    assert judged.passed == ("Result is : VALID" in summary)
    assert {one.name: one.passed for one in run.criteria}["outputs"]
    assert len({one["pid"] for one in run.instances}) == 1
    assert (logs / "loadgen" / "user.conf").read_text() == USER_CONF
    images = sum(np.load(path).sum() for path in logs.glob("instance-*/step_images.npy"))
    assert images == int(re.search(r"samples_per_query : (\d+)", summary)[1]) or scenario != "Offline"
    if done.returncode == 0:
        assert ("Latency mean" in kpis(run)) == (mode == "latency")
    if done.returncode == 0 and scenario in FIGURES:
        name, said, unit, ours = FIGURES[scenario]
        assert kpis(run)[name] == pytest.approx(float(re.search(rf"{said} *: ([\d.]+)", summary)[1]) * unit, rel=1e-3)
        assert 0.1 < kpis(run)[name] / kpis(run)[ours] < 10  # of one unit: how near they are is benchmarks/loadgen.py's
    if scenario == "MultiStream":
        assert {size for path in logs.glob("instance-*/step_images.npy") for size in np.load(path)} == {8}


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        (
            "throughput",
            ("--scenario=SingleStream",),
            "SCENARIO=SingleStream: is none of a case of throughput; there are",
        ),
        ("latency", ("--scenario=Offline",), "SCENARIO=Offline: is none of a case of latency"),
        ("throughput", ("--audit=TEST01",), "USER_CONF, TARGET_QPS, AUDIT: are LoadGen's"),
        ("accuracy", ("--scenario=Offline", "--accuracy_time=5"), "ACCURACY_TIME=5: LoadGen asks for every image"),
        ("accuracy", ("--scenario=Offline", "--audit=TEST01"), "AUDIT=TEST01: repeats a run for throughput or latency"),
        ("throughput", ("--scenario=Offline", "--data_type=real"), "SCENARIO=Offline: LoadGen chooses the images"),
        ("throughput", ("--scenario=Offline", "--user_conf=/no.conf"), "USER_CONF=/no.conf: no such file"),
        ("throughput", ("--scenario=Offline", "--device_iterations=2"), "SCENARIO=Offline: not with DEVICE_ITERATIONS"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(run_case, mode, options, reason):
    done, _ = run_case("mobilenet_v3_small", *options, case=CASE.replace("throughput", mode))
    assert done.returncode == 2, done.stdout + done.stderr
    assert reason in done.stderr


def test_settings_that_loadgen_cannot_read_are_told(run_case, tmp_path):
    (config := tmp_path / "user.conf").write_text("this is no setting\n")
    done, _ = run_case("mobilenet_v3_small", "--engine=openvino", "--scenario=Offline", f"--user_conf={config}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "user.conf: LoadGen cannot read it" in done.stdout


def test_loadgen_asks_for_the_answer_of_each_image_and_finds_the_same_accuracy(run_case):
    words = ("--engine=openvino", "--cores_per_instance=1", "--scenario=Server")
    done, logs = run_case("mobilenet_v3_small", *words, case=ACCURACY)
    assert done.returncode == 0, done.stdout + done.stderr
    found, summary = kpis(load_run(logs)), (logs / "loadgen" / "mlperf_log_summary.txt").read_text()
    assert "No errors encountered during test." in summary
    assert found["LoadGen top-1"] == pytest.approx(found["Accuracy top-1"])
    assert found["Accuracy top-1"] > 10
    labels, path = np.load(logs / "reference" / "labels.npy"), logs / "loadgen" / "mlperf_log_accuracy.json"
    answers = json.loads(path.read_text())
    assert sorted(one["qsl_idx"] for one in answers) == list(range(len(labels)))


def test_an_audit_runs_loadgen_once_more_and_holds_answers_and_speed_against_the_run(run_case, tmp_path):
    (config := tmp_path / "user.conf").write_text(USER_CONF)
    words = ("--engine=openvino", "--batch_size=4", "--cores_per_instance=1", "--scenario=Offline", "--audit=TEST01")
    done, logs = run_case("mobilenet_v3_small", *words, f"--user_conf={config}")
    assert done.returncode in (0, 3), done.stdout + done.stderr
    run = load_run(logs)
    (judged,) = (one for one in run.criteria if one.name == "audit")
    assert re.match(r"TEST01: (INVALID by itself, )?[\d.]+ of the run's speed, 0 of \d+ answers differ$", judged.found)
    audited = logs / "audit" / "loadgen"
    assert (audited / "audit.config").read_text() == AUDITS["TEST01"].config
    assert "accuracy_log_rng_seed : 720381539243781796" in (audited / "mlperf_log_summary.txt").read_text()
    every = read_answers(logs / "audit" / "accuracy" / "loadgen" / "mlperf_log_accuracy.json")
    assert sorted(every) == list(range(1024))
    assert len(set(every.values())) > 1
    assert read_answers(audited / "mlperf_log_accuracy.json").items() <= every.items()
