"""Convert networks, ONNX files, to smaller numbers, as `start.py cnnbench.engines.onnxruntime.convert STEP ...`.

`file REQUEST.json` converts any ONNX file, as `cnnbench convert` asks. `network NETWORK IMAGES DESTINATION` converts a
prepared network as DESTINATION's `conversion.json` says: it leaves `network.onnx` in standard ONNX, `emulated.onnx`
that answers the same with float32 operations, and `converted.json`.

Written here, as no quantiser has scales that are powers of two, given or searched by output channel, and keeps layers
by name: ONNX Runtime's and NNCF's choose their own, and onnxconverter-common has no 8-bit types.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, version_converter

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.steps import Step, run_step
from cnnbench.engines.conversion import Conversion
from cnnbench.engines.onnxruntime import calibrate, graph
from cnnbench.engines.onnxruntime.compensate import round_compensated
from cnnbench.engines.onnxruntime.formats import FORMATS
from cnnbench.engines.onnxruntime.rounding import Rounding, emulate, round_products
from cnnbench.inputs.image_set import load_image_set
from cnnbench.inputs.jpeg import read_batches
from cnnbench.inputs.networks import ImageForm

LEAST_OPSET, OPSET_OF_BF16, MOST_OPSET = 21, 13, 21
"""The first opsets in which 8-bit numbers need no zero point and with bfloat16, and the last that both engines read."""
LEAST_IR, IR_OF_FP8 = 8, 10
"""Of the file format: what ONNX Runtime reads with initializers that are no inputs, and what opset 21 belongs to."""

CALIBRATION_IMAGES, BATCH = 100, 10
SENSITIVE_IMAGES = 16
PAD_MULTIPLE = 4


@dataclass
class Converted:
    """A converted model and what there is to tell of it.

    `kept`: the operations left in 16 bits. `exponents`: those of what is rounded, by operation: of its source, and of
    its weights from the least to the largest. `sensitivity`: how far each layer alone moves the answers, if measured.
    `nearest`: the weights that were rounded to the nearest, by name, before that.
    """

    model: onnx.ModelProto
    products: int
    kept: list[str]
    padded: list[str]
    exponents: dict[str, tuple[int | None, int, int]] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)
    nearest: dict[str, np.ndarray] = field(default_factory=dict)


def convert(model: onnx.ModelProto, conversion: Conversion, feeds: Sequence[calibrate.Feed]) -> Converted:
    """Return a model converted; `feeds`: images to find scales and sensitive layers with, where that is asked for."""
    model = _at_opset(model, conversion)
    graph.name_operations(model.graph)
    padded = graph.pad_channels(model, PAD_MULTIPLE) if conversion.pad_channels else []
    products = graph.find_products(model.graph)
    if not products:
        raise CnnbenchError("the graph multiplies by no constant weights (Conv, Gemm, MatMul): nothing to convert")
    kept = graph.find_operations(model.graph, conversion.kept)
    if conversion.keep_most_sensitive > len(products) - len(set(kept)):
        raise UsageError(
            f"--num_of_layers_keep_fp16 {conversion.keep_most_sensitive}: the graph has {len(products)} layers that "
            f"could be kept, {len(set(kept))} of which are already"
        )
    if not conversion.number_type.startswith("fp8"):
        rounded = _copy(model)
        round_products(rounded, {}, conversion.number_type)
        return Converted(rounded, len(products), [], padded)
    roundings = _choose_scales(model, conversion, products, feeds)
    sensitivity: dict[str, float] = {}
    if conversion.keep_most_sensitive:
        others = [one for one in products if one.name not in kept]
        only = partial(_convert_only, model, roundings)
        sensitivity = calibrate.measure_sensitivity(model, only, others, _first(feeds, SENSITIVE_IMAGES))
        kept += list(sensitivity)[: conversion.keep_most_sensitive]
    chosen = {name: one for name, one in roundings.items() if name not in kept}
    rounded = _copy(model)
    round_products(rounded, chosen, "fp16")
    exponents = {
        name: (one.exponent, int(one.weight_exponents.min()), int(one.weight_exponents.max()))
        for name, one in chosen.items()
    }
    held = {one.name: one for one in model.graph.initializer}
    nearest = {
        one.product.weights: numpy_helper.to_array(held[one.product.weights])
        for one in chosen.values()
        if one.rounded is None
    }
    return Converted(rounded, len(products), kept, padded, exponents, sensitivity, nearest)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _first(feeds: Sequence[calibrate.Feed], images: int) -> Sequence[calibrate.Feed]:
    """Return the feeds that the first images are in."""
    size = len(next(iter(feeds[0].values())))
    return feeds[: -(-images // size)]


def _convert_only(model: onnx.ModelProto, roundings: Mapping[str, Rounding], name: str) -> onnx.ModelProto:
    rounded = _copy(model)
    round_products(rounded, {name: roundings[name]}, "fp32")
    return emulate(rounded)


def _at_opset(model: onnx.ModelProto, conversion: Conversion) -> onnx.ModelProto:
    """Return a model of an opset that has the types, and at least the one asked for."""
    found = graph.opset_of(model)
    least = {"fp32": 1, "fp16": 1, "bf16": OPSET_OF_BF16}.get(conversion.number_type, LEAST_OPSET)
    wanted = max(conversion.opset or found, least)
    if conversion.opset is not None and not 1 <= conversion.opset <= MOST_OPSET:
        raise UsageError(
            f"--convert_version {conversion.opset}: needed 1 to {MOST_OPSET}, the opsets that engines here read"
        )
    if wanted > MOST_OPSET:
        raise UsageError(f"the graph is of opset {found}: the engines here read opsets up to {MOST_OPSET}")
    if wanted == found:
        return _copy(model)
    try:
        converted = version_converter.convert_version(model, wanted)
    except (RuntimeError, onnx.checker.ValidationError, version_converter.ConvertError) as error:
        raise CnnbenchError(f"the graph cannot be brought from opset {found} to {wanted}: {error}") from error
    converted.ir_version = max(converted.ir_version, IR_OF_FP8 if wanted >= LEAST_OPSET else LEAST_IR)
    return converted


def _choose_scales(
    model: onnx.ModelProto,
    conversion: Conversion,
    products: Sequence[graph.Product],
    feeds: Sequence[calibrate.Feed],
) -> dict[str, Rounding]:
    """Return how each product is rounded: by the scales given, or by those that lose least with these images."""
    source, weights = FORMATS[conversion.activation_format], FORMATS[conversion.weight_format]
    both = conversion.number_type == "fp8"
    compensated = conversion.weight_rounding == "compensated"
    seen = calibrate.observe(model, products, feeds, squares=compensated)
    exponents: dict[str, int] = {}
    if both and conversion.activation_exponent is None:
        exponents = {
            one.source: int(calibrate.search_exponents(seen[one.name].numbers, source, conversion.metric)[0])
            for one in {one.source: one for one in products}.values()
        }
    held = {one.name: one for one in model.graph.initializer}
    found = {}
    for one in products:
        values = numpy_helper.to_array(held[one.weights])
        if conversion.weight_exponent is None:
            of_weights = calibrate.search_weights(values, one.axis, weights, conversion.metric)
        else:
            of_weights = np.array(conversion.weight_exponent)
        given = exponents.get(one.source, conversion.activation_exponent) if both else None
        rounding = Rounding(one, weights, of_weights, source, given, seen[one.name].means)
        squares = seen[one.name].squares
        found[one.name] = (
            rounding if squares is None else replace(rounding, rounded=_compensate(rounding, values, squares))
        )
    return found


def _compensate(rounding: Rounding, weights: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return a product's weights in its format, those of an output making up for each other."""
    axis = rounding.product.axis
    turned = np.moveaxis(weights, axis, 0)
    rows = round_compensated(turned.reshape(len(turned), -1), squares, rounding.weights, rounding.weight_exponents)
    return np.ascontiguousarray(np.moveaxis(rows.reshape(turned.shape), 0, axis))


def read_feeds(model: onnx.ModelProto, files: Sequence[str], form: ImageForm | None = None) -> list[calibrate.Feed]:
    """Return images as a model takes them: decoded, cropped, normalised, in its order of axes."""
    image, shape = graph.image_input(model).name, graph.input_shape(model)
    first = shape[1] == 3
    if shape[-1] != 3 and not first:
        raise CnnbenchError(f"{image} has the shape {shape}: neither its second nor its last axis is 3 colours")
    height, width = shape[2:] if first else shape[1:3]
    if height != width:
        raise UsageError(f"{image} takes images of {height} x {width}: those to calibrate with are squares")
    form = form or ImageForm(height or 224, 0.875, "bilinear", as_bytes=False, normalized=True)
    batch = shape[0] or BATCH
    threads = len(os.sched_getaffinity(0))
    feeds = []
    for images in read_batches(files[: max(len(files) // batch, 1) * batch], batch, threads, repeat=False, form=form):
        whole = images if len(images) == batch or not shape[0] else np.resize(images, (batch, *images.shape[1:]))
        feeds.append({image: np.ascontiguousarray(whole.transpose(0, 3, 1, 2)) if first else whole})
    return feeds


def describe(converted: Converted, conversion: Conversion, images: str) -> dict[str, Any]:
    """Return what there is to know of a conversion, as JSON."""
    return {
        "conversion": conversion.model_dump(),
        "products": converted.products,
        "kept": converted.kept,
        "padded": converted.padded,
        "exponents": converted.exponents,
        "sensitivity": converted.sensitivity,
        "calibration": images,
        "made_with": {
            "onnx": onnx.__version__,
            "ml_dtypes": ml_dtypes.__version__,
            "ONNX Runtime": onnxruntime.__version__,
        },
    }


def convert_network(network: Path, images: Path, destination: Path) -> None:
    """Convert a prepared network, calibrating on the first images of a set."""
    conversion = Conversion(**json.loads((destination / "conversion.json").read_bytes()))
    model = graph.load_model(network / "network.onnx")
    form = ImageForm(**json.loads((network / "network.json").read_bytes())["form"])
    found = load_image_set(images)
    files = found.paths()[:CALIBRATION_IMAGES] if _needs_images(conversion) else []
    converted = convert(model, conversion, read_feeds(model, files, form) if files else [])
    graph.check_model(converted.model, "the converted network")
    graph.save_model(converted.model, destination / "network.onnx")
    if conversion.number_type == "fp8":
        graph.save_model(emulate(converted.model), destination / "emulated.onnx")
    told = f"{len(files)} images of {found.name}" if files else ""
    facts = describe(converted, conversion, told)
    (destination / "converted.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def convert_file(request_path: Path) -> None:
    """Convert the ONNX file of a request, check every rounding of an inference, and leave what there is to tell."""
    request = json.loads(request_path.read_bytes())
    conversion, source, output = Conversion(**request["conversion"]), Path(request["input"]), Path(request["output"])
    model = graph.load_model(source)
    if output.is_dir() or (output.exists() and not request["force"]):
        raise UsageError(f"{output}: is there already; give another --output_model, or --force to replace a file")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: there is no directory {output.parent} to write it into")
    graph.fix_shape(model, request["input_shape"])
    needed = _needs_images(conversion) or request["precision_compare"]
    feeds = read_feeds(model, request["images"]) if needed else []
    converted = convert(model, conversion, feeds)
    graph.check_model(converted.model, str(output))
    compared, wrong = calibrate.check_roundings(converted.model, feeds[0], converted.nearest) if feeds else (0, 0)
    before = _at_opset(model, conversion)
    graph.name_operations(before.graph)
    errors = calibrate.compare_layers(before, emulate(converted.model), feeds) if request["precision_compare"] else []
    facts = describe(converted, conversion, f"{len(request['images'])} images" if _needs_images(conversion) else "")
    facts |= {
        "compared": compared,
        "wrong": wrong,
        "bytes": [graph.count_bytes(model), graph.count_bytes(converted.model)],
        "opset": graph.opset_of(converted.model),
        "numbers": graph.number_operations(before.graph),
        "errors": [asdict(one) for one in errors],
    }
    if not wrong:
        graph.save_model(converted.model, output)
    Path(request["facts"]).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _needs_images(conversion: Conversion) -> bool:
    return conversion.number_type.startswith("fp8")


def main(arguments: list[str]) -> int:
    """Run one of the steps; return the exit code."""
    steps: dict[str, Step] = {
        "file": (convert_file, ("request",)),
        "network": (convert_network, ("network", "images", "destination")),
    }
    return run_step("cnnbench.engines.onnxruntime.convert", __doc__, steps, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
