"""The search for a rate that holds: LoadGen's, on a system that is a file."""

import math

import pytest

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.run.loadgen import KEPT, find_target
from cnnbench.worker.loadgen import LOADGEN, SUMMARY, LoadGenSpec

SPEC = LoadGenSpec("", "Server", 0, 0, "")


class System:
    """Gets 100 samples a second through, and is VALID up to some rate; `asked`: how it was run."""

    def __init__(self, holds_to):
        self.holds_to, self.asked = holds_to, []

    def __call__(self, spec, logs, name):
        self.asked.append((spec.scenario, spec.target_rate, spec.min_duration_ms))
        valid = "VALID" if spec.scenario == "Offline" or spec.target_rate <= self.holds_to else "INVALID"
        (logs / LOADGEN).mkdir()
        (logs / LOADGEN / SUMMARY).write_text(
            f"Scenario : {spec.scenario}\nSamples per second: 100\nResult is : {valid}\n"
            "99.00 percentile latency (ns)   : 12000000\n"
        )


def test_the_search_begins_with_half_of_what_is_got_through_and_ends_with_what_is_valid():
    system = System(holds_to=70)
    told = []
    rate = find_target(SPEC, system, told.append)
    assert [(scenario, rate) for scenario, rate, _ in system.asked[:4]] == [
        ("Offline", 0),
        ("Server", 50),
        ("Server", 75),
        ("Server", 62.5),
    ]
    assert 69 <= rate / KEPT <= 70
    assert told[0].rate_per_s == rate
    assert told[0].trials[0] == (50, 12.0, True)


def test_a_rate_is_tried_for_as_long_as_its_percentile_needs():
    system = System(holds_to=8)
    find_target(SPEC, system, lambda _found: None)
    for _, rate, least_ms in system.asked[1:]:
        assert least_ms == max(3000, 1000 * math.ceil(1.1 * 662 / rate))


def test_where_no_rate_is_valid_that_is_told():
    told = []
    with pytest.raises(
        InvalidMeasurementError, match=r"^SCENARIO=Server: INVALID at 3.12 queries/s already, with 99 %"
    ):
        find_target(SPEC, System(holds_to=1), told.append)
    assert len(told[0].trials) > 3
