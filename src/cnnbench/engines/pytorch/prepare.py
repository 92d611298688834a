"""Prepare networks, as `start.py cnnbench.engines.pytorch.prepare STEP ...` with a Python that has PyTorch.

`network IMAGES DESTINATION` prepares the one that `DESTINATION/network.json` describes. Beside that file come
`weights.safetensors` or, for engines that read it, `network.onnx`; `check_images.npy` in the form that the network is
handed, `reference.npy` (what it answers to them in float32, by PyTorch's eager mode) and `prepared.json`.
`fit CALIBRATION TRAINING DESTINATION` gives a network seeded weights and a last layer fitted to the training images, in
`weights.safetensors`. `predict NETWORK IMAGES DESTINATION` records, as `predictions.npy`, the best class that the
checkpoint of a prepared network answers to every image, likewise in float32.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import Progress
from cnnbench.base.steps import Step, run_step
from cnnbench.engines.pytorch.classifier import Classifier
from cnnbench.engines.pytorch.networks import build, count_macs, fold_norms, split
from cnnbench.engines.pytorch.weights import load_weights, seed_weights
from cnnbench.inputs.head import fit_head
from cnnbench.inputs.image_set import CHECK_IMAGES, load_image_set
from cnnbench.inputs.jpeg import read_batches
from cnnbench.inputs.networks import ImageForm, Network

BATCH = 25


def prepare(images: Path, destination: Path) -> None:
    """Write all that belongs to the network of `network.json`."""
    request, classifier, form = _build(destination)
    network = classifier.network
    split(network, request["splits"])  # raises where it cannot be split so
    batch = _check_batch(images, form)
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
    np.save(destination / "check_images.npy", batch)
    np.save(destination / "reference.npy", reference)
    facts = {
        "macs_per_image": count_macs(network, form.size),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "made_with": {"torch": torch.__version__},
    }
    (destination / "prepared.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if request["export"]:
        export(classifier, handed[:2], destination / "network.onnx")
    else:
        (destination / "weights.safetensors").write_bytes(weights)


def fit(calibration: Path, training: Path, destination: Path) -> None:
    """Write `weights.safetensors`: seeded, and a last layer fitted to the training images as the embedded model's is.

    Labels count the background, which these networks have no output for.
    """
    request, classifier, form = _build(destination)
    network = cast(Any, classifier.network)
    seed_weights(network, classifier.take(torch.from_numpy(_check_batch(calibration, form))))
    examples = load_image_set(training)

    def features_of(images: torch.Tensor) -> np.ndarray:
        maps = network.forward_features(classifier.take(images))
        return cast(np.ndarray, network.forward_head(maps, pre_logits=True).numpy())

    name = f"{request['network']['name']}: features of the training images"
    features = _answer(features_of, examples.paths(), form, name)
    kernel, bias = fit_head(features, examples.labels)
    with torch.no_grad():
        network.get_classifier().weight.copy_(torch.from_numpy(kernel[:, 1:].T))
        network.get_classifier().bias.copy_(torch.from_numpy(bias[1:]))
    (destination / "weights.safetensors").write_bytes(save(network.state_dict()))


def predict(prepared: Path, weights: Path, images: Path, destination: Path) -> None:
    """Write `predictions.npy`: a checkpoint's best class (int64) of every image of a set, in its order."""
    _, classifier, form = _build(prepared)
    load_weights(classifier.network, weights)
    files = load_image_set(images).paths()
    name = "what the float32 network answers, for the loss of accuracy"
    best = _answer(lambda handed: classifier(handed).argmax(1).numpy(), files, form, name)
    np.save(destination / "predictions.npy", best)


def _build(directory: Path) -> tuple[dict[str, Any], Classifier, ImageForm]:
    """Return what `network.json` asks for, that network with its input's handling, and the form of its images."""
    request: dict[str, Any] = json.loads((directory / "network.json").read_bytes())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = build(Network(**request["network"]))
    return request, Classifier(network, request["normalize_inside"]).eval(), ImageForm(**request["form"])


def _check_batch(images: Path, form: ImageForm) -> np.ndarray:
    files = load_image_set(images).paths()[:CHECK_IMAGES]
    return next(read_batches(files, CHECK_IMAGES, torch.get_num_threads(), repeat=False, form=form))


def _answer(
    answer: Callable[[torch.Tensor], np.ndarray], files: Sequence[str], form: ImageForm, name: str
) -> np.ndarray:
    """Return what a function of a batch answers to all files."""
    answers = []
    with Progress(name, len(files), "images") as progress, torch.no_grad():
        for batch in read_batches(files, BATCH, torch.get_num_threads(), repeat=False, form=form):
            answers.append(answer(torch.from_numpy(batch)))
            progress.advance(len(batch))
    return np.concatenate(answers)


def export(classifier: Classifier, images: torch.Tensor, path: Path) -> None:
    """Write the network with its input's handling and softmax as ONNX, for any number of images, in one file.

    Its batch norms are folded before, for good: the exporter would do so with other rounding, and that is enough for
    int8 to answer otherwise where seeded weights leave little between the best classes. What pools whole maps stays an
    operation: as the mean that the exporter makes of it, it would not become int8.
    """
    from onnxscript import opset18

    warnings.filterwarnings("ignore", category=FutureWarning)  # PyTorch's, of its own deprecated names
    fold_norms(classifier.network)
    program = torch.onnx.export(
        classifier,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        custom_translation_table={
            torch.ops.aten.adaptive_avg_pool2d.default: lambda maps, _size: opset18.GlobalAveragePool(maps)
        },
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where it was made, which would be part of the digest
    program.save(path, external_data=False)


def main(arguments: list[str]) -> int:
    """Run one of the steps; return the exit code."""
    steps: dict[str, Step] = {
        "network": (prepare, ("images", "destination")),
        "fit": (fit, ("calibration", "training", "destination")),
        "predict": (predict, ("network", "weights", "images", "destination")),
    }
    return run_step("cnnbench.engines.pytorch.prepare", __doc__, steps, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
