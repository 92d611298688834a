"""Quantise a folded float32 graph to int8 with neural-compressor. Runs in the quantising environment.

`start.py cnnbench.engines.tensorflow.quantize VARIANT MODEL IMAGES DESTINATION` calibrates on the first images of a
set and writes `int8.pb`, in the form that the engine's build VARIANT computes in int8, and how in `int8.json`.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import CnnbenchError, exit_code_of
from cnnbench.engines.tensorflow.backend import framework_versions
from cnnbench.engines.tensorflow.graph import COUNTED, INPUT, OUTPUT, is_multiply, node_name, read_graph
from cnnbench.engines.tensorflow.prepare import hold_back_stderr
from cnnbench.engines.tensorflow.reader import read_batches
from cnnbench.inputs.image_set import load_image_set

CALIBRATION_IMAGES = 100
BATCH = 20
SEED = 50

BACKENDS = {"itex": "itex", "stock": "default"}
"""neural-compressor's backend for each build. "itex" leaves float32 operations between QuantizeV2 and Dequantize (QDQ),
which ITEX hands to oneDNN Graph; "default" makes the quantised operations that stock TensorFlow has from oneDNN."""

WEIGHTS = {"dtype": ["int8"], "scheme": ["sym"], "granularity": ["per_channel"], "algorithm": ["minmax"]}

CARRYING = frozenset({"ExpandDims", "Identity", "Pad", "PadV2", "Reshape", "Squeeze", "Transpose"})
"""Operations that only move values: nothing needs float32 for them."""

FUSED = CARRYING | {"Add", "AddV2", "BiasAdd", "ConcatV2", "MaxPool", "Relu", "Relu6"}
"""Operations that quantised operations do as well; in a QDQ graph they stand alone, and the engine fuses them."""


def check_int8(graph: Any, multiplies: int, variant: str) -> None:
    """Raise CnnbenchError unless all `multiplies` convolutions and products of a graph are int8, and nothing between.

    Values must not go to float32 and back without need either: what does so is a QuantizeV2 that is led by operations
    which could as well have been int8 to a Dequantize.
    """
    nodes = {node.name: node for node in graph.node}

    def is_int8(node: Any) -> bool:
        if BACKENDS[variant] == "default":
            return "Quantized" in node.op
        counted = COUNTED.fullmatch(node.op)
        return bool(counted) and all(nodes[node_name(edge)].op == "Dequantize" for edge in node.input[:2])

    found = [node for node in graph.node if is_multiply(node)]
    left = [f"{node.name} ({node.op})" for node in found if not is_int8(node)]
    if left or len(found) != multiplies:
        raise CnnbenchError(
            f"quantised for {variant}: {len(found) - len(left)} of {multiplies} convolutions and matrix products are "
            f"int8, needed all; left in float32: {', '.join(left) or 'none'}"
        )
    between = FUSED if BACKENDS[variant] == "default" else CARRYING

    def sources(node: Any) -> Iterator[Any]:
        for edge in node.input:
            source = nodes[node_name(edge)]
            yield from sources(source) if source.op in between else (source,)

    pairs = [
        f"{source.name} to {node.name}"
        for node in graph.node
        if node.op == "QuantizeV2"
        for source in sources(node)
        if source.op == "Dequantize"
    ]
    if pairs:
        raise CnnbenchError(
            f"quantised for {variant}: {len(pairs)} superfluous pairs of Dequantize and QuantizeV2: {', '.join(pairs)}"
        )


class Calibration:
    """The calibration images as neural-compressor takes them: batches, each with a label that nobody reads.

    They are read at once: neural-compressor would take an image that cannot be decoded for a graph that it cannot make.
    """

    batch_size = BATCH

    def __init__(self, files: list[str]) -> None:
        self._batches = list(read_batches(files, BATCH, 1, repeat=False))

    def __iter__(self) -> Iterator[tuple[np.ndarray, None]]:
        """Begin with the first image."""
        return ((batch, None) for batch in self._batches)


def quantize(graph: Any, variant: str, files: list[str]) -> Any:
    """Return a folded float32 GraphDef in int8.

    Weights are scaled for each channel of a convolution; activations as the images' extremes say.
    """
    from neural_compressor import PostTrainingQuantConfig, quantization, set_random_seed, set_workspace
    from neural_compressor.adaptor import tensorflow as adaptor

    if BACKENDS[variant] == "default":
        # These versions' form has explicit paddings and fits TensorFlow 2.21 too. neural-compressor uses it for Intel's
        # own builds only, because public 2.15 lacks _QuantizedMatMul; ITEX, loaded beside it here, has that one.
        adaptor.spr_base_verions = (*adaptor.spr_base_verions, importlib.metadata.version("tensorflow-cpu"))
    set_random_seed(SEED)
    with tempfile.TemporaryDirectory() as workspace:
        set_workspace(workspace)
        config = PostTrainingQuantConfig(
            backend=BACKENDS[variant],
            inputs=[INPUT],
            outputs=[OUTPUT],
            calibration_sampling_size=[len(files)],
            quant_level=1,
            op_type_dict={"Conv2D": {"weight": WEIGHTS}},  # asked for the same of MatMul, it gives one scale still
            excluded_precisions=["bf16"],  # which it would else allow for on a CPU that has it, and with FORCE_BF16
        )
        result = quantization.fit(graph, conf=config, calib_dataloader=Calibration(files))
    if result is None:
        raise CnnbenchError(f"quantising for {variant}: neural-compressor gave no graph; it says why above")
    return result.graph_def


def quantize_file(variant: str, model: Path, images: Path, destination: Path) -> None:
    """Write `int8.pb` and `int8.json` for a folded model and a set of calibration images."""
    calibration = load_image_set(images)
    files = calibration.paths()[:CALIBRATION_IMAGES]
    print(
        f"quantising the model to int8 for {variant}, calibrating on {len(files)} images of "
        f"{calibration.name}: about a minute",
        file=sys.stderr,
        flush=True,
    )
    with hold_back_stderr():
        graph = read_graph(model)
        multiplies = Counter(is_multiply(node) for node in graph.node)[True]
        quantized = quantize(graph, variant, files)
        check_int8(quantized, multiplies, variant)
    (destination / "int8.pb").write_bytes(quantized.SerializeToString(deterministic=True))
    facts = {
        "multiplies": multiplies,
        "calibration": f"{len(files)} images of {calibration.name}",
        "images_sha256": calibration.sha256,
        "made_with": framework_versions() | {"neural-compressor": importlib.metadata.version("neural-compressor")},
    }
    (destination / "int8.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Quantise one model; return the exit code."""
    parser = argparse.ArgumentParser(prog="cnnbench.engines.tensorflow.quantize", description=__doc__)
    parser.add_argument("variant", choices=BACKENDS)
    for name in ("model", "images", "destination"):
        parser.add_argument(name, type=Path)
    parsed = parser.parse_args(arguments)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ["ITEX_CPP_MIN_LOG_LEVEL"] = "2"
    return exit_code_of(lambda: quantize_file(parsed.variant, parsed.model, parsed.images, parsed.destination))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
