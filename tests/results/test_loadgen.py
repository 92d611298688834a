"""LoadGen's summaries, as it writes them."""

import pytest

from cnnbench.results.loadgen import read_summary

HEAD = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : {}
Mode     : PerformanceOnly
"""
REST = """
================================================
Additional Stats
================================================
90.00 percentile latency (ns)   : 295316748
99.00 percentile latency (ns)   : 322464681

target_qps : 1100
"""
OFFLINE = (
    HEAD.format("Offline")
    + "Samples per second: 894.791\n"
    + """Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
"""
    + REST
)
SERVER = (
    HEAD.format("Server")
    + "Completed samples per second    : 99.50\n"
    + """Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 700 queries.
 * Would need to run at least 6081 more queries,
 with the run being successful if every additional
 query were under latency.
"""
    + REST
)


def test_a_valid_summary_has_its_figures_and_no_reason():
    found = read_summary(OFFLINE)
    assert (found.scenario, found.valid, found.reasons) == ("Offline", True, ())
    assert found.figures == pytest.approx({"samples_per_s": 894.791, "p90_ms": 295.316748, "p99_ms": 322.464681})
    assert found.facts == {"LoadGen": "Offline, VALID"}


def test_an_invalid_one_says_why_and_what_to_change():
    found = read_summary(SERVER)
    assert not found.valid
    assert found.reasons == (
        "Performance constraints satisfied : NO",
        "Early stopping satisfied: NO",
        "Reduce target QPS to improve latency.",
        "Run unsuccessful.",
        "Would need to run at least 6081 more queries",
    )
    assert found.figures["samples_per_s"] == 99.5


@pytest.mark.parametrize("text", ["", HEAD.format("Server"), "Result is : VALID"])
def test_what_is_no_summary_is_refused(text):
    with pytest.raises(ValueError, match="no summary of LoadGen's"):
        read_summary(text)
