"""int8 networks on real engines: what is quantised, how near it stays to float32, and what proves it."""

import json
import os
import subprocess
import sys

import pytest

from checkout import NETWORKS_SLUG as SLUG
from checkout import ROOT
from cnnbench.cases.parameters import Parameters
from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.engines.interface import EngineOptions
from cnnbench.engines.registry import find_engine
from cnnbench.harness.line import DIRECTORY
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.record import load_run
from cnnbench.staging.environments import engine_python
from cnnbench.staging.inputs import find_check_set
from cnnbench.staging.networks import prepare_network, quantize_network
from null_workload import clean_environment

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("pytorch_python")]

INT8 = PRECISIONS["avx_int8"]
MISSING = missing_for_precision(INT8, read_cpuinfo().flags)
CASE = f"test_{SLUG}_inference_throughput_avx_int8_resnet18"
MACS = 1_814_073_344

SATURATED_AGREEMENT = 0.5
"""Least share of equal best classes without VNNI, where int8 kernels for AVX2 add pairs of products up in 16 bits."""

INFER = """
import json, sys
from pathlib import Path
import numpy as np
from cnnbench.engines.interface import LoadSpec
from cnnbench.engines.registry import find_engine, import_part
engine, network, images, reference = sys.argv[1:]
backend = import_part(find_engine(engine).backend)()
backend.load(LoadSpec(model=Path(network), number_type="int8", threads=1, callers=1, verbose=False))
answers, wanted = backend.infer(np.load(images)), np.load(reference)
layers = [[one.implementation, one.source_type, one.weights_type, one.macs] for one in backend.layers()]
top1 = float((answers.argmax(1) == wanted.argmax(1)).mean())
print(json.dumps([float(np.abs(answers - wanted).max()), top1, layers]))
"""

EXACTLY = """
import json, sys
import numpy as np, onnx, onnxruntime
from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.onnxruntime.quantize import check_int8
plain, network, images, reference = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
answers, wanted = session.run(None, {"images": np.load(images)})[0], np.load(reference)
model = onnx.load(network)
makers = {name: node.op_type for node in model.graph.node for name in node.output}
handling = [[makers.get(name, "given") for name in node.input] for node in model.graph.node if node.op_type == "Div"]
try:
    check_int8(onnx.load(plain))
    error = ""
except CnnbenchError as raised:
    error = str(raised)
top1 = float((answers.argmax(1) == wanted.argmax(1)).mean())
print(json.dumps([float(np.abs(answers - wanted).max()), top1, check_int8(model), handling, error]))
"""


def prepare(engine_cache, pytorch_python, **more):
    """Return ResNet18 that is handed bytes and normalises them, as exported and as quantised."""
    parameters = Parameters(
        function="inference",
        mode="throughput",
        precision="avx_int8",
        case_type="",
        topology="resnet18",
        engine="onnxruntime",
        eight_bit_io=True,
        normalization_location="device",
        **more,
    )
    images = find_check_set(engine_cache)
    plain = prepare_network(parameters, find_engine("onnxruntime"), EngineOptions(), images, "cpu", engine_cache)
    return plain, quantize_network(plain, engine_cache)


@pytest.fixture(scope="module")
def prepared(engine_cache, pytorch_python):
    return prepare(engine_cache, pytorch_python)


def run_program(python, program, *arguments):
    done = subprocess.run(
        [python, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_that_multiplies_is_int8_the_inputs_handling_float32_and_the_answers_near(prepared, engine_cache):
    plain, quantized = prepared
    python = engine_python(find_engine("onnxruntime"), "cpu", engine_cache)
    networks = (plain.graph / "network.onnx", quantized.graph / "network.onnx")
    difference, top1, multiplies, handling, error = run_program(
        python, EXACTLY, *networks, plain.check_images, plain.reference
    )
    assert difference <= INT8.softmax_bound
    assert top1 >= INT8.top1_agreement
    assert multiplies == 21
    assert handling
    assert "DequantizeLinear" not in handling[0]
    assert "0 of 21 convolutions and matrix products are int8, needed all; left in float32: " in error
    assert quantized.calibration == "100 images of cnnbench-procedural-1-calibration"
    assert quantized.source_sha256 == plain.source_sha256


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_computes_in_int8_and_tells_so(prepared, engine_cache, engine):
    plain, quantized = prepared
    python = engine_python(find_engine(engine), "cpu", engine_cache)
    difference, top1, layers = run_program(python, INFER, engine, quantized.graph, plain.check_images, plain.reference)
    assert {(source, weights) for _, source, weights, _ in layers} == {("s8", "s8")}
    assert sum(macs for *_, macs in layers) == 32 * MACS
    if MISSING:
        assert top1 >= SATURATED_AGREEMENT
    else:
        assert difference <= INT8.softmax_bound
        assert top1 >= INT8.top1_agreement
    told = {implementation for implementation, *_ in layers}
    assert all(("avx" in one) == (engine == "openvino") for one in told - {"jit_gemm"})


def test_group_norm_leaves_all_convolutions_in_int8(engine_cache, pytorch_python):
    plain, quantized = prepare(engine_cache, pytorch_python, norm_type="group")
    python = engine_python(find_engine("onnxruntime"), "cpu", engine_cache)
    given = (quantized.graph, plain.check_images, plain.reference)
    _, _, layers = run_program(python, INFER, "onnxruntime", *given)
    assert {source for _, source, *_ in layers} == {"s8"}
    assert sum(macs for *_, macs in layers) == 32 * MACS


def run_case(case, root, cache, *arguments):
    command = ["--workload", str(DIRECTORY), "--case", case, "--logs-root", str(root), *arguments]
    return subprocess.run(
        [sys.executable, "-m", "cnnbench", "case", *command],
        env=clean_environment(CNNBENCH_CACHE=str(cache)),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("engine", ["", "onnxruntime"])
def test_a_case_of_int8_is_measured_or_skipped_for_want_of_vnni(tmp_path, engine_cache, engine):
    options = ["--batch_size=8", "--cores_per_instance=auto", *([f"--engine={engine}"] if engine else [])]
    options += ["--min_time=5", "--max_time=5"]  # with time for samples enough
    done = run_case(CASE, tmp_path, engine_cache, *options)
    if MISSING:
        assert done.returncode == 77
        assert "avx_int8: this CPU lacks avx512_vnni or avx_vnni" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / f"logs-{CASE}" / "itr-1" / "worker-0")
    assert run.effective["ENGINE"] == (engine or "openvino")
    assert run.facts["calibrated on"] == "100 images of cnnbench-procedural-1-calibration"
    assert {one.name: one.passed for one in run.criteria}["precision"]


def test_engines_whose_networks_are_not_quantised_say_which_do(tmp_path, engine_cache):
    for engine in ("pytorch", "inductor"):
        done = run_case(CASE, tmp_path, engine_cache, f"--engine={engine}")
        assert done.returncode == 77
        assert (
            f"ENGINE={engine}: its networks are not quantised; choose another ENGINE (onnxruntime, openvino)"
            in done.stderr
        )
