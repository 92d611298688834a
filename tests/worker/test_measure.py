"""The timed loop over real shared files, with an inference that does next to nothing."""

import itertools
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.results.steps import StepTimes
from cnnbench.worker import loop
from cnnbench.worker.control import ControlBlock, State
from cnnbench.worker.loop import measure_arrivals, measure_steps, warm_up_until_start

BATCH = np.zeros((2, 3), dtype=np.float32)


@pytest.fixture
def control(tmp_path):
    return ControlBlock.create(tmp_path, instances=2)


class Inference:
    """Adds one to each batch; keeps when it ran and on what, and does `actions[n]` at the end of its n-th call."""

    def __init__(self, actions=None):
        self.actions = actions or {}
        self.batches, self.spans = [], []

    def __call__(self, batch):
        begin = time.monotonic_ns()
        self.batches.append(batch)
        if action := self.actions.get(len(self.batches)):
            action()
        self.spans.append((begin, time.monotonic_ns()))
        return batch + 1


def numbered_batches(count):
    return [np.full((2, 3), number, dtype=np.float32) for number in range(count)]


def measure(control, tmp_path, infer, batches, limit=None, keep=None, index=0):
    recorded = measure_steps(control, StepTimes(tmp_path, index), index, infer, iter(batches), limit, keep)
    rows = StepTimes.read(tmp_path, index)
    assert len(rows) == recorded
    return rows


def test_a_row_for_each_batch_until_they_end(control, tmp_path):
    infer, batches = Inference(), numbered_batches(5)
    rows = measure(control, tmp_path, infer, batches)
    assert rows.shape == (5, 3)
    assert rows.dtype == np.int64
    assert [batch[0, 0] for batch in infer.batches] == [0, 1, 2, 3, 4]
    assert (control.state(0), control.steps(0)) == (State.DONE, 5)
    assert (control.state(1), control.steps(1), len(StepTimes.read(tmp_path, 1))) == (State.LOADING, 0, 0)


def test_times_hold_the_wait_for_the_input_then_the_inference_and_nothing_else(control, tmp_path):
    fetched, kept = [], []

    def reading():
        for batch in numbered_batches(4):
            fetched.append(time.monotonic_ns())
            yield batch

    infer = Inference()
    rows = measure(control, tmp_path, infer, reading(), keep=lambda _: kept.append(time.monotonic_ns()))
    moments = [
        moment
        for (start, ready, end), read, (begin, done), held in zip(rows, fetched, infer.spans, kept, strict=True)
        for moment in (start, read, ready, begin, done, end, held)
    ]
    assert moments == sorted(moments)


def test_every_output_is_kept_in_order_and_no_load_goes_on_afterwards(control, tmp_path):
    infer, kept = Inference(), []
    measure(control, tmp_path, infer, numbered_batches(6), limit=4, keep=kept.append)
    assert [output[0, 0] for output in kept] == [1, 2, 3, 4]
    assert len(infer.batches) == 4


def test_the_load_goes_on_unrecorded_after_the_last_step_until_the_stop_sign(control, tmp_path):
    states = []
    infer = Inference({5: lambda: states.append(control.state(0)), 8: control.stop})
    infer.actions[6] = lambda: states.append(control.state(0))
    rows = measure(control, tmp_path, infer, itertools.repeat(BATCH), limit=5)
    assert len(rows) == 5
    assert len(infer.batches) == 8
    assert control.steps(0) == 8
    assert states == [State.MEASURING, State.DONE]
    assert rows[-1, 2] <= infer.spans[5][0]


def test_the_load_ends_with_the_batches_too(control, tmp_path):
    infer = Inference()
    assert len(measure(control, tmp_path, infer, numbered_batches(7), limit=5)) == 5
    assert len(infer.batches) == 7


def test_the_stop_sign_ends_it_after_the_step_under_way(control, tmp_path):
    infer = Inference({4: control.stop})
    assert len(measure(control, tmp_path, infer, itertools.repeat(BATCH))) == 4
    assert len(infer.batches) == 4
    assert control.state(0) is State.DONE


def test_no_batches_are_no_steps(control, tmp_path):
    assert len(measure(control, tmp_path, Inference(), [])) == 0
    assert control.state(0) is State.DONE


def test_instances_write_to_rows_of_their_own(control, tmp_path):
    first = measure(control, tmp_path, Inference(), numbered_batches(3), index=0)
    second = measure(control, tmp_path, Inference(), numbered_batches(2), index=1)
    assert (control.steps(0), control.steps(1)) == (3, 2)
    assert first[-1, 2] <= second[0, 0]
    assert np.array_equal(StepTimes.read(tmp_path, 0), first)


def test_rows_that_have_not_ended_are_not_read(control, tmp_path):
    times = StepTimes(tmp_path, 0)
    for position, value in enumerate((10, 11, 12, 20, 21, 22, 30, 31)):  # the third step is still under way
        times.words[position] = value
    assert StepTimes.read(tmp_path, 0).tolist() == [[10, 11, 12], [20, 21, 22]]


def test_what_a_killed_process_had_measured_is_still_there(control, tmp_path):
    program = """
import itertools, os, pathlib, signal, sys
import numpy as np
from cnnbench.worker.control import ControlBlock
from cnnbench.results.steps import StepTimes
from cnnbench.worker.loop import measure_steps
directory, calls = pathlib.Path(sys.argv[1]), itertools.count(1)
def infer(batch):
    if next(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch
measure_steps(ControlBlock(directory), StepTimes(directory, 1), 1, infer, itertools.repeat(np.zeros(1)), None)
"""
    begin = time.monotonic_ns()
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], env={"PYTHONPATH": ":".join(sys.path)}, check=False
    )
    rows = StepTimes.read(tmp_path, 1)
    assert done.returncode == -signal.SIGKILL
    assert rows.shape == (3, 3)
    assert begin < rows[0, 0] <= rows[-1, 2] < time.monotonic_ns()  # one clock for all processes
    assert (control.state(1), control.steps(1)) == (State.MEASURING, 3)


def test_warm_up_reports_ready_after_its_steps_and_works_on_until_the_start(control):
    states, opened = [], []

    def open_barrier():
        opened.append(time.monotonic_ns() + 2_000_000)
        control.start_ns = opened[0]

    infer = Inference({n: lambda: states.append(control.state(0)) for n in range(1, 7)} | {7: open_barrier})
    warm_up_until_start(control, 0, infer, itertools.repeat(BATCH), steps=3)
    assert time.monotonic_ns() >= opened[0]
    assert states == [State.LOADING] * 3 + [State.READY] * 3
    assert len(infer.batches) == 7
    assert control.steps(0) == 7
    assert all(batch is BATCH for batch in infer.batches)


def test_warm_up_ends_at_the_stop_sign_even_if_the_barrier_never_opens(control):
    infer = Inference({5: control.stop})
    warm_up_until_start(control, 0, infer, itertools.repeat(BATCH), steps=2)
    assert len(infer.batches) == 5
    assert control.state(0) is State.READY


def test_the_stop_sign_ends_the_wait_for_a_far_start(control):
    def open_and_stop():
        control.start_ns = time.monotonic_ns() + 3_600_000_000_000
        control.stop()

    warm_up_until_start(control, 0, Inference({2: open_and_stop}), itertools.repeat(BATCH), steps=1)
    assert control.stopped


def send_slowly(seconds, error=None, fail_at=None):
    """Return what answers each batch after a time, in threads of its own; with the n-th, an error."""
    sent = itertools.count(1)

    def send(batch, answered):
        number = next(sent)
        threading.Timer(seconds, answered, [error if number == fail_at else None]).start()

    return send


def test_arrivals_do_not_wait_for_answers_and_are_timed_from_when_they_were_due(control, tmp_path):
    control.start_ns = time.monotonic_ns()
    send, gaps = send_slowly(0.2), itertools.repeat(0.01)
    assert measure_arrivals(control, StepTimes(tmp_path, 0), 0, send, itertools.repeat(BATCH), gaps, 10) == 10
    rows = StepTimes.read(tmp_path, 0)
    due = np.sort(rows[:, 0])
    assert (np.diff(due) == 10_000_000).all()
    assert due[0] == control.start_ns + 10_000_000
    assert (rows[:, 1] >= rows[:, 0]).all()
    assert (rows[:, 2] - rows[:, 1] >= 190_000_000).all()
    assert rows[:, 1].max() < rows[:, 2].max()
    assert np.sort(rows[:, 1])[5] < rows[:, 2].min()  # sent while the first still waited
    assert control.state(0) is State.DONE


def test_arrivals_end_at_the_stop_sign_with_all_answers(control, tmp_path):
    control.start_ns = time.monotonic_ns()
    threading.Timer(0.1, control.stop).start()
    gaps = itertools.chain([0.01, 0.01], itertools.repeat(3600.0))
    recorded = measure_arrivals(
        control, StepTimes(tmp_path, 0), 0, send_slowly(0.2), itertools.repeat(BATCH), gaps, None
    )
    assert recorded == len(StepTimes.read(tmp_path, 0)) == 2


def test_an_error_ends_the_arrivals(control, tmp_path):
    send = send_slowly(0.01, error=CnnbenchError("refused"), fail_at=3)
    with pytest.raises(CnnbenchError, match=r"^refused$"):
        measure_arrivals(
            control, StepTimes(tmp_path, 0), 0, send, itertools.repeat(BATCH), itertools.repeat(0.01), None
        )


def test_answers_that_do_not_come_are_not_waited_for_for_ever(control, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "ANSWER_S", 0.1)
    arguments = (lambda _batch, _answered: None, itertools.repeat(BATCH), itertools.repeat(0.001), 3)
    with pytest.raises(CnnbenchError, match=r"^3 of 3 requests were not answered within 0.1 s$"):
        measure_arrivals(control, StepTimes(tmp_path, 0), 0, *arguments)


def test_what_waits_is_bounded(control, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_WAITING", 5)
    arguments = (lambda _batch, _answered: None, itertools.repeat(BATCH), itertools.repeat(0.0), None)
    with pytest.raises(CnnbenchError, match=r"^5 requests waited for answers: REQUEST_RATE is too high$"):
        measure_arrivals(control, StepTimes(tmp_path, 0), 0, *arguments)
