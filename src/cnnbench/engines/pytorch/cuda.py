"""What PyTorch's engines do otherwise on an NVIDIA GPU: how a batch gets there, and a call recorded in a CUDA graph.

All work goes to one stream, and an answer is copied to the host before the next batch is touched, so buffers are used
again without waiting for them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnbench.base.errors import CnnbenchError

Call = Callable[[torch.Tensor], torch.Tensor]

WARM_UPS = 3
"""Calls on a stream of their own before one is recorded, as PyTorch's documentation of CUDA graphs asks for."""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def set_arithmetic(half_partial: bool) -> None:
    """Have float32 be float32 (no TF32), cuDNN try its algorithms, and 16-bit products be summed up as asked for."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = half_partial
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = half_partial
    torch.backends.cuda.matmul.allow_fp16_accumulation = half_partial


class DeviceInput:
    """The way of batches to the device, by where they come from (DATA_TYPE).

    dummy: a batch never changes, so it is copied once and stays on the device. generated: one of a few batches, whose
    memory is pinned when it is first seen, is copied each time. real: a batch in new memory is copied each time.
    """

    def __init__(self, data_type: str, device: str = "cuda") -> None:
        self._data_type, self._device = data_type, device
        self._kept: dict[tuple[int, tuple[int, ...]], tuple[np.ndarray, torch.Tensor]] = {}
        self._buffers: dict[tuple[int, ...], torch.Tensor] = {}
        self._pinned: dict[int, np.ndarray] = {}

    def take(self, batch: np.ndarray) -> torch.Tensor:
        """Return the batch on the device: always the same tensor for a dummy batch, and for a size of any other."""
        images = torch.from_numpy(batch)
        if self._data_type == "dummy":
            place = (_address(batch), batch.shape)
            if place not in self._kept:  # the array is kept too, so that nothing else comes to lie where it is
                self._kept[place] = (batch, images.to(self._device))
            return self._kept[place][1]
        if self._data_type == "generated":
            self._pin(batch)
        if batch.shape not in self._buffers:
            self._buffers[batch.shape] = torch.empty_like(images, device=self._device)
        return self._buffers[batch.shape].copy_(images, non_blocking=True)

    def _pin(self, batch: np.ndarray) -> None:
        """Pin the memory of the whole array that a batch is, or is a part of."""
        whole = batch.base if isinstance(batch.base, np.ndarray) else batch
        if _address(whole) not in self._pinned:
            code = int(torch.cuda.cudart().cudaHostRegister(_address(whole), whole.nbytes, 0))
            if code:
                raise CnnbenchError(f"pinning {whole.nbytes} bytes of the host's memory: CUDA error {code}")
            self._pinned[_address(whole)] = whole

    def close(self) -> None:
        """Unpin what was pinned, and let the batches go."""
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)
        for held in (self._pinned, self._kept, self._buffers):
            held.clear()


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@dataclass
class _Recorded:
    """A recorded call: what it reads and what it writes, in place; `source` is what was last copied to `images`."""

    graph: Any
    images: torch.Tensor
    answers: torch.Tensor
    source: torch.Tensor


class GraphedCall:
    """A call that is recorded in a CUDA graph at the first batch of each size, and replayed from then on.

    `kept`: whether a batch is a tensor of its own whose content never changes, as dummy ones are; it is then copied to
    where the graph reads only when another was there before. Else each size has one buffer, which the graph reads.
    """

    def __init__(self, call: Call, kept: bool) -> None:
        self._call, self._kept = call, kept
        self._recorded: dict[torch.Size, _Recorded] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the answers, in memory that the next call writes to again."""
        if images.shape not in self._recorded:
            self._recorded[images.shape] = self._record(images)
        recorded = self._recorded[images.shape]
        if recorded.source is not images:
            recorded.images.copy_(images)
            recorded.source = images
        recorded.graph.replay()
        return recorded.answers

    def _record(self, images: torch.Tensor) -> _Recorded:
        read = images.clone() if self._kept else images
        self._call(read)  # compiles, and lets cuDNN choose its algorithms
        current, apart = torch.cuda.current_stream(), torch.cuda.Stream()
        apart.wait_stream(current)
        with torch.cuda.stream(apart):
            for _ in range(WARM_UPS):
                self._call(read)
        current.wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answers = self._call(read)
        return _Recorded(graph, read, answers, images)


def describe_gpu() -> dict[str, str]:
    """Return the GPU, its driver, the libraries in use, and the most memory of it that was taken."""
    number = torch.backends.cudnn.version() or 0
    major, minor = divmod(number, 10_000 if number >= 90_000 else 1000)  # cuDNN 9 has a digit more
    found = {
        "GPU": torch.cuda.get_device_name(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": f"{major}.{minor // 100}.{minor % 100}",
        "GPU memory": f"{torch.cuda.max_memory_reserved() / 2**20:.0f} MiB reserved at most",
    }
    if DRIVER_VERSION.is_file() and (driver := re.search(r"\d+\.\d+(\.\d+)?", DRIVER_VERSION.read_text())):
        found["NVIDIA driver"] = driver[0]
    return found
