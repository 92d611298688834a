"""Statistics of step times made by hand, so that every expected value can be worked out on paper."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.proof.verdict import AUTO_HALF_WIDTH
from cnnbench.results import stats
from cnnbench.results.stats import Window

MS = 1_000_000


def steps_of(*rows):
    return np.array(rows, dtype=np.int64)


def back_to_back(durations_ns, start_ns=0, wait_ns=0):
    """Steps that follow each other without a gap, each waiting for its input first."""
    ends = start_ns + np.cumsum(np.asarray(durations_ns, dtype=np.int64))
    starts = np.concatenate([[start_ns], ends[:-1]])
    return np.column_stack([starts, starts + wait_ns, ends]).astype(np.int64)


def images_of(steps, batch_size=1):
    return np.full(len(steps), batch_size)


def test_the_common_window_begins_with_the_last_to_start_and_ends_with_the_first_to_end():
    early = steps_of((0, 1, 10), (10, 11, 20))
    late = steps_of((5, 6, 18), (18, 19, 31))
    window = stats.common_window([early, late])
    assert (window.start_ns, window.end_ns) == (5, 20)
    assert window.seconds == pytest.approx(15e-9)
    assert window.edges(3).tolist() == [5, 10, 15, 20]


def test_one_instance_has_its_own_span_as_window():
    window = stats.common_window([steps_of((100, 101, 110), (110, 111, 130))])
    assert (window.start_ns, window.end_ns) == (100, 130)


@pytest.mark.parametrize(
    "steps",
    [[], [np.empty((0, 3), dtype=np.int64)], [steps_of((0, 1, 10)), np.empty((0, 3), dtype=np.int64)]],
)
def test_an_instance_without_a_step_is_no_measurement(steps):
    with pytest.raises(InvalidMeasurementError, match="an instance has measured no step"):
        stats.common_window(steps)


@pytest.mark.parametrize("later_start", [10, 11])
def test_instances_that_never_measured_together_are_no_measurement(later_start):
    first, second = steps_of((0, 1, 10)), steps_of((later_start, later_start + 1, later_start + 9))
    with pytest.raises(InvalidMeasurementError, match="never measuring at the same time"):
        stats.common_window([first, second])


def test_a_step_under_way_counts_by_the_share_of_its_time():
    steps, images = steps_of((0, 0, 10), (10, 10, 30)), np.array([4, 8])
    times = np.array([-5, 0, 5, 10, 15, 30, 99])
    assert stats.images_by(steps, images, times).tolist() == [0, 0, 2, 4, 6, 12, 12]


def test_waiting_for_input_is_part_of_a_step():
    steps = steps_of((0, 4, 10))
    assert stats.images_by(steps, np.array([10]), np.array([2, 4, 5])).tolist() == [2, 4, 5]


def test_nothing_is_completed_between_steps():
    steps = steps_of((0, 0, 10), (20, 20, 30))
    assert stats.images_by(steps, np.array([4, 4]), np.array([10, 15, 20, 25])).tolist() == [4, 4, 4, 6]


def test_throughput_of_two_instances_of_different_speed_is_that_of_both():
    slow = back_to_back([100 * MS] * 60)  # 8 images in 100 ms: 80 images/s
    fast = back_to_back([70 * MS] * 90, start_ns=33 * MS)  # 4 images in 70 ms: 400/7 images/s
    steps, images = [slow, fast], [images_of(slow, 8), images_of(fast, 4)]
    window = stats.common_window(steps)
    assert (window.start_ns, window.end_ns) == (33 * MS, 6000 * MS)  # both ends inside a step of one of them
    throughput = stats.estimate_throughput(steps, images, window)
    assert throughput.mean == pytest.approx(80 + 400 / 7, rel=1e-12)
    assert throughput.half_width == pytest.approx(0, abs=1e-9)
    figures = stats.instance_figures(steps, images, window)
    assert [one["images_per_s"] for one in figures] == pytest.approx([80, 400 / 7])
    assert [one["latency_mean_ms"] for one in figures] == pytest.approx([100, 70])


def test_an_instance_without_a_whole_step_in_the_window_has_no_latency():
    steps = [back_to_back([1000 * MS]), back_to_back([100 * MS] * 3, start_ns=200 * MS)]
    figures = stats.instance_figures(steps, [images_of(one) for one in steps], stats.common_window(steps))
    assert [one["latency_mean_ms"] for one in figures] == [None, pytest.approx(100)]
    assert figures[0]["images_per_s"] == pytest.approx(1)


def test_a_smaller_last_batch_counts_as_what_it_held():
    steps = back_to_back([100 * MS] * 4)
    throughput = stats.estimate_throughput([steps], [np.array([25, 25, 25, 5])], stats.common_window([steps]))
    assert throughput.mean == pytest.approx(80 / 0.4)


def test_the_interval_of_throughput_is_students_on_the_slices():
    steps = back_to_back([100 * MS, 100 * MS, 50 * MS, 50 * MS, 150 * MS, 150 * MS])
    images = [images_of(steps, 3)]
    window = stats.common_window([steps])
    rates = stats.slice_rates([steps], images, window)  # three slices of 200 ms: 6, then 3 + 3 + 2, then 4 images
    assert rates.tolist() == pytest.approx([6 / 0.2, 8 / 0.2, 4 / 0.2])
    throughput = stats.estimate_throughput([steps], images, window)
    assert throughput.mean == pytest.approx(30)
    assert throughput.half_width == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-6)  # t(0.975, 2) * s / sqrt(n)
    assert throughput.relative_half_width == pytest.approx(throughput.half_width / 30)


@pytest.mark.parametrize(("count", "slices"), [(1, 0), (5, 0), (6, 3), (7, 3), (39, 19), (40, 20), (1000, 20)])
def test_a_slice_holds_two_steps_of_the_slowest_instance(count, slices):
    slow, fast = back_to_back([10 * MS] * count), back_to_back([MS] * (10 * count))
    window = stats.common_window([slow, fast])
    rates = stats.slice_rates([slow, fast], [images_of(slow), images_of(fast)], window)
    assert len(rates) == slices


def test_too_few_steps_have_a_mean_but_no_interval():
    steps = back_to_back([100 * MS] * 5)
    throughput = stats.estimate_throughput([steps], [images_of(steps)], stats.common_window([steps]))
    assert throughput.mean == pytest.approx(10)
    assert (throughput.half_width, throughput.relative_half_width) == (None, None)


def test_the_interval_covers_the_true_throughput_as_often_as_it_says():
    random = np.random.default_rng(20240229)
    covered = 0
    for _ in range(1000):
        instances = [back_to_back(random.gamma(25, 4 * MS, size=80)) for _ in range(2)]  # 100 ms on average
        images = [images_of(steps, 10) for steps in instances]
        estimate = stats.estimate_throughput(instances, images, stats.common_window(instances))
        covered += abs(estimate.mean - 200) <= estimate.half_width
    assert 920 <= covered <= 980


def test_stopping_when_the_interval_is_narrow_enough_costs_little_of_its_confidence():
    """The rule of STEPS=auto, looked at once a second from MIN_TIME on: many of these runs end before MAX_TIME."""
    random = np.random.default_rng(20240302)
    covered, runs = 0, 800
    for _ in range(runs):
        steps = back_to_back(random.gamma(250, 0.4 * MS, size=650))  # 100 ms on average, so that there are 60 s
        for second in range(10, 61):
            measured = steps[steps[:, 2] <= second * 1000 * MS]
            estimate = stats.estimate_throughput([measured], [images_of(measured)], stats.common_window([measured]))
            if estimate.relative_half_width <= AUTO_HALF_WIDTH:
                break
        covered += abs(estimate.mean - 10) <= estimate.half_width
    assert 0.88 <= covered / runs <= 0.95


def test_trials_have_students_interval_from_three_on():
    found = stats.estimate_trials([10.0, 11.0, 12.0])
    assert (found.mean, found.half_width) == (11.0, pytest.approx(2.484, abs=1e-3))  # t(0.975, 2) = 4.303, / sqrt(3)
    assert stats.estimate_trials([10.0, 11.0]) == stats.Estimate(10.5, None)


def test_of_steps_that_are_alike_the_interval_narrows_and_of_a_run_that_changes_it_does_not():
    random = np.random.default_rng(3)
    alike = back_to_back(random.gamma(250, 0.4 * MS, size=600))
    slower = back_to_back(np.concatenate([random.gamma(250, 0.4 * MS, size=300), np.full(300, 300 * MS)]))
    few = alike[:5]
    found = [stats.is_narrowing([one], [images_of(one)], stats.common_window([one])) for one in (alike, slower, few)]
    assert found == [True, False, True]


def test_the_interval_covers_the_true_latency_as_often_as_it_says():
    random = np.random.default_rng(20240301)
    covered = 0
    for _ in range(1000):
        estimate = stats.estimate_latency(random.gamma(4, 2.5, size=200))
        covered += abs(estimate.mean - 10) <= estimate.half_width
    assert 920 <= covered <= 980


def test_inference_times_are_of_whole_steps_in_the_window_in_the_order_of_their_ends():
    first = steps_of((0, 1 * MS, 4 * MS), (4 * MS, 4 * MS, 10 * MS))
    second = steps_of((1 * MS, 2 * MS, 7 * MS), (7 * MS, 9 * MS, 11 * MS))
    assert stats.inference_times_ms([first, second], Window(0, 10 * MS)).tolist() == [3, 5, 6]
    assert stats.inference_times_ms([first, second], Window(1 * MS, 11 * MS)).tolist() == [5, 6, 2]
    assert stats.inference_times_ms([first, second], Window(5 * MS, 6 * MS)).tolist() == []


def test_latency_is_the_mean_with_an_interval_where_there_are_samples_enough():
    assert stats.estimate_latency(np.array([1.0, 2, 3, 4, 5])) == stats.Estimate(3.0, None)
    estimate = stats.estimate_latency(np.array([1.0, 1, 2, 2, 3, 3]))  # three batch means: 1, 2, 3
    assert estimate.mean == 2
    assert estimate.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "printed"),
    [
        (0, []),
        (5, []),
        (6, [50]),
        (63, [50]),
        (64, [50, 90]),
        (129, [50, 90]),
        (130, [50, 90, 95]),
        (661, [50, 90, 95]),
        (662, [50, 90, 95, 99]),
        (6635, [50, 90, 95, 99]),
        (6636, [50, 90, 95, 99, 99.9]),
    ],
)
def test_no_percentile_from_too_few_samples(samples, printed):
    assert list(stats.percentiles(np.arange(float(samples)))) == printed


def test_a_percentile_is_one_of_the_samples():
    samples = np.random.default_rng(1).permutation(np.arange(1.0, 10_000))
    assert stats.percentiles(samples) == {50: 5000, 90: 9000, 95: 9500, 99: 9900, 99.9: 9990}


def test_input_wait_is_the_share_of_all_instances_time():
    waiting = back_to_back([10 * MS] * 10, wait_ns=4 * MS)
    ready = back_to_back([10 * MS] * 10)
    window = Window(0, 100 * MS)
    assert stats.input_wait_share([waiting], window) == pytest.approx(0.4)
    assert stats.input_wait_share([ready], window) == 0
    assert stats.input_wait_share([waiting, ready], window) == pytest.approx(0.2)


def test_input_wait_outside_the_window_does_not_count():
    steps = steps_of((0, 40, 50), (50, 90, 100))
    assert stats.input_wait_share([steps], Window(20, 70)) == pytest.approx((20 + 20) / 50)


def test_a_constant_series_is_steady():
    steady = stats.steadiness(np.full(20, 151.4))
    assert (steady.drift, steady.spread) == (pytest.approx(0), pytest.approx(0))
    assert steady.drift_p > 0.05


@pytest.mark.parametrize("sign", [1, -1])
def test_a_drifting_series_is_not(sign):
    steady = stats.steadiness(100 + sign * np.linspace(-5, 5, 11))
    assert steady.drift == pytest.approx(sign * 0.10)
    assert steady.drift_p < 1e-6
    assert steady.spread == pytest.approx(np.sqrt(11.0) / 100)  # variance of -5..5: 110 / 10


def test_noise_without_a_trend_is_spread_but_not_significant_drift():
    steady = stats.steadiness(np.array([90.0, 110, 110, 90, 90, 110, 110, 90]))
    assert steady.drift == pytest.approx(0)
    assert steady.drift_p == pytest.approx(1)
    assert steady.spread == pytest.approx(np.sqrt(800 / 7) / 100)


def test_two_slices_are_too_few_to_judge_steadiness():
    assert stats.steadiness(np.array([1.0, 2.0])) is None
    assert stats.steadiness(np.array([1.0, 2.0, 3.0])) is not None


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),  # R: binom::binom.confint(8, 10, methods = "wilson")
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
    ],
)
def test_the_interval_of_accuracy_is_wilsons(correct, total, low, high):
    assert stats.accuracy_interval(correct, total) == pytest.approx((low, high), abs=1e-6)


def right_or_wrong(both, only_first, only_second, neither):
    first, second = [True] * (both + only_first), [True] * both + [False] * only_first
    wrong = [False] * neither
    return np.array(first + [False] * only_second + wrong), np.array(second + [True] * only_second + wrong)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe 1998, table II, method 10
        ((36, 14, 0, 0), 0.28, 0.1528, 0.4167),
        ((1, 1, 7, 12), -0.2857, -0.507, -0.026),  # Fagerland, Lydersen, Laake: Contingency Tables, chapter 8
    ],
)
def test_the_interval_of_a_paired_difference_is_newcombes(table, difference, low, high):
    found = stats.paired_difference(*right_or_wrong(*table))
    assert found == pytest.approx((difference, low, high), abs=5e-4)


def test_answers_that_never_differ_have_no_difference():
    difference, low, high = stats.paired_difference(*right_or_wrong(870, 0, 0, 130))
    assert difference == 0
    assert -0.005 < low < 0 < high < 0.005


def test_the_same_images_tell_more_than_as_many_others():
    low, high = stats.paired_difference(*right_or_wrong(860, 10, 8, 122))[1:]
    alone = stats.accuracy_interval(870, 1000)
    assert high - low < (alone[1] - alone[0]) / 2


def test_the_interval_of_accuracy_narrows_with_the_set():
    low, high = stats.accuracy_interval(860, 1000)
    assert low < 0.86 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.86 * 0.14 / 1000) ** 0.5, rel=0.01)


@pytest.mark.parametrize("size", [3, 4, 7, 20])
@pytest.mark.parametrize("seed", range(5))
def test_drift_is_scipys_linear_regression(size, seed):
    rates = np.random.default_rng(seed).normal(100, 3, size) + np.arange(size) * seed / 3
    expected = scipy_stats.linregress(np.arange(size), rates)
    found = stats.steadiness(rates)
    assert found.drift == pytest.approx(expected.slope * (size - 1) / rates.mean())
    assert found.drift_p == pytest.approx(expected.pvalue)


def test_constant_rates_drift_by_nothing_and_a_line_without_error_by_no_chance():
    assert stats.steadiness(np.full(5, 8.0)) == stats.Steadiness(drift=0, drift_p=1, spread=0)
    assert stats.steadiness(np.array([1.0, 2.0, 3.0])).drift_p == 0


@pytest.mark.parametrize("size", [6, 7, 12, 30, 101])
def test_the_ranks_of_a_medians_interval_are_scipys_binomial_quantiles(size):
    rank = int(scipy_stats.binom.ppf(0.025, size, 0.5))
    assert stats.median_interval(range(1, size + 1)) == ((size + 1) / 2, rank, size + 1 - rank)


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (0, 40), (1, 1), (40, 40), (87, 100), (436, 500), (1, 50_000)])
def test_the_interval_of_accuracy_is_scipys_wilson_interval(correct, total):
    expected = scipy_stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert stats.accuracy_interval(correct, total) == pytest.approx((expected.low, expected.high))


def test_the_half_width_is_that_of_scipys_students_distribution():
    times_ms = np.random.default_rng(0).normal(10, 1, 6)
    batches = times_ms.reshape(3, 2).mean(axis=1)
    low, high = scipy_stats.t.interval(0.95, 2, batches.mean(), batches.std(ddof=1) / np.sqrt(3))
    assert stats.estimate_latency(times_ms).half_width == pytest.approx((high - low) / 2)
