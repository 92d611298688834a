"""Measure what it is worth to fold BatchNorms and Pads into the convolutions: throughput of the folded graph over that
of the graph as it was given.

    .venv/bin/python benchmarks/folding.py [--precision avx_fp32] [--rounds 10] [--batch-size 32] [--steps 10]

One pinned process has both graphs loaded and takes turns.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, cast

import numpy as np

from cnnbench.engines.interface import LoadSpec
from cnnbench.engines.tensorflow.backend import TensorFlowBackend

WARM_UP = 3


def work(models: list[str], images_path: str, precision: str, batch_size: int, steps: int, cpus: list[int]) -> None:
    """Be the measured process: for each number of a graph on standard input, print its images/s over a block."""
    os.sched_setaffinity(0, cpus)
    images = np.load(images_path)
    batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
    backends = []
    for model in models:
        backend = TensorFlowBackend()
        backend.load(LoadSpec(Path(model), precision.partition("_")[2], threads=len(cpus), callers=1, verbose=False))
        for _ in range(WARM_UP):
            backend.infer(batch)
        backends.append(backend)
    for line in sys.stdin:
        infer = backends[int(line)].infer
        begin = time.perf_counter()
        for _ in range(steps):
            infer(batch)
        print(batch_size * steps / (time.perf_counter() - begin), flush=True)


def main() -> None:
    """Compare."""
    from interleaved import compare, make_job, make_parser  # not in the engine's environment: what these import

    from cnnbench.base.cache import cache_root
    from cnnbench.run.inputs import stage_inputs

    arguments = make_parser(__doc__).parse_args()
    job = make_job(arguments, INSTANCES="1")
    if job.precision.is_int8:
        raise SystemExit(f"--precision {arguments.precision}: the graph as it was given is float32; choose another")
    inputs = stage_inputs(job, cache_root(os.environ))
    if inputs.model is None:
        raise SystemExit("the engine has no model to fold")
    command = [inputs.python, __file__, "work", inputs.model.graph, inputs.model.source, inputs.model.check_images]
    numbers = (arguments.batch_size, arguments.steps, *job.plan.instances[0].cpus)
    process = subprocess.Popen(
        [str(word) for word in (*command, arguments.precision, *numbers)],
        env=job.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def block(graph: int) -> float:
        print(graph, file=process.stdin, flush=True)
        return float(cast(IO[str], process.stdout).readline())

    try:
        compare(arguments.rounds, "folded", lambda: block(0), "as given", lambda: block(1))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        folded, given, images, precision, batch_size, steps, *cpus = sys.argv[2:]
        work([folded, given], images, precision, int(batch_size), int(steps), [int(cpu) for cpu in cpus])
    else:
        main()
