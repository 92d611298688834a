"""A network behind a real Triton Server, asked by real clients; and what ends such a run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cnnbench.results.differences import list_differences
from cnnbench.results.record import load_run
from cnnbench.results.stats import PERCENTILE_FLOORS
from cnnbench.run.judging import judge_run
from cnnbench.serving.programs import find_installation
from cnnbench.serving.server import LOOPBACK, PREFIX, START_S, Ports
from following import follow
from null_workload import CORES, PATIENCE_S, clean_environment, process_files, run_kpi, wait_until
from triton_server import NETWORK, OBSTACLE, WORKLOAD, assert_nothing_left

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
    pytest.mark.usefixtures("pytorch_python"),
]

QUICK = ("--engine=onnxruntime", "--instances=1", "--warmup_steps=1", "--min_time=4", "--max_time=6")
ENDLESS = ("--engine=onnxruntime", "--instances=1", "--warmup_steps=1", "--min_time=600", "--max_time=600")


def case_command(logs_root, mode, *arguments):
    case = f"test_cnn_triton_public_serving_{mode}_avx_fp32_{NETWORK}"
    return [
        *(sys.executable, "-m", "cnnbench", "case", "--workload", str(WORKLOAD), "--case", case),
        *("--logs-root", str(logs_root), *arguments),
    ]


def logs_of(logs_root):
    (logs,) = logs_root.glob("logs-*/itr-1/worker-0")
    return logs


@pytest.fixture
def run_case(engine_cache, tmp_path):
    """Run a case to its end; return what it printed and its logs."""

    def run(mode, *arguments, code=0):
        done = subprocess.run(
            case_command(tmp_path, mode, *arguments),
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def closed(engine_cache, tmp_path_factory):
    """A run in which each client waits for its answer; its logs."""
    root = tmp_path_factory.mktemp("closed")
    command = case_command(root, "throughput", *QUICK, "--concurrency=8", f"--model_repository={root}/models")
    done, told = follow(command, root, clean_environment(CNNBENCH_CACHE=str(engine_cache)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(status.now.clients for status in told if status.now.throughput)
    assert any(len(status.now.instances) == 8 and status.now.phase.at_most_s for status in told)
    return logs_of(root)


def figures(logs):
    return {kpi.key: kpi.value for kpi in load_run(logs).kpis}


def test_what_is_served_is_measured_proven_and_checked(closed):
    run, found = load_run(closed), figures(closed)
    passed = {one.name for one in run.criteria if one.passed}
    assert {"instances", "pinning", "client", "requests", "precision", "outputs"} <= passed
    assert found["Requests"] == pytest.approx(found["Throughput"])
    assert found["ISA share"] > 95
    assert found["Outputs top-1 agreement"] == 100
    assert 1 <= found["Executed batch"] <= 8
    assert 0 < found["Client load"] < 80
    stages = sum(found[f"{one} time"] for one in ("Queue", "Input", "Compute", "Output"))
    assert 0 < stages < found["Latency mean"]
    assert found["Server memory"] > 10
    assert "Server memory growth" in found
    answered = sum(len(np.load(one)) for one in (closed / "client").glob("instance-*/steps.npy"))
    # A p99 of each third of those within the window is needed for it.
    assert answered < 4 * PERCENTILE_FLOORS[99] or "Latency p99 drift" in found
    assert run.facts["Triton Server"]
    assert run.facts["tritonclient"]
    assert run.facts["ONNX Runtime"]
    assert run.facts["CPUs used"] != run.facts["client's CPUs"]
    assert run_kpi(closed, WORKLOAD / "kpi.sh").returncode == 0
    assert not list_differences(run, judge_run(closed))


def test_the_servers_own_count_agrees_with_the_clients(closed):
    looks = [json.loads(line) for line in (closed / "seen.jsonl").read_text().splitlines()]
    first, last = (one for one in looks if one["event"] == "look")
    counted = last["served"]["requests"] - first["served"]["requests"]
    rows = np.concatenate([np.load(closed / "client" / f"instance-{index}" / "steps.npy") for index in range(8)])
    assert 0 < counted <= len(rows) + 16  # those under way at either look
    assert last["served"]["images"] - first["served"]["images"] == counted
    sizes = {int(size): count for size, count in last["served"]["batches"].items()}
    assert sum(size * count for size, count in sizes.items()) == last["served"]["images"]


def test_accuracy_through_a_server_is_what_loadgen_counts_too(run_case, tmp_path):
    run_case("accuracy", "--engine=onnxruntime", "--instances=1", "--scenario=Offline")
    run, found = load_run(logs_of(tmp_path)), figures(logs_of(tmp_path))
    assert found["LoadGen top-1"] == pytest.approx(found["Accuracy top-1"])
    assert found["Accuracy top-1"] > 10
    assert {"coverage", "measured outputs", "LoadGen", "requests"} <= {one.name for one in run.criteria if one.passed}
    assert "Requests" not in found  # its times are no figures


def test_the_repository_is_kept_where_that_is_asked_for(closed):
    name = NETWORK.replace("_", "-")
    config = (closed.parents[2] / "models" / name / "config.pbtxt").read_text()
    assert "max_batch_size: 8" in config
    assert "count: 1 }" in config


def lay_out_installation(root, cache):
    """Make what a user's own installation looks like, of the wheel's files; return its program."""
    wheel = find_installation("", cache)
    program, backend = root / "bin" / "tritonserver", root / "backends" / "python"
    for path, target in (
        (program, wheel.program),
        (backend / "libtriton_python.so", wheel.backends / "libtriton_python.so"),
        (backend / "triton_python_backend_utils.py", wheel.backends / "triton_python_backend_utils.py"),
        (backend / "triton_python_backend_stub", wheel.stub),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    return program


def test_a_users_own_installation_serves(run_case, engine_cache, tmp_path):
    program = lay_out_installation(tmp_path / "tritonserver", engine_cache)
    run_case("throughput", *QUICK, f"--triton_server={program}")
    run = load_run(logs_of(tmp_path))
    assert run.effective["TRITON_SERVER"] == str(program)
    assert {"instances", "client", "requests", "precision", "outputs"} <= {
        one.name for one in run.criteria if one.passed
    }


@pytest.mark.parametrize(
    "options", [("--protocol=http",), ("--shared_memory",), ("--scenario=Offline", "--user_conf=")]
)
def test_other_ways_to_the_server(run_case, tmp_path, options):
    (config := tmp_path / "user.conf").write_text("*.Offline.min_duration = 3000\n*.Offline.min_query_count = 1\n")
    options = [f"{one}{config}" if one == "--user_conf=" else one for one in options]
    done = subprocess.run(
        case_command(tmp_path, "throughput", *QUICK, "--concurrency=4", *options),
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    run = load_run(logs_of(tmp_path))
    if any("Offline" in one for one in options):
        assert run.facts["LoadGen"].startswith("Offline, ")
        if done.returncode == 3:  # LoadGen alone: its query was shorter than asked for, on a busy machine
            assert [one.name for one in run.failures if one.severity == "invalid"] == ["LoadGen"]
            return
        assert 0.1 < figures(logs_of(tmp_path))["LoadGen samples"] / figures(logs_of(tmp_path))["Throughput"] < 10
    assert done.returncode == 0, done.stdout + done.stderr
    assert {one.name: one.passed for one in run.criteria}["outputs"]
    assert figures(logs_of(tmp_path))["Requests"] > 0


def test_requests_at_moments_of_their_own_are_timed_from_when_they_were_due(run_case, tmp_path):
    done = subprocess.run(  # on a busy machine some are sent late, which makes it invalid
        case_command(tmp_path, "latency", *QUICK, "--request_rate=100"),
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    logs = logs_of(tmp_path)
    rows = np.load(logs / "client" / "instance-0" / "steps.npy")
    due = np.sort(rows[:, 0])
    gaps = np.diff(due) / 1e9
    assert gaps.mean() == pytest.approx(0.01, rel=0.3)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.3)  # as an exponential distribution has it
    assert (rows[:, 0] <= rows[:, 1]).all()
    found = {one.name: one for one in load_run(logs).criteria}
    assert re.match(r"\d+ of \d+ requests were not answered", found["keeping up"].found)
    assert "late" in found["client"].found
    assert "spread" not in found


def test_the_highest_rate_within_a_bound_is_found_and_confirmed(tmp_path):
    done = subprocess.run(
        case_command(tmp_path, "capacity", *QUICK, "--latency_bound_ms=200"),
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    run = load_run(logs_of(tmp_path))
    tried = [json.loads(line) for line in (logs_of(tmp_path) / "seen.jsonl").read_text().splitlines()]
    if not (
        capacity := [one for one in tried if one["event"] == "capacity"]
    ):  # the machine was too busy to send in time
        assert "were sent late, 3 times in turn" in run.reason
        return
    assert run.facts["99 % of latency, by rate"].count("/s ") == len(capacity[-1]["trials"])
    assert "latency bound" in {one.name for one in run.criteria}
    if done.returncode == 0:
        (primary,) = (kpi for kpi in run.kpis if kpi.primary)
        assert (primary.key, primary.value) == ("Capacity", pytest.approx(capacity[-1]["rate_per_s"], rel=0.2))


@contextmanager
def endless(tmp_path, *arguments):
    """A run under way, with the processes of its server by their roles."""
    command = case_command(tmp_path, "throughput", *ENDLESS, *arguments)
    environment = clean_environment()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as one:
        try:
            wait_until(lambda: list(tmp_path.glob("logs-*/itr-1/worker-0/seen.jsonl")), "measuring")
            yield one, find_processes(one.pid)
        finally:
            one.kill()


def find_processes(controller):
    """Return the processes of a run by what they are."""
    found = {}
    marked = f"{PREFIX}-{controller}-"
    for pid, words in process_files("cmdline").items():
        text = words.decode(errors="replace")
        if marked in text:
            found["model" if "python_backend_stub" in text else "server"] = pid
        elif "/client/process-0/spec.json" in text and parent_of(pid) == controller:
            found["client"] = pid
    return found


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("server", "Triton Server has ended: killed by SIGKILL"),
        ("model", "(a request was not answered: .*not healthy|process [0-9]+ of the served model has ended)"),
        ("client", "Some instances were killed during execution! See README.md for more."),
    ],
)
def test_a_process_that_is_killed_makes_the_run_invalid_and_nothing_is_left(tmp_path, role, reason):
    with endless(tmp_path) as (controller, processes):
        os.kill(processes[role], signal.SIGKILL)
        output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3, output
    assert re.search(rf"^#INVALID RESULT: {reason}", output, re.MULTILINE), output
    assert_nothing_left(controller.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_controller(tmp_path, number):
    with endless(tmp_path) as (controller, processes):
        assert set(processes) == {"server", "model", "client"}
        controller.send_signal(number)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == (3 if number == signal.SIGTERM else -signal.SIGKILL)
    assert_nothing_left(controller.pid)


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        (
            "throughput",
            ("--batch_size=4", "--max_batch_size=2"),
            "MAX_BATCH_SIZE=2: requests are of BATCH_SIZE=4 images",
        ),
        ("throughput", ("--request_rate=5", "--concurrency=2"), "REQUEST_RATE=5: decides when requests are sent"),
        ("capacity", ("--request_rate=5",), "REQUEST_RATE=5: a case of capacity finds what it takes"),
        ("capacity", ("--concurrency=5",), "CONCURRENCY=5: a case of capacity finds what it takes"),
        ("capacity", ("--engine=auto",), "ENGINE=auto: trials of 5 s cannot tell"),
        ("latency", ("--scenario=MultiStream", "--max_batch_size=4"), "SCENARIO=MultiStream: needs MAX_BATCH_SIZE=8"),
        ("latency", ("--target_qps=4",), "USER_CONF, TARGET_QPS, AUDIT: are LoadGen's"),
        ("throughput", ("--data_type=real",), "DATA_TYPE=real: a client sends images that are decoded already"),
        (
            "latency",
            ("--request_rate=5", "--shared_memory", "--data_type=generated"),
            "SHARED_MEMORY=True: images that are read until",
        ),
        ("latency", ("--request_rate=5", "--protocol=http"), "PROTOCOL=http: has one request under way"),
        ("throughput", ("--preferred_batch_size=4 9",), "PREFERRED_BATCH_SIZE=4 9: 9 must be 1 to 8 images"),
        ("throughput", ("--preferred_batch_size=x",), "PREFERRED_BATCH_SIZE=x: x must be 1 to 8 images"),
        ("throughput", ("--scenario=Offline", "--request_rate=5"), "SCENARIO=Offline: LoadGen decides when requests"),
        ("throughput", ("--scenario=Offline", "--perf_analyzer"), "PERF_ANALYZER=True: sends as our clients do"),
        ("capacity", ("--perf_analyzer",), "PERF_ANALYZER=True: not with a case of capacity"),
        ("throughput", ("--triton_server=/no/such",), "TRITON_SERVER=/no/such: no program"),
        ("throughput", ("--mpi",), "MPI: no such parameter of this workload"),
        ("training", (), "not a test case of this workload, which are named test_cnn_triton_public_[sgx_]FUNCTION_"),
        ("accuracy", ("--request_rate=5",), "REQUEST_RATE=5: accuracy has every image answered"),
    ],
)
def test_what_contradicts_itself_is_refused(run_case, mode, options, reason):
    done = run_case(mode, *options, code=2)
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_tells_the_clients_and_what_has_no_effect(run_case):
    done = run_case(
        "throughput",
        "--engine=onnxruntime",
        "--dynamic_batching=False",
        "--max_batch_size=4",
        "--dry-run",
        "--perf_analyzer",
    )
    assert re.search(r"^clients: \d+, CPUs \d", done.stdout, re.MULTILINE)
    assert re.search("^would start: Triton Server, .* and a client, then perf_analyzer$", done.stdout, re.MULTILINE)
    assert "note: MAX_BATCH_SIZE=4 has no effect with DYNAMIC_BATCHING=False" in done.stdout


def test_a_client_needs_cores_that_the_server_does_without(run_case):
    done = run_case("throughput", f"--client_cores={CORES}", code=77)
    assert f"CLIENT_CORES={CORES}: the server needs cores of its own" in done.stderr


def test_a_port_that_is_taken_is_told(run_case):
    ports = Ports.choose()
    with socket.socket() as held:
        held.bind((LOOPBACK, ports.grpc))
        held.listen()
        done = run_case("throughput", *QUICK, f"--grpc_port={ports.grpc}", code=2)
    assert f"the grpc port {ports.grpc} of {LOOPBACK}: Address already in use; give another" in done.stderr


def test_a_server_that_hangs_at_its_start_is_given_up(tmp_path, run_case):
    program = tmp_path / "hanging" / "bin" / "tritonserver"
    (tmp_path / "hanging" / "backends" / "python").mkdir(parents=True)
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho error: it hangs\nexec sleep 600\n")
    program.chmod(0o755)
    began_s = time.monotonic()
    done = run_case("throughput", *QUICK, f"--triton_server={program}", "--hang-after=2", code=1)
    assert time.monotonic() - began_s < START_S
    found = re.search(r"Triton Server was not ready within 2 s: error: it hangs; its log: (\S+)", done.stderr)
    assert found, done.stderr
    assert Path(found[1]).read_text() == "error: it hangs\n"
