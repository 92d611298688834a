"""Folding, conversion and reading of graphs, as TensorFlow itself computes them before and after."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from cnnbench.base.checkout import SOURCES
from cnnbench.engines.registry import find_engine
from cnnbench.staging.environments import engine_python
from null_workload import clean_environment

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cases(engine_cache):
    # Stock TensorFlow without oneDNN computes every graph and type on every CPU. ITEX's remapper aborts at a Pad of
    # channels, and its bfloat16 crashes where there is no AVX-512; with oneDNN, which is on by itself where there is
    # VNNI, stock TensorFlow loses such a Pad too.
    command = [
        engine_python(find_engine("tensorflow"), "stock", engine_cache),
        Path(__file__).with_name("graph_cases.py"),
        "small",
    ]
    environment = clean_environment(TF_CPP_MIN_LOG_LEVEL="2", TF_ENABLE_ONEDNN_OPTS="0", PYTHONPATH=str(SOURCES))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "batch_norms", "pads", "ops"),
    [
        ("conv, batch norm v1", 1, 0, {"Conv2D": 1, "BiasAdd": 1}),
        ("conv, batch norm v2", 1, 0, {"Conv2D": 1, "BiasAdd": 1}),
        ("conv, batch norm v3", 1, 0, {"Conv2D": 1, "BiasAdd": 1}),
        ("constants behind identities", 1, 0, {"Conv2D": 1, "BiasAdd": 1}),
        ("pad, conv, batch norm", 1, 1, {"Conv2D": 1, "BiasAdd": 1}),
        ("pad, conv", 0, 1, {"Conv2D": 1}),
        ("pad, two convs", 0, 2, {"Conv2D": 2}),
        ("pad that another node reads", 0, 2, {"Conv2D": 2, "Pad": 1}),
        ("two in a row", 2, 1, {"Conv2D": 2, "BiasAdd": 2}),
        ("pad of channels", 0, 0, {"Conv2D": 1, "Pad": 1}),
        ("pad, conv that pads too", 0, 0, {"Conv2D": 1, "Pad": 1}),
        ("batch norm in training mode", 0, 0, {"Conv2D": 1, "FusedBatchNormV3": 1}),
        ("conv that another node reads", 0, 0, {"Conv2D": 1, "FusedBatchNormV3": 1}),
        ("bias before the batch norm", 0, 0, {"Conv2D": 1, "BiasAdd": 1, "FusedBatchNormV3": 1}),
        ("depthwise conv", 0, 0, {"DepthwiseConv2dNative": 1, "FusedBatchNormV3": 1}),
        ("batch norm of the input", 0, 0, {"FusedBatchNormV3": 1}),
    ],
)
def test_fold_keeps_the_outputs(cases, name, batch_norms, pads, ops):
    found = cases["fold"][name]
    assert found["largest"] > 0.5  # outputs that are all zero would agree whatever happened
    assert found["difference"] <= 1e-5 * max(1, found["largest"])
    assert (found["batch_norms"], found["pads"]) == (batch_norms, pads)
    watched = ("Conv2D", "DepthwiseConv2dNative", "BiasAdd", "Pad", "FusedBatchNorm", "FusedBatchNormV2")
    assert {op: n for op, n in found["ops"].items() if op in (*watched, "FusedBatchNormV3")} == ops


def test_every_case_is_looked_at(cases):
    assert len(cases["fold"]) == 16


def test_a_bias_is_added_along_the_channels_wherever_they_are(cases):
    assert cases["channels_first"] == ["NCHW", "NCHW"]


def test_multiply_accumulates_are_counted_as_by_hand(cases):
    # Padded by 1 and 1 (rows), 1 and 2 (columns), 3 x 3 kernel, stride 2: 112 x 113 outputs; then 4 features x 10.
    assert cases["macs"] == 112 * 113 * 4 * (3 * 3 * 3) + 4 * 10
    assert cases["folded_macs"] == cases["macs"]


def test_channels_in_groups_and_transposed_weights_are_counted_right(cases):
    assert cases["other_macs"]["grouped"] == 224 * 224 * 4 * (3 * 3 * 3)  # each of two groups has 3 of 6 channels
    assert cases["other_macs"]["transposed"] == 3 * 10


@pytest.mark.parametrize(
    "op",
    ["DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3D", "BatchMatMulV2", "Einsum", "PartitionedCall"],
)
def test_work_that_cannot_be_counted_is_refused(cases, op):
    assert re.match(rf"model\.pb: \S+ is of type (Stateful)?{op}, ", cases["other_macs"][op])


def test_a_graph_without_work_or_shapes_is_refused(cases):
    assert cases["other_macs"]["nothing"].startswith("model.pb: has no Conv2D or MatMul between input_tensor and")
    assert "has no fixed shapes to count by" in cases["other_macs"]["no shape"]


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(cases):
    found = cases["bfloat16"]
    assert 0 < found["difference"] < 0.05
    assert found["dtype"] == "float32"
    assert found["sums"] == pytest.approx([1.0] * 8, abs=1e-5)
    assert found["types"].pop("Softmax") == ["float32"]
    assert set(found["types"]) == {"Conv2D", "BiasAdd", "Relu", "Mean", "MatMul"}
    assert all(types == ["bfloat16"] for types in found["types"].values())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("stock", ""),
        ("itex", ""),
        ("stock, one too few", "2 of 3 convolutions and matrix products are int8, needed all; left in float32: none"),
        ("stock, a float convolution", "2 of 3 .* left in float32: c2 \\(Conv2D\\)"),
        ("stock, a convolution left between Dequantize", "3 of 3 .* left in float32: f \\(Conv2D\\)"),
        ("itex, a call", "2 of 3 .* left in float32: mm \\(PartitionedCall\\)"),
        ("stock, another convolution", "3 of 3 .* left in float32: s \\(Conv3D\\)"),
        ("stock, a Pad", "1 superfluous pairs of Dequantize and QuantizeV2: e to f"),
        ("stock, a float MaxPool and Relu", "1 superfluous pairs .*: e to p"),
        ("itex, float weights", "2 of 3 .* left in float32: c2 \\(Conv2D\\)"),
        ("itex, a float input", "2 of 3 .* left in float32: mm \\(MatMul\\)"),
        ("stock, a float addition", "1 superfluous pairs .*: e to p"),
        ("itex, a Pad", "1 superfluous pairs .*: d2 to f"),
        ("itex, quantised twice", "1 superfluous pairs .*: d1 to f"),
    ],
)
def test_a_graph_that_is_not_all_int8_is_refused(cases, name, found):
    text = f"quantised for {name.split(',')[0]}: {found}" if found else ""
    assert re.fullmatch(text, cases["int8"][name])


def test_quantised_work_is_counted(cases):
    assert cases["quantized_macs"] == [112 * 112 * 4 * (3 * 3 * 3), True, False, True, True, True, True]


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("garbage", "not a frozen TensorFlow graph"),
        ("truncated", "not a frozen TensorFlow graph"),
        ("empty", "has no node input_tensor and softmax_tensor"),
        ("no output", "has no node softmax_tensor"),
        ("no input", "has no node input_tensor"),
        ("other size", "input_tensor takes float32 (None, 299, 299, 3), needed float32 N x 224 x 224 x 3"),
        ("other type", "input_tensor takes float64"),
        ("other source", "input_tensor is of type Identity, needed a Placeholder"),
    ],
)
def test_what_is_no_graph_of_the_interface_is_refused(cases, name, needed):
    assert cases["errors"]["whole"] == ""
    assert needed in cases["errors"][name]
    assert "model.pb: " in cases["errors"][name]
