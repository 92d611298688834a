"""OpenVINO's CPU plug-in: networks as ONNX."""

from cnnbench.engines.registry import Build, Engine, Steps

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
    ),
)
