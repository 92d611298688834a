"""Tell what a call of PyTorch's multiplies and accumulates, and in which data types.

PyTorch's profiler sees each operation with its operands at the moment that it is started, whoever starts it: the eager
network, or the code that Inductor has made of it. A dispatch mode would not do, as torch.compile runs the eager network
under one in place of its own code.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cnnbench.engines.layers import UNTOLD, Primitive

CONVOLUTION = "aten::convolution"
MATRICES = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Matrix products, by which of their operands is the left one. Each has one event, with nothing of these inside."""
TYPES = {"float": "f32", "double": "f64", "c10::Half": "f16", "c10::BFloat16": "bf16"}


def computed_layers(call: Callable[[torch.Tensor], Any], images: torch.Tensor) -> list[Primitive]:
    """Call it once more, and return its convolutions and matrix products.

    With what instructions they run PyTorch does not tell; float32 on a GPU that may be computed in TF32 is said to be.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        call(images)
    events = profiler.profiler.kineto_results.events()
    return [
        _describe(event, images.is_cuda) for event in events if event.name() == CONVOLUTION or event.name() in MATRICES
    ]


def _describe(event: Any, on_gpu: bool) -> Primitive:
    left = MATRICES.get(event.name(), 0)
    source, weights = event.shapes()[left : left + 2]
    source_type, weights_type = (TYPES.get(name, name) for name in event.dtypes()[left : left + 2])
    if event.name() == CONVOLUTION:
        kind, fast = "convolution", torch.backends.cudnn.allow_tf32
        macs = _count_convolution(source, weights, event.concrete_inputs())
    else:
        kind, fast = "matmul", torch.backends.cuda.matmul.allow_tf32
        macs = math.prod(source) * weights[-1]
    fpmath = "tf32" if on_gpu and fast and source_type == "f32" else ""
    shape = ":".join("x".join(map(str, extents)) for extents in (source, weights))
    return Primitive(kind, UNTOLD, source_type, weights_type, source_type, fpmath, shape, macs, 0.0)


def _count_convolution(source: Sequence[int], weights: Sequence[int], arguments: Sequence[Any]) -> int:
    """Return the multiply-accumulates of aten::convolution, whose arguments 3 to 5 are stride, padding and dilation."""
    outputs = [
        (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for extent, kernel, stride, padding, dilation in zip(source[2:], weights[2:], *arguments[3:6], strict=True)
    ]
    return source[0] * math.prod(outputs) * math.prod(weights)
