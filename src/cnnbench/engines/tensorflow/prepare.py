"""Make the embedded model, and make any model ready to be measured. Runs in the engine's environment.

`start.py cnnbench.engines.tensorflow.prepare embedded DESTINATION` builds ResNet50 v1.5 with seeded weights, and the
BatchNorms and the head of `fitted.npz`. `... fit CALIBRATION TRAINING DESTINATION` makes that file: BatchNorms measured
on the calibration images, a head fitted to the training images. `... graph MODEL IMAGES DESTINATION` folds a frozen
graph and records what it answers to a fixed batch before any rewriting, which is the reference for every measured
graph. `... predict MODEL IMAGES DESTINATION` records the best class of every image, likewise by the graph as it was
given.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import CnnbenchError, exit_code_of
from cnnbench.base.progress import Progress
from cnnbench.engines.tensorflow import resnet50
from cnnbench.engines.tensorflow.backend import framework_versions, import_tensorflow
from cnnbench.engines.tensorflow.fold import Folded, fold
from cnnbench.engines.tensorflow.graph import INPUT, OUTPUT, count_macs, is_quantized, read_graph
from cnnbench.engines.tensorflow.reader import read_batches
from cnnbench.inputs.head import CLASSES, fit_head
from cnnbench.inputs.image_set import CHECK_IMAGES, ImageSet, load_image_set

CALIBRATION_IMAGES = 100
BATCH = 50
THREADS = 4


@contextmanager
def hold_back_stderr() -> Iterator[None]:
    """Keep what is written to standard error by any language, and show it only if the block fails.

    TensorFlow 2.21 greets every user at import with messages that no setting turns off.
    """
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            stderr.write(held.read())
            raise
        finally:
            os.dup2(stderr.fileno(), 2)


def _session(graph_def: Any, output: str) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    return tf.compat.v1.Session(graph=graph).make_callable(f"{output}:0", feed_list=[f"{INPUT}:0"])


def _read_images(images: ImageSet, count: int) -> np.ndarray:
    files = images.paths()[:count]
    return np.concatenate(list(read_batches(files, BATCH, THREADS, repeat=False)))


def fit_embedded(calibration: Path, training: Path, destination: Path) -> None:
    """Write `fitted.npz`: what of the embedded model comes from images, which takes minutes to find."""
    print("resnet50v1_5: calibrating the BatchNorms of the seeded weights", file=sys.stderr, flush=True)
    images = _read_images(load_image_set(calibration), CALIBRATION_IMAGES)
    weights = resnet50.calibrate(resnet50.seeded_weights(), images)
    headless = resnet50.freeze(weights, np.zeros((2048, CLASSES)), np.zeros(CLASSES))
    features_of = _session(fold(headless, resnet50.FEATURES).graph, resnet50.FEATURES)
    examples = load_image_set(training)
    features = []
    with Progress("resnet50v1_5: features of the training images", len(examples), "images") as progress:
        for batch in read_batches(examples.paths(), BATCH, THREADS, repeat=False):
            features.append(features_of(batch))
            progress.advance(len(batch))
    kernel, bias = fit_head(np.concatenate(features), examples.labels)
    present = np.unique(examples.labels)
    resnet50.write_fitted(destination / resnet50.FITTED.name, weights, kernel[:, present], bias, present)


def make_embedded(destination: Path) -> None:
    """Write the embedded model as `model.pb`, and `model.json` with its digest and how it was made."""
    import tensorflow as tf

    moments, kernel, bias = resnet50.read_fitted()
    graph = resnet50.freeze(resnet50.seeded_weights() | moments, kernel, bias)
    model = graph.SerializeToString(deterministic=True)
    (destination / "model.pb").write_bytes(model)
    facts = {"sha256": hashlib.sha256(model).hexdigest(), "made_with": framework_versions()}
    (destination / "model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    tf.compat.v1.reset_default_graph()


def prepare_graph(model: Path, images: Path, destination: Path) -> None:
    """Write `folded.pb`, `check_images.npy`, `reference.npy` and `prepared.json` (what was folded, the MACs).

    A graph that is quantised already stays as it is.
    """
    graph = read_graph(model)
    batch = _read_images(load_image_set(images), CHECK_IMAGES)
    reference = _session(graph, OUTPUT)(batch)
    if reference.shape != (len(batch), CLASSES):
        raise CnnbenchError(f"{model}: {OUTPUT} gives {reference.shape}, needed {(len(batch), CLASSES)}")
    quantized = is_quantized(graph)
    folded = Folded(graph, batch_norms=0, pads=0) if quantized else fold(graph)
    (destination / "folded.pb").write_bytes(folded.graph.SerializeToString(deterministic=True))
    np.save(destination / "check_images.npy", batch)
    np.save(destination / "reference.npy", reference)
    facts = {
        "macs_per_image": count_macs(folded.graph, model),
        "batch_norms_folded": folded.batch_norms,
        "pads_folded": folded.pads,
        "quantized": quantized,
        "made_with": framework_versions(),
    }
    (destination / "prepared.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def predict(model: Path, images: Path, destination: Path) -> None:
    """Write `predictions.npy`: the best class (int64) of every image of a set, in its order."""
    best_of, files = _session(read_graph(model), OUTPUT), load_image_set(images).paths()
    best = []
    with Progress("what the float32 graph answers, for the loss of accuracy", len(files), "images") as progress:
        for batch in read_batches(files, BATCH, THREADS, repeat=False):
            best.append(best_of(batch).argmax(axis=1))
            progress.advance(len(batch))
    np.save(destination / "predictions.npy", np.concatenate(best))


def main(arguments: list[str]) -> int:
    """Run one of the steps; return the exit code."""
    parser = argparse.ArgumentParser(prog="cnnbench.engines.tensorflow.prepare", description=__doc__)
    steps = parser.add_subparsers(required=True)
    embedded = steps.add_parser("embedded")
    embedded.set_defaults(step=lambda a: make_embedded(a.destination))
    fit = steps.add_parser("fit")
    fit.set_defaults(step=lambda a: fit_embedded(a.calibration, a.training, a.destination))
    graph = steps.add_parser("graph")
    graph.set_defaults(step=lambda a: prepare_graph(a.model, a.images, a.destination))
    predictions = steps.add_parser("predict")
    predictions.set_defaults(step=lambda a: predict(a.model, a.images, a.destination))
    given = ("model", "images")
    of_images = ("calibration", "training")
    for step, names in ((embedded, ()), (fit, of_images), (graph, given), (predictions, given)):
        for name in (*names, "destination"):
            step.add_argument(name, type=Path)
    parsed = parser.parse_args(arguments)
    with hold_back_stderr():
        import_tensorflow(verbose=False)
    return exit_code_of(lambda: parsed.step(parsed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
