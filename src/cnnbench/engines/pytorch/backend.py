"""Run a prepared network with PyTorch: eagerly or compiled by Inductor, on CPUs, there also in stages, or on a GPU."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cnnbench.engines.interface import Backend, LoadSpec
from cnnbench.engines.layers import Primitive
from cnnbench.engines.pytorch import PyTorchOptions
from cnnbench.engines.pytorch.classifier import DATA_TYPES, Classifier
from cnnbench.engines.pytorch.cuda import Call, DeviceInput, GraphedCall, describe_gpu, set_arithmetic
from cnnbench.engines.pytorch.networks import build, split
from cnnbench.engines.pytorch.operations import computed_layers
from cnnbench.engines.pytorch.pipeline import Pipeline
from cnnbench.engines.pytorch.weights import load_weights
from cnnbench.inputs.networks import Network


class EagerBackend(Backend):
    """The network in PyTorch's eager mode, channels last, on one thread for each core of the instance, or on a GPU."""

    gpu = "cuda"
    """Where the networks of cuda_ precisions go: the first GPU that may be used."""

    def load(self, spec: LoadSpec) -> None:
        """Build the network, give it its weights, bring it to the precision, and cut it where so asked for."""
        self._options: PyTorchOptions = spec.options
        splits = self._options.pipeline_splits.split()
        torch.set_num_threads(spec.threads)
        torch.set_num_interop_threads(1)
        request = json.loads((spec.model / "network.json").read_bytes())
        network = build(Network(**request["network"]))
        load_weights(network, spec.model / "weights.safetensors")
        network = network.to(dtype=DATA_TYPES[spec.number_type], memory_format=torch.channels_last)
        classifier = Classifier(network, request["normalize_inside"]).eval()
        self._take: Callable[[np.ndarray], torch.Tensor] = torch.from_numpy
        self._input: DeviceInput | None = None
        if spec.on_gpu:
            set_arithmetic(self._options.half_partial)
            classifier = classifier.to(self.gpu)
            self._input = DeviceInput(spec.data_type, self.gpu)
            self._take = self._input.take
        self._pipeline: Pipeline | None = None
        if splits:
            stages = [self._compile(stage) for stage in split(network, splits)]
            self._pipeline = Pipeline(classifier, stages, splits, spec.micro_batch_size)
            self._network: Call = self._pipeline
        else:
            self._network = self._compile(classifier)
        self._call = (
            GraphedCall(self._network, spec.data_type == "dummy") if self._options.cuda_graphs else self._network
        )

    def _compile(self, network: nn.Module) -> Call:
        return network

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1000) of images (N x size x size x 3)."""
        with torch.no_grad():
            self._images = self._take(batch)
            return self._call(self._images).cpu().numpy()

    def close(self) -> None:
        """End the stages' threads and let the network go."""
        if self._pipeline:
            self._pipeline.close()
        if self._input:
            self._input.close()
        del self._call, self._network

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs, the GPU that it ran on, and how long each stage took."""
        versions = {
            "PyTorch": torch.__version__,
            "timm": importlib.metadata.version("timm"),
            "numpy": np.__version__,
        }
        return versions | (describe_gpu() if self._input else self._pipeline.describe() if self._pipeline else {})

    def profile(self, batch: np.ndarray, path: Path) -> None:
        """Profile a step with PyTorch's profiler, where the options ask for it."""
        if not self._options.profile:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._input:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            self.infer(batch)
        profiler.export_chrome_trace(str(path))

    def layers(self) -> list[Primitive] | None:
        """Return what the network computes on a GPU, and on CPUs None: the traces of oneDNN and MKL tell it.

        Of a recorded graph it is the call that was recorded.
        """
        return computed_layers(self._network, self._images) if self._input else None


class InductorBackend(EagerBackend):
    """The network compiled by torch.compile with its weights frozen, so that BatchNorm is folded."""

    def _compile(self, network: nn.Module) -> Call:
        _settle_inductor()
        return torch.compile(network)


class ZentorchBackend(EagerBackend):
    """The network compiled by torch.compile for ZenDNN's kernels, AMD's own."""

    def _compile(self, network: nn.Module) -> Call:
        import zentorch  # registers the backend

        self._zentorch = zentorch
        _settle_inductor()
        return torch.compile(network, backend="zentorch")

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs."""
        return super().describe() | {"zentorch": self._zentorch.__version__}


def _settle_inductor() -> None:
    import torch._inductor.config as inductor
    from torch._inductor.codecache import cache_dir

    from cnnbench.engines.pytorch.compiler import write_whole_files

    inductor.freezing = True
    inductor.compile_threads = 1  # no helper processes that outlive the compilation
    write_whole_files(Path(cache_dir()))
