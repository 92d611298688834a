"""What a container of a run is given and what it cannot do, as the engine and a process inside it see it."""

import json

import pytest

from cnnbench.machine.topology import format_cpu_list, read_topology
from cnnbench.results.record import load_run
from cnnbench.worker.control import State
from container_engine import ask, tell
from null_workload import step_of

pytestmark = pytest.mark.container


@pytest.fixture
def running(workload):
    with workload.start("--steps=1000000", "--cores_per_instance=1", "--instances=1", step_of(5)) as controller:
        yield workload.wait_for_state(State.MEASURING)
        controller.terminate()
        controller.communicate()


def inside(container, command):
    """Run a shell command in a container."""
    return ask("exec", container, "sh", "-c", command)


def test_a_container_is_given_no_more_than_it_needs(running):
    account = json.loads(tell("inspect", running))[0]
    host = account["HostConfig"]
    assert {name.removeprefix("CAP_") for name in host["CapDrop"]} >= {"ALL"}
    assert [name.removeprefix("CAP_") for name in host["CapAdd"]] == ["SYS_NICE"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert "noexec" in host["Tmpfs"]["/tmp"]
    assert 0 < host["PidsLimit"] < 100_000
    assert 0 < host["Memory"] == host["MemorySwap"]
    core = read_topology().cores[0]
    assert host["CpusetCpus"] == format_cpu_list(core.cpus)
    assert not host["Binds"]
    assert not account["Mounts"]
    assert not host["Devices"]
    assert account["Config"]["User"] not in ("", "root", "0")

    assert inside(running, "id -u").stdout.strip() == "10001"
    status = dict(line.split(":\t", 1) for line in inside(running, "cat /proc/1/status").stdout.splitlines())
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapBnd"], 16) == 1 << 23  # SYS_NICE alone
    assert status["NoNewPrivs"] == "1"
    assert status["Cpus_allowed_list"] == format_cpu_list(core.cpus)

    assert inside(running, "cat /proc/net/dev").stdout.count(":") == 1  # the loopback
    connect = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    assert "Network is unreachable" in ask("exec", running, "python", "-c", connect).stderr
    for path in ("/opt/cnnbench/src/x", "/etc/x", "/var/tmp/x", "/x", "/opt/cnnbench/cache/x"):
        assert inside(running, f"touch {path}").returncode != 0, path
    for path in ("/tmp/x", "/dev/shm/x"):
        assert inside(running, f"touch {path}").returncode == 0, path
    assert inside(running, "cp /bin/true /tmp/true && /tmp/true").returncode != 0


def test_a_quota_marks_the_run_as_throttled(workload):
    """The null engine computes nothing, but without a step time it takes all that it can get of its cores."""
    spinning = (
        "--min_time=3",
        "--max_time=3",
        "--cores_per_instance=1",
        "--instances=1",
        "--batch_size=64",
        step_of(0),
    )
    done = workload.run(*spinning, DOCKER_OPTIONS="--cpus 0.3")
    assert done.returncode in (0, 3), done.stdout + done.stderr
    result = load_run(workload.logs())
    (throttling,) = [one for one in result.criteria if one.name == "throttling"]
    assert not throttling.passed
    assert "a CPU quota of 0.3 held work back" in throttling.found
    assert result.verdict != "valid"
