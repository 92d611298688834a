"""Run a prepared network with PyTorch: eagerly or compiled by Inductor, whole or as a pipeline of stages."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cnnbench.backends import LoadSpec
from cnnbench.backends.pipeline import Pipeline
from cnnbench.models.classifier import Classifier
from cnnbench.models.networks import Network
from cnnbench.models.torch_networks import build, split
from cnnbench.models.torch_weights import load_weights

Call = Callable[[torch.Tensor], torch.Tensor]


class EagerBackend:
    """The network in PyTorch's eager mode, channels last, on one thread for each core of the instance."""

    def load(self, spec: LoadSpec) -> None:
        """Build the network, give it its weights, bring it to the precision, and cut it where so asked for."""
        torch.set_num_threads(spec.threads)
        torch.set_num_interop_threads(1)
        request = json.loads((spec.model / "network.json").read_bytes())
        network = build(Network(**request["network"]))
        load_weights(network, spec.model / "weights.safetensors")
        data_type = torch.bfloat16 if spec.precision.endswith("bfloat16") else torch.float32
        network = network.to(dtype=data_type, memory_format=torch.channels_last)
        classifier = Classifier(network, request["normalize_inside"]).eval()
        self._pipeline: Pipeline | None = None
        if spec.splits:
            stages = [self._compile(stage) for stage in split(network, spec.splits)]
            self._pipeline = Pipeline(classifier, stages, spec.splits, spec.micro_batch_size)
            self._call: Call = self._pipeline
        else:
            self._call = self._compile(classifier)

    def _compile(self, network: nn.Module) -> Call:
        return network

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1000) of images (N x size x size x 3)."""
        with torch.no_grad():
            return self._call(torch.from_numpy(batch)).numpy()

    def close(self) -> None:
        """End the stages' threads and let the network go."""
        if self._pipeline:
            self._pipeline.close()
        del self._call

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs, and how long each stage took."""
        versions = {
            "PyTorch": torch.__version__,
            "timm": importlib.metadata.version("timm"),
            "numpy": np.__version__,
        }
        return versions | (self._pipeline.describe() if self._pipeline else {})

    def profile(self, batch: np.ndarray, path: Path) -> None:
        """Profile a step with PyTorch's profiler, into a file in the trace format of Chrome and Perfetto."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
            self.infer(batch)
        profiler.export_chrome_trace(str(path))

    def layers(self) -> None:
        """Leave it to the traces of oneDNN and MKL."""


class InductorBackend(EagerBackend):
    """The network compiled by torch.compile with its weights frozen, so that BatchNorm is folded."""

    def _compile(self, network: nn.Module) -> Call:
        import torch._inductor.config as inductor

        inductor.freezing = True
        inductor.compile_threads = 1  # no helper processes that outlive the compilation
        return torch.compile(network)
