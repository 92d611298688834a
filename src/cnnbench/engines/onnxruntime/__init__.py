"""ONNX Runtime: networks as ONNX; quantises them for all engines that read that."""
