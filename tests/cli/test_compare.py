"""`cnnbench compare`, as a user calls it: sets of made-up runs in logs directories."""

import csv
import io
import json
import re

import pytest

from cnnbench.cli.main import main
from cnnbench.results.record import Kpi
from read_table import read_table, read_tables
from run_files import CASE, INVALID, UNSTEADY, make_run, save_run, save_set

A_VALUES = [100.0, 100.4, 99.7, 100.2, 99.9]
LATENCY = CASE.replace("throughput", "latency")


@pytest.fixture
def compare(capsys):
    """Call the command; return its exit code, its output and its errors."""

    def call(*words):
        code = main(["compare", *map(str, words)])
        told = capsys.readouterr()
        assert "--format" in words or all(len(line) <= 80 for line in told.out.splitlines() if "/" not in line)
        return code, told.out, told.err

    return call


def scaled(factor):
    return [value * factor for value in A_VALUES]


def verdict(output):
    return read_table(output)[1][-1]


def conditions(output):
    """Return the table of what differs."""
    (table,) = (table for table in read_tables(output) if table[0][0] == "condition that differs")
    return {row[0]: row[1:] for row in table[1:]}


@pytest.mark.parametrize(
    ("factor", "found", "code"), [(0.9, "slower", 4), (1.1, "faster", 0), (1.0003, "same", 0), (0.985, "cannot", 0)]
)
def test_throughput_is_better_when_it_is_higher(compare, tmp_path, factor, found, code):
    a, b = save_set(tmp_path / "a", A_VALUES), save_set(tmp_path / "b", scaled(factor), begin=10)
    exit_code, output, errors = compare(a, b)
    assert (verdict(output).split()[0], exit_code, errors) == (found, code, "")
    ratio, low, high = map(float, read_table(output)[1][3:6])
    assert ratio == pytest.approx(factor, abs=1e-3)
    assert low < ratio < high
    assert "no condition is known to differ" in output


def test_latency_is_better_when_it_is_lower_and_another_metric_can_be_chosen(compare, tmp_path):
    kind = {
        "case": LATENCY,
        "key": "Latency mean",
        "unit": "ms",
        "extra": [Kpi(key="Throughput", unit="img/s", value=5)],
    }
    a, b = save_set(tmp_path / "a", A_VALUES, **kind), save_set(tmp_path / "b", scaled(1.1), begin=10, **kind)
    assert compare(a, b)[0] == 4
    assert verdict(compare(b, a)[1]).startswith("faster")
    assert verdict(compare(a, b, "--metric", "Throughput")[1]) == "same"


def test_the_threshold_says_what_matters(compare, tmp_path):
    a, b = save_set(tmp_path / "a", A_VALUES), save_set(tmp_path / "b", scaled(0.97), begin=10)
    assert compare(a, b)[0] == 4
    code, output, _ = compare(a, b, "--threshold", "5%")
    assert (code, verdict(output)) == (0, "same")
    for text in ("2", "0%", "-1%", "200%", "2 percent", "nan%"):
        assert compare(a, b, f"--threshold={text}")[0] == 2


def test_a_set_may_be_a_folder_above_a_case_a_run_or_a_file(compare, tmp_path):
    save_set(tmp_path / "a" / "workload" / "Some", A_VALUES)
    save_set(tmp_path / "b", scaled(0.9), begin=10)
    logs, file = tmp_path / "b" / f"logs-{CASE}", tmp_path / "copied.json"
    for b in (tmp_path / "b", logs):
        assert compare(tmp_path / "a", b)[0] == 4
    file.write_text((logs / "itr-1" / "worker-0" / "run.json").read_text())
    for b in (logs / "itr-1", logs / "itr-1" / "worker-0", logs / "itr-1" / "worker-0" / "run.json", file):
        code, output, _ = compare(tmp_path / "a", b)
        assert (code, verdict(output)) == (0, "cannot tell [1]")
        assert "[1] needs 3 runs of each at the least" in output


def test_too_few_runs_say_how_many_would_do(compare, tmp_path):
    values = [100, 96, 103, 99, 101]
    a, b = save_set(tmp_path / "a", values), save_set(tmp_path / "b", [0.97 * one for one in values], begin=10)
    code, output, _ = compare(a, b)
    assert (code, verdict(output)) == (0, "cannot tell [1]")
    assert 10 < int(re.search(r"([0-9]+) runs of each would tell", output)[1]) < 100


def test_unstable_runs_are_used_and_invalid_ones_are_not(compare, tmp_path):
    a, b = save_set(tmp_path / "a", A_VALUES), save_set(tmp_path / "b", A_VALUES[:4], begin=10)
    save_run(b, make_run(1, 14, criteria=[INVALID]))
    save_run(b, make_run(100.1, 15, criteria=[UNSTEADY]))
    code, output, _ = compare(a, b)
    assert (code, verdict(output)) == (0, "same [1]")
    assert read_table(output)[1][-2] == "5, 5"
    assert "[1] B: 1 of 6 runs invalid, left out: itr-5 (instances); B: 1 of 5 runs unstable" in output


def test_a_case_without_a_valid_run_is_no_success(compare, tmp_path):
    a, b = save_set(tmp_path / "a", A_VALUES), save_set(tmp_path / "b", A_VALUES, begin=10, criteria=[INVALID])
    code, output, _ = compare(a, b)
    assert (code, verdict(output)) == (3, "cannot tell [1]")
    assert compare(b, a)[0] == 3


def test_what_else_differs_is_named(compare, tmp_path):
    a = save_set(tmp_path / "a", A_VALUES, facts={"oneDNN": "3.6", "model SHA-256": "a" * 64})
    new = {"kernel": "6.2", "governor": "powersave", "oneDNN": "3.7", "load average before": "9", "measured for": "2 s"}
    settings = {"CUSTOMER_ENV": "ONEDNN_MAX_CPU_ISA=AVX2", "BATCH_SIZE": "16"}
    facts = {**new, "model SHA-256": "b" * 64}
    b = save_set(tmp_path / "b", scaled(0.8), begin=10, facts=facts, notes=["memory could not be bound"], **settings)
    code, output, _ = compare(a, b)
    assert code == 4
    assert conditions(output) == {
        "kernel": ["6.1", "6.2"],
        "governor": ["performance", "powersave"],
        "oneDNN": ["3.6", "3.7"],
        "model SHA-256": ["a" * 12, "b" * 12],
        "CUSTOMER_ENV": ["-", "ONEDNN_MAX_CPU_ISA=AVX2"],
        "BATCH_SIZE": ["8", "16"],
        "note": ["-", "memory could not be bound"],
    }


def test_a_set_that_is_a_mixture_says_so(compare, tmp_path):
    a, b = save_set(tmp_path / "a", A_VALUES), save_set(tmp_path / "b", A_VALUES[:3], begin=10)
    save_set(b, A_VALUES[3:], begin=20, facts={"kernel": "6.2"})
    assert conditions(compare(a, b)[1]) == {"kernel": ["6.1", "6.1 or 6.2"]}


def test_settings_that_vary_within_a_set_are_matched(compare, tmp_path):
    for name, sizes, begin in (("a", (8, 16), 0), ("b", (16, 8, 32), 20)):
        for size in sizes:
            factor = size * (0.9 if name == "b" and size == 16 else 1)
            save_set(tmp_path / name, scaled(factor), begin=begin, BATCH_SIZE=str(size), CUSTOMER_ENV=f"X={name}")
    code, output, _ = compare(tmp_path / "a", tmp_path / "b")
    table = read_table(output)
    assert code == 4
    assert [(row[1], row[-1]) for row in table[1:]] == [("8", "same"), ("16", "slower")]
    assert conditions(output) == {"CUSTOMER_ENV": ["X=a", "X=b", "2 of 2"]}
    assert "only B has runs" in output
    assert "BATCH_SIZE=32" in output


def test_many_cases_are_corrected_for_and_summed_up(compare, tmp_path):
    names = [f"{CASE}{number}" for number in range(12)]
    for name in names:
        save_set(tmp_path / "a", A_VALUES, case=name)
        save_set(tmp_path / "b", scaled(0.9), begin=10, case=name)
    values = [100, 103, 100, 97, 101]
    save_set(tmp_path / "a", values, case=LATENCY)
    save_set(tmp_path / "b", [0.97 * one for one in values], begin=10, case=LATENCY)
    code, output, _ = compare(tmp_path / "a", tmp_path / "b")
    found = [row[-1].split()[0] for row in read_table(output)[1:]]
    assert (code, sorted(found)) == (4, ["cannot"] + ["slower"] * 12)
    (means,) = (table for table in read_tables(output) if table[0][0] == "geometric mean of")
    assert means[1][:2] == ["Throughput of CNN-PyTorch-Public", "B"]
    assert float(means[1][2]) == pytest.approx((0.9**12 * 0.97) ** (1 / 13), abs=1e-3)
    assert means[1][-1] == "13"


def test_of_several_sets_the_first_is_what_the_others_are_compared_with(compare, tmp_path):
    sets = [save_set(tmp_path / name, scaled(factor), begin=10 * n) for n, (name, factor) in enumerate(
        [("a", 1), ("b", 1.1), ("c", 0.9)]
    )]  # fmt: skip
    code, output, _ = compare(*sets)
    assert code == 4
    assert [(row[2], row[-1]) for row in read_table(output)[1:]] == [("B", "faster"), ("C", "slower")]


def test_sets_that_were_measured_in_turns_are_told_apart_by_less(compare, tmp_path):
    one, other = [100, 101.5, 98.5, 101.4, 98.6], [97, 98.5, 95.5, 98.4, 95.6]
    for number, values in enumerate(zip(one, other, strict=True)):
        for name, value in zip("ab", values, strict=True):
            save_run(tmp_path / name, make_run(value, minutes=2 * number + (name == "b")))
    after = save_set(tmp_path / "later", other, begin=100)
    turns = compare(tmp_path / "a", tmp_path / "b")
    assert turns[0] == 4
    assert "in turns" not in turns[1]
    code, output, _ = compare(tmp_path / "a", after)
    assert (code, verdict(output)) == (0, "cannot tell [1]")
    assert "not measured in turns" in output


def test_what_others_took_makes_no_regression(compare, tmp_path):
    taken = [[Kpi(key="Other load", unit="%", value=value)] for value in (1, 51)]
    a = save_set(tmp_path / "a", A_VALUES, extra=taken[0])
    b = save_set(tmp_path / "b", scaled(0.5), begin=10, extra=taken[1])
    code, output, _ = compare(a, b)
    assert (code, verdict(output)) == (0, "cannot tell [1]")
    assert "others took 1.0% in A and 51.0% in B of the cores' time" in output.replace("\n    ", " ")


def test_other_programs_get_records(compare, tmp_path):
    a, b = save_set(tmp_path / "a", A_VALUES), save_set(tmp_path / "b", scaled(0.9), begin=10, facts={"kernel": "6.2"})
    (record,) = json.loads(compare(a, b, "--format", "json")[1])
    assert record["finding"] == "slower"
    assert record["low"] < record["ratio"] < record["high"] < 1
    assert record["ratio"] == pytest.approx(0.9)
    assert record["conditions"] == [{"name": "kernel", "first": "6.1", "second": "6.2"}]
    (row,) = csv.DictReader(io.StringIO(compare(a, b, "--format", "csv")[1]))
    assert (row["finding"], row["runs"], row["case"]) == ("slower", "5", CASE)
    assert row["conditions"] == "kernel: 6.1, now 6.2"
