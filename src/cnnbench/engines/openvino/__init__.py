"""OpenVINO's CPU plug-in: networks as ONNX."""

from cnnbench.engines.conversion import NETWORK
from cnnbench.engines.registry import Build, Engine, Share, Steps, TritonBackend


def _served(share: Share) -> dict[str, str]:
    """Return what Triton's backend compiles with, as our own does: one network, with a stream for each instance."""
    hint = {"HINT_BF16": "YES"} if share.number_type == "bfloat16" else {}
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(share.instances),
        "INFERENCE_NUM_THREADS": str(share.threads * share.instances),
        **hint,
    }


ENGINES = (
    Engine(
        name="openvino",
        backend="cnnbench.engines.openvino.backend:OpenVinoBackend",
        takes="network",
        summary="OpenVINO",
        reader="cnnbench.inputs.jpeg:read_batches",
        builds=(Build("cpu", "openvino-cpu", int8=True, in_images=True),),
        refused={"bfloat32": "its CPU plug-in computes a float32 network in bfloat16 as bfloat16 only"},
        exports_networks=Steps(
            "cnnbench.engines.openvino.export",
            ("engines/exported.py", "engines/openvino/backend.py", "engines/openvino/export.py"),
        ),
        reads_onnx=True,
        tells_layers=True,  # and its oneDNN fails at some layers when it is to trace them
        triton=TritonBackend(
            name="openvino",
            file=NETWORK,
            called="model.onnx",
            numbers=frozenset({"fp32", "fp16", "bfloat16", "int8"}),
            puts_together=False,  # it takes batches of one size, fills smaller ones up, and miscounts some of those
            parameters=_served,
            notes={
                "fp32": "Triton's backend cannot be kept from computing in bfloat16 on a CPU that has it, as OpenVINO "
                "does unless told otherwise"
            },
        ),
    ),
)
