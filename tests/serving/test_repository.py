"""The text of a model's configuration, what a server has counted, and the criteria of a run of serving."""

import numpy as np
import pytest

from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import Parameters
from cnnbench.inputs.networks import ImageForm
from cnnbench.proof.verdict import judge_client, judge_keeping_up, judge_latency_bound, judge_requests
from cnnbench.run.measured import in_sequence
from cnnbench.serving.repository import configure
from cnnbench.serving.server import LOOPBACK, Ports, read_count
from cnnbench.worker.process import draw_gaps
from cnnbench.worker.spec import Arrivals

FORM = ImageForm(size=224, crop_share=0.875, interpolation="bilinear", as_bytes=False, normalized=True)


@pytest.mark.parametrize(
    ("asked", "lines", "absent"),
    [
        ({}, ["max_batch_size: 8", "max_queue_delay_microseconds: 0"], "preferred"),
        ({"batch_size": 16}, ["max_batch_size: 16"], "preferred"),
        ({"max_batch_size": 32, "preferred_batch_size": "8 32"}, ["preferred_batch_size: [ 8, 32 ]"], "KIND_GPU"),
        ({"max_queue_delay_us": 500}, ["max_queue_delay_microseconds: 500"], "preferred"),
        ({"dynamic_batching": False, "batch_size": 4}, ["max_batch_size: 4"], "dynamic_batching"),
    ],
)
def test_a_models_configuration_is_as_asked_for(asked, lines, absent):
    text = configure(Parameters(topology="efficientnet_b0", **asked), FORM, 3)
    for line in (
        'name: "efficientnet-b0"',
        "instance_group [{ kind: KIND_CPU count: 3 }]",
        "dims: [ 224, 224, 3 ]",
        *lines,
    ):
        assert line in text
    assert absent not in text


def test_bytes_are_told_as_such():
    form = ImageForm(size=380, crop_share=1.0, interpolation="bicubic", as_bytes=True, normalized=False)
    assert "data_type: TYPE_UINT8 dims: [ 380, 380, 3 ]" in configure(Parameters(), form, 1)


def test_what_a_server_counts_is_read():
    times = {"success": {"count": 5, "ns": 50}, "fail": {}, "queue": {"count": 5, "ns": 10}}
    times |= {"compute_input": {"ns": 1}, "compute_infer": {"ns": 30}, "compute_output": {"ns": 2}}
    batches = [{"batch_size": 4, "compute_infer": {"count": 1}}, {"batch_size": 1, "compute_infer": {"count": 1}}]
    found = {"inference_count": 5, "execution_count": 2, "inference_stats": times, "batch_stats": batches}
    count = read_count(found)
    assert (count.requests, count.failures, count.images, count.executions) == (5, 0, 5, 2)
    assert (count.queue_ns, count.input_ns, count.compute_ns, count.output_ns) == (10, 1, 30, 2)
    assert count.batches == {4: 1, 1: 1}


def test_arrivals_are_those_of_a_rate_and_the_same_each_time():
    gaps = draw_gaps(Arrivals(50, seed=1))
    drawn = [next(gaps) for _ in range(20_000)]
    again = draw_gaps(Arrivals(50, seed=1))
    assert drawn == [next(again) for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(0.02, rel=0.05)
    assert np.std(drawn) == pytest.approx(0.02, rel=0.05)


def test_steps_that_overlap_are_put_in_the_order_of_their_ends():
    rows = np.array([[0, 1, 50], [10, 11, 30], [20, 21, 40]])
    assert in_sequence(rows).tolist() == [[10, 11, 30], [30, 21, 40], [40, 1, 50]]
    assert rows[0, 2] == 50


@pytest.mark.parametrize(
    ("criterion", "passed", "words"),
    [
        (judge_client(0.5, None), True, "the client took 50% of its cores' time"),
        (judge_client(0.81, None), False, "give it more CLIENT_CORES"),
        (judge_client(0.5, 0.005), True, "sent 0.50% of the requests late"),
        (judge_client(0.5, 0.02), False, "stop other work"),
        (judge_keeping_up(936, 1000), True, "64 of 1000"),
        (judge_keeping_up(935, 1000), False, "send fewer a second"),
        (judge_keeping_up(98_000, 100_000), True, "2000 of 100000"),
        (judge_requests(10, 0), True, "10 answered, 0 failed"),
        (judge_requests(10, 1), False, "1 failed"),
        (judge_latency_bound(15.0, 15), True, "99 % within 15 ms"),
        (judge_latency_bound(15.1, 15), False, "LATENCY_BOUND_MS"),
        (judge_latency_bound(None, 15), False, "too few requests"),
    ],
)
def test_what_makes_a_run_of_serving_valid(criterion, passed, words):
    assert criterion.passed == passed
    assert words in f"{criterion.found} {criterion.needed}"


def test_ports_are_free_and_differ_unless_asked_for():
    ports = Ports.choose()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert Ports.choose(grpc=ports.grpc).grpc == ports.grpc
    for port in (70_000, -1):
        with pytest.raises(UsageError, match=rf"the http port {port} of {LOOPBACK}: .*; give another"):
            Ports.choose(http=port)
