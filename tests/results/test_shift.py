"""By how much two sets of runs differ, and what that comes to."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from cnnbench.results.finding import could_tell, interval, judge, mean_ratio, p_value, runs_to_tell, share_out
from cnnbench.results.shift import Shift, estimate_paired, estimate_shift, estimate_shifts


def figures(count, sigma=0.01, middle=0.0, seed=1):
    chance = random.Random(seed)
    return [chance.gauss(middle, sigma) for _ in range(count)]


def in_turns(first, second):
    """Places of two sets that were measured as evenly in turns as can be."""
    places = np.concatenate([np.linspace(0, 1, first), np.linspace(0, 1, second) + 1e-6])
    return [float(place) for place in np.argsort(np.argsort(places))]


@pytest.mark.parametrize(("sizes", "trim"), [((5, 5), 0), ((6, 8), 0), ((9, 11), 0.2), ((12, 10), 0.2)])
def test_sets_measured_in_turns_are_compared_as_welch_and_yuen_do(sizes, trim):
    first, second = figures(sizes[0]), figures(sizes[1], 0.03, 0.02, seed=2)
    shift = estimate_shift(first, second, in_turns(*sizes))
    theirs = stats.ttest_ind(second, first, equal_var=False, trim=trim)
    assert shift.p_value == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert shift.interval(0.05) == pytest.approx((math.exp(low), math.exp(high)))


def test_pairs_are_compared_as_student_does():
    differences = figures(6, 0.02, 0.03)
    shift = estimate_paired(differences)
    assert shift.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_one_set_after_the_other_has_a_wider_interval_and_swapping_them_turns_the_ratio_over():
    first, second = figures(5), figures(6, seed=2)
    after, turns = estimate_shift(first, second), estimate_shift(first, second, in_turns(5, 6))
    assert after.log_ratio == turns.log_ratio
    assert 1.6 < after.error / turns.error < 2  # a first-order autoregression of 0.5: 1.79 for 5 and 5
    back = estimate_shift(second, first)
    assert (back.ratio, back.error) == pytest.approx((1 / after.ratio, after.error))


def test_runs_that_are_more_alike_than_is_taken_for_granted_widen_it_more():
    steps = list(np.cumsum(figures(20)))
    mixed = random.Random(1).sample(steps, 20)
    walk, own = (estimate_shift(values, values) for values in (steps, mixed))
    assert walk.error > 1.3 * own.error
    assert own.error == estimate_shift(mixed[::-1], mixed).error


def test_figures_that_are_all_the_same_differ_by_exactly_what_they_differ_by():
    same, other = estimate_shift([1.0] * 3, [1.0] * 4), estimate_shift([1.0] * 3, [1.1] * 3)
    assert (same.p_value, same.interval(0.05)) == (1, (1, 1))
    assert other.p_value == 0
    assert judge([same], 0.02, 0.05, higher_is_better=True) == "same"
    assert judge([other], 0.02, 0.05, higher_is_better=False) == "slower"


@pytest.mark.parametrize(
    ("log_ratio", "error", "finding"),
    [
        (-0.05, 0.01, "slower"),
        (0.05, 0.01, "faster"),
        (-0.05, 0.04, "cannot tell"),  # an effect, but not significant
        (-0.015, 0.004, "cannot tell"),  # significant, but it may be no effect
        (-0.01, 0.003, "same"),  # significant, and surely no effect
        (0.0, 0.004, "same"),
        (0.0, 0.04, "cannot tell"),
    ],
)
def test_a_verdict_needs_significance_and_effect(log_ratio, error, finding):
    shift = Shift(log_ratio, error, 20, (error**2 * 5,) * 2)
    assert judge([shift], 0.02, 0.05, higher_is_better=True) == finding
    needed = runs_to_tell([shift], 0.02, 0.05)
    if finding == "cannot tell":
        then = shift.with_runs(needed)
        assert judge([then], 0.02, 0.05, higher_is_better=True) != "cannot tell"


def test_no_number_of_runs_is_named_where_none_would_do():
    assert runs_to_tell([Shift(math.log(1.02), 0.03, 8, (0.005, 0.005))], 0.02, 0.05) is None


def test_what_a_neighbour_cost_makes_no_verdict_and_what_it_hid_does_not_get_lost():
    left = [[1.0] * 5, [0.5] * 5]
    slow = [figures(5, 0.005), figures(5, 0.005, math.log(0.5), seed=2)]
    shifts = estimate_shifts(slow, left)
    assert judge(shifts, 0.02, 0.05, higher_is_better=True) == "cannot tell"
    assert p_value(shifts) > 0.2
    low, high = interval(shifts, 0.05)
    assert low < 0.5 < 1 < high
    assert judge(estimate_shifts(slow), 0.02, 0.05, higher_is_better=True) == "slower"
    assert judge(estimate_shifts(slow, [[1.0] * 5] * 2), 0.02, 0.05, higher_is_better=True) == "slower"
    noisy = [[0.3, 0.9, 0.5, 0.7, 0.4], [0.4, 0.8, 0.6, 0.5, 0.5]]
    rates = [[math.log(share) + middle for share in one] for one, middle in zip(noisy, (0, -0.3), strict=True)]
    assert judge(estimate_shifts(rates), 0.02, 0.05, higher_is_better=True) == "cannot tell"
    assert judge(estimate_shifts(rates, noisy), 0.02, 0.05, higher_is_better=True) == "slower"
    times = [[-value for value in one] for one in rates]
    assert judge(estimate_shifts(times, noisy, sign=-1), 0.02, 0.05, higher_is_better=False) == "slower"


def test_many_tests_share_one_level():
    assert share_out([0.001, 0.04, 0.02, 0.5]) == pytest.approx([0.05 / 4, 0.05 / 3, 0.05 / 3, 0.05 / 3])
    assert share_out([0.03, 0.01]) == pytest.approx([0.05, 0.025])
    assert share_out([]) == []


def test_it_is_given_up_only_where_no_possible_ratio_could_be_told():
    wide, narrow = (Shift(0.0, error, 4, (error**2 * 5,)) for error in (0.05, 0.004))
    assert not could_tell([wide], 0.02, 0.01, 6)
    assert could_tell([wide], 0.02, 0.01, 200)
    assert could_tell([narrow], 0.02, 0.01, 20)


def test_a_group_s_mean_is_geometric():
    assert mean_ratio([(0.5, 0.4, 0.625), (2, 1.6, 2.5)]) == pytest.approx((1, 0.8, 1.25))
