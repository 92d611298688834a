"""Run a prepared network, exported to ONNX, with ONNX Runtime's CPU execution provider."""

import tempfile
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from cnnbench.engines.conversion import network_file
from cnnbench.engines.exported import WEIGHTS, find_export
from cnnbench.engines.interface import Backend, LoadSpec
from cnnbench.engines.layers import UNTOLD, Primitive

INPUT = "images"
OPTIMISED = ".onnx"
"""How the file of a network ends that was optimised and written as such."""
COMPUTING = dict.fromkeys(("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"), 1)
COMPUTING |= dict.fromkeys(("QLinearConv", "QGemm", "QLinearMatMul"), 3)
"""Operations of the optimised graph that multiply and accumulate, and which of their inputs the weights are."""

_TYPES = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.INT8: "s8", onnx.TensorProto.UINT8: "u8"}
VERSIONS = {"ONNX Runtime": onnxruntime.__version__}


def new_options(*, unpack: bool) -> onnxruntime.SessionOptions:
    """Return options; `unpack`: have weights unpacked as they are loaded, which int8 ones must not be."""
    options = onnxruntime.SessionOptions()
    if unpack:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class OnnxRuntimeBackend(Backend):
    """A session for each instance of the process, with one thread for each of its cores."""

    def load(self, spec: LoadSpec) -> None:
        """Note what sessions are made of; an instance makes its own, in its thread, whose pinning others inherit."""
        self._path, self._batch_size, self._own = network_file(spec.model), 0, threading.local()
        self._export = find_export(spec.model, OPTIMISED, VERSIONS)
        self._unpack = spec.number_type != "int8"
        self._options = new_options(unpack=self._unpack)
        self._options.intra_op_num_threads = spec.threads
        self._options.log_severity_level = 0 if spec.verbose else 3
        if self._export and self._export[1].weights:
            with np.load(spec.model / WEIGHTS) as weights:
                self._weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in weights}
            self._options.add_external_initializers(list(self._weights), list(self._weights.values()))

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1000) of images (N x size x size x 3)."""
        if self._export and len(batch) != self._batch_size:
            self._export[1].require_batch(len(batch))
        self._batch_size = len(batch)
        if not hasattr(self._own, "session"):
            self._own.session = self._session(self._options, self._export[0] if self._export else self._path)
        return self._own.session.run(None, {INPUT: batch})[0]

    def _session(self, options: onnxruntime.SessionOptions, path: Path) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def close(self) -> None:
        """Let the sessions go."""
        del self._own

    def describe(self) -> dict[str, str]:
        """Return the versions of what runs."""
        return {**VERSIONS, "numpy": np.__version__}

    def layers(self) -> list[Primitive]:
        """Return the computing operations of the optimised graph, before MLAS lays their weights out.

        With what instructions MLAS runs them it does not tell, and of its types only that they are the graph's.
        """
        model = onnx.load(self._path)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = self._batch_size  # group norm reshapes by it
        shapes = {
            value.name: [dimension.dim_value or self._batch_size for dimension in value.type.tensor_type.shape.dim]
            for graph in (onnx.shape_inference.infer_shapes(model, data_prop=True).graph,)
            for value in (*graph.value_info, *graph.output)
        }
        graph = self._optimised()
        weights = {one.name: one for one in graph.initializer}
        turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        found = []
        for node in graph.node:
            if node.op_type not in COMPUTING:
                continue
            name = node.input[COMPUTING[node.op_type]]
            held = weights[turned.get(name, name)]
            outputs = shapes[node.output[0]]
            transposed = any(one.name == "transB" and one.i for one in node.attribute)
            per_output = held.dims[1:] if len(held.dims) > 2 or transposed else held.dims[:1]
            data_type = "f32" if name in turned else _TYPES.get(held.data_type, "other")
            macs = int(np.prod(outputs) * np.prod(per_output))
            found.append(Primitive(node.op_type, UNTOLD, data_type, data_type, data_type, "", "", macs, 0.0))
        return found

    def _optimised(self) -> onnx.GraphProto:
        options = new_options(unpack=self._unpack)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as scratch:
            options.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
            self._session(options, self._path)
            return onnx.load(options.optimized_model_filepath).graph
