"""ONNX Runtime: networks as ONNX; quantises them for all engines that read that."""

from cnnbench.engines.conversion import NETWORK
from cnnbench.engines.registry import Build, Engine, Share, Steps, TritonBackend

_CONVERTING = (
    "engines/conversion.py",
    "engines/onnxruntime/calibrate.py",
    "engines/onnxruntime/compensate.py",
    "engines/onnxruntime/formats.py",
    "engines/onnxruntime/graph.py",
    "engines/onnxruntime/rounding.py",
    "inputs/jpeg.py",
)


def _served(share: Share) -> dict[str, str]:
    """Return what a session of Triton's backend has: the threads that one of our own has."""
    return {"intra_op_thread_count": str(share.threads)}


ENGINES = (
    Engine(
        name="onnxruntime",
        backend="cnnbench.engines.onnxruntime.backend:OnnxRuntimeBackend",
        takes="network",
        summary="ONNX Runtime",
        reader="cnnbench.inputs.jpeg:read_batches",
        builds=(Build("cpu", "onnxruntime-cpu", int8=True, in_images=True),),
        heeds=frozenset({"VERBOSE"}),
        refused={
            "bfloat16": "its CPU execution provider has no bfloat16 convolution",
            "bfloat32": "its CPU execution provider computes no float32 convolution in bfloat16 on x86",
        },
        quantizes_networks=Steps(
            "cnnbench.engines.onnxruntime.quantize", ("engines/onnxruntime/quantize.py", "inputs/jpeg.py")
        ),
        converts_networks=Steps(
            "cnnbench.engines.onnxruntime.convert",
            (*_CONVERTING, "engines/onnxruntime/convert.py"),
        ),
        handles_files=Steps(
            "cnnbench.engines.onnxruntime.files", (*_CONVERTING, "engines/onnxruntime/files.py", "inputs/model_file.py")
        ),
        exports_networks=Steps(
            "cnnbench.engines.onnxruntime.export",
            ("engines/exported.py", "engines/onnxruntime/backend.py", "engines/onnxruntime/export.py"),
        ),
        parts_weights=True,
        reads_onnx=True,
        tells_layers=True,
        triton=TritonBackend(
            name="onnxruntime",
            file=NETWORK,
            called="model.onnx",
            numbers=frozenset({"fp32", "fp16", "int8"}),
            puts_together=True,
            parameters=_served,
        ),
    ),
)
