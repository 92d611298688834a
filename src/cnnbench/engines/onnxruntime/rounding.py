"""Put the roundings of a conversion into a graph, as standard ONNX or as float32 operations that do the same."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.onnxruntime.formats import FORMATS, Format, rounding_nodes
from cnnbench.engines.onnxruntime.graph import Product, drop_unused, find_products, never_negative

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LARGEST_HALF = 65504.0

ROUNDED = "/rounded"
"""What follows a tensor's name in that of the same tensor rounded to 8 bits and back."""


@dataclass(frozen=True)
class Rounding:
    """What is rounded of one product: its weights, and of fp8 what it multiplies too.

    `weight_exponents`: one, or one for each output channel. `exponent`: None where what it multiplies is not rounded.
    `means`: of each channel that it multiplies, None where they are not known. `rounded`: the weights in the format,
    where they are not just the nearest.
    """

    product: Product
    weights: Format
    weight_exponents: np.ndarray
    source: Format
    exponent: int | None
    means: np.ndarray | None = None
    rounded: np.ndarray | None = None

    def hold(self, weights: np.ndarray) -> np.ndarray:
        """Return the weights in the format's numbers."""
        return self.weights.round(weights, self.spread(weights.ndim)) if self.rounded is None else self.rounded

    def spread(self, rank: int) -> np.ndarray:
        """Return the exponents of the weights' scales, along the axis of output channels."""
        if not self.weight_exponents.ndim:
            return self.weight_exponents
        return self.weight_exponents.reshape([-1 if at == self.product.axis else 1 for at in range(rank)])


def round_products(model: onnx.ModelProto, roundings: Mapping[str, Rounding], others: str) -> None:
    """Give a model the roundings of its products, by name, as QuantizeLinear and DequantizeLinear.

    The weights of products without one are held as `others`: fp32, fp16 or bf16.
    """
    graph = model.graph
    held = {one.name: one for one in graph.initializer}
    made: dict[tuple[str, str], str] = {}
    nodes: list[onnx.NodeProto] = []
    products = {one.name: one for one in find_products(graph)}
    for node in graph.node:
        if product := products.get(node.name):
            rounding = roundings.get(node.name)
            if rounding:
                _correct_bias(graph, node, rounding, held)
                node.input[1] = _hold_in_fp8(graph, rounding, held[product.weights], made, nodes)
                if rounding.exponent is not None:
                    node.input[0] = _round_source(graph, rounding, made, nodes)
            elif others in HALVES:
                node.input[1] = _hold_in_halves(graph, held[product.weights], others, made, nodes)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def _correct_bias(
    graph: onnx.GraphProto, node: onnx.NodeProto, rounding: Rounding, held: Mapping[str, TensorProto]
) -> None:
    """Add to a product's bias what rounding its weights takes from the mean of each output channel.

    Without that, each layer shifts what all later ones are handed (Nagel et al. 2019, arXiv:1906.04721, 4.2).
    """
    given = node.input[2] if len(node.input) > 2 else ""
    if rounding.means is None or node.op_type == "MatMul" or (given and given not in held):
        return
    weights, axis = numpy_helper.to_array(held[rounding.product.weights]), rounding.product.axis
    stands_for = rounding.weights.restore(rounding.hold(weights), rounding.spread(weights.ndim))
    lost = np.moveaxis(weights - stands_for, axis, 0).astype(np.float64)
    by_channel = lost.reshape(*lost.shape[:2], -1).sum(axis=2)
    groups = len(rounding.means) // by_channel.shape[1]
    means = np.repeat(rounding.means.reshape(groups, -1), len(by_channel) // groups, axis=0)
    bias = numpy_helper.to_array(held[given]) if given else np.zeros(len(by_channel), np.float32)
    name = f"{node.name}/bias"
    corrected = (bias + (by_channel * means).sum(axis=1)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(corrected, name))
    del node.input[2:]
    node.input.append(name)


def _hold_in_fp8(
    graph: onnx.GraphProto,
    rounding: Rounding,
    weights: TensorProto,
    made: dict[tuple[str, str], str],
    nodes: list[onnx.NodeProto],
) -> str:
    own = "" if rounding.rounded is None else rounding.product.name
    key = (weights.name, f"fp8 {rounding.product.axis} {own}")
    if key not in made:
        values, form, axis = numpy_helper.to_array(weights), rounding.weights, rounding.product.axis
        exponents = rounding.weight_exponents
        rounded = rounding.hold(values)
        name = f"{own or weights.name}/{form.name}"
        scale = f"{name}/scale"
        graph.initializer.append(
            helper.make_tensor(name, form.tensor_type, values.shape, np.ascontiguousarray(rounded).tobytes(), raw=True)
        )
        graph.initializer.append(numpy_helper.from_array(np.exp2(exponents, dtype=np.float32), scale))
        attributes = {"axis": axis} if exponents.ndim else {}
        made[key] = f"{name}{ROUNDED}"
        nodes.append(helper.make_node("DequantizeLinear", [name, scale], [made[key]], name=made[key], **attributes))
    return made[key]


def _round_source(
    graph: onnx.GraphProto, rounding: Rounding, made: dict[tuple[str, str], str], nodes: list[onnx.NodeProto]
) -> str:
    form, exponent, source = rounding.source, rounding.exponent, rounding.product.source
    assert exponent is not None
    key = (source, f"{form.name} {exponent}")
    if key not in made:
        name = f"{source}/{form.name}/{exponent}"
        scale = f"{name}/scale"
        graph.initializer.append(helper.make_tensor(scale, TensorProto.FLOAT, [], [2.0**exponent]))
        made[key] = f"{name}{ROUNDED}"
        told = {"output_dtype": form.tensor_type}  # and no zero point: ONNX Runtime takes that for a ReLU's work
        nodes.append(helper.make_node("QuantizeLinear", [source, scale], [name], name=name, **told))
        nodes.append(helper.make_node("DequantizeLinear", [name, scale], [made[key]], name=made[key]))
    return made[key]


def _hold_in_halves(
    graph: onnx.GraphProto,
    weights: TensorProto,
    number_type: str,
    made: dict[tuple[str, str], str],
    nodes: list[onnx.NodeProto],
) -> str:
    key = (weights.name, number_type)
    if key not in made:
        values = numpy_helper.to_array(weights)
        if number_type == "fp16" and np.abs(values).max(initial=0) > LARGEST_HALF:
            raise CnnbenchError(f"{weights.name}: has weights above {LARGEST_HALF:g}, which fp16 has not; choose bf16")
        dtype = helper.tensor_dtype_to_np_dtype(HALVES[number_type])
        name = f"{weights.name}/{number_type}"
        data = np.ascontiguousarray(values.astype(dtype)).tobytes()
        graph.initializer.append(helper.make_tensor(name, HALVES[number_type], values.shape, data, raw=True))
        made[key] = f"{name}{ROUNDED}"
        nodes.append(helper.make_node("Cast", [name], [made[key]], name=made[key], to=TensorProto.FLOAT))
    return made[key]


def format_of(node: onnx.NodeProto, held: Mapping[str, TensorProto]) -> Format | None:
    """Return the format that a QuantizeLinear rounds to, by its zero point or its attribute; None for another type."""
    zero = node.input[2] if len(node.input) > 2 else ""
    told = next((one.i for one in node.attribute if one.name == "output_dtype"), TensorProto.UNDEFINED)
    tensor_type = held[zero].data_type if zero in held else told
    return next((form for form in FORMATS.values() if form.tensor_type == tensor_type), None)


def exponent_of(node: onnx.NodeProto, held: Mapping[str, TensorProto]) -> int | None:
    """Return the exponent of a QuantizeLinear's one scale; None where it has several, or no power of two."""
    scale = held.get(node.input[1])
    if scale is None or scale.dims not in ([], [1]):
        return None
    digits, exponent = np.frexp(numpy_helper.to_array(scale).ravel()[0])
    return int(exponent) - 1 if digits == 0.5 else None


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that answers the same bits with the roundings of what is multiplied done by float32 operations.

    Engines without fp8 units convert number by number otherwise, and these they have for whole vectors. What is rounded
    in another way than conversions here do it stays as it is.
    """
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    positive, held = never_negative(graph), {one.name: one for one in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    quantized = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and format_of(node, held) and exponent_of(node, held) is not None:
            after = users.get(node.output[0], [])
            if all(one.op_type == "DequantizeLinear" and one.input[1] == node.input[1] for one in after):
                quantized[node.output[0]] = node
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in quantized:
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized:
            source = quantized[node.input[0]]
            form, exponent = format_of(source, held), exponent_of(source, held)
            assert form is not None
            assert exponent is not None
            steps, constants = rounding_nodes(
                source.input[0], node.output[0], form, exponent, positive=source.input[0] in positive
            )
            nodes += steps
            graph.initializer.extend(constants)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return emulated
