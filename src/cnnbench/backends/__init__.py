"""Engines behind one small interface.

A backend does not time, log or know the scenario, so that measuring cannot favour one. Imported late by name: the
controller imports no engine.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cnnbench.errors import UsageError


@dataclass(frozen=True)
class LoadSpec:
    """What a backend needs to load: a prepared graph, a precision's name and the threads of each instance.

    `callers`: how many threads will call `infer` at once, each being an instance that shares the weights.
    """

    model: Path
    precision: str
    threads: int
    callers: int
    verbose: bool


class Backend(Protocol):
    """One engine with one network loaded."""

    def load(self, spec: LoadSpec) -> None:
        """Make the network ready to infer."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the class probabilities (float32, N x 1001) of images (float32, N x 224 x 224 x 3)."""

    def close(self) -> None:
        """Give back what `load` took."""

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs, by name."""


class Reader(Protocol):
    """Reads a share of an image set, decoded and preprocessed as the engine's users would."""

    def __call__(self, files: Sequence[str], batch_size: int, threads: int, repeat: bool) -> Iterator[np.ndarray]:
        """Yield float32 batches (N x 224 x 224 x 3), in the files' order, the last one of a pass maybe smaller."""


@dataclass(frozen=True)
class Engine:
    """Where an engine's parts are.

    `variants`: its builds, each with a lock file `<engine>-<variant>.lock`; none when it needs no environment of its
    own. `preparer`: the module that stages and prepares its models, run with its environment's Python; none when it
    needs no model. `quantizer`: the module that quantises a prepared model to int8 for one of `int8_variants`, run with
    the Python of the environment of `<engine>-quantizer.lock`. An engine without a model has no outputs to check and no
    precision to prove.
    """

    backend: str
    reader: str = ""
    variants: tuple[str, ...] = ()
    preparer: str = ""
    quantizer: str = ""
    int8_variants: tuple[str, ...] = ()


ENGINES = {
    "tensorflow": Engine(
        backend="cnnbench.backends.tensorflow:TensorFlowBackend",
        reader="cnnbench.datasets.tfdata:read_batches",
        variants=("itex", "stock", "zentf"),
        preparer="cnnbench.models.prepare",
        quantizer="cnnbench.models.quantize",
        int8_variants=("itex", "stock"),
    ),
    "null": Engine(backend="cnnbench.backends.null:NullBackend"),
}


def find_engine(name: str) -> Engine:
    """Return an engine by name; raise UsageError listing the known ones."""
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}: not known; there are {', '.join(ENGINES)}")
    return ENGINES[name]


def import_part(target: str) -> Any:
    """Import the object that "module:Name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
