"""A run judged again from its files alone, on the null engine: as it came out, and as its files are changed."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.cli.main import main
from cnnbench.results.record import Criterion, load_run
from cnnbench.run import kpis
from cnnbench.run.judging import judge_run
from cnnbench.run.record import Outside, read_record, write_outside
from cnnbench.worker.control import State
from null_workload import CORES, LATENCY, NullWorkload, step_of

INSTANCES = min(CORES, 2)
EACH_ONE_CORE = (f"--instances={INSTANCES}", "--cores_per_instance=1")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One good run; whoever changes its files does so in a copy."""
    workload = NullWorkload(tmp_path_factory.mktemp("good"))
    done = workload.run("--steps=400", "--batch_size=4", step_of(5), *EACH_ONE_CORE)
    assert done.returncode == 0, done.stderr
    return workload


@pytest.fixture
def copy(good, tmp_path, monkeypatch):
    """A copy of the run, and nothing else of it: neither its workload nor a cache."""
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path / "absent"))
    return shutil.copytree(good.logs(), tmp_path / "elsewhere" / "worker-0")


def whole(result):
    """Return a result as run.json has it."""
    return json.loads(result.model_dump_json())


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def slow_down(steps):
    """Make the steps of the second half of a run longer."""
    late = np.arange(len(steps)) - len(steps) // 2
    steps += (np.maximum(late, 0) * 20_000_000)[:, None]
    return steps


def test_a_run_judged_from_its_files_alone_comes_out_as_it_did(copy, tmp_path):
    before = sorted(path.stat().st_mtime_ns for path in copy.rglob("*"))
    assert whole(judge_run(copy)) == whole(load_run(copy))
    assert not (tmp_path / "absent").exists()
    assert sorted(path.stat().st_mtime_ns for path in copy.rglob("*")) == before


def test_every_case_of_an_edited_or_missing_file_changes_the_verdict(good, tmp_path):
    def stray(result):
        thread = next(iter(result["affinities"]))
        result["affinities"][thread] = [10**6]

    def steps_of(logs, change):
        path = logs / "instance-0" / "steps.npy"
        np.save(path, change(np.load(path)))

    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    instance = "instance-0"
    cases = {
        "a slower half": (lambda logs: steps_of(logs, slow_down), "unstable", "drift"),
        "no steps": (lambda logs: steps_of(logs, lambda rows: rows[:0]), "invalid", "an instance has measured no step"),
        "steps of another shape": (
            lambda logs: steps_of(logs, np.ravel),
            "invalid",
            "steps.npy: not what a run leaves",
        ),
        "a stray": (lambda logs: edit_json(logs / instance / "result.json", stray), "invalid", "on 1000000"),
        "an instance gone": (lambda logs: shutil.rmtree(logs / instance), "invalid", "instances were killed"),
        "its report gone": (lambda logs: (logs / instance / "result.json").unlink(), "invalid", "were killed"),
        "its steps gone": (lambda logs: (logs / instance / "steps.npy").unlink(), "invalid", "instance-0/steps.npy"),
        "its steps cut off": (lambda logs: cut(logs / instance / "steps.npy"), "invalid", "instance-0/steps.npy"),
        "its report cut off": (lambda logs: cut(logs / instance / "result.json"), "invalid", "instance-0/result.json"),
        "what was seen cut off": (lambda logs: cut(logs / "seen.jsonl"), "invalid", "the run was cut off"),
        "nothing seen": (lambda logs: (logs / "seen.jsonl").unlink(), "invalid", "the run was cut off"),
    }
    for name, (change, verdict, reason) in cases.items():
        logs = shutil.copytree(good.logs(), tmp_path / name)
        change(logs)
        result = judge_run(logs)
        assert (result.verdict, reason in result.reason) == (verdict, True), (name, result.reason)


def test_a_record_that_is_none_is_an_error_that_says_so(copy):
    def unknown(content):
        content["surprise"] = 1

    seen = copy / "seen.jsonl"
    seen.write_text(seen.read_text() + '{"event": "party"}\n')
    with pytest.raises(CnnbenchError, match=r"seen\.jsonl line 4: .*party"):
        judge_run(copy)
    edit_json(copy / "record.json", unknown)
    with pytest.raises(CnnbenchError, match=r"record\.json: surprise: Extra inputs"):
        judge_run(copy)
    (copy / "record.json").unlink()
    with pytest.raises(CnnbenchError, match=r"no record\.json there to judge by"):
        judge_run(copy)


def test_a_killed_controller_leaves_a_run_that_is_judged_as_cut_off(tmp_path, capsys):
    workload = NullWorkload(tmp_path)
    with workload.start("--steps=1000000", step_of(5), *EACH_ONE_CORE) as controller:
        workload.wait_for_state(State.MEASURING, *range(INSTANCES))
        os.kill(controller.pid, signal.SIGKILL)
    assert main(["judge", str(workload.logs())]) == 3
    output = capsys.readouterr().out
    assert "#INVALID RESULT: the run was cut off" in output
    assert "there is no run.json to compare with" in output
    assert not (workload.logs() / "run.json").exists()


def test_a_run_that_ended_otherwise_is_judged_again_as_it_was(tmp_path):
    workload = NullWorkload(tmp_path)
    assert workload.run("--customer_env=CNNBENCH_NULL_STEP_MS=abc", *EACH_ONE_CORE).returncode == 3
    assert workload.run("--steps=1000000", "--timeout=2", step_of(5), *EACH_ONE_CORE).returncode == 3
    for number, found in enumerate(("could not convert string to float", "not done within TIMEOUT=2 s")):
        result = judge_run(workload.logs(number))
        assert whole(result) == whole(load_run(workload.logs(number)))
        assert found in result.facts.get("what was seen", "") + result.reason


def test_judge_prints_the_kpis_and_what_differs_and_overwrites_nothing(good, tmp_path, capsys):
    logs = tmp_path / "logs-x"
    for number in (1, 2):
        shutil.copytree(good.logs(), logs / f"itr-{number}" / "worker-0")
    first, second = (logs / f"itr-{number}" / "worker-0" for number in (1, 2))
    text = (first / "kpi.log").read_text().splitlines()[1:-1]

    assert main(["judge", str(logs)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert [line for line in output if line in text] == [*text, *text]
    assert output.count("# judged again: nothing differs from run.json") == 2

    before = (second / "run.json").read_bytes()
    steps = np.load(second / "instance-0" / "steps.npy")
    np.save(second / "instance-0" / "steps.npy", slow_down(steps))
    assert main(["judge", str(logs / "itr-2")]) == 0
    output = capsys.readouterr().out
    assert "nothing differs" not in output
    for kind in ("verdict: ", "KPI Throughput (img/s): ", "criterion drift: ", "instance 0 images_per_s: "):
        assert f"#   {kind}" in output, output
    assert (second / "run.json").read_bytes() == before

    shutil.rmtree(second / "instance-0")
    assert main(["judge", str(logs)]) == 3
    assert "criterion instances: ok: " in capsys.readouterr().out

    (first / "record.json").unlink()  # as from before runs left one
    assert main(["judge", str(logs)]) == 1
    printed = capsys.readouterr()
    assert "no record.json there to judge by" in printed.err
    assert "#INVALID RESULT" in printed.out  # the other run is judged all the same
    assert main(["judge", str(tmp_path / "nothing")]) == 1


def test_what_the_host_of_a_container_knows_is_judged_along(copy):
    inside = judge_run(copy)
    late = Criterion(name="timeout", passed=False, found="not done within TIMEOUT=9 s", needed="")
    facts = {"container image": "x"}
    write_outside(copy, Outside(facts=facts, notes=("from outside",), effective={"MODEL": "/host/model.pb"}))
    result = judge_run(copy)
    assert result.verdict == inside.verdict
    assert (result.facts, result.notes) == (inside.facts | facts, [*inside.notes, "from outside"])
    assert result.effective["MODEL"] == "/host/model.pb"
    write_outside(copy, Outside(facts=facts, failure=late))
    assert (judge_run(copy).criteria, judge_run(copy).kpis) == ([late], [])
    write_outside(copy, Outside(record=read_record(copy)))  # as it is until the container has given its result
    assert judge_run(copy).reason.startswith("the run was cut off")


def test_a_kpi_of_the_table_appears_in_the_result(copy, monkeypatch):
    toy = kpis.KpiKind("Steps", "1", "higher", lambda run: float(sum(map(len, run.steps))))
    monkeypatch.setattr(kpis, "TABLE", (*kpis.TABLE, toy))
    found = {kpi.key: (kpi.value, kpi.unit) for kpi in judge_run(copy).kpis}
    assert found["Steps"] == (400 * INSTANCES, "1")


def test_the_table_says_which_way_is_better(tmp_path):
    figures = {"a": 1.0, "b": 2.0}
    assert [kpis.primary_kind(mode).name for mode in ("throughput", "latency", "accuracy", "capacity")] == [
        "Throughput",
        "Latency mean",
        "Accuracy top-1",
        "Capacity",
    ]
    assert [kpis.primary_kind(mode).best(figures) for mode in ("throughput", "latency")] == ["b", "a"]
    assert kpis.find_kind("Throughput 95 % low").better == "higher"
    with pytest.raises(CnnbenchError, match="Thrughput: no such KPI; there are Capacity, Throughput, "):
        kpis.find_kind("Thrughput")
    workload = NullWorkload(tmp_path)
    assert workload.run("--steps=20", step_of(2), *EACH_ONE_CORE, case=LATENCY).returncode == 0
    for kpi in load_run(workload.logs(case=LATENCY)).kpis:
        assert kpis.find_kind(kpi.key).unit == kpi.unit
