"""What happens to a run whose processes are killed, hang, crash or are interrupted: no valid KPI and no orphan."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cmake_build import find_tool, run_cmake
from cnnbench.launch.local import KilledError, WorkerLaunch, run_tracer
from cnnbench.results.record import load_run
from cnnbench.worker.control import ControlBlock, State
from null_workload import (
    CORES,
    PATIENCE_S,
    ROOT,
    SLUG,
    THROUGHPUT,
    NullWorkload,
    clean_environment,
    find_workers,
    process_files,
    run_kpi,
    step_of,
    wait_until,
    write_checkout,
)

INVALID = "#INVALID RESULT: Some instances were killed during execution! See README.md for more."
INSTANCES = min(CORES, 2)
if INSTANCES < 2:
    warnings.warn("one physical core: the killed instance is the only one of its run", stacklevel=1)

ENDLESS = ("--steps=1000000", "--cores_per_instance=1", f"--instances={INSTANCES}")


@pytest.fixture
def workload(tmp_path):
    return NullWorkload(tmp_path)


def seen(workload):
    return load_run(workload.logs()).facts["what was seen"]


def assert_gone(workload, shared):
    assert not find_workers(workload.logs_root)
    assert not shared.exists()


def assert_invalid(workload, controller, invalid=INVALID):
    """Wait for the end of a disturbed run and check all that its user and its machine see of it; return its output."""
    shared = workload.shared()
    output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3, output
    assert invalid in output.splitlines()
    assert not any(line.startswith("*") for line in output.splitlines())
    assert "Traceback (most recent call last)" not in output
    assert (workload.logs() / "status").read_text() == "3\n"
    kpi = run_kpi(workload.logs())
    assert kpi.returncode == 3
    assert kpi.stdout.splitlines()[-1] == invalid
    assert not any(line.startswith("*") for line in kpi.stdout.splitlines())
    assert not load_run(workload.logs()).kpis
    assert_gone(workload, shared)
    return output


def kill_one_mid_run(directory, seed):
    chance = random.Random(seed)
    workload = NullWorkload(directory)
    with workload.start(*ENDLESS, step_of(5)) as controller:
        workload.wait_for_state(State.MEASURING, *range(INSTANCES))
        time.sleep(chance.uniform(0, 0.5))
        victim = chance.choice(workload.wait_for_workers(INSTANCES))
        os.kill(victim, signal.SIGKILL)
        assert_invalid(workload, controller)
    assert f"process {victim} was killed by SIGKILL" in seen(workload)
    for index in range(INSTANCES):  # what was measured until then is kept
        assert np.load(workload.logs() / f"instance-{index}" / "steps.npy").shape[1] == 3


def test_one_instance_killed_at_random_moments(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: kill_one_mid_run(tmp_path / str(seed), seed), range(8)))


def test_an_instance_killed_while_loading(workload):
    with workload.start(*ENDLESS, step_of(5)) as controller:
        os.kill(workload.wait_for_workers(INSTANCES)[0], signal.SIGKILL)
        assert_invalid(workload, controller)
    assert "killed by SIGKILL" in seen(workload)


@pytest.mark.skipif(CORES < 2, reason="nobody waits at the barrier for one instance")
def test_an_instance_killed_at_the_barrier_while_another_is_stopped(workload):
    with workload.start(*ENDLESS, "--warmup_steps=30", step_of(10)) as controller:
        waiting, late = workload.wait_for_workers(2)
        os.kill(late, signal.SIGSTOP)
        workload.wait_for_state(State.READY, 0)
        os.kill(waiting, signal.SIGKILL)
        assert_invalid(workload, controller)
    assert f"process {waiting} was killed by SIGKILL" in seen(workload)


@pytest.mark.parametrize("state", [State.LOADING, State.MEASURING], ids=lambda state: state.name.lower())
def test_an_instance_that_hangs(workload, state):
    with workload.start(*ENDLESS, "--hang-after=2", step_of(5)) as controller:
        victim = workload.wait_for_workers(INSTANCES)[-1]
        workload.wait_for_state(state, *range(INSTANCES))
        os.kill(victim, signal.SIGSTOP)
        assert_invalid(workload, controller)
    assert re.fullmatch(r"instance \d hung: no step for 2 s", seen(workload))


def test_an_instance_that_crashes_while_loading(workload):
    with workload.start(*ENDLESS, "--customer_env=CNNBENCH_NULL_STEP_MS=abc") as controller:
        wait_until((workload.logs() / "process-0" / "output.log").exists, "the first worker")
        output = assert_invalid(workload, controller)
    assert "# what was seen: process" in output
    assert "ended with exit code 1" in output
    assert "ValueError: could not convert string to float: 'abc'" in output


@pytest.mark.parametrize(
    ("state", "signals"),
    [
        (State.LOADING, [signal.SIGTERM]),
        (State.MEASURING, [signal.SIGINT]),
        (State.MEASURING, [signal.SIGINT, signal.SIGINT, signal.SIGTERM]),
    ],
    ids=["terminate-loading", "ctrl-c-measuring", "impatient-measuring"],
)
def test_an_interrupted_run(workload, signals, state):
    with workload.start(*ENDLESS, step_of(5)) as controller:
        workload.wait_for_workers(INSTANCES)
        workload.wait_for_state(state, *range(INSTANCES))
        for number in signals:
            controller.send_signal(number)
            time.sleep(0.01)
        assert_invalid(workload, controller)
    assert seen(workload) == "the run was interrupted"


def test_a_run_that_is_not_done_in_time_keeps_what_it_has(workload):
    with workload.start(*ENDLESS, "--timeout=4", step_of(5)) as controller:
        workload.wait_for_state(State.MEASURING, *range(INSTANCES))
        assert_invalid(workload, controller, "#INVALID RESULT: not done within TIMEOUT=4 s")
    for index in range(INSTANCES):
        assert len(np.load(workload.logs() / f"instance-{index}" / "steps.npy")) > 10


def test_a_run_whose_time_is_up_while_instances_load(workload):
    done = workload.run(*ENDLESS, "--timeout=0.3", step_of(5))
    assert done.returncode == 3, done.stderr
    assert "#INVALID RESULT: not done within TIMEOUT=0.3 s" in done.stdout.splitlines()
    assert_gone(workload, workload.shared())


def test_a_run_whose_time_is_up_while_staging(workload, tmp_path):
    """A server that never answers stands for whatever staging waits for; what was begun goes no further."""
    workload.directory = ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public"
    case, cache = "test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_avx_fp32", tmp_path / "cache"
    with socket.create_server(("127.0.0.1", 0)) as server:
        index = f"http://127.0.0.1:{server.getsockname()[1]}/"
        done = workload.run("--timeout=2", case=case, CNNBENCH_CACHE=str(cache), PIP_INDEX_URL=index)
    reason = "#INVALID RESULT: not done within TIMEOUT=2 s"
    assert done.returncode == 3, done.stderr
    assert reason in done.stdout.splitlines()
    assert load_run(workload.logs(case=case)).facts["what was seen"] == "the time was up while staging"
    assert run_kpi(workload.logs(case=case)).stdout.splitlines()[-1] == reason
    wait_until(lambda: not [line for line in process_files("cmdline").values() if bytes(cache) in line], "uv's end")
    assert [path for path in (cache / "environments").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("state", [None, State.MEASURING])
def test_a_killed_controller_leaves_no_orphan(workload, state):
    """Whenever it dies: a worker still importing cannot have asked the kernel yet to be killed with it."""
    with workload.start(*ENDLESS, step_of(5)) as controller:
        if state is None:
            workload.wait_for_workers(INSTANCES)
        else:
            workload.wait_for_state(state, *range(INSTANCES))
        controller.kill()
        controller.wait()
        wait_until(lambda: not find_workers(workload.logs_root), "the end of all workers")
    shutil.rmtree(workload.shared())  # the one thing that a killed controller cannot clear away
    kpi = run_kpi(workload.logs())
    assert kpi.returncode == 3
    assert kpi.stdout.startswith("#INVALID RESULT: ")


def make_tracer(tmp_path, code):
    return WorkerLaunch([sys.executable, "-c", code], dict(os.environ), tmp_path / "trace.log", ())


def test_a_tracing_process_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(KilledError) as caught:
        run_tracer(make_tracer(tmp_path, "import sys; sys.exit('no primitive')"), hang_s=PATIENCE_S)
    assert "the tracing process" in caught.value.detail
    assert "ended with exit code 1; last in" in caught.value.detail
    assert "no primitive" in caught.value.detail


def test_a_tracing_process_that_hangs(tmp_path):
    with pytest.raises(KilledError) as caught:
        run_tracer(make_tracer(tmp_path, f"import time; time.sleep({PATIENCE_S})"), hang_s=0.2)
    assert "the tracing process" in caught.value.detail
    assert "hung" in caught.value.detail


def test_a_slow_tracing_process_that_makes_headway_is_let_go_on(tmp_path):
    steps = "import time\nfor step in range(8):\n    time.sleep(0.5)\n    print(step, flush=True)"
    run_tracer(make_tracer(tmp_path, steps), hang_s=3)
    assert (tmp_path / "trace.log").read_text().split() == [str(step) for step in range(8)]


@pytest.fixture
def configure(tmp_path):
    """Make a build directory of a checkout whose one workload has the null engine."""
    checkout = write_checkout(tmp_path / "checkout", "GENERIC")

    def run(*options):
        done = run_cmake(tmp_path / "build", Path(sys.executable), "-DPLATFORM=GENERIC", *options, source=checkout)
        assert done.returncode == 0, done.stderr
        return tmp_path / "build"

    return run


SETTING = {"STEPS": "1000000", "CORES_PER_INSTANCE": "1", "CUSTOMER_ENV": "CNNBENCH_NULL_STEP_MS=5"}


def run_ctest(build):
    command = [find_tool("ctest"), "--output-on-failure", "-R", f"test_{SLUG}_inference_throughput_avx_fp32"]
    environment = clean_environment(**SETTING)
    return subprocess.Popen(command, cwd=build, env=environment, stdout=subprocess.PIPE, text=True)


def test_ctest_counts_a_killed_instance_as_a_failed_case(configure):
    build = configure()
    with run_ctest(build) as process:
        wait_until(lambda: find_workers(build), "a worker")
        os.kill(find_workers(build)[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 8
    assert "***Failed" in output
    assert INVALID in output
    assert not find_workers(build)


def find_parents():
    """Return the parent of every process that still runs, which a zombie does not."""
    stats = {pid: stat.decode().rpartition(")")[2].split() for pid, stat in process_files("stat").items()}
    return {pid: int(parent) for pid, (state, parent, *_) in stats.items() if state != "Z"}


def find_children(parent):
    return [pid for pid, its_parent in find_parents().items() if its_parent == parent]


@pytest.mark.parametrize("victim", ["plain ctest", "ctest of ctest.sh", "ctest.sh"])
def test_a_killed_ctest_takes_its_case_along(configure, victim):
    """By SIGKILL, which it cannot answer: the case ends in order, with its record, and ctest with its wrapper."""
    build = configure()
    directory = build / "workload" / "Harness"
    (ctest,) = re.findall("CMAKE_CTEST_COMMAND:INTERNAL=(.+)", (build / "CMakeCache.txt").read_text())
    command = [ctest if victim == "plain ctest" else directory / "ctest.sh", "-R", f"{THROUGHPUT}$"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=directory, env=clean_environment(**SETTING), **silent) as process:
        wait_until(lambda: [*directory.glob("logs-*/itr-1/worker-0/process-0/output.log")], "a worker")
        (logs,) = directory.glob("logs-*/itr-1/worker-0")
        shared = Path(json.loads((logs / "process-0" / "spec.json").read_text())["shared"])
        wait_until(lambda: ControlBlock(shared).state(0) >= State.MEASURING, "the first step")
        (child,) = find_children(process.pid)
        left = {process.pid, child, *find_children(child), *find_workers(build)}
        os.kill(child if victim == "ctest of ctest.sh" else process.pid, signal.SIGKILL)
        process.wait(timeout=PATIENCE_S)
        try:
            wait_until(lambda: not find_parents().keys() & left, "the end of all its processes")
        finally:
            for pid in find_parents().keys() & left:
                os.kill(pid, signal.SIGKILL)
    assert load_run(logs).facts["what was seen"] == "the run was interrupted"
    assert (logs / "status").read_text() == "3\n"
    assert not shared.exists()


def test_a_case_ends_itself_before_ctest_does(configure):
    build = configure("-DTIMEOUT=3")
    with run_ctest(build) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 8
    assert "***Failed" in output
    assert "***Timeout" not in output
    assert "#INVALID RESULT: not done within TIMEOUT=3 s" in output
    assert not find_workers(build)
