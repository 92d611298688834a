"""Each criterion of a valid number: what passes, what does not, and how its words read."""

import numpy as np
import pytest

from cnnbench.cases.precisions import PRECISIONS
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.machine.contention import Contention, Throttling
from cnnbench.proof import verdict as validity
from cnnbench.proof.precision import PrecisionProof
from cnnbench.results.record import KILLED
from cnnbench.results.stats import Estimate, Steadiness

FP32, BF16 = PRECISIONS["avx_fp32"], PRECISIONS["avx_bfloat16"]


def make_plan(*cpus, processes=None):
    processes = processes or range(len(cpus))
    return Plan(
        tuple(
            InstancePlan(index, process, tuple(one), sockets=(0,), nodes=(0,), memory_node=0)
            for index, (one, process) in enumerate(zip(cpus, processes, strict=True))
        ),
        idle_cores=0,
    )


def test_survival_of_all():
    criterion = validity.judge_survival(2, 2)
    assert (criterion.passed, criterion.severity, criterion.found) == (True, "invalid", "2 of 2 finished")


@pytest.mark.parametrize("finished", [0, 1])
def test_a_missing_instance_is_told_in_the_documents_words(finished):
    criterion = validity.judge_survival(2, finished)
    assert (criterion.passed, criterion.severity, criterion.found, criterion.needed) == (False, "invalid", KILLED, "")
    assert KILLED == "Some instances were killed during execution! See README.md for more."


def test_threads_on_their_planned_cpus():
    criterion = validity.judge_pinning(make_plan([0, 1], [2, 3]), {0: {"10": [0], "11": [0, 1]}, 1: {"20": [3]}})
    assert (criterion.passed, criterion.found) == (True, "all threads on 0-3")


def test_a_thread_that_strayed():
    criterion = validity.judge_pinning(make_plan([0, 1], [2, 3]), {0: {"10": [0], "11": [0, 2]}, 1: {"20": [3]}})
    assert not criterion.passed
    assert criterion.severity == "invalid"
    assert criterion.found == "thread 11 of instance 0 on 0,2"


def test_instances_that_share_a_process_may_use_each_others_cpus():
    affinities = {0: {"10": [0, 1, 2, 3]}, 1: {"10": [0, 1, 2, 3]}}
    assert validity.judge_pinning(make_plan([0, 1], [2, 3], processes=[0, 0]), affinities).passed
    assert not validity.judge_pinning(make_plan([0, 1], [2, 3]), affinities).passed


def test_instances_on_one_cpu():
    criterion = validity.judge_pinning(make_plan([0, 1], [1, 2]), {0: {"10": [0]}, 1: {"20": [1]}})
    assert (criterion.passed, criterion.found) == (False, "instances share a CPU")


@pytest.mark.parametrize(
    ("share", "passed"), [(1.0, True), (0.95, True), (0.949, False), (0.0, False), (1.01, True), (1.02, False)]
)
def test_precision_needs_95_percent_of_the_work_and_not_more_than_all(share, passed):
    proof = PrecisionProof(share, {"brgconv:avx512_core f32": 0.9, "ref:any f32": 0.1}, [])
    criterion = validity.judge_precision(FP32, proof, None)
    assert (criterion.passed, criterion.severity, criterion.needed) == (
        passed,
        "invalid",
        "95% to 101% of what the graph needs",
    )
    assert criterion.found == (
        f"{share:.1%} of the multiply-accumulates ran as avx_fp32 (brgconv:avx512_core f32 90%, ref:any f32 10%)"
    )


@pytest.mark.parametrize(("name", "told"), [("mkl_sgemm f32", False), ("mkl_sgemm:avx512_core f32", True)])
def test_work_of_mkl_that_names_no_instructions_is_told_with_what_to_do(name, told):
    proof = PrecisionProof(0.56, {"brgconv:avx2 f32": 0.56, name: 0.44}, [])
    assert ("take a larger BATCH_SIZE" in validity.judge_precision(FP32, proof, None).needed) is not told


def test_no_trace_is_no_proof():
    criterion = validity.judge_precision(FP32, PrecisionProof(0.0, {}, []), None)
    assert not criterion.passed
    assert criterion.found.endswith("(no trace)")


@pytest.fixture
def save(tmp_path):
    def write(name, array):
        np.save(tmp_path / name, np.asarray(array, dtype=np.float32))
        return tmp_path / name

    return write


REFERENCE = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]


def test_equal_outputs_agree(save):
    agreement = validity.compare_outputs([save("0.npy", REFERENCE), save("1.npy", REFERENCE)], save("r.npy", REFERENCE))
    assert agreement == validity.Agreement(0.0, 1.0)
    assert validity.judge_outputs(FP32, agreement).passed


def test_the_worst_instance_counts(save):
    near = [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]
    far = [[0.2, 0.7, 0.1], [0.1, 0.8, 0.1]]
    agreement = validity.compare_outputs([save("0.npy", near), save("1.npy", far)], save("r.npy", REFERENCE))
    assert (agreement.largest_difference, agreement.top1) == (pytest.approx(0.5), 0.5)
    criterion = validity.judge_outputs(BF16, agreement)
    assert (criterion.passed, criterion.severity) == (False, "invalid")
    assert criterion.found == "probabilities within 0.5, 50% equal top-1"


@pytest.mark.parametrize("bad", [[[np.nan, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.7, 0.2, 0.1]], [[0.7, 0.3], [0.1, 0.9]]])
def test_outputs_that_are_no_numbers_or_of_another_shape_agree_in_nothing(save, bad):
    agreement = validity.compare_outputs([save("0.npy", REFERENCE), save("1.npy", bad)], save("r.npy", REFERENCE))
    assert agreement == validity.Agreement(float("inf"), 0.0)
    assert not validity.judge_outputs(BF16, agreement).passed


@pytest.mark.parametrize(
    ("precision", "difference", "top1", "passed"),
    [
        (FP32, 0.001, 1.0, True),
        (FP32, 0.0011, 1.0, False),
        (FP32, 0.0, 0.99, False),
        (BF16, 0.15, 0.9, True),
        (BF16, 0.16, 1.0, False),
        (BF16, 0.0, 0.89, False),
    ],
)
def test_outputs_are_judged_by_the_precisions_bounds(precision, difference, top1, passed):
    assert validity.judge_outputs(precision, validity.Agreement(difference, top1)).passed is passed


@pytest.mark.parametrize(
    ("drift", "p", "passed"),
    [
        (0.0, 1.0, True),
        (0.05, 0.001, True),
        (-0.05, 0.001, True),
        (0.051, 0.2, True),
        (0.051, 0.05, False),
        (-0.2, 0.001, False),
    ],
)
def test_a_drift_counts_when_it_is_large_and_no_chance(drift, p, passed):
    criterion, _ = validity.judge_steadiness(Steadiness(drift, p, spread=0.0))
    assert (criterion.name, criterion.passed, criterion.severity) == ("drift", passed, "unstable")
    assert criterion.found == f"{drift:+.1%} (p = {p:.2g})"


@pytest.mark.parametrize(("spread", "passed"), [(0.0, True), (0.10, True), (0.101, False)])
def test_a_spread_counts_above_a_tenth(spread, passed):
    _, criterion = validity.judge_steadiness(Steadiness(0.0, 1.0, spread))
    assert (criterion.name, criterion.passed, criterion.severity) == ("spread", passed, "unstable")


def test_too_few_slices_to_judge_count_as_unsteady():
    [criterion] = validity.judge_steadiness(None)
    assert (criterion.passed, criterion.severity, criterion.found) == (False, "unstable", "too few steps to judge")
    assert "6 steps" in criterion.needed


def test_nothing_to_make_the_primary_kpi_of_is_invalid():
    criterion = validity.reject_without_steps("latency")
    assert (criterion.passed, criterion.severity) == (False, "invalid")


@pytest.mark.parametrize(
    ("others", "steal", "passed"), [(0.0, 0.0, True), (0.05, 0.0, True), (0.03, 0.03, False), (0.0, 0.06, False)]
)
def test_others_may_take_little(others, steal, passed):
    criterion = validity.judge_contention(Contention(others, steal))
    assert (criterion.passed, criterion.severity) == (passed, "unstable")


@pytest.mark.parametrize(("share", "passed"), [(0.0, True), (0.01, True), (0.011, False), (1.2, False)])
def test_a_quota_may_hold_back_next_to_nothing(share, passed):
    criterion = validity.judge_throttling(Throttling(1.5, share))
    assert (criterion.passed, criterion.severity) == (passed, "unstable")
    assert criterion.found == f"a CPU quota of 1.5 held work back {share:.1%} of the cores' time"


@pytest.mark.parametrize(
    ("half_width", "passed", "found"),
    [
        (1.0, True, "±1.0% of the mean"),
        (1.1, False, "±1.1% of the mean"),
        (None, False, "no interval from so few steps"),
    ],
)
def test_the_interval_that_auto_steps_measure_for(half_width, passed, found):
    criterion = validity.judge_interval(Estimate(100.0, half_width), max_time_s=60, measured_s=60)
    assert (criterion.passed, criterion.found, criterion.severity) == (passed, found, "unstable")
    assert "MAX_TIME=60 s" in criterion.needed


@pytest.mark.parametrize(("loss", "passed"), [(0.005, True), (0.0051, False), (0.0, True), (-0.01, True)])
def test_a_loss_of_accuracy_has_a_bound(loss, passed):
    criterion = validity.judge_loss(loss)
    assert (criterion.passed, criterion.severity) == (passed, "invalid")
    assert criterion.found == f"{100 * loss:.2f} % of top-1 accuracy against the float32 model"


def test_an_interval_that_got_no_narrower_is_told_with_the_time_it_took():
    criterion = validity.judge_interval(Estimate(100.0, 2.6), max_time_s=60, measured_s=21.24)
    assert criterion.found == "±2.6% of the mean after 21.2 s, where it got no narrower"


@pytest.mark.parametrize(
    ("contention", "throttling", "displaced", "cause"),
    [
        (Contention(0.031, 0.02), None, 0, "other processes took 3.1% of the cores' time and the hypervisor took 2.0%"),
        (Contention(0.0, 0.004), None, 45.2, "threads were displaced 45 times a second on each core"),
        (None, Throttling(1.0, 0.2), 0, "a CPU quota took 20.0%"),
        (None, None, 1, "nothing was seen to take its cores: what shares their caches, memory or clock is not"),
    ],
)
def test_what_disturbed_a_run_is_named_where_it_did_not_hold_still(contention, throttling, displaced, cause):
    found = validity.name_cause(contention, throttling, displaced)
    assert found == cause
    good, bad = (validity.judge_interval(Estimate(100.0, width), 60, 60) for width in (0.5, 2.5))
    few = validity.judge_interval(Estimate(100.0, None), 60, 60)
    told = validity.explain([good, few, bad, bad], found)
    assert told[0].found == good.found
    assert [one.found for one in told[1:]] == [few.found, f"±2.5% of the mean ({cause})", bad.found]


@pytest.mark.parametrize(
    ("answered", "time_s", "passed"),
    [
        (1000, None, True),
        (999, None, False),
        (1001, None, False),
        (0, None, False),
        (1000, 4.0, True),
        (100, 4.0, True),
        (99, 4.0, False),
        (1001, 4.0, False),
    ],
)
def test_accuracy_covers_the_whole_set_or_what_its_time_allows(answered, time_s, passed):
    criterion = validity.judge_coverage(answered, 1000, time_s)
    assert (criterion.passed, criterion.severity) == (passed, "invalid")
    in_time = " in ACCURACY_TIME=4 s" if time_s else ""
    assert criterion.found == f"{answered} of 1000 images answered{in_time}"
    assert ("raise ACCURACY_TIME" in criterion.needed) is (time_s is not None)
