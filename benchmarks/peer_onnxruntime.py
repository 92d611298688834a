"""ONNX Runtime's CPU execution provider, on the network as tf2onnx converts it."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from peer_worker import PeerSpec

INPUT = "input_tensor:0"
OPSET = 17
COMPUTING = ("Conv", "FusedConv", "QLinearConv", "Gemm", "FusedGemm", "QGemm", "MatMul", "QLinearMatMul")


class OnnxRuntime:
    """A session with one thread for each core."""

    def __init__(self, spec: PeerSpec) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            optimised = Path(scratch) / "optimised.onnx"
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = len(spec.cpus)
            options.log_severity_level = 3
            options.optimized_model_filepath = str(optimised)
            model = Path(spec.artefacts) / ("int8.onnx" if spec.data_type == "int8" else "fp32.onnx")
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._executed = _computing_operations(optimised)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the probabilities of one batch."""
        return self._session.run(None, {INPUT: batch})[0]

    def executed(self) -> dict[str, float]:
        """Return the computing operations of the optimised graph; what MLAS runs them with it does not tell."""
        return self._executed

    def versions(self) -> str:
        """Return the version."""
        return f"ONNX Runtime {onnxruntime.__version__}"


def _computing_operations(graph: Path) -> dict[str, float]:
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    found = Counter(f"{node.domain or 'onnx'}.{node.op_type}" for node in nodes if node.op_type in COMPUTING)
    return {name: count / found.total() for name, count in found.most_common()}


def load(spec: PeerSpec) -> OnnxRuntime:
    """Return the engine, loaded."""
    return OnnxRuntime(spec)


def prepare(model: Path, calibration: Path, destination: Path) -> None:
    """Write `fp32.onnx` by tf2onnx from the frozen graph, and `int8.onnx` by ONNX Runtime's static quantisation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import onnx
    import tensorflow as tf
    import tf2onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(model.read_bytes())
    converted, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=[INPUT], output_names=["softmax_tensor:0"], opset=OPSET
    )
    onnx.save(converted, destination / "fp32.onnx")
    images = np.load(calibration, mmap_mode="r")

    class Reader(CalibrationDataReader):
        """Hand the calibration images out one by one."""

        def __init__(self) -> None:
            self._images: Iterator[np.ndarray] = (images[at : at + 1] for at in range(len(images)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next image, or None after the last."""
            image = next(self._images, None)
            return None if image is None else {INPUT: image}

    with tempfile.TemporaryDirectory() as scratch:
        simplified = Path(scratch) / "simplified.onnx"
        quant_pre_process(destination / "fp32.onnx", simplified)
        quantize_static(
            simplified,
            destination / "int8.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=[name for name in QDQRegistry if name != "Softmax"],  # 8 bits are no probabilities
        )


if __name__ == "__main__":
    prepare(*(Path(argument) for argument in sys.argv[1:]))
