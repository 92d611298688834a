"""Run the steps of one instance: warm up, wait at the barrier, time every step, keep the load up until all are done.

Nothing is logged inside the loop and nothing is computed from the times here.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np

from cnnbench.results.steps import COLUMNS, MAX_STEPS, StepTimes
from cnnbench.worker.control import ControlBlock, State

Infer = Callable[[np.ndarray], np.ndarray]


def warm_up_until_start(
    control: ControlBlock, index: int, infer: Infer, batches: Iterator[np.ndarray], steps: int
) -> None:
    """Run warm-up steps on endless batches, report ready, and go on running them until the barrier opens.

    An instance that idled at the barrier would start the window with cool caches, an idle clock frequency and full
    input buffers.
    """
    for _ in range(steps):
        infer(next(batches))
        control.count_step(index)
    control.set_state(index, State.READY)
    while not control.start_ns and not control.stopped:
        infer(next(batches))
        control.count_step(index)
    while time.monotonic_ns() < control.start_ns and not control.stopped:
        pass


def measure_steps(
    control: ControlBlock,
    times: StepTimes,
    index: int,
    infer: Infer,
    batches: Iterator[np.ndarray],
    limit: int | None,
    keep: Callable[[np.ndarray], object] | None = None,
) -> int:
    """Time steps until `limit`, the end of the batches or the stop sign; return how many were recorded.

    A step takes a batch and infers it; its row gets when it began, when its input was there and when its result was.
    `keep` gets the outputs of each step, outside the times of the inference. After `limit` steps the load goes on
    unrecorded until the stop sign, so that instances that are still measuring are not left alone on the machine.
    """
    clock, words, width = time.monotonic_ns, times.words, len(COLUMNS)
    control.set_state(index, State.MEASURING)
    recorded = 0
    for row in range(0, min(limit or MAX_STEPS, MAX_STEPS) * width, width):
        start_ns = clock()
        batch = next(batches, None)
        if batch is None:
            break
        input_ready_ns = clock()
        outputs = infer(batch)
        end_ns = clock()
        words[row], words[row + 1], words[row + 2] = start_ns, input_ready_ns, end_ns
        recorded += 1
        control.count_step(index)
        control.set_measured(index, recorded)
        if keep is not None:
            keep(outputs)
        if control.stopped:
            break
    control.set_state(index, State.DONE)
    if keep is None:
        while not control.stopped and (batch := next(batches, None)) is not None:
            infer(batch)
            control.count_step(index)
    return recorded
