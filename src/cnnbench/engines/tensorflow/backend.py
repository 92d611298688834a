"""Run a prepared frozen graph with TensorFlow, stock or with Intel's (ITEX) or AMD's extension (zentf)."""

import importlib.metadata
import os
from typing import Any

import numpy as np

from cnnbench.engines.interface import Backend, LoadSpec
from cnnbench.engines.tensorflow.bfloat16 import to_bfloat16
from cnnbench.engines.tensorflow.graph import INPUT, OUTPUT, read_graph

CALLER_THREAD = -1
"""RunOptions.inter_op_thread_pool: run the graph in the calling thread, which is pinned, not in a pool's."""


def import_tensorflow(verbose: bool) -> Any:
    """Import TensorFlow; its start-up messages (missing GPU, CPU features) are shown only when asked for."""
    if not verbose:
        for name in ("TF_CPP_MIN_LOG_LEVEL", "ITEX_CPP_MIN_LOG_LEVEL"):
            os.environ.setdefault(name, "2")
    import tensorflow as tf

    if not verbose:
        tf.get_logger().setLevel("ERROR")
    return tf


class TensorFlowBackend(Backend):
    """A session on the graph, one intra-op thread for each core of the instance."""

    def load(self, spec: LoadSpec) -> None:
        """Import TensorFlow, read the graph, convert it to the precision and make it callable."""
        tf = import_tensorflow(spec.verbose)
        graph_def = read_graph(spec.model)
        if spec.number_type == "bfloat16":
            graph_def = to_bfloat16(graph_def)
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
        # Instances of one core compute in their own pinned threads; larger ones that share weights share the pool too.
        intra_op_threads = 1 if spec.threads == 1 else spec.threads * spec.callers
        tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=intra_op_threads, inter_op_parallelism_threads=1)
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        # What Session.make_callable does, but with options: the public method takes them at each call only.
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        options = tf.compat.v1.RunOptions(inter_op_thread_pool=CALLER_THREAD)
        self._call = self._session._make_callable_from_options(
            CallableOptions(feed=[f"{INPUT}:0"], fetch=[f"{OUTPUT}:0"], run_options=options)
        )

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the softmax (float32, N x 1001) of images (float32, N x 224 x 224 x 3)."""
        return self._call(batch)[0]

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def describe(self) -> dict[str, str]:
        """Return the versions of TensorFlow and its extension."""
        return framework_versions()


def framework_versions() -> dict[str, str]:
    """Return the installed versions that decide what runs."""
    names = {
        "TensorFlow": ("tensorflow-cpu", "tensorflow"),
        "ITEX": ("intel-extension-for-tensorflow",),
        "zentf": ("zentf",),
        "numpy": ("numpy",),
    }
    versions = {}
    for label, candidates in names.items():
        for distribution in candidates:
            try:
                versions[label] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions
