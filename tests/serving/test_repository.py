"""The text of a model's configuration, what a server has counted, and the criteria of a run of serving."""

from types import SimpleNamespace

import numpy as np
import pytest

from cnnbench.base.errors import InvalidMeasurementError, UsageError
from cnnbench.cases.parameters import Parameters
from cnnbench.engines.registry import TritonBackend
from cnnbench.inputs.networks import ImageForm
from cnnbench.proof.verdict import judge_client, judge_keeping_up, judge_latency_bound, judge_requests
from cnnbench.run.measured import in_sequence
from cnnbench.run.record import CapacitySeen
from cnnbench.serving.measurement import ServedMeasurement
from cnnbench.serving.repository import configure
from cnnbench.serving.server import LOOPBACK, Ports, read_count
from cnnbench.worker.loadgen import LoadGenSpec
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


def test_a_configuration_for_a_backend_that_puts_nothing_together_has_the_batch_among_its_dimensions():
    numbers, none = frozenset({"fp32"}), lambda _share: {}
    backend = TritonBackend("own", "network.onnx", "model.own", numbers, puts_together=False, parameters=none)
    text = configure(Parameters(topology="resnet18"), FORM, 2, backend, {"THREADS": "3"})
    for line in (
        'backend: "own"\ndefault_model_filename: "model.own"\nmax_batch_size: 0\n',
        'name: "images" data_type: TYPE_FP32 dims: [ -1, 224, 224, 3 ]',
        'name: "probabilities" data_type: TYPE_FP32 dims: [ -1, 1000 ]',
        "kind: KIND_CPU count: 2",
        'parameters { key: "THREADS" value: { string_value: "3" } }',
    ):
        assert line in text
    assert "dynamic_batching" not in text


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
        (judge_client(0.5, None), True, "the client took 50% of a core's time"),
        (judge_client(0.81, None), False, "SHARED_MEMORY"),
        (judge_client(0.5, 0.005), True, "sent 0.50% of the requests late"),
        (judge_client(0.5, 0.02), False, "stop other work"),
        (judge_keeping_up(936, 1000, 32), True, "64 of 1000"),
        (judge_keeping_up(935, 1000, 32), False, "send fewer a second"),
        (judge_keeping_up(98_000, 100_000, 8), True, "2000 of 100000"),
        (judge_keeping_up(30, 50, 8), False, "20 of 50"),
        (judge_requests(10, 0), True, "10 answered, 0 failed"),
        (judge_requests(10, 1), False, "1 failed"),
        (judge_latency_bound(15.0, 15), True, "99 % within 15 ms"),
        (judge_latency_bound(15.1, 15), False, "less steady"),
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


@pytest.mark.parametrize(
    ("config", "scenario", "found"),
    [
        ("", "Server", False),
        ("*.Server.target_qps = 10\n", "Server", True),
        ("resnet50.*.target_latency = 5\n", "SingleStream", True),
        ("*.Server.target_qps = 10\n", "Offline", False),
        ("*.Server.target_latency = 50\n", "Server", False),
        ("# *.Server.target_qps = 10\n", "Server", False),
        ("*.Server.min_duration = 10\n", "Server", False),
    ],
)
def test_a_users_settings_that_have_a_target_are_known(tmp_path, config, scenario, found):
    (path := tmp_path / "user.conf").write_text(config)
    assert LoadGenSpec("", scenario, 0, 0, str(path)).has_target == found
    assert LoadGenSpec("", scenario, 1.5, 0, "").has_target


class Trials(ServedMeasurement):
    """Tries rates on no server: the bound holds up to a rate, and what is late is as told."""

    def __init__(self, holds_to, late):
        self._job = SimpleNamespace(parameters=Parameters(latency_bound_ms=15), plan=None)
        self._writer = SimpleNamespace(add=self.keep)
        self.holds_to, self.late, self.tried, self.kept = holds_to, list(late), [], []

    def keep(self, event):
        self.kept.append(event)

    def _try(self, spec, rate, name):
        self.tried.append(rate)
        late = self.late.pop(0) if rate and self.late else 0.0
        return 100.0, (10.0 if rate <= self.holds_to and not late else 40.0), late


def test_the_highest_rate_is_found_by_halving():
    trials = Trials(holds_to=60, late=[])
    found = trials._find_rate(None)
    assert trials.tried[:4] == [0, 50, 75, 62.5]
    assert 59 <= found.rate_per_s <= 60
    assert found.rate_per_s == max(rate for rate, _, good in found.trials if good)


def test_a_rate_whose_requests_were_sent_late_is_tried_again_and_given_up_at_last():
    assert 59 <= Trials(holds_to=60, late=[0.5, 0.5])._find_rate(None).rate_per_s <= 60
    with pytest.raises(
        InvalidMeasurementError, match=r"^at 50 requests/s, 50.0% of the requests were sent late, 3 times"
    ):
        Trials(holds_to=60, late=[0.5] * 3)._find_rate(None)


class Confirmed(Trials):
    """Measures rates on no server: the bound holds up to a rate."""

    def __init__(self, holds_to, logs, late=()):
        super().__init__(holds_to, late)
        self._logs = logs

    def _client_spec(self, served, shared, logs, rate):
        return rate

    def _measure(self, asked, shared):
        self.tried.append(asked)
        (self._logs / "client").mkdir()

    @property
    def _measured(self):
        late = self.late.pop(0) if self.late else 0.0
        good = self.tried[-1] <= self.holds_to and not late
        return SimpleNamespace(percentiles={99: 10.0 if good else 20.0}, late_share=late)


@pytest.mark.parametrize(("holds_to", "tried"), [(100, [100]), (93, [100, 95, 90.25]), (1, [100, 95, 90.25, 85.7375])])
def test_a_rate_that_a_longer_run_does_not_hold_is_lowered(tmp_path, holds_to, tried):
    run, found = Confirmed(holds_to, tmp_path), CapacitySeen(rate_per_s=100, trials=((100, 14.0, True),))
    assert run._confirm(None, None, found) == pytest.approx(tried[-1])
    assert run.tried == pytest.approx(tried)
    assert [event.rate_per_s for event in run.kept] == pytest.approx(tried)
    assert [good for _, _, good in run.kept[-1].trials] == [True] + [False] * (len(tried) - 1)


def test_a_rate_whose_run_was_sent_late_is_measured_again_as_it_is(tmp_path):
    run = Confirmed(100, tmp_path, late=[0.05])
    run._confirm(None, None, CapacitySeen(rate_per_s=100, trials=((100, 14.0, True),)))
    assert run.tried == [100, 100]


def test_where_no_rate_holds_the_bound_the_search_ends_early():
    trials = Trials(holds_to=1, late=[])
    with pytest.raises(InvalidMeasurementError, match=r"^LATENCY_BOUND_MS=15: at 3.12 requests/s already"):
        trials._find_rate(None)
    assert trials.tried == [0, 50, 25, 12.5, 6.25, 3.125]
