#!/usr/bin/env -S python3
"""Use the compiled network within other PyTorch code, which prepares its images and reads its answers.

    python infer_with_torch.py COMPILED IMAGE.jpg ... [--weights WEIGHTS] [--pointers]

COMPILED: a directory that compile_model.py has written with --engine aotinductor. `--weights` puts in those of a state
dict, where it was compiled with --replaceable-weights, and compares with eager mode. `--pointers` shows by the
addresses of all memory taken meanwhile that images were not copied, and that answers are where the network wrote them.
"""

from inside import require

require("pytorch", "torch")

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from modeling.resnet import resnet
from PIL import Image
from weight_utils import fold, read_state_dict

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.exported import Exported
from cnnbench.engines.pytorch.compiled import CompiledNetwork

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SIZE, SCALED = 224, 256


def read_images(paths: list[Path]) -> torch.Tensor:
    """Return images N x SIZE x SIZE x 3, normalised: decoded by Pillow, and from then on PyTorch's."""
    images = []
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float()
        scale = SCALED / min(pixels.shape[2:])
        size = [round(side * scale) for side in pixels.shape[2:]]
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True).round()
        top, left = ((side - SIZE) // 2 for side in size)
        pixels = pixels[0, :, top : top + SIZE, left : left + SIZE].permute(1, 2, 0) / 255
        images.append((pixels - MEAN) / DEVIATION)
    return torch.stack(images)


def find_allocations(network: CompiledNetwork, images: torch.Tensor) -> tuple[torch.Tensor, dict[int, int]]:
    """Return what a network answers, and the memory that PyTorch took meanwhile: bytes by address."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        answers = network(images)
    with tempfile.TemporaryDirectory() as scratch:
        profiler.export_chrome_trace(f"{scratch}/trace.json")
        events = json.loads(Path(scratch, "trace.json").read_bytes())["traceEvents"]
    taken = [one["args"] for one in events if one.get("name") == "[memory]" and one["args"]["Bytes"] > 0]
    return answers, {one["Addr"]: one["Bytes"] for one in taken}


def main() -> int:
    """Classify images; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compiled", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pointers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(Exported.find(arguments.compiled).asked.threads)
    with torch.no_grad():
        network, images = CompiledNetwork(arguments.compiled / "executable.pt2"), read_images(arguments.images)
        if arguments.weights:
            folded = fold(read_state_dict(arguments.weights))
            network.replace_weights({name: torch.from_numpy(values) for name, values in folded.items()})
        answers = network(images)
        if arguments.weights:
            difference = (answers - resnet(arguments.weights, network.name)(images)).abs().max().item()
            print(f"{arguments.weights.name}: within {difference:.1e} of PyTorch's eager mode")
        for path, (values, classes) in zip(arguments.images, zip(*answers.topk(5), strict=True), strict=True):
            print(
                f"{path.name}: "
                + ", ".join(f"{number} {value:.4f}" for number, value in zip(classes, values, strict=True))
            )
        if arguments.pointers:
            answers, taken = find_allocations(network, images)
            sizes = list(taken.values())
            print(f"images at {images.data_ptr():#x}, {images.nbytes} bytes; answers at {answers.data_ptr():#x}")
            print(
                f"blocks taken meanwhile: {len(sizes)}; as large as the images: {sizes.count(images.nbytes)}; as large "
                f"as the answers: {sizes.count(answers.nbytes)} (scores and probabilities), and the answers are one of "
                f"them: {answers.data_ptr() in taken}"
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CnnbenchError, OSError, ValueError) as error:
        sys.exit(f"infer_with_torch.py: {error}")
