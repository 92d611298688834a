#!/usr/bin/env -S python3
"""Classify images with the compiled network by NumPy and Pillow alone: PyTorch is neither there nor needed.

    python infer_with_numpy.py COMPILED IMAGE.jpg ... [--weights WEIGHTS.npz]

COMPILED: a directory that compile_model.py has written with --engine onnxruntime, for other weights than its own with
--replaceable-weights. WEIGHTS.npz: what weight_utils.py made of a state dict; nothing is compiled again for it.
"""

from inside import require

require("onnxruntime", "onnxruntime", "PIL")

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.exported import WEIGHTS, Exported, find_export

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIZE, SCALED = 224, 256


def read_image(path: Path) -> np.ndarray:
    """Return an image SIZE x SIZE x 3, normalised."""
    image = Image.open(path).convert("RGB")
    scale = SCALED / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - SIZE) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    return (pixels - MEAN) / DEVIATION


def load(compiled: Path, weights: Path | None) -> tuple[onnxruntime.InferenceSession, Exported]:
    """Return a session with a network's own weights, or others; raise CnnbenchError for those that are not its.

    Raises it or UsageError, too, for what is no such file, or was made for something else.
    """
    found = find_export(compiled, ".onnx", {"ONNX Runtime": onnxruntime.__version__})
    if found is None:
        raise CnnbenchError(f"{compiled}: has no executable.onnx; compile_model.py --engine onnxruntime writes one")
    (path, facts), options = found, onnxruntime.SessionOptions()
    if weights or facts.weights:
        with np.load(weights or compiled / WEIGHTS) as file:
            arrays = {name: np.ascontiguousarray(file[name], np.float32) for name in file}
        facts.require_weights({name: values.shape for name, values in arrays.items()})
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(one) for one in arrays.values()]
        options.add_external_initializers(list(arrays), values)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), facts


def main() -> int:
    """Classify images; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compiled", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    session, facts = load(arguments.compiled, arguments.weights)
    images = np.stack([read_image(path) for path in arguments.images])
    facts.require_batch(len(images))
    for path, answers in zip(arguments.images, session.run(None, {"images": images})[0], strict=True):
        best = np.argsort(-answers, kind="stable")[:5]
        print(f"{path.name}: " + ", ".join(f"{number} {answers[number]:.4f}" for number in best))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CnnbenchError, OSError, ValueError) as error:
        sys.exit(f"infer_with_numpy.py: {error}")
