"""Engines behind one small interface.

A backend does not time, log or know the scenario, so that measuring cannot favour one. Imported late by name: the
controller imports no engine.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cnnbench.base.errors import UsageError
from cnnbench.inputs.networks import ImageForm

if TYPE_CHECKING:  # an image's environments are made before the rest of this package is there
    from cnnbench.engines.layers import Primitive

Harness = Literal["tensorflow", "cnn"]
"""What an engine is handed, which decides the parameters of its workloads: TensorFlow's frozen graph, or a network."""


GPU_VARIANT = "cuda"
"""The build of an engine that runs on NVIDIA GPUs, and is chosen for them alone."""


@dataclass(frozen=True)
class LoadSpec:
    """What a backend needs to load: a prepared graph, the type of number to compute with, the threads of each instance.

    `number_type`: float32 as it is (fp32) or computed in bfloat16 (bfloat32), bfloat16, float16 or int8. `on_gpu`:
    whether the network goes to the first GPU that may be used. `callers`: how many threads will call `infer` at once,
    each being an instance that shares the weights. `splits`: the layers at which a network is cut into stages, which
    then take parts of `micro_batch_size` images. For a GPU, as the parameters say, `data_type`: whether a batch is
    handed over again as it was (dummy), is one of a few that are (generated), or always another (real); `cuda_graphs`
    and `half_partial`.
    """

    model: Path
    number_type: str
    threads: int
    callers: int
    verbose: bool
    splits: tuple[str, ...] = ()
    micro_batch_size: int = 1
    data_type: str = "dummy"
    on_gpu: bool = False
    cuda_graphs: bool = False
    half_partial: bool = False


class Backend(Protocol):
    """One engine with one network loaded."""

    def load(self, spec: LoadSpec) -> None:
        """Make the network ready to infer."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the class probabilities (float32, N x classes) of images (N x size x size x 3)."""

    def close(self) -> None:
        """Give back what `load` took."""

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs, by name."""

    def layers(self) -> "list[Primitive] | None":
        """Return what a batch's layers run on, as the engine tells it; None where the trace of a library does."""


class Profiling(Backend, Protocol):
    """An engine that `Engine.stages` is set for."""

    def profile(self, batch: np.ndarray, path: Path) -> None:
        """Profile a step, into a file in the trace format of Chrome and Perfetto."""


class Reader(Protocol):
    """Reads a share of an image set, decoded and preprocessed as the engine's users would."""

    def __call__(
        self, files: Sequence[str], batch_size: int, threads: int, repeat: bool, form: ImageForm | None
    ) -> Iterator[np.ndarray]:
        """Yield batches (N x size x size x 3), in the files' order, the last one of a pass maybe smaller.

        `form`: what a network wants; None for the frozen graph's own, float32 of 224 x 224 less the means.
        """


@dataclass(frozen=True)
class Engine:
    """Where an engine's parts are.

    `variants`: its builds, each with a lock file `<engine>-<variant>.lock`; none when it needs no environment of its
    own. `preparer`: the module that stages and prepares its models, run with its environment's Python; none when it
    needs no model. `int8_variants`: the builds that compute in int8. `quantizer`: the module that quantises a prepared
    graph for one of them, run with the Python of the environment of `<engine>-quantizer.lock`; none for networks, which
    are quantised alike for all engines. An engine without a model has no outputs to check and no
    precision to prove. `harness`: which parameters its workloads have. `environment`: whose lock files make its
    environment, where not its own. `exported`: whether it reads networks as ONNX, and tells itself what their layers
    run on. `stages`: whether it can cut networks into stages, and profile them. `gpu`: whether it runs on NVIDIA GPUs
    too, with its build for them. `refused`: why it cannot run a data type.
    """

    backend: str
    reader: str = ""
    variants: tuple[str, ...] = ()
    preparer: str = ""
    quantizer: str = ""
    int8_variants: tuple[str, ...] = ()
    harness: Harness = "tensorflow"
    environment: str = ""
    exported: bool = False
    stages: bool = False
    gpu: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


_OF_NETWORKS = Engine(
    backend="",
    reader="cnnbench.inputs.jpeg:read_batches",
    variants=("cpu",),
    preparer="cnnbench.engines.pytorch.prepare",
    harness="cnn",
)
"""What all engines that are handed networks have in common."""

_OF_PYTORCH = replace(
    _OF_NETWORKS,
    variants=("cpu", GPU_VARIANT),
    stages=True,
    gpu=True,
    refused={"int8": "its networks are not quantised; onnxruntime and openvino run them in int8"},
)

ENGINES = {
    "tensorflow": Engine(
        backend="cnnbench.engines.tensorflow.backend:TensorFlowBackend",
        reader="cnnbench.engines.tensorflow.reader:read_batches",
        variants=("itex", "stock", "zentf"),
        preparer="cnnbench.engines.tensorflow.prepare",
        quantizer="cnnbench.engines.tensorflow.quantize",
        int8_variants=("itex", "stock"),
    ),
    "pytorch": replace(_OF_PYTORCH, backend="cnnbench.engines.pytorch.backend:EagerBackend"),
    "inductor": replace(_OF_PYTORCH, backend="cnnbench.engines.pytorch.backend:InductorBackend", environment="pytorch"),
    "onnxruntime": replace(
        _OF_NETWORKS,
        backend="cnnbench.engines.onnxruntime.backend:OnnxRuntimeBackend",
        int8_variants=("cpu",),
        exported=True,
        refused={
            "bfloat16": "its CPU execution provider has no bfloat16 convolution",
            "bfloat32": "its CPU execution provider computes no float32 convolution in bfloat16 on x86",
        },
    ),
    "openvino": replace(
        _OF_NETWORKS,
        backend="cnnbench.engines.openvino.backend:OpenVinoBackend",
        int8_variants=("cpu",),
        exported=True,
        refused={"bfloat32": "its CPU plug-in computes a float32 network in bfloat16 as bfloat16 only"},
    ),
    "null": Engine(backend="cnnbench.engines.null.backend:NullBackend"),
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
