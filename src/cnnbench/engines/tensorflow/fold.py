"""Fold BatchNorms and explicit Pads of a frozen TensorFlow graph into its convolutions.

Both rewrites are exact up to rounding. They come before everything else, because what the engine's own optimiser
leaves (BatchNorm as four binary post-operations, Pads around which a quantiser must dequantise) costs about a tenth
of the throughput. Works on the GraphDef alone; TensorFlow is imported for its tensor conversions only.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnbench.engines.tensorflow.graph import OUTPUT, node_name

BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


@dataclass(frozen=True)
class Folded:
    """The rewritten graph and how many BatchNorms and Pads went into convolutions."""

    graph: Any
    batch_norms: int
    pads: int


def fold(graph: Any, output: str = OUTPUT) -> Folded:
    """Return the part of a frozen GraphDef that `output` needs, folded.

    What does not fit (a Pad that feeds no convolution, a BatchNorm in training mode, a convolution whose raw result
    somebody else reads) is left as it stands.
    """
    import tensorflow as tf
    from tensorflow.python.framework import tensor_util

    graph = tf.compat.v1.graph_util.extract_sub_graph(graph, [output])
    graph = tf.compat.v1.graph_util.remove_training_nodes(graph, protected_nodes=[output])
    nodes = {node.name: node for node in graph.node}
    readers = Counter(node_name(edge) for node in graph.node for edge in node.input)

    def constant(edge: str) -> np.ndarray | None:
        node = nodes[node_name(edge)]
        while node.op == "Identity":
            node = nodes[node_name(node.input[0])]
        return tensor_util.MakeNdarray(node.attr["value"].tensor) if node.op == "Const" else None

    def make_constant(name: str, value: np.ndarray) -> Any:
        node = tf.compat.v1.NodeDef(name=name, op="Const")
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(value))
        return node

    added: list[Any] = []
    removed: set[str] = set()
    pads = batch_norms = 0
    for node in graph.node:
        if node.op == "Conv2D" and _absorb_pad(node, nodes, readers, constant, removed):
            pads += 1
    for norm in graph.node:
        if norm.op not in BATCH_NORMS or norm.attr["is_training"].b:
            continue
        conv = nodes[node_name(norm.input[0])]
        parameters = [constant(edge) for edge in norm.input[1:5]]
        kernel = constant(conv.input[1]) if conv.op == "Conv2D" else None
        if kernel is None or any(p is None for p in parameters) or readers[conv.name] != 1:
            continue
        gamma, beta, mean, variance = (np.asarray(p, dtype=np.float64) for p in parameters)
        scale = gamma / np.sqrt(variance + norm.attr["epsilon"].f)
        folded_kernel = make_constant(f"{conv.name}/folded_kernel", (kernel * scale).astype(kernel.dtype))
        bias = make_constant(f"{norm.name}/folded_bias", (beta - mean * scale).astype(kernel.dtype))
        conv.input[1] = folded_kernel.name
        replacement = tf.compat.v1.NodeDef(name=norm.name, op="BiasAdd", input=[conv.name, bias.name])
        replacement.attr["T"].type = conv.attr["T"].type
        replacement.attr["data_format"].s = norm.attr["data_format"].s or b"NHWC"
        norm.CopyFrom(replacement)
        added += [folded_kernel, bias]
        batch_norms += 1

    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(graph.versions)
    result.node.extend(node for node in graph.node if node.name not in removed)
    result.node.extend(added)
    return Folded(tf.compat.v1.graph_util.extract_sub_graph(result, [output]), batch_norms, pads)


def _absorb_pad(conv: Any, nodes: dict[str, Any], readers: Counter, constant: Any, removed: set[str]) -> bool:
    """Turn Pad + Conv2D(VALID) into one Conv2D with explicit paddings; say whether it was done."""
    pad = nodes[node_name(conv.input[0])]
    if pad.op != "Pad" or conv.attr["padding"].s != b"VALID" or conv.attr["data_format"].s not in (b"", b"NHWC"):
        return False
    paddings = constant(pad.input[1])
    if paddings is None or paddings[0].any() or paddings[3].any():
        return False
    conv.input[0] = pad.input[0]
    conv.attr["padding"].s = b"EXPLICIT"
    conv.attr["explicit_paddings"].list.i.extend(int(p) for p in paddings.flatten())
    readers[pad.name] -= 1
    if not readers[pad.name]:
        removed.add(pad.name)
    else:
        readers[node_name(pad.input[0])] += 1
    return True
