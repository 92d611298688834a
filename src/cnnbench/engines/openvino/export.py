"""Write a prepared network as OpenVINO's CPU plug-in loads it without compiling again.

`start.py cnnbench.engines.openvino.export network NETWORK DESTINATION CACHE`: `DESTINATION/asked.json` says how.
"""

import sys
from pathlib import Path

import openvino as ov

from cnnbench.base.steps import run_step
from cnnbench.engines.conversion import network_file
from cnnbench.engines.exported import STEM, Asked, write_export
from cnnbench.engines.openvino.backend import BLOB, VERSIONS, precision_hint


def export(network: Path, destination: Path, _cache: Path) -> None:
    """Compile a prepared network for a batch, or a range of them, and write what was compiled."""
    asked = Asked.read(destination)
    core, (least, most) = ov.Core(), asked.sizes
    model = core.read_model(network_file(network))
    batch = most if least == most else ov.Dimension(least, most)
    model.reshape([batch, *(one.get_length() for one in list(model.input().partial_shape)[1:])])
    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", **precision_hint(asked.number_type)}
    file = destination / f"{STEM}{BLOB}"
    file.write_bytes(core.compile_model(model, "CPU", options).export_model().getvalue())
    write_export(file, "openvino", asked, VERSIONS)


def main(arguments: list[str]) -> int:
    """Export, and return the exit code."""
    steps = {"network": (export, ("network", "destination", "cache"))}
    return run_step("cnnbench.engines.openvino.export", __doc__, steps, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
