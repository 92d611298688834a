"""The table of precisions, over results as runs leave them."""

import re

import pytest

from cnnbench.cases.precisions import PRECISIONS
from cnnbench.harness.spec import DEFAULT_OUTPUT
from cnnbench.report import precisions
from cnnbench.results.record import Criterion, Kpi, RunResult
from cnnbench.run.kpis import find_kind
from read_table import read_table

KILLED = Criterion(name="instances", passed=False, found="an instance was killed", needed="")
UNSTEADY = Criterion(name="spread", passed=False, found="12.0 %", needed="at most 5 %", severity="unstable")
PRIMARY = {
    "throughput": ("Throughput", "img/s"),
    "latency": ("Latency mean", "ms"),
    "accuracy": ("Accuracy top-1", "%"),
}


def test_a_kpi_that_a_table_shows_is_one_that_runs_have():
    for key in (*(column.key for column in precisions.COLUMNS), *(key for _, key in DEFAULT_OUTPUT)):
        assert find_kind(key).name == key


def precision_table(runs, order=tuple(PRECISIONS)):
    return precisions.precision_table(runs, order)


def make_run(mode, precision, value, half=None, *, criteria=(), **more):
    key, unit = PRIMARY[mode]
    kpis = [Kpi(key=key, unit=unit, value=value, primary=True)]
    if half is not None:
        kpis += [
            Kpi(key=f"{key} 95 % {end}", unit=unit, value=value + by) for end, by in (("low", -half), ("high", half))
        ]
    kpis += [Kpi(key=key, unit="%", value=value) for key, value in more.items()]
    return RunResult(
        run_id="1",
        started="2025-01-01T00:00:00Z",
        workload="ResNet50",
        case=f"test_x_inference_{mode}_{precision}",
        requested={"MODE": mode, "PRECISION": precision},
        effective={},
        facts={},
        plan={},
        instances=[],
        kpis=kpis,
        criteria=list(criteria),
        notes=[],
    )


def test_a_row_has_the_figures_of_all_modes():
    runs = [
        make_run("throughput", "avx_int8", 12345.6, 100, **{"ISA share": 99.95, "Compute utilization": 91.25}),
        make_run("latency", "avx_int8", 4.25, 0.5),
        make_run("accuracy", "avx_int8", 87.2, 2, **{"Top-1 loss": -0.1}),
    ]
    lines = precision_table(runs).splitlines()
    assert " ".join(lines[-1].split()) == ("avx_int8 12346 ±100 4.250 ±0.50 87.20 ±2.00 -0.1000 99.95 91.25 valid")
    for word in ("precision", "throughput", "latency", "top-1", "loss", "ISA", "peak", "verdict"):
        assert any(word in line for line in lines[:-1])
    assert max(map(len, lines)) <= 80


def test_what_was_not_measured_is_a_dash():
    runs = [make_run("throughput", "avx_fp32", 45.5), make_run("accuracy", "avx_bfloat16", 87.25)]
    assert read_table(precision_table(runs))[1:] == [
        ["avx_fp32", "45.50", "-", "-", "-", "-", "-", "valid"],
        ["avx_bfloat16", "-", "-", "87.25", "-", "-", "-", "valid"],
    ]


def test_the_largest_table_fits_a_terminal():
    figures = {"ISA share": 99.95, "Compute utilization": 91.25, "Top-1 loss": -0.125}
    names = ["amx_bfloat16", "amx_bfloat32"]
    runs = [make_run(mode, name, 12345.6, 100, criteria=[UNSTEADY], **figures) for name in names for mode in PRIMARY]
    table = precision_table(runs)
    rows = [[name, *["12346 ±100"] * 3, "-0.1250", "99.95", "91.25", "unstable [1] [2] [3]"] for name in names]
    assert read_table(table)[1:] == rows
    assert max(map(len, table.splitlines())) <= 80


def test_rows_are_in_the_order_asked_for():
    names = ["avx_int8", "amx_int8", "avx_fp32"]
    runs = [make_run(mode, name, 1) for mode in PRIMARY for name in sorted(names)]
    assert [line.split()[0] for line in precision_table(runs, names).splitlines()[-3:]] == names


@pytest.mark.parametrize("mode", PRIMARY)
def test_an_invalid_run_shows_its_reason_below_and_never_a_number(mode):
    invalid = make_run(mode, "avx_int8", 77777, 1, criteria=[KILLED], **{"ISA share": 77777, "Top-1 loss": 77777})
    others = [make_run(other, "avx_int8", 5, criteria=[UNSTEADY]) for other in PRIMARY if other != mode]
    table = precision_table([invalid, *others])
    assert "77777" not in table
    (row,) = read_table(table)[1:]
    assert "INVALID" in row[1:-1]
    assert row[-1] == "INVALID [1] [2] [3]"
    notes = re.findall(r"^\[\d\] (.*)$", table, re.MULTILINE)
    assert sorted(notes) == sorted(
        [
            f"{mode}: INVALID: an instance was killed",
            *(f"{one.requested['MODE']}: unstable: spread: 12.0 %, needed at most 5 %" for one in others),
        ]
    )


def test_an_unstable_run_keeps_its_number():
    table = precision_table([make_run("throughput", "avx_fp32", 45.5, criteria=[UNSTEADY])])
    (row,) = read_table(table)[1:]
    assert (row[1], row[-1]) == ("45.50", "unstable [1]")
    assert table.splitlines()[-1].startswith("[1] throughput: unstable: spread")
