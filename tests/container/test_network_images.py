"""The images of the networks' workload, made as a user makes them, and cases in containers of them.

Making them takes minutes, so that this runs with CNNBENCH_TEST_NETWORK_IMAGES=1 only.
"""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT
from cmake_build import find_tool, run_cmake
from cnnbench.cases.workload import load_workload
from cnnbench.results.record import load_run
from cnnbench.run.images import ImageOptions, plan_images
from cnnbench.staging.environments import lock_path
from container_engine import BUILD_S, CLI, ask, tell
from null_workload import clean_environment

CHOSEN = "CNNBENCH_TEST_NETWORK_IMAGES"

pytestmark = [
    pytest.mark.container,
    pytest.mark.engine,
    pytest.mark.skipif(not os.environ.get(CHOSEN), reason=f"takes minutes: set {CHOSEN}=1 to make these images"),
]

DIRECTORY = ROOT / "workload" / "CNN-PyTorch-Public"
WORKLOAD = load_workload(DIRECTORY)
CASE = f"test_{WORKLOAD.slug}_inference_throughput_avx_fp32_"


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
    """The tag of the workload's images, which are removed at the end."""
    build, release = tmp_path_factory.mktemp("build"), f"test-{secrets.token_hex(4)}"
    options = ("-DBACKEND=docker", f"-DRELEASE={release}", f"-DBASE_IMAGE={base_with_pytorch}")
    done = run_cmake(build, Path(sys.executable), "-DPLATFORM=GENERIC", f"-DCONTAINER_CLI={' '.join(CLI)}", *options)
    assert done.returncode == 0, done.stderr
    try:
        command = [find_tool("cmake"), "--build", build, "--target", WORKLOAD.name]
        subprocess.run(command, check=True, timeout=2 * BUILD_S)
        yield release
    finally:
        for image in reversed(plan_images(DIRECTORY, WORKLOAD, ImageOptions(release=release)).values()):
            ask("rmi", image.reference)


@pytest.fixture
def run_case(release, tmp_path):
    def run(network, *arguments):
        command = ["--workload", str(DIRECTORY), "--case", CASE + network, "--logs-root", str(tmp_path), *arguments]
        options = ["--backend", "docker", "--container-cli", " ".join(CLI), "--release", release]
        done = subprocess.run(
            [sys.executable, "-m", "cnnbench", "case", *options, *command, "--warmup_steps=1", "--steps=8"],
            env=clean_environment(),
            capture_output=True,
            text=True,
        )
        return done, tmp_path / f"logs-{CASE}{network}" / "itr-1" / "worker-0"

    return run


@pytest.mark.parametrize(
    ("engine_name", "data_type", "role"),
    [("pytorch", "generated", "dummy"), ("onnxruntime", "dummy", "dummy"), ("openvino", "real", "real")],
)
def test_a_network_in_a_container_answers_as_it_should(run_case, engine_name, data_type, role):
    done, logs = run_case(
        "mobilenet_v3_small", f"--engine={engine_name}", f"--data_type={data_type}", "--batch_size=16"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.verdict in ("valid", "unstable"), run.reason
    assert run.effective["ENGINE"] == engine_name
    assert f"inference-{role}:" in run.facts["container image"]
    assert {kpi.key: kpi.value for kpi in run.kpis}["Outputs top-1 agreement"] == 100


def test_weights_of_the_hosts_are_mounted(run_case, tmp_path):
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"no checkpoint")
    done, _ = run_case("resnet18", f"--weights={checkpoint}")
    assert done.returncode == 1
    assert "/mnt/weights.pth" in done.stderr


def test_inductor_is_skipped_as_an_image_has_no_compiler(run_case):
    done, _ = run_case("resnet18", "--engine=inductor")
    assert done.returncode == 77
    assert "ENGINE=inductor: compiles with g++, which is not here" in done.stderr
