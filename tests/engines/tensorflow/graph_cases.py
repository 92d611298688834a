"""Rewrite small graphs and print what came out as JSON: run with a TensorFlow Python as `graph_cases.py CASES`."""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.tensorflow import resnet50
from cnnbench.engines.tensorflow.bfloat16 import to_bfloat16
from cnnbench.engines.tensorflow.fold import fold
from cnnbench.engines.tensorflow.graph import COUNTED, INPUT, OUTPUT, count_macs, is_quantized, read_graph
from cnnbench.engines.tensorflow.quantize import check_int8
from cnnbench.inputs.head import CLASSES

MODEL = Path("model.pb")
RANDOM = np.random.Generator(np.random.PCG64(1))
BATCH_NORMS = {
    "v1": tf.raw_ops.FusedBatchNorm,
    "v2": lambda **arguments: tf.raw_ops.FusedBatchNormV2(**arguments),
    "v3": lambda **arguments: tf.raw_ops.FusedBatchNormV3(**arguments),
}


def constant(*shape, positive=False):
    value = RANDOM.standard_normal(shape).astype(np.float32)
    return tf.constant(np.abs(value) + 0.5 if positive else value)


def conv(x, filters=4, *, kernel=None, padding="SAME", stride=1):
    kernel = constant(3, 3, x.shape[-1], filters) if kernel is None else kernel
    return tf.raw_ops.Conv2D(input=x, filter=kernel, strides=[1, stride, stride, 1], padding=padding)


def pad(x, channels=0):
    return tf.raw_ops.Pad(input=x, paddings=[[0, 0], [1, 1], [1, 2], [0, channels]])


def batch_norm(x, version="v3", *, training=False, wrap=lambda x: x):
    channels = x.shape[-1]
    moments = [tf.constant(np.empty(0, np.float32))] * 2  # none are given in training mode
    if not training:
        moments = [wrap(constant(channels)), wrap(constant(channels, positive=True))]
    return BATCH_NORMS[version](
        x=x,
        scale=wrap(constant(channels)),
        offset=wrap(constant(channels)),
        mean=moments[0],
        variance=moments[1],
        epsilon=1e-3,
        is_training=training,
    ).y


def depthwise(x):
    return tf.raw_ops.DepthwiseConv2dNative(
        input=x, filter=constant(3, 3, x.shape[-1], 2), strides=[1, 1, 1, 1], padding="SAME"
    )


def two_convs(x):
    return conv(x, padding="VALID", stride=2) + conv(x, padding="VALID", stride=2)


def read_twice(x):
    return batch_norm(x) + x


def classify(x):
    x = tf.raw_ops.Relu(features=batch_norm(conv(pad(x), padding="VALID", stride=2)))
    x = tf.raw_ops.MatMul(a=tf.raw_ops.Mean(input=x, axis=[1, 2]), b=constant(4, 10))
    return tf.raw_ops.Softmax(logits=tf.raw_ops.BiasAdd(value=x, bias=constant(10)), name=OUTPUT)


FOLDS = {
    "conv, batch norm v1": lambda x: batch_norm(conv(x), "v1"),
    "conv, batch norm v2": lambda x: batch_norm(conv(x), "v2"),
    "conv, batch norm v3": lambda x: batch_norm(conv(x), "v3"),
    "constants behind identities": lambda x: batch_norm(
        conv(x, kernel=tf.identity(constant(3, 3, 3, 4))), wrap=lambda value: tf.identity(tf.identity(value))
    ),
    "pad, conv, batch norm": lambda x: batch_norm(conv(pad(x), padding="VALID", stride=2)),
    "pad, conv": lambda x: conv(pad(x), padding="VALID", stride=2),
    "pad, two convs": lambda x: two_convs(pad(x)),
    "pad that another node reads": lambda x: tf.reduce_sum(two_convs(padded := pad(x))) + tf.reduce_sum(padded),
    "pad of channels": lambda x: conv(pad(x, channels=1), padding="VALID"),
    "pad, conv that pads too": lambda x: conv(pad(x), padding="SAME"),
    "batch norm in training mode": lambda x: batch_norm(conv(x), training=True),
    "conv that another node reads": lambda x: read_twice(conv(x)),
    "bias before the batch norm": lambda x: batch_norm(tf.raw_ops.BiasAdd(value=conv(x), bias=constant(4))),
    "depthwise conv": lambda x: batch_norm(depthwise(x)),
    "batch norm of the input": batch_norm,
    "two in a row": lambda x: batch_norm(conv(tf.nn.relu(batch_norm(conv(pad(x), padding="VALID"))))),
}


def flat(x):
    return tf.reshape(x[:, :8, :8, :], [1, 64, 3])


COUNTS = {
    "grouped": lambda x: conv(tf.concat([x, x], -1), kernel=constant(3, 3, 3, 4)),
    "transposed": lambda x: tf.raw_ops.MatMul(a=tf.reduce_mean(x, [1, 2]), b=constant(10, 3), transpose_b=True),
    "nothing": tf.nn.relu,
    "DepthwiseConv2dNative": lambda x: depthwise(conv(x)),
    "Conv2DBackpropInput": lambda x: tf.nn.conv2d_transpose(conv(x), constant(3, 3, 3, 4), [1, 448, 448, 3], 2),
    "Conv3D": lambda x: tf.nn.conv3d(conv(x)[:, None], constant(1, 3, 3, 4, 2), [1] * 5, "SAME"),
    "BatchMatMulV2": lambda x: tf.raw_ops.BatchMatMulV2(x=flat(x), y=constant(1, 3, 5)),
    "Einsum": lambda x: tf.raw_ops.Einsum(inputs=[flat(x), constant(3, 5)], equation="abc,cd->abd"),
    "PartitionedCall": lambda x: tf.function(lambda y: conv(y, kernel=constant(3, 3, 3, 4)))(x),
    "no shape": lambda x: tf.matmul(tf.compat.v1.placeholder(tf.float32, [None, 3]), constant(3, 5)),
}


def build(network, size=9):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, size, size, 3], name=INPUT)
        result = network(x)
        if result.op.name != OUTPUT:
            tf.raw_ops.Relu(features=result, name=OUTPUT)
    return graph.as_graph_def()


def infer(graph_def, images):
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            return session.run(f"{OUTPUT}:0", {f"{INPUT}:0": images})


def noise(size, count=2):
    return RANDOM.standard_normal((count, size, size, 3)).astype(np.float32)


def ops(graph_def):
    return Counter(node.op for node in graph_def.node)


def types(graph_def, op):
    return sorted({tf.as_dtype(node.attr["T"].type).name for node in graph_def.node if node.op == op})


def fold_cases():
    results = {}
    for name, network in FOLDS.items():
        graph, images = build(network), noise(9)
        folded, wanted = fold(graph), infer(graph, images)
        results[name] = {
            "difference": float(np.abs(infer(folded.graph, images) - wanted).max()),
            "largest": float(np.abs(wanted).max()),
            "batch_norms": folded.batch_norms,
            "pads": folded.pads,
            "ops": ops(folded.graph),
        }
    return results


def channels_first():
    def network(x):
        x = tf.transpose(x, [0, 3, 1, 2])
        x = tf.raw_ops.Conv2D(input=x, filter=constant(3, 3, 3, 4), strides=[1] * 4, padding="SAME", data_format="NCHW")
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=constant(4),
            offset=constant(4),
            mean=constant(4),
            variance=constant(4, positive=True),
            is_training=False,
            data_format="NCHW",
        ).y

    folded = fold(build(network)).graph  # not run: TensorFlow has no such convolution for CPUs
    return [node.attr["data_format"].s.decode() for node in folded.node if node.op in ("Conv2D", "BiasAdd")]


def bfloat16_case():
    graph = fold(build(classify)).graph
    images = noise(9, count=8)
    converted = to_bfloat16(graph)
    found = infer(converted, images)
    return {
        "difference": float(np.abs(found - infer(graph, images)).max()),
        "dtype": str(found.dtype),
        "sums": found.sum(axis=1).tolist(),
        "types": {op: types(converted, op) for op in ("Conv2D", "BiasAdd", "Relu", "Mean", "MatMul", "Softmax")},
    }


def read_errors():
    whole = build(classify, size=224)
    headless = tf.compat.v1.graph_util.extract_sub_graph(whole, [node.name for node in whole.node if node.op == "Mean"])
    renamed = tf.compat.v1.GraphDef.FromString(whole.SerializeToString().replace(INPUT.encode(), b"INPUT_tensor"))
    shifted = build(lambda x: tf.identity(x, name="hidden_input"), size=224).SerializeToString()
    shifted = shifted.replace(INPUT.encode(), b"INPUT_tensor")  # names of equal length keep the encoding whole
    double = build(classify, size=224)
    next(node for node in double.node if node.name == INPUT).attr["dtype"].type = tf.float64.as_datatype_enum
    files = {
        "whole": whole.SerializeToString(),
        "garbage": b"not a graph at all" * 100,
        "truncated": whole.SerializeToString()[:-100],
        "empty": b"",
        "no output": headless.SerializeToString(),
        "no input": renamed.SerializeToString(),
        "other size": build(classify, size=299).SerializeToString(),
        "other type": double.SerializeToString(),
        "other source": shifted.replace(b"hidden_input", INPUT.encode()),
    }
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            path = Path(directory) / "model.pb"
            path.write_bytes(content)
            try:
                read_graph(path)
            except CnnbenchError as error:
                found[name] = str(error)
            else:
                found[name] = ""
    return found


STOCK = """x Placeholder; q QuantizeV2 x; c1 _FusedQuantizedConv2D q k; p QuantizedMaxPool c1;
c2 _FusedQuantizedConv2D p k;
d Dequantize c2; m Mean d; q2 QuantizeV2 m; mm _QuantizedMatMul q2 k; s Softmax mm; k Const"""
ITEX = """x Placeholder; q QuantizeV2 x; d Dequantize q; c1 Conv2D d kd; b BiasAdd c1 k; r Relu b; q1 QuantizeV2 r;
d1 Dequantize q1; p MaxPool d1; q2 QuantizeV2 p; d2 Dequantize q2; c2 Conv2D d2 kd; a AddV2 c2 d2; m Mean a;
q3 QuantizeV2 m; d3 Dequantize q3; mm MatMul d3 kd; s Softmax mm; k Const; kq QuantizeV2 k; kd Dequantize kq"""
INT8 = {
    "stock": (STOCK, "stock"),
    "itex": (ITEX, "itex"),
    "stock, one too few": (STOCK.replace("mm _QuantizedMatMul q2 k", "mm Identity q2"), "stock"),
    "stock, a float convolution": (
        STOCK.replace("c2 _FusedQuantizedConv2D p k;\nd Dequantize c2", "d Dequantize p; c2 Conv2D d k").replace(
            "m Mean d", "m Mean c2"
        ),
        "stock",
    ),
    "stock, a convolution left between Dequantize": (
        STOCK.replace("d Dequantize c2", "e Dequantize c1; kd Dequantize k; f Conv2D e kd; d Relu f"), "stock"
    ),
    "itex, a call": (ITEX.replace("mm MatMul d3 kd", "mm PartitionedCall"), "itex"),
    "stock, another convolution": (STOCK.replace("s Softmax mm", "s Conv3D mm"), "stock"),
    "stock, a Pad": (
        STOCK.replace("c2 _FusedQuantizedConv2D p k", "e Dequantize p; pad Pad e; f QuantizeV2 pad; "
                      "c2 _FusedQuantizedConv2D f k"),
        "stock",
    ),
    "stock, a float MaxPool and Relu": (
        STOCK.replace("p QuantizedMaxPool c1", "e Dequantize c1; f Relu e; g MaxPool f; p QuantizeV2 g"),
        "stock",
    ),
    "stock, a float addition": (
        STOCK.replace("p QuantizedMaxPool c1", "e Dequantize c1; a AddV2 k e; p QuantizeV2 a"),
        "stock",
    ),
    "itex, float weights": (ITEX.replace("c2 Conv2D d2 kd", "c2 Conv2D d2 k"), "itex"),
    "itex, a float input": (ITEX.replace("mm MatMul d3 kd", "mm MatMul m kd"), "itex"),
    "itex, a Pad": (ITEX.replace("c2 Conv2D d2", "pad Pad d2; f QuantizeV2 pad; g Dequantize f; c2 Conv2D g"), "itex"),
    "itex, quantised twice": (ITEX.replace("p MaxPool d1", "f QuantizeV2 d1; g Dequantize f; p MaxPool g"), "itex"),
}  # fmt: skip


def int8_case(text, variant):
    graph = tf.compat.v1.GraphDef()
    for line in text.replace("\n", " ").split(";"):
        name, op, *inputs = line.split()
        graph.node.add(name=name, op=op, input=inputs)
    try:
        check_int8(graph, 3, variant)
    except CnnbenchError as error:
        return str(error)
    return ""


def quantized_macs():
    """Count a quantised convolution of 3 x 3 kernels and stride 2, and a product of its 112 x 112 x 4 outputs."""

    def network(x):
        low, high = tf.constant(-1.0), tf.constant(1.0)
        value, kernel = (
            tf.raw_ops.QuantizeV2(input=one, min_range=low, max_range=high, T=kind).output
            for one, kind in ((x, tf.quint8), (constant(3, 3, 3, 4), tf.qint8))
        )
        y = tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize(
            input=value,
            filter=kernel,
            bias=constant(4),
            min_input=low,
            max_input=high,
            min_filter=low,
            max_filter=high,
            min_freezed_output=low,
            max_freezed_output=high,
            strides=[1, 2, 2, 1],
            padding="SAME",
        ).output
        return tf.raw_ops.Dequantize(input=y, min_range=low, max_range=high)

    graph = build(network, size=224)
    others = (
        "QuantizedConv2D",
        "QuantizedConv2DAndRelu",
        "QuantizedConv2DAndReluAndRequantize",
        "_FusedQuantizedConv2D",
    )
    counted = [bool(COUNTED.fullmatch(name)) for name in others]
    return [count_macs(graph, MODEL), is_quantized(graph), is_quantized(build(classify)), *counted]


def small_cases():
    return {
        "fold": fold_cases(),
        "channels_first": channels_first(),
        "bfloat16": bfloat16_case(),
        "macs": count_macs(build(classify, size=224), MODEL),
        "other_macs": {name: count_or_error(network) for name, network in COUNTS.items()},
        "folded_macs": count_macs(fold(build(classify, size=224)).graph, MODEL),
        "errors": read_errors(),
        "int8": {name: int8_case(*case) for name, case in INT8.items()},
        "quantized_macs": quantized_macs(),
    }


def count_or_error(network):
    try:
        return count_macs(build(network, size=224), MODEL)
    except CnnbenchError as error:
        return str(error)


def resnet50_case():
    weights = resnet50.seeded_weights()
    moments = {f"{c.name}/{kind}": np.full(c.filters, kind == "variance", np.float32) for c in resnet50.CONVS
               for kind in ("mean", "variance")}  # fmt: skip
    random = np.random.Generator(np.random.PCG64(2))
    head = random.standard_normal((2048, CLASSES)) / 100
    graph = resnet50.freeze(weights | moments, head, np.zeros(CLASSES))
    folded = fold(graph)
    images = noise(resnet50.IMAGE_SIZE) * 50
    wanted = infer(graph, images)
    (source,) = (node for node in graph.node if node.op == "Placeholder")
    return {
        "ops": ops(graph),
        "folded_ops": ops(folded.graph),
        "batch_norms": folded.batch_norms,
        "pads": folded.pads,
        "macs": count_macs(folded.graph, MODEL),
        "parameters": sum(value.size for value in weights.values()) + head.size + CLASSES,
        "input": [source.name, tf.as_dtype(source.attr["dtype"].type).name],
        "input_shape": [dimension.size for dimension in source.attr["shape"].shape.dim],
        "output_shape": wanted.shape,
        "sums": wanted.sum(axis=1).tolist(),
        "difference": float(np.abs(infer(folded.graph, images) - wanted).max()),
        "strides": {node.name: node.attr["strides"].list.i[1] for node in graph.node if node.op == "Conv2D"},
        "last": graph.node[-1].name,
    }


if __name__ == "__main__":
    print(json.dumps({"small": small_cases, "resnet50": resnet50_case}[sys.argv[1]]()))
