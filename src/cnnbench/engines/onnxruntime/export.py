"""Write a prepared network as ONNX Runtime has optimised it, weights unpacked: it is loaded without doing so again.

`start.py cnnbench.engines.onnxruntime.export network NETWORK DESTINATION CACHE`: `DESTINATION/asked.json` says how.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from cnnbench.base.steps import run_step
from cnnbench.engines.conversion import network_file
from cnnbench.engines.exported import STEM, WEIGHTS, Asked, write_export
from cnnbench.engines.onnxruntime.backend import OPTIMISED, VERSIONS, new_options

LEAST_WEIGHTS = 16
"""Numbers of a constant that is a layer's weights; smaller ones are what shapes and axes are made of."""


def export(network: Path, destination: Path, _cache: Path) -> None:
    """Optimise a prepared network, which takes any number of images, and write it."""
    asked = Asked.read(destination)
    file = destination / f"{STEM}{OPTIMISED}"
    if asked.replaceable:
        weights = part_weights(network_file(network), file)
        write_export(file, "onnxruntime", asked, VERSIONS, weights=weights)
        return
    options = new_options(unpack=asked.number_type != "int8")
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file)
    onnxruntime.InferenceSession(network_file(network), options, providers=["CPUExecutionProvider"])
    write_export(file, "onnxruntime", asked, VERSIONS)


def part_weights(source: Path, file: Path) -> dict[str, np.ndarray]:
    """Write a network without its weights, whose place is in the session's options, and return these by name.

    It is optimised when a session is made, as that is what folds weights.
    """
    model, weights = onnx.load(source), {}
    for one in model.graph.initializer:
        if len(one.dims) and np.prod(one.dims) >= LEAST_WEIGHTS:
            weights[one.name] = onnx.numpy_helper.to_array(one)
            onnx.external_data_helper.set_external_data(one, WEIGHTS)
            one.ClearField("raw_data")
    file.write_bytes(model.SerializeToString())
    return weights


def main(arguments: list[str]) -> int:
    """Export, and return the exit code."""
    steps = {"network": (export, ("network", "destination", "cache"))}
    return run_step("cnnbench.engines.onnxruntime.export", __doc__, steps, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
