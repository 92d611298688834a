"""Measure what the harness costs: its throughput over that of a bare loop on the same graph, cores and batch.

    .venv/bin/python benchmarks/harness.py [--rounds 20] [--cores-per-instance 1] [--batch-size 32] [--steps 4]

One process holds one loaded network and takes turns: a block of steps as a case measures them (step times, shared
memory, a controller that watches, the figure that would be printed), then a block of as many steps in a plain loop
between two readings of the clock, with nobody watching. Exits with 1 when the median ratio is below 0.995.
"""

import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, cast

import numpy as np

from cnnbench.engines.interface import LoadSpec
from cnnbench.engines.tensorflow.backend import TensorFlowBackend
from cnnbench.results.steps import StepTimes
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.loop import measure_steps

BOUND = 0.995
WARM_UP = 3


def work(model: str, images_path: str, precision: str, batch_size: int, steps: int, cpus: list[int]) -> None:
    """Be the measured process: for each directory on standard input, do a harness block, then a bare one."""
    os.sched_setaffinity(0, cpus)
    backend = TensorFlowBackend()
    backend.load(LoadSpec(Path(model), precision.partition("_")[2], threads=len(cpus), callers=1, verbose=False))
    images = np.load(images_path)
    batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
    for _ in range(WARM_UP):
        backend.infer(batch)
    for line in sys.stdin:
        shared = Path(line.strip())
        control, times = ControlBlock(shared), StepTimes(shared, 0)
        measure_steps(control, times, 0, backend.infer, itertools.repeat(batch), steps)
        begin = time.perf_counter()
        for _ in range(steps):
            backend.infer(batch)
        print(batch_size * steps / (time.perf_counter() - begin), flush=True)


def main() -> int:
    """Compare; return the exit code."""
    from interleaved import compare, make_job, make_parser  # not in the engine's environment: what these import

    from cnnbench.base.cache import cache_root
    from cnnbench.base.checkout import SOURCES
    from cnnbench.base.progress import Progress
    from cnnbench.launch.local import Limits, Run
    from cnnbench.results import stats
    from cnnbench.run.inputs import stage_inputs

    arguments = make_parser(__doc__).parse_args()
    job = make_job(arguments, INSTANCES="1")
    inputs = stage_inputs(job, cache_root(os.environ))
    if inputs.model is None:
        raise SystemExit("the engine has no model to loop on")
    numbers = (arguments.batch_size, arguments.steps, *job.plan.instances[0].cpus)
    command = [inputs.python, __file__, "work", inputs.model.graph, inputs.model.check_images, arguments.precision]
    process = subprocess.Popen(
        [str(word) for word in (*command, *numbers)],
        env=job.environment | {"PYTHONPATH": str(SOURCES)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        text=True,
    )
    answers = cast(IO[str], process.stdout)  # it has one: stdout=PIPE

    def harness() -> float:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            shared = Path(name)
            control = ControlBlock.create(shared, 1)
            run = Run([], [0], shared, Limits(enough=None, hang_s=300))
            print(shared, file=process.stdin, flush=True)
            progress = Progress("block", arguments.steps, "steps", stream=io.StringIO())
            run.wait_until(run.measured_enough, progress, run.count_measured)
            control.stop()
            steps = [StepTimes.read(shared, 0)]
            images = [np.full(len(steps[0]), arguments.batch_size)]
            return stats.estimate_throughput(steps, images, stats.common_window(steps)).mean

    try:
        ratio = compare(arguments.rounds, "harness", harness, "bare", lambda: float(answers.readline()))
    finally:
        process.kill()
        process.wait()
    print(f"bound {BOUND}: {'passed' if ratio >= BOUND else 'failed'}")
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        model, images, precision, batch_size, steps, *cpus = sys.argv[2:]
        work(model, images, precision, int(batch_size), int(steps), [int(cpu) for cpu in cpus])
    else:
        sys.exit(main())
