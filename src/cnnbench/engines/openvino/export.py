"""Write a prepared network as OpenVINO's CPU plug-in loads it without compiling again.

`start.py cnnbench.engines.openvino.export NETWORK BATCH DESTINATION [bfloat16]`.
"""

import sys
from pathlib import Path

import openvino as ov

from cnnbench.base.errors import exit_code_of
from cnnbench.engines.conversion import network_file
from cnnbench.engines.exported import STEM, write_export
from cnnbench.engines.openvino.backend import BLOB, precision_hint


def export(network: Path, batch_size: int, destination: Path, number_type: str) -> None:
    """Compile a prepared network for a batch, and write what was compiled."""
    core = ov.Core()
    model = core.read_model(network_file(network))
    model.reshape([batch_size, *(one.get_length() for one in list(model.input().partial_shape)[1:])])
    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", **precision_hint(number_type)}
    file = destination / f"{STEM}{BLOB}"
    file.write_bytes(core.compile_model(model, "CPU", options).export_model().getvalue())
    write_export(file, network, "openvino", batch_size, {"OpenVINO": ov.__version__})


def main(arguments: list[str]) -> int:
    """Export, and return the exit code."""
    network, batch_size, destination, number_type = arguments
    return exit_code_of(lambda: export(Path(network), int(batch_size), Path(destination), number_type))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
