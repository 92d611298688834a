"""What runs of cases come to: which is due, which counts, and what the verdict is against what is expected."""

import pytest

from cnnbench.cases.expectation import Expectation
from cnnbench.results.record import SEEN
from cnnbench.validation.expected import expect
from cnnbench.validation.outcome import CaseRun, Outcome, next_due, read_runs_of
from cnnbench.validation.plan import CaseChoice, Plan, PlannedMachine
from cnnbench.validation.verdict import Verdict, judge_expectation, verdict_text
from run_files import CASE, INVALID, UNSTEADY, WORKLOAD, make_run, save_run

CHOICE = CaseChoice(workload=WORKLOAD, case=CASE)
MACHINE = PlannedMachine(host="here", cpu="EPYC", microcode="0x1")
PLAN = Plan(
    platform="GENOA", machine=MACHINE, backend="native", cmake=(), depth="full", runs=3, repeats=2, options=(),
    environment={}, files={}, cases=(CHOICE,),
)  # fmt: skip
V, U, I = (), (UNSTEADY,), (INVALID,)  # noqa: E741


def outcome(*runs, **more):
    """Return a case's outcome from pairs of a value and what its run was judged by."""
    made = [
        make_run(value, number, criteria=criteria, INSTANCES="4", CORES_PER_INSTANCE="2")
        for number, (value, criteria) in enumerate(runs)
    ]
    return Outcome(CHOICE, tuple(CaseRun(CASE, run, 10.0) for run in made), **more)


@pytest.mark.parametrize(
    ("runs", "state", "value"),
    [
        ([(100, V), (110, V), (105, V)], "valid", 110),
        ([(120, U), (100, V)], "valid", 100),
        ([(120, U), (130, U), (140, I)], "unstable", 130),
        ([(140, I), (150, I)], "INVALID", None),
        ([(140, I), (100, V)], "valid", 100),
        ([], "not run", None),
    ],
)
def test_the_best_valid_run_counts(runs, state, value):
    found = outcome(*runs)
    assert found.state == state
    assert (found.counting.kpis[0].value if found.counting else None) == value


def test_of_latencies_the_lowest_is_the_best():
    runs = [make_run(ms, number, key="Latency mean", unit="ms", MODE="latency") for number, ms in enumerate([5, 3, 4])]
    assert Outcome(CHOICE, tuple(CaseRun(CASE, run, 1.0) for run in runs)).counting.kpis[0].value == 3


@pytest.mark.parametrize(
    ("runs", "due"),
    [
        ([], True),
        ([V, V], True),
        ([V, V, V], False),
        ([V, V, I], False),
        ([V, V, U], True),
        ([U, U, U, V, V], False),
        ([U, U, U, U], True),
        ([U, U, U, U, U], False),
    ],
)
def test_three_runs_are_due_and_two_more_of_unstable_ones(runs, due):
    assert outcome(*((1, criteria) for criteria in runs)).due(runs=3, repeats=2) is due


def test_the_case_with_the_fewest_runs_is_next_and_skipped_ones_are_not():
    first, second = outcome((1, V), (2, V)), outcome((1, V))
    skipped, failed = outcome(skipped="no AMX here"), outcome(failed="no network")
    assert next_due([first, skipped, failed, second], runs=3, repeats=0) is second
    assert next_due([first, second], runs=1, repeats=0) is None


def test_what_tells_nothing_of_this_machine_does_not_count(tmp_path):
    here = {"host name": "here"}
    save_run(tmp_path, make_run(1, 0, facts=here))
    save_run(tmp_path, make_run(2, 1, facts=here | {SEEN: "the run was interrupted"}, criteria=(INVALID,)))
    save_run(tmp_path, make_run(3, 2, facts={"host name": "there"}))
    save_run(tmp_path, make_run(4, 3, facts=here | {"CPU": "XEON"}))
    save_run(tmp_path, make_run(5, 4, facts=here)).joinpath("run.json").write_text("{")
    save_run(tmp_path, make_run(6, 5, facts=here)).joinpath("run.json").unlink()
    runs, told = read_runs_of(tmp_path / f"logs-{CASE}", MACHINE)
    assert [one.run.kpis[0].value for one in runs] == [1]
    assert len(told) == 3
    assert "was run on there, EPYC, and does not count here" in told[0]


def expectation(low, high, **more):
    return Expectation(case=CASE, value=(low + high) / 2, low=low, high=high, unit="img/s", source="a document", **more)


SERVER = {"name": "a server", "sockets": 2, "cores": 80}


@pytest.mark.parametrize(
    ("expected", "found", "word", "ratio"),
    [
        (expectation(90, 110), outcome((100, V)), "within", 1.0),
        (expectation(110, 130), outcome((100, V)), "below", 100 / 120),
        (expectation(70, 90), outcome((100, V)), "above", 100 / 80),
        (expectation(70, 90), outcome((100, U)), "above", 100 / 80),
        (expectation(900, 1100, per="core", machine=SERVER), outcome((100, V)), "within", 1.0),
        (expectation(90, 110, parameters={"BATCH_SIZE": "64"}), outcome((100, V)), "not measured", None),
        (expectation(90, 110, parameters={"BATCH_SIZE": "8"}), outcome((100, V)), "within", 1.0),
        (expectation(90, 110, per="socket", machine=SERVER), outcome((100, V)), "not measured", None),
        (expectation(90, 110), outcome((100, I)), "INVALID", None),
        (expectation(90, 110), outcome(skipped="no AMX"), "not measured", None),
        (expectation(90, 110), None, "not measured", None),
    ],
)
def test_a_case_is_held_to_what_is_expected_of_a_machine_of_its_size(expected, found, word, ratio):
    judged = judge_expectation(expected, WORKLOAD, "avx_fp32", found)
    assert judged.word == word
    assert judged.ratio == (None if ratio is None else pytest.approx(ratio))
    assert judged.remark or word in ("within", "above", "below")


def test_a_longer_latency_is_below_and_another_unit_is_not_measured():
    run = make_run(5.0, key="Latency mean", unit="ms", MODE="latency")
    found = Outcome(CHOICE, (CaseRun(CASE, run, 1.0),))
    assert judge_expectation(expectation(3, 4), WORKLOAD, "avx_fp32", found).word == "not measured"
    ms = expectation(3, 4).model_copy(update={"unit": "ms"})
    assert judge_expectation(ms, WORKLOAD, "avx_fp32", found).word == "below"
    faster = expectation(6, 8).model_copy(update={"unit": "ms"})
    assert judge_expectation(faster, WORKLOAD, "avx_fp32", found).word == "above"


def verdict(*pairs):
    """Return the verdict of cases, each with what is expected of it or None."""
    outcomes, judged, precisions = [], [], {}
    for number, (found, expected) in enumerate(pairs):
        case = CASE.replace("avx_fp32", ("avx_fp32", "avx_int8", "amx_int8", "amx_bfloat16")[number])
        choice = CaseChoice(workload=WORKLOAD, case=case)
        outcomes.append(Outcome(choice, found.runs, found.skipped, found.failed))
        precisions[WORKLOAD, case] = case.split("throughput_")[1].removesuffix("_resnet18")
        if expected:
            one = expected.model_copy(update={"case": case})
            judged.append(judge_expectation(one, WORKLOAD, precisions[WORKLOAD, case], outcomes[-1]))
    return Verdict("GENOA", outcomes, precisions, judged, ["Other: no expectation: expect/GENOA.yaml is not there"])


GOOD, POOR = (outcome((100, V)), expectation(90, 110)), (outcome((100, V)), expectation(110, 130))
BROKEN, FAILED, SKIPPED = (
    (outcome((1, I)), None),
    (outcome(failed="no disk"), None),
    (outcome(skipped="no AMX"), None),
)


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([GOOD], 0),
        ([GOOD, SKIPPED], 0),
        ([GOOD, POOR, BROKEN, FAILED], 4),
        ([GOOD, BROKEN, FAILED], 3),
        ([GOOD, FAILED], 1),
        ([(outcome((100, V)), None)], 0),
        ([(outcome((100, V), failed="no disk"), None)], 1),
    ],
)
def test_a_regression_goes_before_what_could_not_be_seen(pairs, code):
    assert verdict(*pairs).exit_code == code


def test_the_verdict_fits_a_terminal_and_says_why():
    text = verdict_text(verdict(POOR, BROKEN, FAILED, SKIPPED))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["avx_fp32", "1", "1", "-", "-", "-", "-", "below"] in lines
    assert ["avx_int8", "1", "-", "-", "1", "-", "-", "-"] in lines
    for words in ("0.833", "below [1]", "no disk", "no AMX", "Some instances were killed", "expect/GENOA.yaml is not"):
        assert words in text


def test_a_failure_beside_a_number_is_told():
    text = verdict_text(verdict((outcome((100, V), failed="no disk"), expectation(90, 110))))
    assert ["avx_fp32", "1", "1", "-", "-", "1", "-", "within"] in [line.split() for line in text.splitlines()]
    assert "failed:\n  no disk" in text


def test_what_is_measured_becomes_what_is_expected():
    made = expect(outcome((100, V), (104, V), (102, V), (500, U), (1, I)), PLAN)
    assert (made.value, made.unit) == (102, "img/s")
    assert made.low == pytest.approx(102 - 4.303 * 2 * (4 / 3) ** 0.5, abs=0.1)  # Student's t of two degrees
    assert made.source == "3 runs on here, EPYC, 2026-01-01"
    same = expect(outcome((100, V), (100, V), (100, V)), PLAN)
    assert (same.low, same.high) == (98, 102)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (outcome((100, V), (101, V), (99, U)), "2 valid runs, needed 3"),
        (outcome((100, V), (1, V), (300, V)), "differ too much"),
    ],
)
def test_too_little_is_no_expectation(found, reason):
    assert reason in expect(found, PLAN)
