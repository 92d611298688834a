"""Read, check and measure frozen TensorFlow graphs of the fixed interface.

The interface is that of the public `resnet50_v1.pb`: float32 images N x 224 x 224 x 3 in, RGB minus the ImageNet
means; probabilities of 1001 classes out, the background first.
"""

import re
from pathlib import Path
from typing import Any

from cnnbench.base.errors import CnnbenchError
from cnnbench.inputs.head import CLASSES

INPUT = "input_tensor"
OUTPUT = "softmax_tensor"
IMAGE_SIZE = 224

COUNTED = re.compile(r"Conv2D|MatMul|_?(Fused)?Quantized(Conv2D|MatMul)(PerChannel|(With|And)\w+)?")
"""Types of operations whose multiply-accumulates are counted: their second input is the kernel, int8 or not."""

NOT_COUNTED = re.compile(r"Conv|MatMul|Einsum|Dot|LSTM|GRU|RNN|PartitionedCall|^(Stateless)?(If|While|Case)$")
"""Types of operations that multiply and accumulate as well, or that call a function which may."""


def read_graph(path: Path) -> Any:
    """Read a frozen GraphDef and check that it has the fixed interface; raise CnnbenchError saying what is amiss."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise CnnbenchError(f"{path}: not a frozen TensorFlow graph: {error}") from error
    missing = {INPUT, OUTPUT} - {node.name for node in graph.node}
    if missing:
        raise CnnbenchError(
            f"{path}: has no node {' and '.join(sorted(missing))}; a graph must take {INPUT} "
            f"(float32, N x {IMAGE_SIZE} x {IMAGE_SIZE} x 3) and give {OUTPUT} (float32, N x {CLASSES})"
        )
    source = next(node for node in graph.node if node.name == INPUT)
    if source.op != "Placeholder":
        raise CnnbenchError(f"{path}: {INPUT} is of type {source.op}, needed a Placeholder")
    kind, shape = tf.as_dtype(source.attr["dtype"].type), tf.TensorShape(source.attr["shape"].shape)
    if kind != tf.float32 or not shape.is_compatible_with([None, IMAGE_SIZE, IMAGE_SIZE, 3]):
        raise CnnbenchError(
            f"{path}: {INPUT} takes {kind.name} {shape}, needed float32 N x {IMAGE_SIZE} x {IMAGE_SIZE} x 3"
        )
    return graph


def node_name(edge: str) -> str:
    """Return the node an input refers to: `^node` is a control edge, `node:1` an output other than the first."""
    return edge.lstrip("^").split(":")[0]


def is_multiply(node: Any) -> bool:
    """Tell whether a node multiplies and accumulates, whether or not it can be counted."""
    return bool(COUNTED.fullmatch(node.op) or NOT_COUNTED.search(node.op))


def is_quantized(graph: Any) -> bool:
    """Tell whether a graph computes with quantised values."""
    return any("Quantize" in node.op for node in graph.node)


def count_macs(graph: Any, path: Path) -> int:
    """Return the multiply-accumulates of one image's convolutions and matrix products, from the graph's shapes.

    Raise CnnbenchError, naming `path`, for a graph that has none, or has some that are not counted here: a share of
    too few would prove nothing.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as imported:
        images = tf.compat.v1.placeholder(tf.float32, [1, IMAGE_SIZE, IMAGE_SIZE, 3])
        tf.import_graph_def(graph, input_map={f"{INPUT}:0": images}, name="")
        macs = 0
        for operation in imported.get_operations():
            if COUNTED.fullmatch(operation.type):
                weights = operation.inputs[1].shape
                outputs = operation.outputs[0].shape.num_elements()
                if outputs is None or not weights.is_fully_defined():
                    raise CnnbenchError(f"{path}: {operation.name} ({operation.type}) has no fixed shapes to count by")
                # Of a kernel (height, width, channels of a group, filters) or matrix, all but the axis of the outputs.
                transposed = "MatMul" in operation.type and operation.get_attr("transpose_b")
                macs += outputs * weights.num_elements() // weights[0 if transposed else -1]
            elif NOT_COUNTED.search(operation.type):
                raise CnnbenchError(
                    f"{path}: {operation.name} is of type {operation.type}, whose multiply-accumulates cannot be "
                    "counted; a graph must compute with Conv2D and MatMul only"
                )
    if not macs:
        raise CnnbenchError(f"{path}: has no Conv2D or MatMul between {INPUT} and {OUTPUT}: nothing to measure")
    return macs
