"""Fleets by ssh: a real sshd on each of two hosts, whose links are cut and whose processes are killed."""

import os
import signal

import pytest
from ssh_hosts import SshHosts, find_obstacle

from fleet_files import STEP, FleetFiles, is_alive
from null_workload import find_workers, wait_until

SLOW = {"STEPS": 10, "INSTANCES": 1, "CUSTOMER_ENV": f"{STEP}=150"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    hosts = SshHosts(tmp_path_factory.mktemp("ssh"))
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


@pytest.fixture
def fleet(tmp_path, hosts):
    """A fleet of both hosts."""
    options = {"hosts": ["lab-a", "lab-b"], "config": str(hosts.config), "poll_s": 0.5, "connect_s": 2}
    fleet = FleetFiles(tmp_path, name="lab", launcher="ssh", options=options)
    fleet.write(repeats=0)
    return fleet


def test_every_run_ends_once_though_a_link_the_controller_and_a_machine_go_down(fleet, hosts):
    fleet.write(parameters=SLOW, trials=2)
    controller = fleet.start()
    wait_until(lambda: len(fleet.read("node.json")) == 2 and fleet.outcomes(), "both hosts and a run")
    hosts.cut("lab-a")
    controller.kill()
    controller.communicate()
    victim = next(one for one in fleet.read("node.json") if one["host"] == "lab-b")
    if is_alive(victim["pid"]):
        os.kill(victim["pid"], signal.SIGKILL)
    hosts.mend("lab-a")
    done = fleet.call()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    outcomes, runs = fleet.outcomes(), fleet.run_files()
    assert len({one["task"] for one in outcomes}) == len(outcomes) == len(runs) == 4
    assert {one["host"] for one in outcomes} == {"lab-a", "lab-b"}
    for run in runs:
        address = hosts.address(run["facts"]["host name"])
        assert run["facts"]["allocation"].startswith(f"ssh to {address}, process ")
    assert sorted(path.name for path in fleet.folder.glob("merged/lab-*")) == ["lab-a", "lab-b"]
    page = fleet.folder.joinpath("merged", "report.html").read_text()
    assert "How far machines of a pool, and runs of a machine, are apart" in page
    assert "Bars of 1 pool in" in page
    assert "Bars of 2 machines in" in page


def test_hosts_with_folders_of_their_own_have_their_runs_fetched(fleet, tmp_path):
    fleet.pool.update(shared=False, folder=str(tmp_path / "remote"))
    fleet.write()
    done = fleet.call()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert len(fleet.run_files()) == len(list((tmp_path / "remote").glob("results/*/*/outcome.json"))) == 2
    assert "2 of 2 runs done" in fleet.call("--status").stdout


def test_all_that_runs_on_hosts_is_cancelled_with_its_children(fleet):
    fleet.write(parameters=SLOW, trials=3)
    controller = fleet.start()
    wait_until(lambda: find_workers(fleet.folder), "a worker")
    controller.kill()
    controller.communicate()
    cancelled = fleet.call("--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "2 batches cancelled" in cancelled.stdout
    assert not find_workers(fleet.folder)
    assert not any(is_alive(one["pid"]) for one in fleet.read("node.json"))


def test_a_host_that_does_not_answer_for_long_is_told_in_sshs_words(fleet, hosts):
    fleet.pool["options"]["lost_after_s"] = 1
    fleet.write(parameters=SLOW | {"STEPS": 4000}, attempts=1)
    controller = fleet.start()
    wait_until(lambda: len(fleet.read("node.json")) == 2, "both hosts")
    pids = {one["host"]: one["pid"] for one in fleet.read("node.json")}
    os.kill(pids["lab-a"], signal.SIGTERM)
    hosts.cut("lab-b")
    try:
        said, _ = controller.communicate(timeout=300)
    finally:
        hosts.mend("lab-b")
        os.kill(pids["lab-b"], signal.SIGTERM)
    assert controller.returncode == 1, said
    reasons = [one["reason"] for one in fleet.outcomes()]
    assert any("no answer for 1 s: lab-b: " in reason for reason in reasons), reasons
    assert any("ended from outside" in reason for reason in reasons), reasons


BAD = {
    "twice": ({"options": {"hosts": ["lab-a", "lab-a"]}}, "lab-a is among its hosts twice"),
    "fewer": ({"machines": 3}, "machines is 3, and there are 2 hosts (lab-a, lab-b)"),
    "constraint": ({"constraint": "SPR"}, "constraint has no meaning for launcher ssh"),
    "none": ({"options": {"hosts": []}}, "hosts=[]: list should have at least 1 item"),
    "option": ({"options": {"hosts": ["-oProxyCommand=x"]}}, "hosts.0=-oProxyCommand=x: string should match"),
    "unknown": ({"options": {"hosts": ["nowhere.invalid"]}}, "Could not resolve hostname nowhere.invalid"),
    "folder": ({"folder": "/var/tmp/cnnbench-nowhere"}, "is not this fleet's folder there; mount the same one"),
    "checkout": ({"checkout": "/nowhere"}, "lab-a: lacks /nowhere/.venv/bin/python"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_run_as_it_is_declared_is_refused(fleet, bad):
    change, said = BAD[bad]
    options = fleet.pool["options"] | change.get("options", {})
    fleet.pool.update(change | {"options": options})
    fleet.write()
    refused = fleet.call()
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr
    assert not fleet.folder.exists() or not fleet.read("batch.json")


def test_a_host_whose_clock_is_off_is_refused(fleet, hosts):
    date = hosts.programs("lab-b") / "date"
    date.write_text("#!/bin/sh\necho 1000000000.0\n")
    date.chmod(0o755)
    try:
        refused = fleet.call()
    finally:
        date.unlink()
    assert refused.returncode == 2
    assert "pool lab: lab-b: its clock is" in refused.stderr
    assert "behind this machine's (clock_skew_s is 5)" in refused.stderr
