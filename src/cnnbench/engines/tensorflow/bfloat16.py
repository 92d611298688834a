"""Convert a folded float32 graph to bfloat16."""

from typing import Any

from cnnbench.engines.tensorflow.graph import INPUT

FLOAT32_OPS = ("Softmax",)
"""Operations that keep float32, for the sake of small probabilities."""


def to_bfloat16(graph: Any) -> Any:
    """Return the graph with bfloat16 weights and arithmetic between float32 images and float32 probabilities.

    The conversion is explicit rather than left to an optimiser's allow-list, so that what runs is the same in every
    TensorFlow build and can be proven.
    """
    import tensorflow as tf
    from tensorflow.python.framework import tensor_util

    float32, bfloat16 = (kind.as_datatype_enum for kind in (tf.float32, tf.bfloat16))
    cast_input = f"{INPUT}/bfloat16"
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(graph.versions)

    def add_cast(name: str, source: str, from_type: int, to_type: int) -> None:
        node = result.node.add(name=name, op="Cast", input=[source])
        node.attr["SrcT"].type, node.attr["DstT"].type = from_type, to_type

    for original in graph.node:
        node = result.node.add()
        node.CopyFrom(original)
        if node.name == INPUT:
            add_cast(cast_input, INPUT, float32, bfloat16)
        elif node.op in FLOAT32_OPS:
            add_cast(f"{node.name}/float32", node.input[0], bfloat16, float32)
            node.input[0] = f"{node.name}/float32"
        elif node.op == "Const" and node.attr["dtype"].type == float32:
            value = tensor_util.MakeNdarray(node.attr["value"].tensor).astype(tf.bfloat16.as_numpy_dtype)
            node.attr["dtype"].type = bfloat16
            node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(value))
        else:
            for index, edge in enumerate(node.input):
                if edge.split(":")[0] == INPUT:
                    node.input[index] = cast_input
            for attribute in node.attr.values():
                if attribute.type == float32:
                    attribute.type = bfloat16
    return result
