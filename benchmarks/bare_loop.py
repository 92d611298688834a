"""Time a plain session loop on a frozen graph: what a user would write without a harness.

Started by harness.py: GRAPH IMAGES BATCH_SIZE WARM_UP STEPS THREADS CPU..., with the engine's Python. Prints images/s.
"""

import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Pin, load, warm up, time the loop as a whole."""
    graph_path, images_path, *numbers = sys.argv[1:]
    batch_size, warm_up, steps, threads, *cpus = map(int, numbers)
    os.sched_setaffinity(0, cpus)
    import numpy as np
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(Path(graph_path).read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    infer = tf.compat.v1.Session(graph=graph, config=config).make_callable(
        "softmax_tensor:0", feed_list=["input_tensor:0"]
    )
    images = np.load(images_path)
    batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
    for _ in range(warm_up):
        infer(batch)
    begin = time.perf_counter()
    for _ in range(steps):
        infer(batch)
    print(batch_size * steps / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
