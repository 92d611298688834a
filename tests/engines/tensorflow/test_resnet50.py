"""ResNet50 v1.5 as built here: its structure, its size and its head."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cnnbench.base.cache import digest_file
from cnnbench.base.checkout import SOURCES
from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.tensorflow.resnet50 import (
    CONVS,
    FITTED,
    FITTED_SHA256,
    read_fitted,
    seeded_weights,
    write_fitted,
)
from cnnbench.inputs.head import CLASSES, fit_head
from null_workload import clean_environment


@pytest.fixture(scope="module")
def built(tensorflow_python):
    command = [tensorflow_python, Path(__file__).with_name("graph_cases.py"), "resnet50"]
    environment = clean_environment(TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(SOURCES))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engine
def test_the_graph_has_the_public_ones_structure(built):
    found = {op: built["ops"].get(op) for op in ("Conv2D", "FusedBatchNormV3", "Pad", "MaxPool", "MatMul", "Softmax")}
    assert found == {"Conv2D": 53, "FusedBatchNormV3": 53, "Pad": 4, "MaxPool": 1, "MatMul": 1, "Softmax": 1}
    assert built["parameters"] == 25_557_032 + 2049  # He et al.'s, and the weights of the background class


@pytest.mark.engine
def test_the_graph_has_the_fixed_interface(built):
    assert built["input"] == ["input_tensor", "float32"]
    assert built["input_shape"] == [-1, 224, 224, 3]
    assert built["last"] == "softmax_tensor"
    assert built["output_shape"] == [2, 1001]
    assert built["sums"] == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.engine
def test_the_stride_is_in_the_3x3_convolutions(built):
    """Which is what v1.5 means."""
    strided = {name.removesuffix("/Conv2D") for name, stride in built["strides"].items() if stride == 2}
    in_blocks = {f"resnet50/stage{s}/block1/{conv}" for s in (2, 3, 4) for conv in ("conv2", "shortcut")}
    assert strided == in_blocks | {"resnet50/conv0"}


@pytest.mark.engine
def test_everything_folds_and_the_answers_stay(built):
    assert (built["batch_norms"], built["pads"]) == (53, 4)
    assert "Pad" not in built["folded_ops"]
    assert "FusedBatchNormV3" not in built["folded_ops"]
    assert (built["folded_ops"]["Conv2D"], built["folded_ops"]["BiasAdd"]) == (53, 54)
    assert built["macs"] == 4_089_186_304
    assert built["difference"] < 1e-5


def test_the_weights_are_fixed_by_the_seed():
    first, again = seeded_weights(), seeded_weights()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert len(CONVS) == 53
    assert not np.array_equal(first["resnet50/conv0/kernel"], seeded_weights(seed=51)["resnet50/conv0/kernel"])


def test_what_was_fitted_is_whole_and_another_file_is_refused(tmp_path):
    moments, kernel, bias = read_fitted()
    assert set(moments) == {f"{conv.name}/{what}" for conv in CONVS for what in ("mean", "variance")}
    assert all(moments[f"{conv.name}/variance"].shape == (conv.filters,) for conv in CONVS)
    assert (kernel.shape, kernel.dtype, bias.shape) == ((2048, CLASSES), np.float32, (CLASSES,))
    assert np.array_equal(np.flatnonzero(np.abs(kernel).sum(axis=0)), np.arange(1, 101))  # the drawn classes
    assert bias[101:].max() < bias[1:101].min()
    changed = tmp_path / "fitted.npz"
    changed.write_bytes(FITTED.read_bytes()[:-1])
    with pytest.raises(CnnbenchError, match=rf"{changed}: SHA-256 is .*, needed {FITTED_SHA256}"):
        read_fitted(changed)


def test_what_is_fitted_is_written_as_it_is_read(tmp_path):
    weights = {f"{conv.name}/{what}": np.ones(conv.filters) for conv in CONVS for what in ("mean", "variance", "beta")}
    path, kernel = tmp_path / "fitted.npz", np.arange(2048 * 2).reshape(2048, 2) / 4096
    write_fitted(path, weights, kernel, np.arange(CLASSES), np.array([3, 7]))
    moments, found, bias = read_fitted(path, digest_file(path))
    assert set(moments) == {name for name in weights if not name.endswith("beta")}
    assert np.array_equal(found[:, [3, 7]], kernel.astype(np.float16))
    assert (found.sum(), bias[7]) == (pytest.approx(kernel.sum(), rel=1e-3), 7)


def test_the_head_learns_what_can_be_told_apart():
    random = np.random.Generator(np.random.PCG64(3))
    centres = random.standard_normal((4, 64)).astype(np.float32)
    labels = np.tile([3, 700, 1000, 41], 10)
    features = np.tile(centres, (10, 1)) + 0.1 * random.standard_normal((40, 64)).astype(np.float32)
    kernel, bias = fit_head(features, labels)
    assert kernel.shape == (64, CLASSES)
    assert kernel.dtype == bias.dtype == np.float32
    logits = np.tile(centres, (10, 1)) @ kernel + bias
    assert (logits.argmax(axis=1) == labels).all()
    absent = np.setdiff1d(np.arange(CLASSES), labels)
    assert (logits[:, absent].max(axis=1) < logits[:, [3, 41, 700, 1000]].min(axis=1)).all()
