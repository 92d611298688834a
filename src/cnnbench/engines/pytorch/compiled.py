"""Run what AOTInductor has compiled, in other PyTorch code or as an engine of cases, without the network's own code."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch._inductor.package import load_package

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.exported import STEM, find_export
from cnnbench.engines.interface import Backend, LoadSpec
from cnnbench.engines.pytorch.classifier import DATA_TYPES
from cnnbench.inputs.networks import ImageForm

PACKAGE = ".pt2"
"""How the file of a compiled network ends."""


def versions() -> dict[str, str]:
    """Return the versions that a package is for."""
    return {"PyTorch": torch.__version__}


class CompiledNetwork:
    """A network compiled ahead of time: images N x size x size x 3 in, probabilities N x classes out (float32).

    Images are read where they lie, and answers are a tensor of the network's own: nothing is copied. Raises UsageError
    for a file that is not as it was written, or for another CPU; CnnbenchError for another version of PyTorch, or other
    threads than PyTorch is set to. `callers`: how many threads call it at once.
    """

    def __init__(self, file: Path, callers: int = 1) -> None:
        found = find_export(file.parent, PACKAGE, versions())
        if found is None:
            raise CnnbenchError(f"{file.parent}: has no {STEM}{PACKAGE}; `cnnbench compile` writes one")
        self.path, self.facts = found
        request = json.loads((file.parent / "network.json").read_bytes())
        form, self.name = ImageForm(**request["form"]), str(request["network"]["name"])
        self._shape = (form.size, form.size, 3)
        self._data_type = torch.uint8 if form.as_bytes else torch.float32
        if (threads := torch.get_num_threads()) != self.facts.asked.threads:
            raise CnnbenchError(
                f"{self.path}: was compiled for {self.facts.asked.threads} threads, and PyTorch is set to {threads}; "
                "compile it for as many (CORES_PER_INSTANCE, --threads), or call torch.set_num_threads before"
            )
        self._run = load_package(str(self.path), num_runners=callers)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities; raise CnnbenchError for images that it was not compiled for."""
        self.facts.require_batch(len(images))
        if images.shape[1:] != self._shape or images.dtype != self._data_type or not images.is_contiguous():
            found = f"{tuple(images.shape)} of {images.dtype}{'' if images.is_contiguous() else ', not contiguous'}"
            needed = " x ".join(map(str, ("N", *self._shape)))
            raise CnnbenchError(f"{self.path}: takes images {needed} of {self._data_type}, contiguous, and got {found}")
        answers: torch.Tensor = self._run(images)
        return answers

    def replace_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Compute with other weights from now on; raise CnnbenchError naming what is missing, surplus or misshapen."""
        self.facts.require_weights({name: tuple(value.shape) for name, value in weights.items()})
        data_type = DATA_TYPES[self.facts.asked.number_type]
        # Copied as so many bytes as their storage has: a view into a larger one would overwrite what comes behind.
        apart = {name: value.detach().to(data_type).clone().contiguous() for name, value in weights.items()}
        self._run.load_constants(apart, check_full_update=True)


class AotInductorBackend(Backend):
    """The network compiled ahead of time, on one thread for each core of the instance."""

    def load(self, spec: LoadSpec) -> None:
        """Load what was compiled."""
        torch.set_num_threads(spec.threads)
        torch.set_num_interop_threads(1)
        self._network = CompiledNetwork(spec.model / f"{STEM}{PACKAGE}", spec.callers)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1000) of images (N x size x size x 3)."""
        with torch.no_grad():
            return self._network(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """Let the network go."""
        del self._network

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs."""
        return {"PyTorch": torch.__version__, "numpy": importlib.metadata.version("numpy")}
