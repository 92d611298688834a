"""LoadGen's summaries, as it writes them."""

import pytest

from cnnbench.cases.parameters import Parameters
from cnnbench.proof.verdict import judge_audit
from cnnbench.results.loadgen import AUDITS, LoadGenAudit, LoadGenSummary, read_summary

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


@pytest.mark.parametrize("warnings", ["No warnings encountered during test.", "1 warning encountered."])
@pytest.mark.parametrize(("errors", "valid"), [("No errors", True), ("2 ERRORS", False)])
def test_a_run_for_answers_is_good_where_nothing_went_wrong(warnings, errors, valid):
    found = read_summary(f"\n{warnings}\n\n{errors} encountered during test.\n")
    assert (found.scenario, found.valid, found.figures) == ("accuracy", valid, {})


def summary(scenario, figure, valid=True):
    key = {"SingleStream": "p90_ms", "MultiStream": "p99_ms"}.get(scenario, "samples_per_s")
    return LoadGenSummary(scenario, valid, (), {key: figure})


@pytest.mark.parametrize(
    ("name", "scenario", "figures", "answers", "passed"),
    [
        ("TEST01", "Offline", (100, 91), ({3: "0A"}, {3: "0A", 4: "0B"}), True),
        ("TEST01", "Offline", (100, 89), ({3: "0A"}, {3: "0A"}), False),
        ("TEST01", "Offline", (100, 111), ({3: "0A"}, {3: "0A"}), False),
        ("TEST01", "Offline", (100, 100), ({3: "0A"}, {3: "0B"}), False),
        ("TEST01", "Offline", (100, 100), ({3: "0A"}, {}), False),
        ("TEST01", "Offline", (100, 100), ({}, {3: "0A"}), False),  # which says nothing
        ("TEST04", "Offline", (100, 109), None, True),
        ("TEST04", "Offline", (100, 20), None, True),
        ("TEST04", "Server", (100, 111), None, False),
        ("TEST04", "SingleStream", (10, 9), None, False),  # a shorter latency is a higher speed
        ("TEST04", "SingleStream", (10, 30), None, True),
        ("TEST04", "SingleStream", (0.2, 0.17), None, True),  # as short as that, more noise is allowed
        ("TEST05", "MultiStream", (10, 10.4), None, True),
        ("TEST05", "MultiStream", (10, 9.4), None, False),
    ],
)
def test_an_audit_compares_speed_and_answers(name, scenario, figures, answers, passed):
    run, audited = (summary(scenario, figure) for figure in figures)
    audit = LoadGenAudit.compare(name, run, audited, answers)
    criterion = judge_audit(audit)
    assert criterion.passed == audit.passed == passed
    assert f"{audit.ratio:.3f} of the run's speed" in criterion.found


def test_an_audit_without_answers_says_so():
    audit = LoadGenAudit.compare("TEST01", summary("Offline", 100), summary("Offline", 100), ({}, {3: "0A"}))
    assert "no answer logged" in judge_audit(audit).found


def test_an_audit_that_is_invalid_itself_finds_nothing_good():
    audit = LoadGenAudit.compare("TEST05", summary("Offline", 100), summary("Offline", 100, valid=False), None)
    assert not judge_audit(audit).passed
    assert "INVALID by itself" in judge_audit(audit).found


def test_the_audits_are_those_that_can_be_asked_for():
    for name in AUDITS:
        assert Parameters(audit=name).audit == name
