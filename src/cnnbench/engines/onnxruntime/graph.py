"""Read ONNX files, name their operations, and find what in them multiplies and accumulates."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import google.protobuf.message
import numpy as np
import onnx
from onnx import numpy_helper

from cnnbench.base.errors import CnnbenchError, UsageError

STEPS_OF_FLATTEN = 6
"""As many operations the specification's exporter made of a Flatten, which its numbers of later ones count."""

LEAST_IR = 8
"""Of files: in older ones initializers must be inputs too."""

NEAREST = 5
"""How many operations are named where one is asked for that is not there."""

PRODUCTS = ("Conv", "Gemm", "MatMul")
NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
KEEP_SIGNS = ("MaxPool", "GlobalAveragePool", "AveragePool", "Flatten", "Reshape", "Transpose", "Identity", "Squeeze")


@dataclass(frozen=True)
class Product:
    """An operation that multiplies by constant weights: a convolution or a matrix product.

    `weights`: the initializer; `axis`: that of its output channels. `source`: the tensor that it multiplies.
    """

    name: str
    kind: str
    source: str
    weights: str
    axis: int


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data; raise CnnbenchError for anything else."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; needed an ONNX model")
    try:
        model = onnx.load(path)
    except google.protobuf.message.DecodeError as error:
        raise CnnbenchError(f"{path}: no ONNX model, or cut off: {error}") from error
    except (OSError, onnx.checker.ValidationError, ValueError) as error:
        raise CnnbenchError(f"{path}: its external data cannot be read: {error}") from error
    if not model.graph.node:
        raise CnnbenchError(f"{path}: no ONNX model, or cut off: it has no operations")
    check_model(model, str(path))
    _settle_weights(model)
    return model


def _settle_weights(model: onnx.ModelProto) -> None:
    """Have all constants be initializers and none of these an input, whatever an exporter has made of them."""
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    held = {one.name for one in graph.initializer}
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            graph.initializer.append(value)
            held.add(value.name)
        elif node.op_type == "Identity" and node.input[0] in held:
            renamed[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    given = own_inputs(graph)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(given)
    model.ir_version = max(model.ir_version, LEAST_IR)


def check_model(model: onnx.ModelProto, what: str) -> None:
    """Raise CnnbenchError unless a model is valid ONNX."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CnnbenchError(f"{what}: no valid ONNX model: {lines[0]}") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operations that a model is written in."""
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def count_bytes(model: onnx.ModelProto) -> int:
    """Return how large a model is as one file, weights and all."""
    return model.ByteSize()


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    onnx.save(model, partial)
    partial.replace(path)


def own_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return what a graph is handed, initializers left out, which old files list too."""
    initializers = {one.name for one in graph.initializer}
    return [one for one in graph.input if one.name not in initializers]


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the one input of a network of images; raise CnnbenchError for several, or one of another rank."""
    inputs = own_inputs(model.graph)
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in inputs}
    if list(ranks.values()) != [4]:
        raise CnnbenchError(f"the graph takes {ranks or 'nothing'} (name: rank); needed one input of images, of rank 4")
    return inputs[0]


def input_shape(model: onnx.ModelProto) -> list[int]:
    """Return the shape of the images that a model takes, 0 for what is left open."""
    dimensions = image_input(model).type.tensor_type.shape.dim
    return [int(one.dim_value) for one in dimensions]


def fix_shape(model: onnx.ModelProto, given: dict[str, Sequence[int]]) -> None:
    """Give a model's input the shape asked for; raise UsageError where one is missing or does not fit the graph."""
    image = image_input(model)
    if unknown := set(given) - {image.name}:
        raise UsageError(f"--input_shape {unknown.pop()}: the graph has no such input; its input is {image.name}")
    found, shape = input_shape(model), given.get(image.name)
    if shape is None:
        if 0 in found:
            raise UsageError(
                f"{image.name} has the shape {_told(found)}: give what is open, such as --input_shape "
                f"{image.name}={','.join(str(size or 1) for size in found)}"
            )
        return
    if len(shape) != len(found) or any(size not in (0, asked) for size, asked in zip(found, shape, strict=True)):
        raise UsageError(f"--input_shape {image.name}={_told(shape)}: the graph takes {_told(found)}")
    for dimension, size in zip(image.type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _told(shape: Iterable[int]) -> str:
    return ",".join(str(size) if size else "?" for size in shape)


def number_operations(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the names of a graph's operations by those that the specification's exporter gives: kind and number.

    It counts from 0 from the first convolution on: what handles the images before is not of the network.
    """
    numbered, number = {}, None
    before_gemm = {node.input[0] for node in graph.node if node.op_type == "Gemm"}
    for node in graph.node:
        if number is None and node.op_type != "Conv":
            continue
        number = number or 0
        numbered[f"{node.op_type}_{number}"] = node.name
        flattens = node.op_type in ("Flatten", "Reshape") and node.output[0] in before_gemm
        number += STEPS_OF_FLATTEN if flattens else 1
    return numbered


def name_operations(graph: onnx.GraphProto) -> None:
    """Give operations without a name, or with another's, one of their kind and position."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}_unnamed"
        taken.add(node.name)


def find_operations(graph: onnx.GraphProto, names: Iterable[str]) -> list[str]:
    """Return the graph's names of operations, asked for by these or by their numbers; raise UsageError for others."""
    numbered, products = number_operations(graph), {one.name for one in find_products(graph)}
    known = {number: name for number, name in numbered.items() if name in products}
    known |= {node.name: node.name for node in graph.node}
    found = []
    for name in names:
        own = known.get(name)
        if own is None or own not in products:
            offered = [*(one for one in numbered if numbered[one] in products), *sorted(products)]
            nearest = difflib.get_close_matches(name, offered, NEAREST, cutoff=0)
            what = "no such operation" if own is None else "it multiplies by no weights, so nothing of it is rounded"
            raise UsageError(f"{name}: {what}; the nearest are {', '.join(nearest) or 'none'}")
        found.append(own)
    return list(dict.fromkeys(found))


def find_products(graph: onnx.GraphProto) -> list[Product]:
    """Return the operations that multiply by constant weights, in the graph's order."""
    weights = {one.name: one for one in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in PRODUCTS or node.input[1] not in weights:
            continue
        axis = _output_axis(node, len(weights[node.input[1]].dims))
        found.append(Product(node.name, node.op_type, node.input[0], node.input[1], axis))
    return found


def count_macs(model: onnx.ModelProto, batch: int) -> int:
    """Return the multiply-accumulates that an image takes in a model's products, told from a batch of so many."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    image_input(sized).type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = {
        one.name: [int(dimension.dim_value) for dimension in one.type.tensor_type.shape.dim]
        for one in (*inferred.value_info, *inferred.output)
    }
    held = {one.name: list(one.dims) for one in model.graph.initializer}
    unpacked = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type in ("DequantizeLinear", "Cast")
    }
    total = 0
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        shape = held.get(unpacked.get(node.input[1], node.input[1]))
        sizes = shapes.get(node.output[0])
        if shape is None and node.op_type == "MatMul":
            continue  # of two tensors, neither of them weights
        if shape is None or not sizes:
            raise CnnbenchError(f"{node.name}: its weights or the shape of what it answers cannot be told")
        per_output = int(np.prod(shape)) // shape[_output_axis(node, len(shape))]
        total += int(np.prod(sizes[1:])) * per_output
    return total


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return the axis of a product's weights that its output channels are on."""
    turned = any(one.name == "transB" and one.i for one in node.attribute)
    return 0 if node.op_type == "Conv" or turned else rank - 1


def never_negative(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that have no numbers below 0, as their makers tell."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in NEVER_NEGATIVE or (node.op_type in KEEP_SIGNS and node.input[0] in found):
            found.update(node.output)
    return found


def pad_channels(model: onnx.ModelProto, multiple: int) -> list[str]:
    """Have convolutions take a multiple of so many channels, the added ones being 0; return the names of those padded.

    Vector units take four bytes at a time (VNNI, AMX), or more; three channels leave a part of that idle. Only what is
    not a multiple is padded, in what it takes: with weights of 0 for 0 its sums are the same.
    """
    graph, padded = model.graph, []
    weights = {one.name: one for one in graph.initializer}
    for position, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        held = weights[node.input[1]]
        grouped = any(one.name == "group" and one.i != 1 for one in node.attribute)
        lacking = -held.dims[1] % multiple
        if grouped or not lacking:
            continue
        values = numpy_helper.to_array(held)
        wider = np.pad(values, [(0, 0), (0, lacking), *[(0, 0)] * (values.ndim - 2)])
        name = f"{node.name}/padded"
        pads = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, lacking, 0, 0], np.int64), f"{name}/pads")
        graph.initializer.extend([numpy_helper.from_array(wider, f"{name}/weights"), pads])
        pad = onnx.helper.make_node("Pad", [node.input[0], pads.name], [name], name=name)
        node.input[0], node.input[1] = name, f"{name}/weights"
        graph.node.insert(position, pad)
        padded.append(node.name)
    drop_unused(graph)
    return padded


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that nothing uses."""
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
