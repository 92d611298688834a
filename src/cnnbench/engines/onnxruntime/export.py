"""Write a prepared network as ONNX Runtime has optimised it, weights unpacked: it is loaded without doing so again.

`start.py cnnbench.engines.onnxruntime.export NETWORK BATCH DESTINATION fp32`.
"""

import sys
from pathlib import Path

import onnxruntime

from cnnbench.base.errors import exit_code_of
from cnnbench.engines.conversion import network_file
from cnnbench.engines.exported import STEM, write_export
from cnnbench.engines.onnxruntime.backend import OPTIMISED


def export(network: Path, batch_size: int, destination: Path) -> None:
    """Optimise a prepared network, which takes any number of images, and write it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    file = destination / f"{STEM}{OPTIMISED}"
    options.optimized_model_filepath = str(file)
    onnxruntime.InferenceSession(network_file(network), options, providers=["CPUExecutionProvider"])
    write_export(file, network, "onnxruntime", batch_size, {"ONNX Runtime": onnxruntime.__version__})


def main(arguments: list[str]) -> int:
    """Export, and return the exit code."""
    network, batch_size, destination, _ = arguments
    return exit_code_of(lambda: export(Path(network), int(batch_size), Path(destination)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
