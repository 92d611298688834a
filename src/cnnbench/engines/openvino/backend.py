"""Run a prepared network, exported to ONNX, with OpenVINO's CPU plug-in."""

import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from cnnbench.engines.conversion import network_file
from cnnbench.engines.exported import Exported, find_export
from cnnbench.engines.interface import Backend, LoadSpec
from cnnbench.engines.layers import Primitive
from cnnbench.machine.host import read_cpuinfo

COMPUTING = ("Convolution", "FullyConnected", "MatMul")
"""Layer types of the compiled model that multiply and accumulate."""

RESCALED = "/DequantizationMultiply"
"""What follows in the name of a quantised layer that its scale was fused into."""

PART_OF_GEMM = "/WithoutBiases"
"""What follows in the name of the product that a Gemm was read as, before its bias is fused back."""

_TYPES = {"FP32": "f32", "BF16": "bf16", "I8": "s8", "U8": "u8"}
_AVX512 = {"bf16": "avx512_core_bf16", "s8": "avx512_core_vnni", "f32": "avx512_core"}
"""oneDNN's names for what the plug-in calls avx512, by the data type; the CPU is known to have these instructions."""


BLOB = ".blob"
"""How the file of a compiled network ends."""
VERSIONS = {"OpenVINO": ov.__version__}


def precision_hint(number_type: str) -> dict[str, str]:
    """Return the option that has a type of number computed with."""
    return {"INFERENCE_PRECISION_HINT": "bf16" if number_type == "bfloat16" else "f32"}


class OpenVinoBackend(Backend):
    """The network compiled for each batch size that comes, with one stream for each instance of the process."""

    def load(self, spec: LoadSpec) -> None:
        """Read the network; it is compiled when the first batch tells the size."""
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",  # the instances are the streams, and a step waits for its result
            "NUM_STREAMS": str(spec.callers),
            "INFERENCE_NUM_THREADS": str(spec.threads * spec.callers),
            "ENABLE_CPU_PINNING": "NO",  # the threads inherit the instance's
            **precision_hint(spec.number_type),
        }
        self._export = find_export(spec.model, BLOB, VERSIONS)
        self._core = ov.Core()
        self._model = self._core.read_model(network_file(spec.model))
        self._models: dict[int, ov.CompiledModel] = {}
        self._lock, self._requests = threading.Lock(), threading.local()

    def _compiled(self, size: int) -> ov.CompiledModel:
        with self._lock:
            if size not in self._models and self._export:
                self._models[size] = self._imported(*self._export, size)
            elif size not in self._models:
                self._models[size] = self._core.compile_model(self._reshaped(size), "CPU", self._options)
            return self._models[size]

    def _imported(self, file: Path, facts: Exported, size: int) -> ov.CompiledModel:
        """Return what was compiled before, for the batches and the precision that it was compiled for."""
        facts.require_batch(size)
        return self._core.import_model(file.read_bytes(), "CPU", self._options)

    def _reshaped(self, size: int) -> ov.Model:
        """Return the network as it was read, for batches of this size."""
        model = self._model.clone()
        model.reshape([size, *(dimension.get_length() for dimension in list(model.input().partial_shape)[1:])])
        return model

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1000) of images (N x size x size x 3), which are read where they are."""
        self._size = len(batch)
        name = f"of {len(batch)}"
        if not hasattr(self._requests, name):
            setattr(self._requests, name, self._compiled(len(batch)).create_infer_request())
        return getattr(self._requests, name).infer([batch], share_inputs=True)[0]

    def close(self) -> None:
        """Let the compiled models go."""
        self._models.clear()

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs."""
        return {**VERSIONS, "numpy": np.__version__}

    def layers(self) -> list[Primitive]:
        """Return the computing layers of the compiled model of the last batch, which it describes itself."""
        size = self._size
        macs = {
            op.get_friendly_name().removesuffix(PART_OF_GEMM): count
            for op in self._reshaped(size).get_ordered_ops()
            if (count := _count_macs(op))
        }
        found, vnni = [], "avx_vnni" in read_cpuinfo().flags
        for node in self._models[size].get_runtime_model().get_ordered_ops():
            tell = partial(_tell, node.get_rt_info())
            if tell("layerType") in COMPUTING:
                names = [name.removesuffix(RESCALED) for name in tell("originalLayersNames").split(",")]
                found.append(_describe(tell("primitiveType"), [macs[name] for name in names if name in macs], vnni))
        return found


def _tell(facts: Any, name: str) -> str:
    return str(facts[name].astype(str))


def _count_macs(op: Any) -> int:
    """Return the multiply-accumulates of an operation of the model as it was read, 0 for one that has none."""
    kind = op.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "MatMul"):
        return 0
    outputs, weights = list(op.output(0).shape), list(op.input(1).get_shape())
    per_output = {"Convolution": weights[1:], "GroupConvolution": weights[2:], "MatMul": [op.input(0).get_shape()[-1]]}
    return int(np.prod(outputs) * np.prod(per_output[kind]))


def _describe(primitive_type: str, macs: list[int], vnni: bool) -> Primitive:
    """Return one layer; `primitive_type` is such as brgconv_avx512_amx_1x1_I8.

    `vnni`: whether the CPU has AVX-VNNI, which oneDNN's int8 kernels for AVX2 then use, under the same name.
    """
    name, _, type_name = primitive_type.rpartition("_")
    data_type = _TYPES.get(type_name, type_name.lower())
    isa = next((isa for isa in ("avx512_amx", "avx512", "avx2", "sse42") if isa in name), "")
    rest = re.sub("_+", "_", name.replace(isa, "", 1)).strip("_") if isa else name
    full = "avx512_core_amx" if isa == "avx512_amx" else _AVX512.get(data_type, isa) if isa == "avx512" else isa
    if isa == "avx2" and data_type in ("s8", "u8") and vnni:
        full = "avx2_vnni"
    implementation = f"{rest}:{full}" if full else rest
    return Primitive("convolution", implementation, data_type, data_type, data_type, "", "", sum(macs), 0.0)
