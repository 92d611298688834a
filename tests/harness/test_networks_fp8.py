"""Networks in 8-bit floating point on real engines: converted, proven, judged, and as a user's own ONNX files."""

import re
import subprocess
import sys

import pytest

from checkout import NETWORKS_SLUG as SLUG
from checkout import ROOT
from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.harness.line import DIRECTORY
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.record import load_run
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import plan_case, prepare_job
from cnnbench.staging.networks import give_network
from null_workload import clean_environment

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("pytorch_python")]

DATA = ROOT / "workload" / "ResNet50-FP8-Public" / "data"
HAS_BFLOAT16 = not missing_for_precision(PRECISIONS["bfloat16"], read_cpuinfo().flags)
QUICK = ("--batch_size=8", "--cores_per_instance=auto", "--min_time=4", "--max_time=4", "--warmup_steps=1")


@pytest.fixture
def run_case(engine_cache, tmp_path):
    def run(precision, *arguments, mode="throughput"):
        case = f"test_{SLUG}_inference_{mode}_{precision}_resnet18"
        command = ["--workload", str(DIRECTORY), "--case", case, "--logs-root", str(tmp_path), *QUICK, *arguments]
        done = subprocess.run(
            [sys.executable, "-m", "cnnbench", "case", *command],
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
            capture_output=True,
            text=True,
            check=False,
        )
        logs = tmp_path / f"logs-{case}" / "itr-1" / "worker-0"
        return done, load_run(logs) if (logs / "run.json").is_file() else None

    return run


@pytest.fixture(scope="module")
def resnet18(engine_cache, pytorch_python, tmp_path_factory):
    """ResNet18 as an ONNX file such as the usual exporters make, and in fp8."""
    environ, directory = clean_environment(CNNBENCH_CACHE=str(engine_cache)), tmp_path_factory.mktemp("onnx")
    case = f"test_{SLUG}_inference_accuracy_fp32_resnet18"
    job = prepare_job(plan_case(DIRECTORY, case, environ, {"ENGINE": "onnxruntime"}), environ)
    source, converted = directory / "resnet18.onnx", directory / "resnet18_fp8.onnx"
    give_network(stage_inputs(job, engine_cache).model, source, engine_cache)
    command = ["--input_model", source, "--output_model", converted, "--precision", "fp8"]
    words = ["--input_shape", "input=1,3,224,224", "--fp8_skip_op_names", "Conv_0"]
    words += ["--export", str(directory / "exported")]
    done = subprocess.run(
        [sys.executable, "-m", "cnnbench", "convert", *map(str, command), *words],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 21 layers, 1 kept in fp16" in " ".join(done.stdout.split())
    return source, converted


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp8", "fp8_weight", "fp16"])
def test_a_network_held_in_few_bits_answers_as_it_should_and_is_proven(run_case, engine, precision):
    rounding = "nearest" if precision == "fp8" else "compensated"  # which takes minutes
    done, run = run_case(precision, f"--engine={engine}", f"--fp8_weight_rounding={rounding}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {one.name: one.passed for one in run.criteria}["precision"]
    assert {one.name: one.passed for one in run.criteria}["outputs"]
    assert run.facts["converted graph SHA-256"]
    assert any(note.startswith(f"{precision} is emulated: ") for note in run.notes)
    assert ("FP8_WEIGHT_ROUNDING=compensated has no effect with PRECISION=fp16" in run.notes) is (precision == "fp16")


def test_8_bit_numbers_are_multiplied_in_bfloat16_where_the_cpu_can_and_held_down_it_is_invalid(run_case):
    asked = ("--engine=openvino", "--fp8_arithmetic=bfloat16")
    done, run = run_case("fp8_weight", *asked)
    if not HAS_BFLOAT16:
        assert done.returncode == 77
        assert "fp8_weight: this CPU lacks " in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BF16" in run.facts["dominant instructions"]
    done, run = run_case("fp8_weight", *asked, "--customer_env=ONEDNN_MAX_CPU_ISA=AVX512_CORE", mode="latency")
    assert done.returncode == 3, done.stdout + done.stderr
    assert run.reason.startswith("precision: ")


def test_an_engine_that_reads_no_onnx_is_skipped(run_case):
    done, _ = run_case("fp8", "--engine=pytorch")
    assert done.returncode == 77
    assert "ENGINE=pytorch: reads no ONNX, in which networks are converted; choose one of" in done.stderr


def test_a_users_files_are_measured_and_their_answers_held_against_a_folder_of_images(
    run_case, resnet18, engine_cache, tmp_path
):
    for file, precision in zip(resnet18, ("fp32", "fp8"), strict=True):
        asked = ("--engine=openvino", f"--network_file={file}", f"--dataset={DATA}")
        done, run = run_case(precision, *asked, mode="accuracy")
        assert done.returncode == 0, done.stdout + done.stderr
        assert {one.name: one.found for one in run.criteria}["coverage"] == "4 of 4 images answered"
        assert {kpi.key: kpi.value for kpi in run.kpis}["Accuracy top-1"] >= 75
        assert any("is in fp8 as it stands" in note for note in run.notes) == (precision == "fp8")
    exported = resnet18[1].parent / "exported" / "executable.blob"
    command = ["run-exported", str(exported), "--batches-per-step", "20", "--runs", "8", "--logs-root", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "cnnbench", *command],
        env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("run#")][-1] == "run#8"
    assert re.search(r"executable\.blob: \d+\.\d MB, (valid|unstable) \(emulated\)", " ".join(done.stdout.split()))
    done, _ = run_case("fp32", "--engine=openvino", f"--network_file={resnet18[1]}")
    assert done.returncode == 2
    assert "is held in fp8 and cannot be measured as fp32" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--network_file=missing.onnx",), "missing.onnx: no such file; needed an ONNX file, or a compiled one"),
        (("--fp8_skip_op_names=Conv_1",), "Conv_1: "),
        (("--dataset=nowhere", "--data_type=real"), "nowhere: no such directory; give one, procedural or imagenet"),
    ],
)
def test_what_is_not_there_is_named(run_case, arguments, reason):
    done, _ = run_case("fp8", "--engine=openvino", *arguments)
    assert done.returncode in (1, 2)
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
