"""Fleets on this machine: every run once, whatever dies meanwhile."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnbench.cases.platforms import detect_platform, load_platforms
from cnnbench.cli.main import main
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.record import SCHEMA
from fleet_files import STEP, FleetFiles, is_alive
from null_workload import THROUGHPUT, clean_environment, find_workers, wait_until

MEASURED = {"valid", "unstable"}
SLOW = {"STEPS": 10, "INSTANCES": 1, "CUSTOMER_ENV": f"{STEP}=150"}


def test_a_plan_is_printed_and_nothing_is_touched(tmp_path):
    fleet = FleetFiles(tmp_path)
    fleet.write(cases=["*"], sets=["BATCH_SIZE=1 2"], trials=3, run_s=60)
    shown = fleet.call("--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "12 runs on 1 machine of 1 pool, about 0.20 node hours" in shown.stdout
    assert shown.stdout.count("BATCH_SIZE=2") == 2
    assert not fleet.folder.exists()
    assert fleet.call("--dry-run").stdout == shown.stdout


def test_each_run_is_made_once_and_says_which_job_it_was(tmp_path):
    fleet = FleetFiles(tmp_path)
    fleet.write(sets=["BATCH_SIZE=1 2"])
    done = fleet.call(BATCH_SIZE="7", CNNBENCH_OPTIONS='["--batch_size=5"]')  # what is not in the file has no say
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "2 of 2 runs done" in done.stdout
    runs = fleet.run_files()
    assert sorted(run["requested"]["BATCH_SIZE"] for run in runs) == ["1", "2"]
    assert all(run["facts"]["allocation"].startswith("local process ") for run in runs)
    before = fleet.outcomes()
    again = fleet.call()
    assert again.returncode == 0
    assert fleet.outcomes() == before
    assert len(fleet.read("batch.json")) == 1
    assert "2 of 2 runs done" in fleet.call("--status").stdout
    assert (fleet.folder / "report.txt").read_text() in again.stdout
    old = next(fleet.folder.glob("results/*/*/logs-*/*/*/run.json"))
    text = old.read_text().replace('"schema_version": 1', '"schema_version": 0')
    old.unlink()  # the merged folder has a link to it
    old.write_text(text)
    odd = fleet.call()
    assert odd.returncode == 1
    assert "it is of schema 0; read it with the version of cnnbench that wrote it" in odd.stdout
    fleet.write(trials=2)
    refused = fleet.call()
    assert refused.returncode == 2
    assert "another plan" in refused.stderr
    assert "run.trials: 1, now 2" in refused.stderr
    refused = fleet.call("--cancel")
    assert (refused.returncode, "another plan" in refused.stderr) == (2, True), refused.stdout


def test_controller_and_machine_are_killed_in_the_middle_and_every_run_ends_once(tmp_path):
    fleet = FleetFiles(tmp_path)
    fleet.write(parameters=SLOW, trials=3, repeats=0)
    controller = fleet.start()
    wait_until(lambda: len(fleet.outcomes()) >= 1, "the first run")
    first = fleet.outcomes()[0]
    controller.kill()
    controller.communicate()
    node = fleet.read("node.json")[0]["pid"]
    assert is_alive(node), "what runs on a machine outlives the controller"
    (workload,) = fleet.folder.glob("batches/*/submitted.json")
    workload.unlink()  # as if the controller had died before it could write this
    controller = fleet.start()
    time.sleep(3)  # long enough for a second process of that batch to come to nothing
    assert [one["pid"] for one in fleet.read("node.json")] == [node]
    controller.kill()
    controller.communicate()
    if is_alive(node):
        os.kill(node, signal.SIGKILL)
    wait_until(lambda: not find_workers(fleet.folder), "the workers of a killed batch to end")
    done = fleet.call()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    outcomes = fleet.outcomes()
    assert len({one["task"] for one in outcomes}) == len(outcomes) == len(fleet.run_files()) == 3
    assert {one["verdict"] for one in outcomes} <= MEASURED
    assert first in outcomes


def test_a_run_that_never_ends_well_is_given_up_with_its_reason(tmp_path):
    fleet = FleetFiles(tmp_path)
    fleet.pool["python"] = "/bin/false"
    fleet.write(attempts=2)
    done = fleet.call()
    assert done.returncode == 1
    (outcome,) = fleet.outcomes()
    assert outcome["verdict"] == "failed"
    assert outcome["reason"].startswith("begun 2 times, and lost each time; the last time: its process died")
    assert f"FAILED {THROUGHPUT} " in done.stdout
    assert " (here, slot 0): begun 2 times" in done.stdout
    again = fleet.call("--retry-failed")
    assert "1 failed runs are made again" in again.stdout
    assert len(fleet.read("batch.json")) == 4


def test_all_is_cancelled_from_elsewhere_and_goes_on_later(tmp_path):
    fleet = FleetFiles(tmp_path)
    fleet.write(parameters=SLOW, trials=2)
    controller = fleet.start()
    wait_until(lambda: find_workers(fleet.folder), "a worker")
    second = fleet.call("-o", str(fleet.folder))
    assert second.returncode == 2
    assert "another `cnnbench fleet` is at work there" in second.stderr
    (node,) = fleet.read("node.json")
    cancelled = fleet.call("--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    said, _ = controller.communicate(timeout=120)
    assert controller.returncode == 130, said
    assert not is_alive(node["pid"])
    assert not find_workers(fleet.folder)
    assert len(fleet.outcomes()) < 2
    assert "0 batches cancelled" in fleet.call("--cancel").stdout
    assert "nothing is under way: the same command without --status goes on" in fleet.call("--status").stdout
    done = fleet.call()
    assert done.returncode == 0, done.stdout
    assert sum(fleet.verdicts().values()) == 2


def test_a_full_disk_is_told(tmp_path):
    fleet = FleetFiles(tmp_path)
    fleet.write(attempts=1)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        fleet.command(), env=fleet.environment, capture_output=True, text=True, preexec_fn=limit, timeout=120
    )
    assert done.returncode == 1, done.stdout
    assert "the file-size limit (ulimit -f) is reached" in done.stdout + done.stderr


def refuse(fleet: FleetFiles, **runs) -> str:
    """Run a fleet whose machine refuses; return the reason."""
    fleet.write(**runs)
    done = fleet.call()
    assert done.returncode == 1, f"{done.stdout}{done.stderr}"
    assert fleet.verdicts() == {"failed": 1}
    (outcome,) = fleet.outcomes()
    assert outcome["kind"] == "refused"
    assert outcome["reason"] in done.stdout
    return outcome["reason"]


def test_a_machine_that_is_not_as_asked_for_refuses(tmp_path):
    other = next(one.code for one in load_platforms() if one.code not in ("GENERIC", detect_platform(read_cpuinfo())))
    fleet = FleetFiles(tmp_path / "platform", platform=other)
    generic = fleet.directory / "Harness" / "cmake" / "GENERIC.cmake"
    shutil.copy(generic, generic.with_name(f"{other}.cmake"))
    assert f"and pool here is of {other}" in refuse(fleet)
    (tmp_path / "weights").write_text("other bytes")
    files = {str(tmp_path / "weights"): "0" * 64}
    assert "it has other bytes; stage it" in refuse(FleetFiles(tmp_path / "bytes"), files=files)
    assert "not on this machine" in refuse(FleetFiles(tmp_path / "none"), files={"nowhere": "0" * 64})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A fleet's folder with a batch in it that has run, and that batch."""
    fleet = FleetFiles(tmp_path_factory.mktemp("written"))
    done = fleet.call()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return fleet, fleet.read("batch.json")[0]


ODD = {
    "clock": ({"written_s": time.time() + 3600}, "behind the controller's (clock_skew_s is 5)"),
    "schema": ({"result_schema": SCHEMA + 1}, f"results here are of schema {SCHEMA}, needed {SCHEMA + 1}"),
    "sources": ({"sources": "0" * 64}, "bring both checkouts to the same commit"),
}


@pytest.mark.parametrize("change", ODD)
def test_a_batch_that_does_not_fit_this_machine_is_refused(written, tmp_path, change):
    fleet, batch = written
    changed, reason = ODD[change]
    folder = tmp_path / "folder"
    shutil.copytree(fleet.folder, folder, ignore=shutil.ignore_patterns("results", "batches"))
    done = call_node(batch | changed, folder, tmp_path)
    assert done.returncode == 0, done.stderr
    (outcome,) = [json.loads(path.read_text()) for path in folder.glob("results/*/*/outcome.json")]
    assert (outcome["verdict"], outcome["kind"]) == ("failed", "refused")
    assert reason in outcome["reason"]


def call_node(batch: dict, folder: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a batch as a launcher does."""
    file = directory / "batch.json"
    file.write_text(json.dumps(batch))
    command = [sys.executable, "-I", "-m", "cnnbench", "fleet-node", str(file), "--folder", str(folder)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60)


def test_a_folder_that_is_another_one_on_the_machine_is_refused(written, tmp_path):
    fleet, batch = written
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no fleet's folder on this machine" in call_node(batch, empty, tmp_path).stderr
    shutil.copy(fleet.folder / "fleet.json", empty)
    refused = call_node(batch | {"token": "0" * 32}, empty, tmp_path)
    assert refused.returncode == 2
    assert "is another folder on this machine than where the fleet was started" in refused.stderr
    newer = call_node(batch | {"schema_version": 2}, empty, tmp_path)
    assert newer.returncode == 2
    assert "not a batch that this version of cnnbench knows" in newer.stderr


BAD = {
    "launcher": ({"launcher": "slrum"}, {}, "launcher slrum: no such launcher"),
    "platform": ({"platform": "SPX"}, {}, "pool here: PLATFORM=SPX: must be one of"),
    "key": ({"machine": 2}, {}, "4: pools.0.machine: no such key; there are name, launcher, platform"),
    "run key": ({}, {"trails": 2}, "run.trails: no such key; there are workloads, cases"),
    "machines": ({"machines": 2}, {}, "launcher local has this machine alone; leave it out"),
    "options": ({"options": {"partition": "main"}}, {}, "pool here: options: partition: no such key"),
    "trials": ({}, {"trials": 0}, "run.trials=0: input should be greater than or equal to 1"),
    "digest": ({"images": {"a": "latest"}}, {}, "pools.0.images.a=latest: string should match pattern"),
    "parameter": ({}, {"parameters": {"BATCH_SIZES": 1}}, "BATCH_SIZES: no such parameter"),
    "value": ({}, {"parameters": {"BATCH_SIZE": 0}}, "BATCH_SIZE=0 (run.parameters): must be"),
    "set": ({}, {"sets": ["BATCH_SIZE=1 2 ...x"]}, "BATCH_SIZE"),
    "cases": ({}, {"cases": ["*_nothing_*"]}, "choose no case of ./Harness on GENERIC"),
    "workload": ({}, {"workloads": ["./Nothing"]}, "no workload.yaml there"),
    "no folder": ({"shared": False}, {}, "shared is false, so `folder` must name a directory"),
    "pinned": ({"backend": "container"}, {}, "declares no images in its workload.yaml"),
    "relative": ({"checkout": "here"}, {}, "pools.0.checkout=here: string should match pattern"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_refused_before_anything_is_touched(tmp_path, capsys, bad):
    pool, runs, said = BAD[bad]
    fleet = FleetFiles(tmp_path, **pool)
    fleet.write(**runs)
    assert main(["fleet", str(fleet.file)]) == 2
    assert said in capsys.readouterr().err
    assert not fleet.folder.exists()


def test_what_is_no_fleet_or_has_two_pools_of_a_name_is_refused(tmp_path, capsys):
    fleet = FleetFiles(tmp_path)

    def refused(*options: str) -> str:
        assert main(["fleet", str(fleet.file), *options]) == 2
        return capsys.readouterr().err

    assert "no fleet has been started there" in refused("--status")
    assert "no fleet has been started there" in refused("--cancel")
    fleet.content["pools"] *= 2
    fleet.write()
    assert "fleet.yaml:" in (said := refused())
    assert "pool here: there are two of that name" in said
    for text, expected in {
        "pools: [\n": "fleet.yaml: not yaml",
        "[]\n": "must be a yaml mapping with `pools:`",
    }.items():
        fleet.file.write_text(text)
        assert expected in refused()
    fleet.file.unlink()
    assert "no such file" in refused()
