"""TensorFlow as shipped: the frozen graph as it is, default session options, bfloat16 by its auto mixed precision."""

import os
import sys
from pathlib import Path

import numpy as np
from peer_worker import PeerSpec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf

from cnnbench.engines.tensorflow.graph import INPUT, OUTPUT
from cnnbench.engines.tensorflow.reader import read_batches
from cnnbench.inputs.image_set import load_image_set


class TensorFlow:
    """A session on the graph."""

    def __init__(self, spec: PeerSpec) -> None:
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(_read_graph(Path(spec.artefacts) / "model.pb"), name="")
        config = tf.compat.v1.ConfigProto()
        if spec.data_type == "bfloat16":
            options = config.graph_options.rewrite_options
            options.auto_mixed_precision_onednn_bfloat16 = type(options).ON
        session = tf.compat.v1.Session(graph=graph, config=config)
        self.infer = session.make_callable(f"{OUTPUT}:0", feed_list=[f"{INPUT}:0"])

    def executed(self) -> dict[str, float]:
        """Leave it to oneDNN's trace."""
        return {}

    def versions(self) -> str:
        """Return the version."""
        return f"TensorFlow {tf.__version__}"


def _read_graph(path: Path) -> tf.compat.v1.GraphDef:
    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(path.read_bytes())
    return graph


def load(spec: PeerSpec) -> TensorFlow:
    """Return the engine, loaded."""
    return TensorFlow(spec)


def export(model: Path, images: Path, destination: Path) -> None:
    """Write what the other engines are made from.

    `model.pb`, the unmodified graph; `weights.npz`, its constants by name; `calibration.npy`, the images of a set as
    the network takes them (float32, N x 224 x 224 x 3).
    """
    (destination / "model.pb").write_bytes(model.read_bytes())
    constants = {node.name: node for node in _read_graph(model).node if node.op == "Const"}
    arrays = {name: tf.make_ndarray(node.attr["value"].tensor) for name, node in constants.items()}
    np.savez(destination / "weights.npz", **arrays)
    files = load_image_set(images).paths()
    batches = list(read_batches(files, 50, len(os.sched_getaffinity(0)), repeat=False))
    np.save(destination / "calibration.npy", np.concatenate(batches))


if __name__ == "__main__":
    export(*(Path(argument) for argument in sys.argv[1:]))
