"""Run a prepared network with PyTorch: eagerly, or compiled by Inductor."""

import importlib.metadata
import json
from typing import Any

import numpy as np
import torch

from cnnbench.backends import LoadSpec
from cnnbench.models.classifier import Classifier
from cnnbench.models.networks import Network
from cnnbench.models.torch_networks import build
from cnnbench.models.torch_weights import load_weights


class EagerBackend:
    """The network in PyTorch's eager mode, channels last, on one thread for each core of the instance."""

    def load(self, spec: LoadSpec) -> None:
        """Build the network, give it its weights and bring it to the precision."""
        torch.set_num_threads(spec.threads)
        torch.set_num_interop_threads(1)
        request = json.loads((spec.model / "network.json").read_bytes())
        network = build(Network(**request["network"]))
        load_weights(network, spec.model / "weights.safetensors")
        data_type = torch.bfloat16 if spec.precision.endswith("bfloat16") else torch.float32
        network = network.to(dtype=data_type, memory_format=torch.channels_last)
        self._call: Any = self._compile(Classifier(network, request["normalize_inside"]))

    def _compile(self, network: torch.nn.Module) -> Any:
        return network

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1000) of images (N x size x size x 3)."""
        with torch.no_grad():
            return self._call(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """Let the network go."""
        del self._call

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs."""
        return {"PyTorch": torch.__version__, "timm": importlib.metadata.version("timm"), "numpy": np.__version__}

    def layers(self) -> None:
        """Leave it to oneDNN's trace."""


class InductorBackend(EagerBackend):
    """The network compiled by torch.compile with its weights frozen, so that BatchNorm is folded."""

    def _compile(self, network: torch.nn.Module) -> Any:
        import torch._inductor.config as inductor

        inductor.freezing = True
        inductor.compile_threads = 1  # no helper processes that outlive the compilation
        return torch.compile(network)
