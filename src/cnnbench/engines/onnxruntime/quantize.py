"""Quantise an exported network to int8 with ONNX Runtime, for every engine that reads ONNX.

`start.py cnnbench.engines.onnxruntime.quantize NETWORK IMAGES DESTINATION` runs in ONNX Runtime's environment. It
calibrates the network of the directory NETWORK on the first images of a set and writes `network.onnx`, where each
quantised operation stands between DequantizeLinear and QuantizeLinear, and `int8.json` (how it was made).
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from cnnbench.base.errors import CnnbenchError, exit_code_of
from cnnbench.inputs.image_set import load_image_set
from cnnbench.inputs.jpeg import read_batches
from cnnbench.inputs.networks import ImageForm

CALIBRATION_IMAGES = 100
BATCH = 10

MULTIPLYING = ("Conv", "Gemm", "MatMul")
QUANTIZED = (*MULTIPLYING, "Add", "Flatten", "GlobalAveragePool", "MaxPool", "Relu")
"""Operations that become int8: those that multiply, and those between them that engines have in int8. What handles the
input (normalisation inside the network), activations other than ReLU, group norm and the softmax stay in float32."""


class Calibration(CalibrationDataReader):
    """The calibration images in the form that the network is handed, as ONNX Runtime takes them."""

    def __init__(self, batches: Iterator[np.ndarray], name: str) -> None:
        self._batches, self._name = batches, name

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by the input's name, None when there are no more."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def check_int8(model: onnx.ModelProto) -> int:
    """Return how many convolutions and matrix products a model has; raise CnnbenchError unless all of them are int8."""
    makers = {output: node for node in model.graph.node for output in node.output}

    def is_int8(node: onnx.NodeProto) -> bool:
        return all(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input if name)

    found = [node for node in model.graph.node if node.op_type in MULTIPLYING]
    left = [f"{node.name} ({node.op_type})" for node in found if not is_int8(node)]
    if left or not found:
        raise CnnbenchError(
            f"quantised: {len(found) - len(left)} of {len(found)} convolutions and matrix products are int8, needed "
            f"all; left in float32: {', '.join(left) or 'none'}"
        )
    return len(found)


def quantize(network: Path, images: Path, destination: Path) -> None:
    """Write `network.onnx` and `int8.json` for a prepared network and a set of calibration images.

    Weights are int8, scaled for each channel; activations are uint8, over the mean of the batches' extremes. What the
    classifier answers stays float32: in 256 steps, its best classes would often be equal.
    """
    form = ImageForm(**json.loads((network / "network.json").read_bytes())["form"])
    calibration = load_image_set(images)
    files = calibration.paths()[:CALIBRATION_IMAGES]
    print(f"quantising to int8, calibrating on {len(files)} images of {calibration.name}", file=sys.stderr, flush=True)
    path, folded = destination / "network.onnx", destination / "folded.onnx"
    quant_pre_process(network / "network.onnx", folded, skip_symbolic_shape=True)
    name = onnx.load(folded).graph.input[0].name
    quantize_static(
        folded,
        path,
        Calibration(read_batches(files, BATCH, len(os.sched_getaffinity(0)), repeat=False, form=form), name),
        op_types_to_quantize=list(QUANTIZED),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"], "CalibMovingAverage": True},
    )
    folded.unlink()
    facts = {
        "multiplies": check_int8(onnx.load(path)),
        "calibration": f"{len(files)} images of {calibration.name}",
        "images_sha256": calibration.sha256,
        "made_with": {"ONNX Runtime": onnxruntime.__version__, "onnx": onnx.__version__},
    }
    (destination / "int8.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Quantise, and return the exit code."""
    return exit_code_of(lambda: quantize(*map(Path, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
