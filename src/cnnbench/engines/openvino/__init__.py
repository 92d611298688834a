"""OpenVINO's CPU plug-in: networks as ONNX."""
