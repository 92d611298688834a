"""Describe what the layers of a step ran on, as an engine tells it itself or as a library's trace does."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

STEP_MARK = "cnnbench_trace,step"
"""What a tracing worker writes before each step that counts; what comes before the first is loading and warm-up."""

TRACE_DIRECTORY = "trace"
"""Where a run's logs have the trace."""

TRACED = "output.log"
"""The file of a trace that has a library's lines."""

LAYERS = "layers.json"
"""The file of a trace that an engine tells itself."""

MULTIPLYING = ("convolution", "matmul", "inner_product")
COMPILED = "partition"
"""The kind of a partition that was compiled whole. What it computed cannot be read from its line."""
UNTOLD = "instructions not told"
"""The implementation of layers whose engine does not tell what instructions it runs: of these, only the type counts."""


@dataclass(frozen=True)
class Primitive:
    """One primitive that oneDNN executed.

    `fpmath`: the type in which float32 may be computed instead, empty for float32 itself. `shape`: the problem in
    oneDNN's words. `macs`: its multiply-accumulates, 0 when it has none or its shape is not understood. `partition`:
    the kind of the oneDNN Graph partition that it ran in, empty outside of one or where no time stamps tell.
    """

    kind: str
    implementation: str
    source_type: str
    weights_type: str
    destination_type: str
    fpmath: str
    shape: str
    macs: int
    time_ms: float
    partition: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies and accumulates, or may: a layer, and not what lies between layers."""
        return self.kind in (*MULTIPLYING, COMPILED)

    @property
    def types(self) -> str:
        """The types of source, weights and destination, and that of the arithmetic where it is another."""
        names = (self.source_type, self.weights_type, self.destination_type)
        return " ".join(name for name in names if name) + (f" computed in {self.fpmath}" if self.fpmath else "")

    @property
    def name(self) -> str:
        """What ran: the implementation and the type of what it computed with."""
        words = [self.implementation, self.weights_type, f"computed in {self.fpmath}" if self.fpmath else ""]
        return " ".join(word for word in words if word)


def write_layers(layers: Sequence[Primitive], directory: Path) -> None:
    """Write the layers of a step, as an engine tells them itself, for `read_trace`."""
    (directory / LAYERS).write_text(json.dumps([asdict(layer) for layer in layers], indent=1), encoding="utf-8")
