"""The workload of networks on real engines, as short as it can be."""

import json
import subprocess
import sys

import numpy as np
import pytest

from cnnbench.environments import TORCH_PYTHON
from cnnbench.result import load_run
from cnnbench.run_benchmark import DIRECTORY, SLUG
from null_workload import clean_environment

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.version_info[:2] != TORCH_PYTHON, reason="PyTorch is locked for Python 3.11 alone"),
]

CASE = f"test_{SLUG}_inference_throughput_avx_fp32_"


@pytest.fixture(scope="module")
def run_case(engine_cache, tmp_path_factory):
    """Run a network's case to its end; return what it printed and its logs."""

    def run(network, *arguments):
        root = tmp_path_factory.mktemp("networks")
        command = ["--workload", str(DIRECTORY), "--case", CASE + network, "--logs-root", str(root), *arguments]
        done = subprocess.run(
            [sys.executable, "-m", "cnnbench", "case", *command, "--warmup_steps=1", "--steps=8"],
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
            capture_output=True,
            text=True,
        )
        return done, root / f"logs-{CASE}{network}" / "itr-1" / "worker-0"

    return run


def kpis(run):
    return {kpi.key: kpi.value for kpi in run.kpis}


def measured(done, logs):
    """Return the result of a run that must be good but for how steady it was."""
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.verdict in ("valid", "unstable"), run.reason
    shares = [value for key, value in kpis(run).items() if key in ("ISA share", "Data type share")]
    assert len(shares) == 1
    assert shares[0] >= 95
    assert kpis(run)["Outputs top-1 agreement"] == 100
    return run


@pytest.mark.parametrize(
    ("engine", "version", "proof"),
    [
        ("pytorch", "PyTorch", "ISA share"),
        ("inductor", "PyTorch", "ISA share"),
        ("onnxruntime", "ONNX Runtime", "Data type share"),
        ("openvino", "OpenVINO", "ISA share"),
    ],
)
def test_an_engine_measures_a_network_and_answers_as_pytorch_does(run_case, engine, version, proof):
    run = measured(*run_case("resnet18", f"--engine={engine}", "--batch_size=8", "--cores_per_instance=auto"))
    assert run.effective["ENGINE"] == engine
    assert run.facts[version]
    assert proof in kpis(run)
    assert any("the weights are random" in note for note in run.notes)


def test_bytes_generated_on_the_host_are_normalised_inside_and_answered_alike(run_case):
    options = ("--eight_bit_io", "--normalization_location=device", "--data_type=generated")
    done, logs = run_case("mobilenet_v3_small", *options, "--batch_size=16", "--micro_batch_size=16")
    run = measured(done, logs)
    spec = json.loads((logs / "process-0" / "spec.json").read_text())
    assert np.load(spec["check_images"]).dtype == np.uint8
    assert run.effective["DATA_TYPE"] == "generated"


def test_a_step_of_several_batches_of_real_images_in_parts(run_case):
    options = ("--data_type=real", "--batch_size=16", "--micro_batch_size=8", "--device_iterations=2", "--replicas=1")
    done, logs = run_case("resnet18", *options, "--cores_per_instance=auto")
    run = measured(done, logs)
    assert kpis(run)["Input wait"] >= 0
    spec = json.loads((logs / "process-0" / "spec.json").read_text())
    assert (spec["batch_size"], spec["micro_batch_size"]) == (32, 8)


def test_weights_of_a_file_are_the_models(run_case, tmp_path):
    weights = tmp_path / "resnet18.safetensors"
    weights.write_bytes(b"no checkpoint")
    done, _ = run_case("resnet18", f"--weights={weights}")
    assert done.returncode == 1
    assert f"WEIGHTS={weights}" in done.stderr
    done, _ = run_case("resnet18", f"--weights={tmp_path / 'none.pth'}")
    assert "no such file; needed a checkpoint" in done.stderr


def test_int8_and_accuracy_say_that_they_are_not_there(run_case, engine_cache):
    for case, code, reason in (
        (f"test_{SLUG}_inference_throughput_avx_int8_resnet18", 77, ""),
        (f"test_{SLUG}_inference_accuracy_avx_fp32_resnet18", 2, "accuracy is not measured yet"),
        (f"test_{SLUG}_inference_throughput_avx_fp32", 2, "not a test case of this workload"),
    ):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "cnnbench",
                "case",
                "--workload",
                str(DIRECTORY),
                "--case",
                case,
                "--logs-root",
                "x",
            ],
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, reason in done.stderr) == (code, True), done.stderr
