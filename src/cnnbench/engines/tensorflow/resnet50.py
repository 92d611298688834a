"""Build ResNet50 v1.5 as a frozen TensorFlow graph with seeded weights.

The graph has the interface and the structure of the public `resnet50_v1.pb` (https://zenodo.org/record/2535873):
input `input_tensor` (float32, N x 224 x 224 x 3, RGB minus the ImageNet means), output `softmax_tensor` (float32,
N x 1001, class 0 is the background), explicit Pads before strided convolutions and a BatchNorm after each. "v1.5"
means that the stride of a downsampling block sits in its 3x3 convolution (He et al. 2015, table 1, has it in the first
1x1). TensorFlow is imported by the functions, so that the module can be read without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.cache import digest_file
from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.tensorflow.graph import IMAGE_SIZE, INPUT, OUTPUT

FEATURES = "resnet50/features"
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Filters of the 3x3 convolutions, blocks and first stride of each stage."""

EPSILON = 1e-5
LAST_GAMMA = 0.05
"""Scale of each block's last BatchNorm: small, so that 16 residual branches of random weights stay well-behaved."""

Weights = dict[str, np.ndarray]

FITTED = Path(__file__).with_name("fitted.npz")
"""What of the embedded model comes from images: `cnnbench stage --fit DIRECTORY` makes it again."""
FITTED_SHA256 = "260b5a35c7398a9a7a2ea43b6888d8119374ccb856a41d9b9ca9947626c3f9b4"


@dataclass(frozen=True)
class Conv:
    """One convolution with its BatchNorm: kernel K x K x in x out, stride, and how the BatchNorm starts."""

    name: str
    kernel: int
    inputs: int
    filters: int
    stride: int
    gamma: float = 1.0


def _stage_convs() -> list[list[tuple[Conv | None, Conv, Conv, Conv]]]:
    stages, inputs = [], 64
    for s, (filters, blocks, first_stride) in enumerate(STAGES, start=1):
        stage = []
        for b in range(1, blocks + 1):
            prefix, stride = f"resnet50/stage{s}/block{b}", first_stride if b == 1 else 1
            shortcut = Conv(f"{prefix}/shortcut", 1, inputs, 4 * filters, stride) if b == 1 else None
            stage.append(
                (
                    shortcut,
                    Conv(f"{prefix}/conv1", 1, inputs, filters, 1),
                    Conv(f"{prefix}/conv2", 3, filters, filters, stride),
                    Conv(f"{prefix}/conv3", 1, filters, 4 * filters, 1, gamma=LAST_GAMMA),
                )
            )
            inputs = 4 * filters
        stages.append(stage)
    return stages


STEM = Conv("resnet50/conv0", 7, 3, 64, 2)
BLOCKS = tuple(block for stage in _stage_convs() for block in stage)
CONVS = (STEM, *(conv for block in BLOCKS for conv in block if conv is not None))


def seeded_weights(seed: int = 50) -> Weights:
    """Return He-normal convolution kernels (HWIO) and BatchNorm scales and shifts, float32, fixed by the seed."""
    random = np.random.Generator(np.random.PCG64(seed))
    weights: Weights = {}
    for conv in CONVS:
        fan_in = conv.kernel * conv.kernel * conv.inputs
        shape = (conv.kernel, conv.kernel, conv.inputs, conv.filters)
        weights[f"{conv.name}/kernel"] = (random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        weights[f"{conv.name}/gamma"] = np.full(conv.filters, conv.gamma, dtype=np.float32)
        weights[f"{conv.name}/beta"] = np.zeros(conv.filters, dtype=np.float32)
    return weights


def _forward(images: Any, weights: Mapping[str, np.ndarray], normalise: Callable[[Any, Conv], Any]) -> Any:
    """Return the pooled features (N x 2048) of a batch; `normalise` is the BatchNorm to use."""
    import tensorflow as tf

    def convolve(x: Any, conv: Conv) -> Any:
        name = conv.name
        if (
            conv.stride > 1 and conv.kernel > 1
        ):  # padding that does not depend on the input's size, as the public graph has
            before = (conv.kernel - 1) // 2
            after = conv.kernel - 1 - before
            x = tf.raw_ops.Pad(input=x, paddings=[[0, 0], [before, after], [before, after], [0, 0]], name=f"{name}/Pad")
        padding = "VALID" if conv.stride > 1 else "SAME"
        strides = [1, conv.stride, conv.stride, 1]
        kernel = tf.constant(weights[f"{name}/kernel"], name=f"{name}/kernel")
        x = tf.raw_ops.Conv2D(input=x, filter=kernel, strides=strides, padding=padding, name=f"{name}/Conv2D")
        return normalise(x, conv)

    def relu(x: Any, name: str) -> Any:
        return tf.raw_ops.Relu(features=x, name=f"{name}/Relu")

    x = relu(convolve(images, STEM), STEM.name)
    x = tf.raw_ops.MaxPool(
        input=x, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding="SAME", name="resnet50/max_pool/MaxPool"
    )
    for shortcut, conv1, conv2, conv3 in BLOCKS:
        identity = x if shortcut is None else convolve(x, shortcut)
        x = relu(convolve(x, conv1), conv1.name)
        x = relu(convolve(x, conv2), conv2.name)
        x = tf.raw_ops.AddV2(x=convolve(x, conv3), y=identity, name=f"{conv3.name}/add")
        x = relu(x, conv3.name)
    return tf.raw_ops.Mean(input=x, axis=[1, 2], name=FEATURES)


def calibrate(weights: Weights, images: np.ndarray) -> Weights:
    """Return the weights with BatchNorm means and variances measured on a batch.

    One forward pass in training mode gives every layer the moments it will see, because each is normalised by its
    own before the next is measured. `images`: float32, N x 224 x 224 x 3, preprocessed.
    """
    import tensorflow as tf

    moments: Weights = {}

    def normalise(x: Any, conv: Conv) -> Any:
        mean, variance = tf.nn.moments(x, axes=[0, 1, 2])
        moments[f"{conv.name}/mean"], moments[f"{conv.name}/variance"] = mean.numpy(), variance.numpy()
        return tf.nn.batch_normalization(
            x, mean, variance, weights[f"{conv.name}/beta"], weights[f"{conv.name}/gamma"], EPSILON
        )

    _forward(tf.constant(images), weights, normalise)
    return weights | moments


def write_fitted(path: Path, weights: Weights, kernel: np.ndarray, bias: np.ndarray, present: np.ndarray) -> None:
    """Write what images have decided: the BatchNorms' moments and the head.

    `kernel`: of the classes `present` alone (2048 x those). It is kept in half precision, so that the file is small.
    """
    moments: dict[str, Any] = {name: value for name, value in weights.items() if name.endswith(("/mean", "/variance"))}
    np.savez_compressed(path, kernel=kernel.astype(np.float16), bias=bias, present=present, **moments)


def read_fitted(path: Path = FITTED, sha256: str = FITTED_SHA256) -> tuple[Weights, np.ndarray, np.ndarray]:
    """Return the BatchNorms' moments, the head's kernel (float32, 2048 x 1001) and bias; raise for another file."""
    if (found := digest_file(path)) != sha256:
        raise CnnbenchError(f"{path}: SHA-256 is {found}, needed {sha256}: it was changed; check it out again")
    with np.load(path) as kept:
        bias, kernel = kept["bias"], np.zeros((kept["kernel"].shape[0], len(kept["bias"])), dtype=np.float32)
        kernel[:, kept["present"]] = kept["kernel"]
        return {name: kept[name] for name in kept.files if name.endswith(("/mean", "/variance"))}, kernel, bias


def freeze(weights: Weights, head_kernel: np.ndarray, head_bias: np.ndarray) -> Any:
    """Return the frozen GraphDef, the head being a dense layer (2048 x 1001 and 1001) and a softmax."""
    import tensorflow as tf

    def normalise(x: Any, conv: Conv) -> Any:
        name = f"{conv.name}/BatchNorm"
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.constant(weights[f"{conv.name}/gamma"], name=f"{name}/gamma"),
            offset=tf.constant(weights[f"{conv.name}/beta"], name=f"{name}/beta"),
            mean=tf.constant(weights[f"{conv.name}/mean"], name=f"{name}/mean"),
            variance=tf.constant(weights[f"{conv.name}/variance"], name=f"{name}/variance"),
            epsilon=EPSILON,
            is_training=False,
            name=name,
        ).y

    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, [None, IMAGE_SIZE, IMAGE_SIZE, 3], name=INPUT)
        features = _forward(images, weights, normalise)
        kernel = tf.constant(head_kernel.astype(np.float32), name="resnet50/dense/kernel")
        bias = tf.constant(head_bias.astype(np.float32), name="resnet50/dense/bias")
        logits = tf.raw_ops.MatMul(a=features, b=kernel, name="resnet50/dense/MatMul")
        logits = tf.raw_ops.BiasAdd(value=logits, bias=bias, name="resnet50/dense/BiasAdd")
        tf.raw_ops.Softmax(logits=logits, name=OUTPUT)
    return graph.as_graph_def()
