"""What `cnnbench compare` is given that cannot be compared, or only in part."""

import json
import os

import pytest

from cnnbench.cli.main import main
from cnnbench.results.record import Kpi
from run_files import CASE, make_run, save_run, save_set

VALUES = [100.0, 100.4, 99.7, 100.2, 99.9]


@pytest.fixture
def compare(capsys):
    """Call the command; return its exit code, its output and its errors."""

    def call(*words):
        code = main(["compare", *map(str, words)])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def sets(tmp_path):
    return save_set(tmp_path / "a", VALUES), save_set(tmp_path / "b", VALUES, begin=10)


def plain(text):
    """Return a text with its lines put together."""
    return " ".join(text.split())


def result(folder, number=1):
    return folder / f"logs-{CASE}" / f"itr-{number}" / "worker-0" / "run.json"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_text(path.read_text()[:500]), "not a complete result of schema 1"),
        (lambda path: path.write_text(""), "not a complete result of schema 1"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a complete result of schema 1"),
        (lambda path: path.write_text("[" * 5000), "not a complete result of schema 1"),
        (
            lambda path: path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2')),
            "schema 2",
        ),
        (lambda path: path.unlink(), "no run.json there"),
        (lambda path: (path.unlink(), path.mkdir()), "no run.json there"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "run.json"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "no run.json there"),
    ],
)
def test_what_is_no_result_is_named_and_the_others_are_compared(compare, sets, spoil, told):
    a, b = sets
    spoil(result(b))
    code, output, errors = compare(a, b)
    assert code == 1
    assert told in errors
    assert told in plain(output)
    assert " 5, 4 " in output


def test_folders_without_a_result_are_refused(compare, sets, tmp_path):
    a, _ = sets
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / f"logs-{CASE}").mkdir(parents=True)
    (tmp_path / "text").write_text("no result")
    for name in ("empty", "begun", "text", "not-there"):
        code, output, errors = compare(a, tmp_path / name)
        assert (code, output) == (2, "")
        assert name in errors
        assert "needed is a folder with logs-<case>/itr-N in it" in errors


def test_one_set_is_none_to_compare(compare, sets):
    code, _, errors = compare(sets[0])
    assert (code, "needed 2 to 26" in errors) == (2, True)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_runs_tell_nothing_and_say_so(compare, sets, tmp_path, count):
    few = save_set(tmp_path / "few", VALUES[:count], begin=20)
    few.mkdir(exist_ok=True)
    code, output, errors = compare(sets[0], few)
    assert code == (0 if count else 2)
    if count:
        assert "needs 3 runs of each at the least" in output
    else:
        assert "no result of a run there" in errors


def test_a_run_is_not_compared_with_itself_nor_counted_twice(compare, sets):
    a, b = sets
    code, _, errors = compare(a, a)
    assert (code, "a run is not compared with itself" in errors) == (2, True)
    save_run(b, make_run(VALUES[0], 10))
    code, output, errors = compare(a, b)
    assert code == 1
    assert "again" in errors
    assert " 5, 5 " in output


def test_hostile_names_do_nothing_to_a_terminal(compare, tmp_path):
    case, fact = "test_x\x1b[2J\nslower", "6.1\x1b]0;owned\x07"
    a = save_set(tmp_path / "a", VALUES, case="plain", facts={"kernel": "5"})
    b = tmp_path / "b \x1b[31m [1]"
    save_set(b, VALUES, begin=10, case="plain", facts={"kernel": fact})
    for path, name in ((a, "one"), (b, "two")):
        for number, value in enumerate(VALUES):
            run = make_run(value, number, case=case, run_id=f"{name}{number}", key="Throughput")
            folder = path / os.fsdecode(b"logs-\xff \x1b[0m") / f"itr-{number + 1}" / "worker-0"
            folder.mkdir(parents=True)
            (folder / "run.json").write_text(run.model_dump_json())
    (b / os.fsdecode(b"logs-\xfe\x1b[5m")).mkdir()
    for form in ("table", "csv", "json"):
        code, output, errors = compare(a, b, "--format", form)
        assert code == 1
        assert output.encode()
        assert "\x1b" not in errors
        assert "\x07" not in output
        assert "\x1b" not in output
    assert json.loads(output)


def test_unlike_workloads_are_refused_unless_told(compare, sets, tmp_path):
    other = save_set(
        tmp_path / "other", [80.0, 80.1, 79.9], begin=10, workload="Other", case=CASE.replace("cnn_pytorch", "other")
    )
    code, _, errors = compare(sets[0], other)
    assert code == 2
    assert f"no case in common: A has {CASE}" in errors
    assert compare(sets[0], other, "--unlike")[0] == 4
    int8 = save_set(tmp_path / "int8", [200.0, 201, 199], begin=10, case=CASE.replace("avx_fp32", "avx_int8"))
    code, output, _ = compare(sets[0], int8, "--unlike")
    assert (code, "faster" in output) == (0, True)
    latency = save_set(
        tmp_path / "l", [5.0, 5.1, 5], begin=10, case=CASE.replace("throughput", "latency"), key="Latency mean"
    )
    code, _, errors = compare(sets[0], latency, "--unlike")
    assert (code, "do not compare" in errors) == (2, True)


def test_a_case_that_one_set_lacks_is_named(compare, sets):
    save_set(sets[0], VALUES, case="test_only_here")
    code, output, _ = compare(*sets)
    assert code == 0
    assert "only A has runs of test_only_here" in output


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("Throughputt", "did you mean Throughput or"),
        ("speed", "there are Capacity, Throughput"),
        ("Throughput drift", "better high or low"),
        ("Latency p99", "no run has it; the runs have Throughput"),
    ],
)
def test_metrics_that_do_not_exist_are_refused(compare, sets, metric, told):
    code, _, errors = compare(*sets, "--metric", metric)
    assert (code, told in errors) == (2, True), errors


def test_runs_that_lack_the_metric_are_counted(compare, tmp_path):
    p99 = Kpi(key="Latency p99", unit="ms", value=5)
    a, b = save_set(tmp_path / "a", VALUES, extra=[p99]), save_set(tmp_path / "b", VALUES[:3], begin=10, extra=[p99])
    save_set(b, VALUES[3:], begin=20)
    code, output, _ = compare(a, b, "--metric", "Latency p99")
    assert code == 0
    assert "B: 2 of 5 runs have no Latency p99, left out" in output


def test_there_is_no_ratio_of_nothing(compare, tmp_path):
    for name, begin in (("a", 0), ("b", 10)):
        save_set(tmp_path / name, VALUES, begin=begin, extra=[Kpi(key="Stolen time", unit="%", value=0)])
    code, output, _ = compare(tmp_path / "a", tmp_path / "b", "--metric", "Stolen time")
    assert code == 0
    assert "cannot tell [1]" in output
    assert "values of 0 or below" in output


def test_a_clock_that_went_back_takes_no_part(compare, tmp_path):
    a, b = save_set(tmp_path / "a", VALUES), tmp_path / "b"
    for value, minutes in zip(VALUES, (2, 4, 1, 3, 5), strict=True):
        save_run(b, make_run(value, minutes=minutes))
    code, output, _ = compare(a, b)
    assert code == 0
    assert "B: the clock went back: itr-3 was started before itr-2 by it" in plain(output)
    assert "not measured in turns" in output
    for folder, first in (("of-one", 3), ("of-two", 0)):  # whose runs are not in the order of the folders' names
        for number, value in enumerate(VALUES[:3]):
            save_run(tmp_path / "c" / folder, make_run(value, minutes=10 + first + number))
    assert "went back" not in plain(compare(a, tmp_path / "c")[1])
    broken = make_run(100.0, minutes=9).model_copy(update={"started": "yesterday"})
    save_run(a, broken)
    assert compare(a, b)[0] == 0
