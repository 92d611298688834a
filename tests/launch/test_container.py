"""The command of a container and who owns it: what needs no engine."""

import csv
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.launch.container import ContainerSpec, Owner, network_command, run_command, run_engine

SPEC = ContainerSpec(
    name="cnnbench-1",
    image="harness-dummy:latest",
    labels={"cnnbench.build": "/a b"},
    environment={"CUSTOMER_ENV": "A='1 2'"},
    cpus=frozenset({0, 1, 2, 8}),
    nodes=frozenset({0}),
    memory_bytes=1000,
    pids=5,
    mounts={"/mnt/model.pb": Path("/my models/x.pb")},
    devices=("/dev/sgx_enclave",),
    sys_nice=True,
    extra=("--cpus", "0.5"),
)


def pairs(command):
    return list(itertools.pairwise(command))


def test_a_container_gets_what_its_spec_says_and_nothing_else():
    command = run_command(["podman", "--remote"], SPEC)
    assert command[:4] == ["podman", "--remote", "run", "--interactive"]
    assert command[-3:] == ["--cpus", "0.5", "harness-dummy:latest"]  # the user's come last and so win
    for pair in [
        ("--name", "cnnbench-1"),
        ("--label", "cnnbench.build=/a b"),
        ("--env", "CUSTOMER_ENV=A='1 2'"),
        ("--cap-drop", "ALL"),
        ("--cap-add", "SYS_NICE"),
        ("--security-opt", "no-new-privileges"),
        ("--network", "none"),
        ("--cpuset-cpus", "0-2,8"),
        ("--cpuset-mems", "0"),
        ("--memory", "1000"),
        ("--memory-swap", "1000"),
        ("--pids-limit", "5"),
        ("--mount", "type=bind,source=/my models/x.pb,destination=/mnt/model.pb,readonly"),
        ("--device", "/dev/sgx_enclave"),
    ]:
        assert pair in pairs(command)
    assert "--read-only" in command
    assert not {"--privileged", "--volume", "--publish"} & set(command)


def test_what_is_not_planned_is_not_asked_for():
    command = run_command(["docker"], replace(SPEC, sys_nice=False, nodes=frozenset(), mounts={}, devices=(), extra=()))
    assert not {"--cap-add", "--cpuset-mems", "--mount", "--device"} & set(command)


def test_two_containers_of_a_run_have_processes_and_memory_in_common_and_a_network_of_their_own():
    first = replace(SPEC, network="cnnbench-1", is_shared=True)
    program = ("python", "-m", "cnnbench.launch.beside", "/dev/shm/x")
    commands = [
        run_command(["docker"], first),
        run_command(["docker"], replace(first, beside="cnnbench-1", program=program)),
    ]
    assert all(("--network", "cnnbench-1") in pairs(command) for command in commands)
    assert ("--ipc", "shareable") in pairs(commands[0])
    assert "--pid" not in commands[0]
    assert {("--ipc", "container:cnnbench-1"), ("--pid", "container:cnnbench-1")} <= set(pairs(commands[1]))
    assert "--shm-size" not in commands[1]
    assert ("--entrypoint", "python") in pairs(commands[1])
    assert commands[1][-4:] == ["harness-dummy:latest", *program[1:]]


def test_a_network_of_a_run_reaches_nothing_else_and_says_whose_it_is():
    command = network_command(["podman"], "cnnbench-1", SPEC.labels)
    assert command == ["podman", "network", "create", "--internal", "--label", "cnnbench.build=/a b", "cnnbench-1"]


def test_an_owner_is_gone_when_its_process_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = Owner.parse(Owner.of(process.pid).label)
        assert not owner.is_gone()
        process.kill()
    assert owner.is_gone()


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"began": "1"}, True),
        ({"boot": "00000000-0000-0000-0000-000000000000"}, True),
        ({"namespace": "1", "pid": 1 << 30}, False),
        ({"machine": "another", "pid": 1 << 30}, False),
    ],
    ids=["another-process-of-that-number", "before-this-boot", "another-namespace", "another-machine"],
)
def test_an_owner_is_gone_only_when_that_is_certain(change, gone):
    assert replace(Owner.of(os.getpid()), **change).is_gone() is gone


def test_a_comma_in_the_path_of_a_mount():
    command = run_command(["docker"], replace(SPEC, mounts={"/mnt/model.pb": Path("/a,b/m.pb")}))
    value = command[command.index("--mount") + 1]
    assert next(csv.reader([value])) == ["type=bind", "source=/a,b/m.pb", "destination=/mnt/model.pb", "readonly"]


@pytest.mark.parametrize(
    ("command", "timeout_s", "message"),
    [
        (["no-such-engine", "ps"], 5, "no-such-engine: not found; install it, or choose another with -DCONTAINER_CLI"),
        (["sh", "-c", "echo why >&2; exit 3"], 5, "failed: why"),
        (["sh", "-c", "exit 3"], 5, "failed: exit code 3"),
        (["sleep", "5"], 0.1, "`sleep 5` was not done within 0.1 s"),
    ],
)
def test_what_the_engine_complains_of(command, timeout_s, message):
    with pytest.raises(CnnbenchError) as caught:
        run_engine(command, timeout_s)
    assert message in str(caught.value)
