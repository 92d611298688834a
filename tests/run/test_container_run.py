"""The container that a case is planned to run in, and why one has not handed its logs over; no engine is asked."""

import shlex
import subprocess
import sys
import tarfile

import pytest

from cnnbench.launch.container import Container
from cnnbench.run.container import NEIGHBOUR, ContainerRun, _explain_end
from null_workload import CORES, ROOT, NullWorkload, clean_environment, step_of

SERVING = ROOT / "workload" / "CNN-Triton-Public"

ENDED = {"Status": "exited", "Running": False, "OOMKilled": False, "ExitCode": 1, "Error": "", "Memory": 2 * 10**9}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "the container ended with exit code 1 before its logs were out"),
        ({"ExitCode": 137}, "the container was killed (SIGKILL) before its logs were out"),
        ({"ExitCode": 143}, "the container was terminated (SIGTERM) before its logs were out"),
        ({"OOMKilled": True, "ExitCode": 137}, "the container ran out of memory: its limit was 2.0 GB"),
        ({"Running": True}, "the container runs, but hands no logs over"),
    ],
)
def test_an_end_without_logs(change, reason):
    assert _explain_end(ENDED | change, "", []) == reason
    assert _explain_end(ENDED | change, "", ["one", "two"]) == f"{reason}; the last it printed: two"


def test_a_container_that_never_started():
    created = ENDED | {"Status": "created", "Error": "no such device"}
    assert _explain_end(created, "", []) == "the engine could not start the container: no such device"
    assert _explain_end(created | {"Error": ""}, "", ["why", "not"]).endswith("the container: why; not")


def test_an_engine_that_has_gone_away():
    reason = _explain_end({}, "`docker inspect x` failed: Cannot connect", ["one"])
    assert reason == (
        "the container engine gave no account of the container: `docker inspect x` failed: Cannot connect; "
        "the last it printed: one"
    )


@pytest.fixture
def workload(tmp_path):
    workload = NullWorkload(tmp_path)
    with (workload.directory / "workload.yaml").open("a") as settings:
        settings.write("images: {parts: harness, inference: harness}\n")
    return workload


def dry_run(workload, *arguments, **environment):
    options = ("--backend", "docker", "--container-cli", "no-such-engine", "--dry-run")
    return workload.run(*options, *arguments, **environment)


def planned_command(done):
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1])


def test_a_dry_run_needs_no_engine(workload, tmp_path):
    (tmp_path / "my graph.pb").touch()
    done = dry_run(
        workload,
        *("--docker-options=--hostname a", "--registry", "host:5000", "--release", "v1"),
        *("--cores_per_instance=1", "--instances=1", f"--model={tmp_path}/my graph.pb", step_of(5)),
        DOCKER_OPTIONS="--hostname 'b c'",
        PLATFORM="GENERIC",
    )
    command = planned_command(done)
    assert command[:2] == ["no-such-engine", "run"]
    assert command[-5:] == ["--hostname", "a", "--hostname", "b c", "host:5000/harness-dummy:v1"]
    assert f"type=bind,source={tmp_path}/my graph.pb,destination=/mnt/model.pb,readonly" in command
    assert {"MODEL=/mnt/model.pb", "PLATFORM=GENERIC", "CNNBENCH_ATTENDED=1", "CORES_PER_INSTANCE=1"} <= set(command)
    assert int(command[command.index("--pids-limit") + 1]) > 1000
    assert not workload.logs_root.exists()


@pytest.mark.skipif(CORES < 2, reason="one physical core: none is left for a client")
def test_a_server_has_a_container_beside_the_clients_on_a_network_of_the_run(tmp_path):
    options = ("--backend", "docker", "--container-cli", "no-such-engine", "--logs-root", tmp_path, "--dry-run")
    case = "test_cnn_triton_public_serving_latency_avx_fp32_resnet18"
    command = [sys.executable, "-m", "cnnbench", "case", *options, "--workload", SERVING, "--case", case]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    network, clients, server = (shlex.split(line) for line in done.stdout.splitlines()[-3:])
    name = clients[clients.index("--name") + 1]
    assert network[1:4] == ["network", "create", "--internal"]
    assert network[-1] == f"{name}-network"
    assert [one[one.index("--network") + 1] for one in (clients, server)] == [network[-1]] * 2
    assert {f"CNNBENCH_NEIGHBOUR={NEIGHBOUR}", "TMPDIR=/dev/shm"} <= set(clients)
    assert server[server.index("--pid") + 1] == f"container:{name}"
    assert server[-2:] == ["cnnbench.launch.beside", NEIGHBOUR]
    assert not [word for word in server if word.startswith("CNNBENCH_")]
    for option in ("--memory", "--cpuset-cpus", "--label"):
        assert clients[clients.index(option) + 1] == server[server.index(option) + 1]


@pytest.mark.skipif(CORES < 2, reason="one physical core: a container always has it")
def test_a_container_has_the_cpus_of_its_plan_alone(workload):
    one = planned_command(dry_run(workload, "--cores_per_instance=1", "--instances=1"))
    whole = planned_command(dry_run(workload))
    cpus = [words[words.index("--cpuset-cpus") + 1] for words in (one, whole)]
    assert cpus[0] != cpus[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--docker-options=--hostname 'a"], 2, "--docker-options --hostname 'a: No closing quotation"),
        (["--release", "a b"], 2, "RELEASE=a b: must be a tag"),
        (["--pull-timeout", "0"], 2, "--pull-timeout 0: must be more than 0"),
        (["--mpi"], 2, "MPI=True: nothing is launched through MPI in a container; choose BACKEND=native"),
    ],
)
def test_a_bad_option_is_refused(workload, arguments, code, message):
    done = dry_run(workload, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_is_not_there(workload):
    done = workload.run("--backend", "docker", "--container-cli", "no-such-engine")
    assert done.returncode == 1
    assert "cnnbench: no-such-engine: not found; install it" in done.stderr
    assert not workload.logs_root.exists()


def test_an_archive_that_is_cut_off_stays_to_be_looked_at(tmp_path):
    whole, cut, logs = tmp_path / "whole.tar", tmp_path / "cut.tar", tmp_path / "logs"
    logs.mkdir()
    (file := tmp_path / "file").write_bytes(bytes(4000))
    with tarfile.open(whole, "w") as archive:
        archive.add(file, "first")
        archive.add(file, "second")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    ended = ENDED | {"ExitCode": 137}
    container = Container(["docker"], "name", logs / "container.log")
    assert "was killed (SIGKILL)" in ContainerRun._unpack(cut, logs, ended, "", container)
    assert cut.is_file()
    assert ContainerRun._unpack(whole, logs, ended, "", container) == ""
    assert not whole.exists()
    assert (logs / "second").read_bytes() == file.read_bytes()
