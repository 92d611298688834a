"""Define what an engine's backend and reader are: the few calls by which a worker measures a network.

A backend does not time, log or know the scenario, so that measuring cannot favour one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from cnnbench.engines.layers import Primitive
from cnnbench.inputs.networks import ImageForm


class EngineOptions(BaseModel):
    """An engine's own parameters: a field for each, with its bounds and description. This one has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


NO_OPTIONS = EngineOptions()


@dataclass(frozen=True)
class LoadSpec:
    """What a backend needs to load: a prepared graph, the type of number to compute with, the threads of each instance.

    `number_type`: float32 as it is (fp32) or computed in bfloat16 (bfloat32), bfloat16, float16 or int8. `on_gpu`:
    whether the network goes to the first GPU that may be used. `callers`: how many threads will call `infer` at once,
    each being an instance that shares the weights. `micro_batch_size`: the images of a part, for an engine that is
    handed whole steps. `data_type`: whether a batch is handed over again as it was (dummy), is one of a few that are
    (generated), or always another (real). `options`: the engine's own, of the type that it declares.
    """

    model: Path
    number_type: str
    threads: int
    callers: int
    verbose: bool
    on_gpu: bool = False
    micro_batch_size: int = 1
    data_type: str = "dummy"
    options: Any = NO_OPTIONS


class Backend(Protocol):
    """One engine with one network loaded; what a subclass leaves out, it has nothing to do or tell for."""

    def load(self, spec: LoadSpec) -> None:
        """Make the network ready to infer."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the class probabilities (float32, N x classes) of images (N x size x size x 3)."""

    def send(self, batch: np.ndarray, answered: Callable[[Exception | None], None]) -> None:
        """Have a batch inferred and go on; `answered` is called, in any thread, when that is done, or with an error."""
        del batch, answered
        raise NotImplementedError(f"{type(self).__name__} answers before it takes another batch")

    def close(self) -> None:
        """Give back what `load` took."""
        return

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs, by name."""
        return {}

    def layers(self) -> list[Primitive] | None:
        """Return what a batch's layers run on, as the engine tells it; None where the trace of a library does."""
        return None

    def profile(self, batch: np.ndarray, path: Path) -> None:
        """Profile a step where the options ask for it, into a file in the trace format of Chrome and Perfetto."""
        del batch, path


class Reader(Protocol):
    """Reads a share of an image set, decoded and preprocessed as the engine's users would."""

    def __call__(
        self, files: Sequence[str], batch_size: int, threads: int, repeat: bool, form: ImageForm | None
    ) -> Iterator[np.ndarray]:
        """Yield batches (N x size x size x 3), in the files' order, the last one of a pass maybe smaller.

        `form`: what a network wants; None for the frozen graph's own, float32 of 224 x 224 less the means.
        """
