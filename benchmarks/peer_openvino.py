"""OpenVINO as its benchmark_app runs it: the hint chooses streams and requests, inputs are set once."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from peer_worker import PeerSpec, Steps, measure_calls

COMPUTING = ("Convolution", "FullyConnected", "MatMul")
"""Layer types of the runtime model that multiply and accumulate."""


class OpenVino:
    """A compiled model with its requests."""

    def __init__(self, spec: PeerSpec) -> None:
        core = ov.Core()
        model = core.read_model(Path(spec.artefacts) / ("int8.xml" if spec.data_type == "int8" else "fp32.xml"))
        model.reshape([spec.batch_size, 224, 224, 3])
        options = {
            "PERFORMANCE_HINT": spec.mode.upper(),
            "INFERENCE_PRECISION_HINT": "bf16" if spec.data_type.startswith("bfloat") else "f32",  # int8: the model's
            "EXECUTION_MODE_HINT": "PERFORMANCE",
        }
        self._model = core.compile_model(model, "CPU", options)
        self._request = self._model.create_infer_request()
        self.queue = ov.AsyncInferQueue(self._model) if spec.mode == "throughput" else None

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the probabilities of one batch, without copying it."""
        return self._request.infer([batch], share_inputs=True, share_outputs=True)[0]

    def executed(self) -> dict[str, float]:
        """Return the primitives of the runtime model's computing layers."""
        found: Counter[str] = Counter()
        for node in self._model.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            if facts["layerType"].astype(str) in COMPUTING:
                found[facts["primitiveType"].astype(str)] += 1
        return {name: count / found.total() for name, count in found.most_common()}

    def versions(self) -> str:
        """Return the version and what the hint chose."""
        streams, threads = (self._model.get_property(name) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS"))
        requests = f", {len(self.queue)} requests" if self.queue else ""
        return f"OpenVINO {ov.__version__.split('-')[0]}, {streams} streams, {threads} threads{requests}"


def load(spec: PeerSpec) -> OpenVino:
    """Return the engine, loaded."""
    return OpenVino(spec)


def measure(peer: OpenVino, batch: np.ndarray, begin_ns: int, end_ns: int) -> list[Steps]:
    """Keep all requests busy; each one's inferences are the steps of one row of the result."""
    if peer.queue is None:
        return measure_calls(peer, batch, begin_ns, end_ns)
    queue, clock = peer.queue, time.monotonic_ns
    began = [0] * len(queue)
    steps: list[Steps] = [[] for _ in began]

    def done(_request: Any, slot: int) -> None:
        if began[slot] >= begin_ns:
            steps[slot].append([began[slot], began[slot], clock()])

    queue.set_callback(done)
    for request in queue:
        request.set_input_tensor(ov.Tensor(batch, shared_memory=True))
    while clock() < end_ns or min(began) < begin_ns:  # at least one step of each request
        slot = queue.get_idle_request_id()
        began[slot] = clock()
        queue.start_async(userdata=slot)
    queue.wait_all()
    return steps


def prepare(model: Path, calibration: Path, destination: Path) -> None:
    """Write `fp32.xml` from the frozen graph, and `int8.xml` by NNCF's post-training quantisation."""
    import nncf

    source = ov.Core().read_model(model)
    ov.save_model(source, destination / "fp32.xml", compress_to_fp16=False)
    images = np.load(calibration, mmap_mode="r")
    samples = nncf.Dataset([images[at : at + 1] for at in range(len(images))])
    quantised = nncf.quantize(source, samples, subset_size=len(images))
    ov.save_model(quantised, destination / "int8.xml")


if __name__ == "__main__":
    prepare(*(Path(argument) for argument in sys.argv[1:]))
