"""Run the steps of one instance: warm up, wait at the barrier, time every step, keep the load up until all are done.

Nothing is logged inside the loop and nothing is computed from the times here.
"""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from cnnbench.base.errors import CnnbenchError
from cnnbench.results.steps import COLUMNS, MAX_STEPS, StepTimes
from cnnbench.worker.control import ControlBlock, State

Infer = Callable[[np.ndarray], np.ndarray]
Send = Callable[[np.ndarray, Callable[[Exception | None], None]], None]
"""Sends a batch and goes on; what it is handed is called, in any thread, when the answer is there, or an error."""

MOST_WAITING, MOST_WAITING_BYTES = 10_000, 4 << 30
"""Requests under way at the most, and what their images may take: with more, nothing steady is seen any more."""
WAKE_S = 0.05
"""How often at the least a client that waits looks whether it is to stop."""
ANSWER_S = 120.0
"""How long the last answers may take once nothing more is sent."""


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


def measure_arrivals(
    control: ControlBlock,
    times: StepTimes,
    index: int,
    send: Send,
    batches: Iterator[np.ndarray],
    gaps_s: Iterator[float],
    limit: int | None,
) -> int:
    """Send batches when they are due, whether earlier ones are answered or not; return how many were recorded.

    `gaps_s`: the times between one arrival and the next. A row gets when a batch was due, when it was sent and when its
    answer was there, in the order of the answers. Raises the first error that a request ends with, and CnnbenchError
    where more than MOST_WAITING wait for their answers or the last ones do not come within ANSWER_S.
    """
    clock, words, width = time.monotonic_ns, times.words, len(COLUMNS)
    control.set_state(index, State.MEASURING)
    lock, failures = threading.Lock(), []
    sent = recorded = 0

    def answered(due_ns: int, sent_ns: int, error: Exception | None) -> None:
        nonlocal recorded
        end_ns = clock()
        with lock:
            if error is not None:
                failures.append(error)
                return
            row = recorded * width
            words[row], words[row + 1], words[row + 2] = due_ns, sent_ns, end_ns
            recorded += 1
            control.count_step(index)
            control.set_measured(index, recorded)

    batch = next(batches)
    bound = max(1, min(MOST_WAITING, MOST_WAITING_BYTES // max(1, batch.nbytes)))
    most, due_ns = min(limit or MAX_STEPS, MAX_STEPS), control.start_ns or clock()
    while sent < most and not control.stopped and not failures:
        due_ns += int(next(gaps_s) * 1e9)
        while (wait_ns := due_ns - clock()) > 0 and not control.stopped:
            time.sleep(min(wait_ns / 1e9, WAKE_S))
        if control.stopped:
            break
        if sent - recorded >= bound:
            failures.append(CnnbenchError(f"{bound} requests waited for answers: REQUEST_RATE is too high"))
            break
        sent_ns = clock()
        send(batch, partial(answered, due_ns, sent_ns))
        sent += 1
        batch = next(batches)
    deadline = time.monotonic() + ANSWER_S
    while recorded < sent and not failures and time.monotonic() < deadline:
        time.sleep(WAKE_S)
    if failures:
        raise failures[0]
    if recorded < sent:
        raise CnnbenchError(f"{sent - recorded} of {sent} requests were not answered within {ANSWER_S:g} s")
    control.set_state(index, State.DONE)
    return recorded
