"""What comparisons promise, on made-up runs: few false alarms, and that what there is is found."""

import pytest

from checkout import ROOT
from cnnbench.results.finding import ALPHA

DIFFERENT = ("faster", "slower")
REPEATS = 300
MOST = ALPHA + 2.5 * (ALPHA * (1 - ALPHA) / REPEATS) ** 0.5
"""What so many repeats may show of a true 5 %, but for once in a hundred times."""


@pytest.fixture(scope="module")
def simulation():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield __import__("compare")


@pytest.fixture(scope="module")
def trends(simulation):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield __import__("trend")


@pytest.mark.parametrize("length", [10, 40])
def test_a_series_without_a_step_has_none_whatever_its_figures_scatter_by(trends, length):
    shares = {one.name: trends.share_alarmed(one, length, REPEATS, seed=1) for one in trends.SERIES if one.promised}
    assert {name: share for name, share in shares.items() if share > MOST} == {}


def test_a_step_is_found_where_it_is(trends):
    quiet, outliers = trends.SERIES[0], trends.SERIES[4]
    assert trends.share_found(quiet, 20, 0.95, 10, 100, seed=1)[0] > 0.9
    assert trends.share_found(quiet, 60, 0.95, 5, 100, seed=1)[0] > 0.9
    found, others = trends.share_found(outliers, 60, 0.9, 30, 100, seed=1)
    assert found > 0.9
    assert others < 0.1


@pytest.mark.parametrize("sizes", [(5, 5), (5, 20), (20, 20)])
@pytest.mark.parametrize("in_turns", [False, True])
def test_false_alarms_are_rare_whatever_runs_scatter_by(simulation, sizes, in_turns):
    shares = {
        one.name: simulation.share_found(one, sizes, 1, DIFFERENT, REPEATS, seed=1, in_turns=in_turns)
        for one in simulation.CONDITIONS
        if one.promised
    }
    assert {name: share for name, share in shares.items() if share > MOST} == {}


def test_what_there_is_is_found(simulation):
    quiet, outliers = simulation.CONDITIONS[0], simulation.CONDITIONS[4]
    assert simulation.share_found(quiet, (5, 5), 0.95, ("slower",), 100, seed=1) > 0.9
    assert simulation.share_found(quiet, (20, 20), 1, ("same",), 100, seed=1) > 0.8
    assert simulation.share_found(outliers, (20, 20), 0.95, ("slower",), 100, seed=1) > 0.8
    assert simulation.share_found(quiet, (5, 5), 0.95, ("same", "faster"), 100, seed=1) == 0


def test_many_cases_of_one_call_raise_no_more_alarms_than_one(simulation):
    for condition in simulation.CONDITIONS[:5]:
        assert simulation.share_of_calls(condition, (5, 5), 60, seed=1) <= 0.12


def test_stopping_when_it_is_clear_raises_no_more_alarms(simulation):
    for condition in simulation.CONDITIONS:
        if condition.promised:
            shares, _ = simulation.race_shares(condition, 1, 100, seed=1)
            assert shares["faster"] + shares["slower"] <= 0.1, condition.name
    shares, rounds = simulation.race_shares(simulation.CONDITIONS[0], 0.9, 100, seed=1)
    assert shares["slower"] > 0.95
    assert rounds < 7
