"""Prepare a network, as `python -m cnnbench.models.prepare_network IMAGES DESTINATION` with a Python that has PyTorch.

`DESTINATION/network.json` says which. Beside it come `weights.safetensors` or, for engines that read it,
`network.onnx`; `check_images.npy` in the form that the network is handed, `reference.npy` (what it answers to them in
float32, by PyTorch's eager mode) and `prepared.json`.
"""

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cnnbench.backends import ImageForm
from cnnbench.datasets.index import load_image_set
from cnnbench.datasets.jpeg import read_batches
from cnnbench.errors import CnnbenchError
from cnnbench.models.classifier import Classifier
from cnnbench.models.networks import Network
from cnnbench.models.torch_networks import build, count_macs, split
from cnnbench.models.torch_weights import load_weights, seed_weights

CHECK_IMAGES = 32


def prepare(images: Path, destination: Path) -> None:
    """Write all that belongs to the network of `network.json`."""
    request: dict[str, Any] = json.loads((destination / "network.json").read_bytes())
    form, network = ImageForm(**request["form"]), build(Network(**request["network"]))
    split(network, request["splits"])  # raises where it cannot be split so
    files = load_image_set(images).paths()[:CHECK_IMAGES]
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    batch = next(read_batches(files, CHECK_IMAGES, threads, repeat=False, form=form))
    classifier = Classifier(network, request["normalize_inside"]).eval()
    handed = torch.from_numpy(batch)
    if request["weights"]:
        load_weights(network, Path(request["weights"]))
    else:
        seed_weights(network, classifier.take(handed))
    weights = save(network.state_dict())
    with torch.no_grad():
        reference = classifier(handed).numpy()
    if not np.isfinite(reference).all():
        raise CnnbenchError(f"{request['network']}: answers what is no number; give other WEIGHTS, or leave them out")
    if request["export"]:
        export(classifier, handed[:2], destination / "network.onnx")
    else:
        (destination / "weights.safetensors").write_bytes(weights)
    np.save(destination / "check_images.npy", batch)
    np.save(destination / "reference.npy", reference)
    facts = {
        "macs_per_image": count_macs(network, form.size),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "made_with": {"torch": torch.__version__},
    }
    (destination / "prepared.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def export(classifier: Classifier, images: torch.Tensor, path: Path) -> None:
    """Write the network with its input's handling and softmax as ONNX, for any number of images."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # the newer exporter needs a package more
    torch.onnx.export(
        classifier,
        (images,),
        path,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_axes={"images": {0: "batch"}, "probabilities": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def main(arguments: list[str]) -> int:
    """Prepare, and return the exit code."""
    try:
        prepare(*map(Path, arguments))
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
