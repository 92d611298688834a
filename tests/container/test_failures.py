"""What goes wrong with a run in a container, each for real: a failed case that says why, and no container left."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

from cnnbench.results.differences import list_differences
from cnnbench.results.record import KILLED, load_run
from cnnbench.run.judging import judge_run
from cnnbench.worker.control import State
from container_engine import CLI, ContainerWorkload, find_containers, is_running, tell
from null_workload import PATIENCE_S, THROUGHPUT, clean_environment, run_kpi, step_of, wait_until

pytestmark = pytest.mark.container

ENDLESS = ("--steps=1000000", step_of(5))
BIG_BATCH = 1024  # 1024 x 224 x 224 x 3 x 4 B = 617 MB


def assert_invalid(workload, code, output, reason, started=True):
    """Check all that a user and the machine see of a run that failed; return its result."""
    assert code == 3, output
    (line,) = [line for line in output.splitlines() if line.startswith("#INVALID RESULT: ")]
    assert reason in line
    assert not any(line.startswith("*") for line in output.splitlines())
    assert "Traceback (most recent call last)" not in output
    assert workload.containers() == []
    logs = workload.logs()
    assert (logs / "status").read_text() == "3\n"
    kpi = run_kpi(logs)
    assert kpi.returncode == 3
    assert kpi.stdout.splitlines()[-1] == line
    assert not any(line.startswith("*") for line in kpi.stdout.splitlines())
    result = load_run(logs)
    assert not list_differences(result, judge_run(logs))
    assert not result.kpis
    assert not started or {path.name for path in logs.iterdir()} >= {"container.log", "container.json"}
    assert not (logs / "export.tar").exists()
    return result


def finish(workload, controller, reason, started=True):
    """Wait for the end of a disturbed run and check it."""
    output, _ = controller.communicate(timeout=PATIENCE_S)
    return assert_invalid(workload, controller.returncode, output, reason, started)


def step_times(workload):
    """Return where the raw times of a run's first instance are kept."""
    return workload.logs() / "instance-0" / "steps.npy"


def worker_in(name):
    """Return the process, as this machine numbers it, of the first instance in a container."""
    lines = [line.split(maxsplit=1) for line in tell("top", name, "-eo", "pid,args").splitlines()[1:]]
    return next(int(pid) for pid, command in lines if "cnnbench.worker" in command)


def test_a_run_that_is_not_done_in_time_keeps_what_it_has(workload):
    done = workload.run(*ENDLESS, "--timeout=6")
    assert_invalid(workload, done.returncode, done.stdout, "not done within TIMEOUT=6 s")
    assert step_times(workload).is_file()


def test_a_pull_that_is_not_done_in_time(images, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        registry = f"127.0.0.1:{server.getsockname()[1]}"
        workload = ContainerWorkload(images, tmp_path, "--registry", registry)
        began_s = time.monotonic()
        done = workload.run(*ENDLESS, "--pull-timeout=2")
    assert time.monotonic() - began_s < 15
    reason = f"pulling {registry}/harness-dummy:{images.release}: not done within PULL=2 s"
    assert_invalid(workload, done.returncode, done.stdout, reason, started=False)


def test_an_image_that_is_missing(images, tmp_path):
    workload = ContainerWorkload(images, tmp_path, "--release", "no-such")
    done = workload.run(*ENDLESS)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "cnnbench: harness-dummy:no-such: no such image; make it with `make`"
    )
    assert not workload.logs_root.exists()


def test_an_engine_that_does_not_answer(workload):
    done = workload.run(*ENDLESS, DOCKER_HOST="unix:///no/such.sock", CONTAINER_HOST="unix:///no/such.sock")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "unix:///no/such.sock" in done.stderr
    assert not workload.logs_root.exists()


@pytest.mark.parametrize("state", [None, State.MEASURING], ids=["loading", "measuring"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run(workload, number, state):
    with workload.start(*ENDLESS) as controller:
        if state is None:
            workload.wait_for_container()
        else:
            workload.wait_for_state(state)
        controller.send_signal(number)
        result = finish(workload, controller, KILLED if state else "", started=bool(state))
    assert "interrupted" in result.reason + result.facts.get("what was seen", "")
    if state:
        assert result.facts["what was seen"] == "the run was interrupted"
        assert step_times(workload).is_file()


def test_an_impatient_user(workload):
    with workload.start(*ENDLESS) as controller:
        workload.wait_for_state(State.MEASURING)
        for _ in range(3):
            controller.send_signal(signal.SIGINT)
            time.sleep(0.05)
        finish(workload, controller, KILLED)
    assert step_times(workload).is_file()


def test_a_killed_controller_takes_its_container_along(workload, images, tmp_path):
    with workload.start(*ENDLESS) as controller:
        name = workload.wait_for_state(State.MEASURING)
        controller.kill()
        controller.wait()
        wait_until(lambda: not is_running(name), "the end of the container")
    assert run_kpi(workload.logs()).returncode == 3
    assert judge_run(workload.logs()).reason.startswith("the run was cut off")
    assert workload.containers() == [name]
    other = ContainerWorkload(images, tmp_path / "other")
    assert other.run("--steps=5").returncode == 0
    assert workload.containers() == []


def test_a_killed_container(workload):
    with workload.start(*ENDLESS) as controller:
        tell("kill", workload.wait_for_state(State.MEASURING))
        finish(workload, controller, "the container was killed (SIGKILL) before its logs were out")


def test_a_killed_instance(workload):
    with workload.start(*ENDLESS) as controller:
        name = workload.wait_for_state(State.MEASURING)
        os.kill(worker_in(name), signal.SIGKILL)
        result = finish(workload, controller, KILLED)
    assert "killed by SIGKILL" in result.facts["what was seen"]
    assert step_times(workload).is_file()


def test_a_hanging_instance(workload):
    with workload.start(*ENDLESS, "--hang-after=2") as controller:
        name = workload.wait_for_state(State.MEASURING)
        os.kill(worker_in(name), signal.SIGSTOP)
        result = finish(workload, controller, KILLED)
    assert result.facts["what was seen"] == "instance 0 hung: no step for 2 s"


def test_a_container_that_runs_out_of_memory(workload):
    options = "--memory 150m --memory-swap 150m"
    done = workload.run(*ENDLESS, f"--batch_size={BIG_BATCH}", DOCKER_OPTIONS=options)
    result = assert_invalid(workload, done.returncode, done.stdout, "")
    assert "ran out" in " ".join([result.reason, *result.facts.values()])
    assert re.search(r"limit( was|,) 157\.3 MB", done.stdout)
    assert "# container memory limit: 157.3 MB" in done.stdout


def test_a_container_whose_tmpfs_is_full(workload):
    steps = ("--steps=20000", step_of(0))  # 480 kB of times
    done = workload.run(*steps, DOCKER_OPTIONS="--tmpfs /tmp:rw,size=64k,mode=1777")
    assert_invalid(workload, done.returncode, done.stdout, "writing in the container failed: ")
    assert "its /tmp has 0 B left" in done.stdout


@contextmanager
def small_disk(directory, size):
    """Mount a small tmpfs on a directory for the block."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a small disk needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("192k", "writing the logs to .* failed: No space left on device"),
        ("1100k", "unpacking the logs in .* failed: "),
    ],
    ids=["for-the-archive", "for-what-is-in-it"],
)
def test_a_disk_that_is_full_while_the_logs_come_out(images, tmp_path, size, reason):
    with small_disk(tmp_path / "disk", size):
        workload = ContainerWorkload(images, tmp_path / "disk")
        with workload.start("--steps=30000", "--customer_env=CNNBENCH_NULL_STEP_MS=0") as controller:
            workload.wait_for_container()
            result = finish(workload, controller, "failed: ")
            assert re.match(reason, result.reason)


def test_ctest_counts_a_killed_container_as_a_failed_case(build_directory):
    command = [build_directory / "ctest.sh", "-R", f"^{THROUGHPUT}$"]
    environment = clean_environment(STEPS="1000000", CUSTOMER_ENV="CNNBENCH_NULL_STEP_MS=5")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: [name for name in find_containers(build_directory) if is_running(name)], "a container")
        tell("kill", *find_containers(build_directory))
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 8
    assert "***Failed" in output
    assert "#INVALID RESULT: the container was killed (SIGKILL)" in output
    assert find_containers(build_directory) == []


def test_a_killed_ctest_takes_its_container_along(build_directory):
    command = [build_directory / "ctest.sh", "-R", f"^{THROUGHPUT}$"]
    environment = clean_environment(STEPS="1000000", CUSTOMER_ENV="CNNBENCH_NULL_STEP_MS=5")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **silent) as process:
        running = lambda: [name for name in find_containers(build_directory) if is_running(name)]  # noqa: E731
        wait_until(running, "a container")
        (name,) = running()
        wait_until(lambda: "cnnbench.worker" in tell("top", name, "-eo", "pid,args"), "an instance")
        process.kill()
    wait_until(lambda: find_containers(build_directory) == [], "the end of the container")
    (logs,) = build_directory.glob("logs-*/itr-1/worker-0")
    wait_until((logs / "status").exists, "the case's last word")
    assert run_kpi(logs).returncode == 3
    result = load_run(logs)
    assert "interrupted" in result.reason + result.facts.get("what was seen", "")


_REFUSING = """#!/bin/sh
case " $* " in
*" run "*" --cap-add SYS_NICE "*)
    shift 2
    {cli} create "$@" >/dev/null
    echo "Error response from daemon: OCI runtime create failed: unable to apply caps: operation not permitted" >&2
    exit 126 ;;
esac
exec {cli} "$@"
"""


def test_an_engine_that_refuses_the_capability(images, tmp_path):
    """Stands for an engine whose runtime starts no container with a capability that it has not itself."""
    cli = tmp_path / "engine"
    cli.write_text(_REFUSING.format(cli=shlex.join(CLI)))
    cli.chmod(0o755)
    workload = ContainerWorkload(images, tmp_path, "--container-cli", str(cli))
    done = workload.run("--steps=20", step_of(5))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# note: the engine refused the capability SYS_NICE, without which memory cannot be bound" in done.stdout
    assert "SYS_NICE" not in json.loads((workload.logs() / "container.json").read_text())["command"]
    assert workload.containers() == []
