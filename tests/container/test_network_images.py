"""The images of the networks' workloads, made as a user makes them, and cases in containers of them.

Making them takes minutes, so that this runs with CNNBENCH_TEST_NETWORK_IMAGES=1 only.
"""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkout import ROOT
from cmake_build import find_tool, run_cmake
from cnnbench.cases.workload import load_workload
from cnnbench.harness.line import DIRECTORY as NETWORKS
from cnnbench.launch.container import BUILD_LABEL, remove_orphans
from cnnbench.results.record import load_run
from cnnbench.run.images import ImageOptions, build_image, plan_images
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import plan_case, prepare_job
from cnnbench.run.record import read_seen
from cnnbench.staging.environments import lock_path
from cnnbench.staging.networks import give_network
from container_engine import BUILD_S, CLI, ask, find_containers, is_running, tell
from null_workload import PATIENCE_S, clean_environment, wait_until

CHOSEN = "CNNBENCH_TEST_NETWORK_IMAGES"

pytestmark = [
    pytest.mark.container,
    pytest.mark.engine,
    pytest.mark.skipif(not os.environ.get(CHOSEN), reason=f"takes minutes: set {CHOSEN}=1 to make these images"),
]

WORKLOADS = ("CNN-PyTorch-Public", "ResNet50-FP8-Public", "ResNet50-Compiled-Public", "CNN-Triton-Public")
DATA = ROOT / "workload" / "ResNet50-FP8-Public" / "data"


@pytest.fixture(scope="module")
def base_with_pytorch(pytorch_python, base_image, tmp_path_factory):
    """A base image in which pip finds PyTorch's build for CPUs as it does here: at its index, or in a directory."""
    links = Path(os.environ.get("PIP_FIND_LINKS", ""))
    version = next(line for line in lock_path("pytorch-cpu").read_text().splitlines() if line.startswith("torch=="))
    wheels = list(links.glob(f"torch-{version.split()[0].removeprefix('torch==')}-cp311-*.whl"))
    if not os.environ.get("PIP_FIND_LINKS") or not wheels or not base_image:
        yield base_image
        return
    context = tmp_path_factory.mktemp("base")
    for wheel in wheels:
        shutil.copy(wheel, context)
    (context / "Dockerfile").write_text(
        f"FROM {base_image}\nCOPY *.whl /wheels/\nENV PIP_FIND_LINKS=/wheels\n", encoding="utf-8"
    )
    name = f"cnnbench-base:test-{secrets.token_hex(4)}"
    tell("build", "--quiet", "--tag", name, str(context))
    yield name
    ask("rmi", name)


@pytest.fixture(scope="module")
def release(base_with_pytorch, tmp_path_factory):
    """The tag of the workloads' images, which are removed at the end."""
    build, release = tmp_path_factory.mktemp("build"), f"test-{secrets.token_hex(4)}"
    options = ("-DBACKEND=docker", f"-DRELEASE={release}", f"-DBASE_IMAGE={base_with_pytorch}")
    done = run_cmake(build, Path(sys.executable), "-DPLATFORM=GENERIC", f"-DCONTAINER_CLI={' '.join(CLI)}", *options)
    assert done.returncode == 0, done.stderr
    try:
        command = [find_tool("cmake"), "--build", build, "--target"]
        for name in WORKLOADS:
            subprocess.run([*command, name], check=True, timeout=3 * BUILD_S)
        yield release
    finally:
        for name in WORKLOADS:
            directory = ROOT / "workload" / name
            planned = plan_images(directory, load_workload(directory), ImageOptions(release=release))
            for image in reversed(planned.values()):
                ask("rmi", image.reference)


@pytest.fixture(scope="module")
def given_network(engine_cache, pytorch_python, tmp_path_factory):
    """ResNet18 as an ONNX file of a user's."""
    directory, environ = tmp_path_factory.mktemp("onnx"), clean_environment(CNNBENCH_CACHE=str(engine_cache))
    case = "test_cnn_pytorch_public_inference_accuracy_fp32_resnet18"
    job = prepare_job(plan_case(NETWORKS, case, environ, {"ENGINE": "onnxruntime"}), environ)
    model = stage_inputs(job, engine_cache).model
    give_network(model, directory / "resnet18.onnx", engine_cache)
    return directory / "resnet18.onnx"


@pytest.fixture
def case_command(release, tmp_path):
    """Make the command of a case, and say where its logs go."""

    def command(name, words, *arguments):
        directory = ROOT / "workload" / name
        workload = load_workload(directory)
        case = f"test_{workload.slug}_{workload.function}_{words}"
        asked = ["--workload", str(directory), "--case", case, "--logs-root", str(tmp_path), *arguments]
        options = ["--backend", "docker", "--container-cli", " ".join(CLI), "--release", release]
        words = [sys.executable, "-m", "cnnbench", "case", *options, *asked, "--warmup_steps=1"]
        return words, tmp_path / f"logs-{case}" / "itr-1" / "worker-0"

    return command


@pytest.fixture
def run_case(case_command):
    def run(*arguments, **environment):
        command, logs = case_command(*arguments)
        done = subprocess.run(command, env=clean_environment(**environment), capture_output=True, text=True)
        return done, logs

    return run


def run_network(run_case, network, *arguments):
    return run_case("CNN-PyTorch-Public", f"throughput_avx_fp32_{network}", *arguments, "--steps=200")


@pytest.mark.parametrize(
    ("engine_name", "data_type", "role"),
    [("pytorch", "generated", "dummy"), ("onnxruntime", "dummy", "dummy"), ("openvino", "real", "real")],
)
def test_a_network_in_a_container_answers_as_it_should(run_case, engine_name, data_type, role):
    options = (f"--engine={engine_name}", f"--data_type={data_type}", "--batch_size=16")
    done, logs = run_network(run_case, "mobilenet_v3_small", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.verdict in ("valid", "unstable"), run.reason
    assert run.effective["ENGINE"] == engine_name
    assert f"inference-{role}:" in run.facts["container image"]
    assert {kpi.key: kpi.value for kpi in run.kpis}["Outputs top-1 agreement"] == 100


def test_weights_of_the_hosts_are_mounted(run_case, tmp_path):
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"no checkpoint")
    done, _ = run_network(run_case, "resnet18", f"--weights={checkpoint}")
    assert done.returncode == 1
    assert "/mnt/weights.pth" in done.stderr


@pytest.mark.parametrize("engine_name", ["inductor", "aotinductor"])
def test_what_compiles_is_skipped_as_an_image_has_no_compiler(run_case, engine_name):
    done, _ = run_network(run_case, "resnet18", f"--engine={engine_name}")
    assert done.returncode == 77
    assert f"ENGINE={engine_name}: compiles with g++, which is not here" in done.stderr


@pytest.mark.parametrize("words", ["throughput_fp8_gated", "throughput_fp8_weight_gated", "throughput_fp16_gated"])
def test_a_network_in_few_bits_is_in_the_image_and_runs(run_case, words):
    done, logs = run_case("ResNet50-FP8-Public", words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert next(one for one in run.criteria if one.name == "precision").passed
    assert any("is emulated" in note for note in run.notes)
    assert not [line for line in (logs / "container.log").read_text().splitlines() if "calibrating" in line]


def test_a_users_network_and_images_are_mounted_with_what_lies_beside_them(run_case, given_network):
    done, logs = run_case(
        "ResNet50-FP8-Public", "accuracy_fp32", f"--network_file={given_network}", f"--dataset={DATA}", "--batch_size=2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {one.name: one.found for one in load_run(logs).criteria}["coverage"] == "4 of 4 images answered"


def test_an_image_without_pytorch_serves_what_was_compiled_before(base_with_pytorch, engine_cache, tmp_path):
    workload, release = ROOT / "workload" / "ResNet50-Compiled-Public", f"test-{secrets.token_hex(4)}"
    environment = clean_environment(CNNBENCH_CACHE=str(engine_cache))
    asked = ("--output", tmp_path / "compiled", "--batch", "1-4", "--engine", "onnxruntime")
    subprocess.run([sys.executable, "-m", "cnnbench", "compile", *asked], env=environment, check=True)
    images = plan_images(
        workload,
        load_workload(workload),
        ImageOptions(release=release, engines="onnxruntime", base_image=base_with_pytorch),
    )
    try:
        for one in images.values():
            build_image(one, CLI, {}, tmp_path / f"{one.role}.log")
        (file,) = (tmp_path / "compiled").glob("*")
        given = ("--engine=onnxruntime", "--batch_size=4", f"--network_file={file}/executable.onnx")
        case = "test_resnet50_compiled_public_inference_throughput_avx_fp32_gated"
        command = ["--workload", workload, "--case", case, "--logs-root", tmp_path, *given]
        options = ["--backend", "docker", "--container-cli", " ".join(CLI), "--release", release]
        done = subprocess.run([sys.executable, "-m", "cnnbench", "case", *options, *command], env=environment)
        assert done.returncode == 0
        script = (
            "infer_with_numpy.py /mnt/compiled/* /mnt/data/*.jpg && ! find / -path '*/site-packages/torch' | grep ."
        )
        mounts = ("--volume", f"{tmp_path}/compiled:/mnt/compiled:ro", "--volume", f"{DATA}:/mnt/data:ro")
        where = ("--workdir", f"/opt/cnnbench/workload/{workload.name}", "--entrypoint", "sh")
        shown = tell(
            "run", "--rm", "--network", "none", *mounts, *where, images["dummy"].reference, "-c", f"python3 {script}"
        )
        assert shown.count(".jpg: ") == 4
    finally:
        for one in reversed(images.values()):
            ask("rmi", one.reference)


SERVED = ("CNN-Triton-Public", "throughput_avx_fp32_mobilenet_v3_small", "--engine=onnxruntime")


def is_left(directory):
    """Say whether a container or a network of runs whose logs go there is left."""
    label = f"label={BUILD_LABEL}={directory}"
    return tell("ps", "--all", "--quiet", "--filter", label) or tell("network", "ls", "--quiet", "--filter", label)


@pytest.mark.parametrize("options", [(), ("--shared_memory",), ("--protocol=http",)])
def test_a_network_is_served_in_a_container_of_its_own(run_case, tmp_path, options):
    done, logs = run_case(*SERVED, "--min_time=4", "--max_time=6", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    judged = {one.name: one.passed for one in run.criteria}
    assert all(judged[name] for name in ("client's pinning", "requests", "precision", "outputs"))
    assert run.facts["Triton Server"]
    assert run.facts["container network"].endswith("-server")
    assert (logs / "container-server.log").read_text() == ""
    assert not is_left(tmp_path)


def test_a_quota_of_the_servers_container_is_told(run_case):
    done, logs = run_case(*SERVED, "--min_time=4", "--max_time=6", DOCKER_OPTIONS="--cpus 0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    (throttling,) = (one for one in load_run(logs).criteria if one.name == "throttling")
    assert not throttling.passed
    first, last = (
        [quota.throttled_s for quota in look.quotas if quota.cgroup.is_relative_to("/proc")]
        for look in read_seen(logs).looks
    )
    assert last[0] - first[0] > 0.1  # the server's own, seconds


@contextmanager
def measuring(command):
    """A case under way, whose clients have begun."""
    with subprocess.Popen(
        [*command, "--min_time=100", "--max_time=100"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as case:
        assert any(line.startswith("loading and warming up") for line in case.stderr), (
            "it has ended before it got there"
        )
        yield case


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("-server", 3, "Triton Server has ended: killed by SIGKILL"),
        ("", 3, "the container was killed (SIGKILL) before"),
        (signal.SIGINT, 3, "the run was interrupted"),
        (signal.SIGTERM, 3, "the run was interrupted"),
    ],
    ids=["the-servers-container", "the-other-container", "SIGINT", "SIGTERM"],
)
def test_a_served_run_that_is_ended_says_how_and_leaves_nothing(case_command, tmp_path, end, code, reason):
    command, _ = case_command(*SERVED)
    with measuring(command) as case:
        if isinstance(end, signal.Signals):
            case.send_signal(end)
        else:
            (name,) = (one for one in find_containers(tmp_path) if one.endswith("-server") == (end == "-server"))
            tell("kill", name)
        printed, _ = case.communicate(timeout=PATIENCE_S)
    assert case.returncode == code, printed
    assert reason in printed
    assert not is_left(tmp_path)


def test_a_served_run_is_ended_by_its_time_limit_and_as_it_starts(case_command, tmp_path):
    command, _ = case_command(*SERVED)
    done = subprocess.run(
        [*command, "--timeout=20"], env=clean_environment(MIN_TIME="100"), capture_output=True, text=True
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "not done within TIMEOUT=20 s" in done.stdout
    assert not is_left(tmp_path)
    for seconds in (0.5, 1, 2, 3):
        case = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)  # while the network and the two containers are being made
        case.send_signal(signal.SIGINT)
        assert case.wait(timeout=PATIENCE_S) in (3, 130, -signal.SIGINT)
        assert not is_left(tmp_path)


def test_a_servers_container_that_cannot_be_started_is_told(case_command, tmp_path):
    cli = tmp_path / "refusing"
    cli.write_text(
        f'#!/bin/sh\ncase "$*" in *"--pid "*) echo no such thing >&2; exit 125;; esac\nexec {shlex.join(CLI)} "$@"\n'
    )
    cli.chmod(0o755)
    command, _ = case_command(*SERVED)
    command[command.index("--container-cli") + 1] = str(cli)
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the engine could not start the server's container: no such thing" in done.stdout
    assert not is_left(tmp_path)


SPARING = """#!{}
import os, sys
words = sys.argv[1:]
if "--pid" in words:  # the server's container
    for name in ("--memory", "--memory-swap"):
        words[words.index(name) + 1] = "100m"
cli = {}
os.execvp(cli[0], [*cli, *words])
"""


def test_a_servers_container_that_runs_out_of_memory_is_told(case_command, tmp_path):
    cli = tmp_path / "sparing"
    cli.write_text(SPARING.format(sys.executable, CLI))
    cli.chmod(0o755)
    command, _ = case_command(*SERVED)
    command[command.index("--container-cli") + 1] = str(cli)
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # before it was ready
    assert "Triton Server did not start: " in done.stderr
    assert "; server's container memory ran out at the limit, 104.9 MB" in done.stderr
    assert not is_left(tmp_path)


def test_what_a_killed_controller_of_the_two_leaves_is_removed_by_the_next(case_command, tmp_path):
    command, _ = case_command(*SERVED)
    with measuring(command) as case:
        case.kill()
    wait_until(lambda: not any(map(is_running, find_containers(tmp_path))), "the end of both")
    assert is_left(tmp_path)
    remove_orphans(CLI)
    assert not is_left(tmp_path)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "openvino"])
def test_what_is_compiled_ahead_of_time_in_a_container_runs_there(run_case, engine_name):
    done, logs = run_case("ResNet50-Compiled-Public", "throughput_avx_fp32_gated", f"--engine={engine_name}")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.facts["compiled for"] == "batches of 1"
    assert next(one for one in run.criteria if one.name == "precision").passed
