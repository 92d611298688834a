"""Which settings a sweep drops, and what it runs next."""

import math
import random

import pytest

from cnnbench.tuning.decide import RISK, count_due, estimate_median, find_fastest, find_slow, plan_round, remaining


def race(seed, noise, settings, rounds):
    """Sweep over made-up settings on a machine that drifts by a fifth and now and then slows a run by up to 30 %.

    Return the true speeds, those that were measured, and what was left in the end.
    """
    chance = random.Random(seed)
    true = {f"s{number}": 100 * math.exp(-abs(chance.gauss(0, 0.3))) for number in range(settings)}
    speeds = {name: {} for name in true}
    while (planned := plan_round(speeds, rounds))[1]:
        number, names = planned
        for name in names:
            slowed = 1 - chance.uniform(0, 0.3) if chance.random() < 0.1 else 1
            drift = 1 + 0.2 * math.sin(number + seed)
            speeds[name][number] = true[name] * math.exp(chance.gauss(0, noise)) * drift * slowed
    return true, speeds, remaining(speeds, rounds, number)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_best_is_dropped_no_more_often_than_stated(noise):
    races = [race(seed, noise, settings=12, rounds=6) for seed in range(80)]
    lost = sum(max(true, key=true.get) not in left for true, _, left in races)
    assert lost <= RISK * len(races)


def test_pruning_saves_a_good_part_of_the_runs_and_the_winner_is_as_good_as_the_best():
    races = [race(seed, 0.02, settings=12, rounds=6) for seed in range(30)]
    runs = sum(len(runs) for _, speeds, _ in races for runs in speeds.values())
    assert runs < 0.75 * 30 * 12 * 6
    for true, speeds, left in races:
        winner = find_fastest({name: speeds[name] for name in left})
        assert true[winner] > 0.95 * max(true.values())


def test_one_round_drops_only_what_is_far_behind():
    dropped = find_slow({"fast": {1: 100.0}, "near": {1: 80.0}, "far": {1: 20.0}}, rounds=6)
    assert list(dropped) == ["far"]
    assert str(dropped["far"]).startswith("20% of the speed of fast after 1 round, at most ")


def test_an_unsteady_run_alone_drops_nothing():
    speeds = {"fast": {1: 100.0}, "far": {1: 20.0}}
    assert not find_slow(speeds, rounds=6, unsteady={("far", 1)})
    assert not find_slow(speeds, rounds=6, unsteady={("fast", 1)})
    assert plan_round(speeds, 6, unsteady={("far", 1)})[0] == 2
    speeds = {"fast": {1: 100.0, 2: 101.0}, "far": {1: 20.0, 2: 21.0}}
    assert list(find_slow(speeds, rounds=6, unsteady={("far", 1), ("far", 2)})) == ["far"]


def test_what_is_a_little_slower_goes_once_the_rounds_agree():
    speeds = {
        name: {number: speed * (1 + 0.2 * (number % 2)) for number in range(1, 21)}
        for name, speed in {"fast": 100, "near": 85, "equal": 99.5}.items()
    }
    assert list(find_slow(speeds, rounds=20)) == ["near"]


def test_drift_between_rounds_favours_none():
    """The slow one ran alone in the fast rounds: only the rounds in which both ran compare them."""
    speeds = {"slow": {1: 50.0, 2: 500.0, 3: 500.0, 4: 51.0}, "fast": {1: 100.0, 4: 99.0}}
    assert find_fastest(speeds) == "fast"
    assert list(find_slow(speeds, rounds=4)) == ["slow"]


def test_settings_that_never_ran_together_stay():
    assert find_slow({"early": {1: 1.0}, "late": {2: 100.0}}, rounds=4) == {}


def test_the_order_of_a_round_is_shuffled_and_always_the_same():
    names = [f"s{number}" for number in range(20)]
    speeds = {name: {} for name in names}
    number, first = plan_round(speeds, 3)
    assert number == 1
    assert sorted(first) == sorted(names) != first
    assert plan_round(speeds, 3) == (1, first)
    number, second = plan_round({name: {1: 100.0} for name in names}, 3)
    assert number == 2
    assert sorted(second) == sorted(names)
    assert second != first


def test_an_interrupted_round_goes_on_with_what_it_lacks():
    assert plan_round({"a": {1: 99.0, 2: 99.0}, "b": {1: 100.0}, "far": {1: 10.0}}, 3) == (2, ["b"])


def test_a_setting_that_came_later_joins_the_next_round_beside_what_is_left():
    speeds = {"a": {1: 99.0, 2: 99.0}, "far": {1: 10.0}, "new": {}}
    number, names = plan_round(speeds, 2)
    assert number == 3
    assert sorted(names) == ["a", "new"]
    number, names = plan_round(speeds | {"a": {1: 99.0, 2: 99.0, 3: 99.0}, "new": {3: 100.0}}, 2)
    assert number == 4


@pytest.mark.parametrize(
    ("speeds", "due"),
    [
        ({"a": {}, "b": {}}, 4),
        ({"a": {1: 99.0}, "b": {}}, 3),
        ({"a": {1: 99.0}, "far": {1: 10.0}}, 1),
        ({"a": {1: 99.0, 2: 99.0}, "new": {}}, 4),
        ({"a": {1: 99.0, 2: 99.0}, "b": {1: 98.0, 2: 98.0}}, 0),
    ],
)
def test_what_is_due_at_most(speeds, due):
    assert count_due(speeds, rounds=2) == due


def test_nothing_is_due_when_all_that_is_left_has_its_runs():
    assert plan_round({"a": {1: 99.0, 2: 99.0}, "far": {1: 10.0}}, 2)[1] == []
    assert plan_round({}, 2)[1] == []


def test_a_median_has_the_interval_that_its_number_of_runs_allows():
    six = estimate_median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    assert (six.value, six.low, six.high, six.confidence) == (3.5, 1, 6, 0.95)
    three = estimate_median([3.0, 1.0, 2.0])
    assert (three.value, three.low, three.high, three.confidence) == (2, 1, 3, 0.75)
    assert estimate_median([3.0]).confidence == 0
