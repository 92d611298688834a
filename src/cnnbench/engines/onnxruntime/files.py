"""Take in ONNX files as prepared networks, and give prepared networks as ONNX files, with a Python that has ONNX.

`start.py cnnbench.engines.onnxruntime.files STEP ...`. `adopt FILE IMAGES DESTINATION` makes a prepared network of any
ONNX file that classifies images: `network.onnx` in the form that engines are handed, `check_images.npy`,
`reference.npy` (what the file itself answers, every operation run as written), `network.json` and `prepared.json`.
`predict NETWORK IMAGES DESTINATION` records what that answers to every image of a set. `give NETWORK FILE` writes a
prepared network as the usual exporters do: images N x 3 x H x W, and no softmax.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.progress import Progress
from cnnbench.base.steps import Step, run_step
from cnnbench.engines.conversion import EMULATED, NETWORK
from cnnbench.engines.onnxruntime import graph
from cnnbench.engines.onnxruntime.calibrate import answers_of, make_session
from cnnbench.engines.onnxruntime.rounding import emulate
from cnnbench.inputs.image_set import CHECK_IMAGES, load_image_set
from cnnbench.inputs.jpeg import read_batches
from cnnbench.inputs.model_file import digest_onnx
from cnnbench.inputs.networks import CLASSES, ImageForm

IMAGES, PROBABILITIES, BATCH_NAME = "images", "probabilities", "batch"
BATCH = 25
_FP8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)


def adopt(file: Path, images: Path, destination: Path) -> None:
    """Make a prepared network of an ONNX file."""
    model = graph.load_model(file)
    held_as = what_it_holds(model)
    form = _form_of(model)
    shape_for_any_batch(model)
    macs = graph.count_macs(model, 1)
    hand_over_images(model)
    graph.check_model(model, str(file))
    files = load_image_set(images).paths()[:CHECK_IMAGES]
    batch = next(read_batches(files, CHECK_IMAGES, len(os.sched_getaffinity(0)), repeat=False, form=form))
    reference = answers_of(make_session(model, as_written=True), [PROBABILITIES], {IMAGES: batch})[PROBABILITIES]
    if reference.shape != (len(batch), CLASSES):
        raise CnnbenchError(f"{file}: answers {reference.shape[1:]} numbers for an image, needed {CLASSES} classes")
    if not np.isfinite(reference).all():
        raise CnnbenchError(f"{file}: answers what is no number")
    np.save(destination / "check_images.npy", batch)
    np.save(destination / "reference.npy", reference)
    graph.save_model(model, destination / NETWORK)
    if held_as == "fp8":
        graph.save_model(emulate(model), destination / EMULATED)
    request = {"form": asdict(form), "file": str(file)}
    (destination / "network.json").write_text(json.dumps(request, indent=1), encoding="utf-8")
    facts = {
        "macs_per_image": macs,
        "held_as": held_as,
        "weights_sha256": digest_onnx(file),
        "made_with": {"onnx": onnx.__version__},
    }
    (destination / "prepared.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def predict(network: Path, images: Path, destination: Path) -> None:
    """Write `predictions.npy`: a prepared network's best class (int64) of every image of a set, in its order."""
    form = ImageForm(**json.loads((network / "network.json").read_bytes())["form"])
    session, files = make_session(graph.load_model(network / NETWORK)), load_image_set(images).paths()
    answers, threads = [], len(os.sched_getaffinity(0))
    with Progress("what the float32 network answers, for the loss of accuracy", len(files), "images") as progress:
        for batch in read_batches(files, BATCH, threads, repeat=False, form=form):
            answers.append(answers_of(session, [PROBABILITIES], {IMAGES: batch})[PROBABILITIES].argmax(1))
            progress.advance(len(batch))
    np.save(destination / "predictions.npy", np.concatenate(answers).astype(np.int64))


def give(network: Path, file: Path) -> None:
    """Write a prepared network as the usual exporters do."""
    model = graph.load_model(network / NETWORK)
    nodes = model.graph.node
    first, last = nodes[0], nodes[-1]
    if first.op_type != "Transpose" or last.op_type != "Softmax" or list(first.input) != [IMAGES]:
        raise CnnbenchError(f"{network / NETWORK}: does not begin by turning images and end with a softmax")
    size = graph.input_shape(model)[1]
    nodes.remove(first)
    nodes.remove(last)
    _rename(model.graph, {first.output[0]: "input", last.input[0]: "output"})
    _declare(model.graph, ("input", [BATCH_NAME, 3, size, size]), "output")
    graph.check_model(model, str(file))
    graph.save_model(model, file)


def what_it_holds(model: onnx.ModelProto) -> str:
    """Return the type of number that a model's weights are held in, as `engines.conversion` names them."""
    types = {one.data_type for one in model.graph.initializer if one.dims}
    if {TensorProto.INT8, TensorProto.UINT8} & types:
        return "int8"
    if types & set(_FP8):
        return "fp8" if any(node.op_type == "QuantizeLinear" for node in model.graph.node) else "fp8_weight"
    return "fp16" if TensorProto.FLOAT16 in types else "bf16" if TensorProto.BFLOAT16 in types else "fp32"


def _form_of(model: onnx.ModelProto) -> ImageForm:
    shape = graph.input_shape(model)
    if 3 not in (shape[1], shape[3]):
        raise CnnbenchError(f"the graph takes images of shape {shape}: neither the second nor the last is 3 colours")
    height, width = shape[2:4] if shape[1] == 3 else shape[1:3]
    if height != width or not height:
        raise UsageError(f"the graph takes images of {height} x {width}: needed squares; fix them by --input_shape")
    return ImageForm(height, 0.875, "bilinear", as_bytes=False, normalized=True)


def shape_for_any_batch(model: onnx.ModelProto) -> None:
    """Have a model take any number of images, whatever number it was written for."""
    for value in (graph.image_input(model), *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions:
            dimensions[0].dim_param = BATCH_NAME
    del model.graph.value_info[:]


def hand_over_images(model: onnx.ModelProto) -> None:
    """Have a model take `images`, N x H x W x 3, and answer `probabilities`, whatever it was written for."""
    shape, given, answered = graph.input_shape(model), graph.image_input(model).name, model.graph.output[0].name
    inside, outside = f"{given}/inside", f"{answered}/inside"
    _rename(model.graph, {given: inside, answered: outside})
    if shape[1] == 3:
        first = helper.make_node("Transpose", [IMAGES], [inside], name="hand_over", perm=[0, 3, 1, 2])
    else:
        first = helper.make_node("Identity", [IMAGES], [inside], name="hand_over")
    if any(node.op_type == "Softmax" and outside in node.output for node in model.graph.node):
        last = helper.make_node("Identity", [outside], [PROBABILITIES], name="answer")
    else:
        last = helper.make_node("Softmax", [outside], [PROBABILITIES], name="answer", axis=-1)
    nodes = [first, *model.graph.node, last]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    size = max(shape[1:3])
    _declare(model.graph, (IMAGES, [BATCH_NAME, size, size, 3]), PROBABILITIES)


def _rename(of: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names wherever operations make or use them."""
    for node in of.node:
        for tensors in (node.input, node.output):
            for at, name in enumerate(tensors):
                tensors[at] = names.get(name, name)


def _declare(of: onnx.GraphProto, images: tuple[str, list[str | int]], answer: str) -> None:
    """Have a graph say that it takes these images, and answers a number for each class."""
    del of.input[:], of.output[:], of.value_info[:]
    of.input.append(helper.make_tensor_value_info(images[0], TensorProto.FLOAT, images[1]))
    of.output.append(helper.make_tensor_value_info(answer, TensorProto.FLOAT, [BATCH_NAME, CLASSES]))


def main(arguments: list[str]) -> int:
    """Run one of the steps; return the exit code."""
    steps: dict[str, Step] = {
        "adopt": (adopt, ("file", "images", "destination")),
        "predict": (predict, ("network", "images", "destination")),
        "give": (give, ("network", "file")),
    }
    return run_step("cnnbench.engines.onnxruntime.files", __doc__, steps, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
