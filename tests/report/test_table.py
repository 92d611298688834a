"""Tables over run.json files that RunResult has written."""

import csv
import io
import itertools
import json
import statistics

import pytest
from pydantic import ValidationError

from cnnbench.base.errors import UsageError
from cnnbench.report.table import CSV_COLUMNS, kpi_table, list_kpis
from cnnbench.report.text import Footnotes, align
from cnnbench.results.record import KILLED, Criterion, Kpi, RunResult
from cnnbench.run.measurement import new_logs_directory
from read_table import read_table

PREFIX = "test_resnet50v1_5_tensorflow_xeon_public_inference_"
THROUGHPUT = "throughput_avx_fp32_gated"
LATENCY = "latency_avx_fp32"
NUMBERS = itertools.count(1)


def make_run(
    case=THROUGHPUT, value=151.42, *, unit="img/s", criteria=(), extra=(), effective=None, facts=None, **requested
):
    key = {"throughput": "Throughput", "latency": "Latency", "accuracy": "Accuracy"}[case.split("_")[0]]
    requested = {"MODE": case.split("_")[0], "BATCH_SIZE": "1", "CORES_PER_INSTANCE": "auto", **requested}
    return RunResult(
        run_id=str(next(NUMBERS)),
        started="2025-01-01T00:00:00Z",
        workload="resnet50v1_5_tensorflow_xeon_public",
        case=PREFIX + case,
        requested=requested,
        effective=requested | {"CORES_PER_INSTANCE": "2"} | (effective or {}),
        facts=facts or {},
        plan={},
        instances=[],
        kpis=[Kpi(key=key, unit=unit, value=value, primary=True), *extra],
        criteria=list(criteria),
        notes=[],
    )


KILLED_INSTANCE = Criterion(name="instances", passed=False, found=KILLED, needed="")
UNSTEADY = Criterion(name="spread", passed=False, found="12.0 %", needed="at most 5 %", severity="unstable")


@pytest.fixture
def save(tmp_path):
    def write(run, name=None, parent=""):
        worker = new_logs_directory(tmp_path / parent, (name or run.case).removeprefix("logs-"))
        (worker / "run.json").write_text(run.model_dump_json())
        return worker.parent

    return write


@pytest.fixture
def repeated(save):
    values = [150.0, 152.0, 157.0]
    return [save(make_run(value=value)) for value in values]


REPEATED = 1
"""The number of the table of repeated runs."""


def fits(text):
    """Say whether a text fits a terminal of 80 columns."""
    return max(map(len, text.splitlines())) <= 80


def test_repeated_runs_are_summarised(repeated):
    listing = list_kpis(repeated)
    assert listing.failures == []
    table = read_table(listing.text)
    assert table[0] == ["logs", "KPI", "value", "verdict"]
    assert table[1] == [f"{THROUGHPUT}/itr-1", "Throughput (img/s)", "150.0", "valid"]
    assert table[3] == [f"{THROUGHPUT}/itr-3", "Throughput (img/s)", "157.0", "valid"]
    deviation = f"{statistics.stdev([150, 152, 157]):.3f}"
    assert read_table(listing.text, REPEATED)[1:] == [
        [THROUGHPUT, "Throughput (img/s)", "153.0", deviation, "152.0", "3", "0"]
    ]
    assert f"begin with\nlogs-{PREFIX}\n" in listing.text
    assert fits(listing.text)


@pytest.mark.parametrize("below", ["..", ".", "worker-0"], ids=["logs", "itr", "worker"])
def test_the_runs_of_each_kind_of_directory(repeated, below):
    (one, *_) = repeated
    rows = json.loads(list_kpis([one / below], output_format="json").text)
    shown = [(row["logs"].rpartition("/")[2], row["value"]) for row in rows if row["record"] == "run"]
    assert shown == [("itr-1", 150.0), ("itr-2", 152.0), ("itr-3", 157.0)][: 3 if below == ".." else 1]
    assert all(row["logs"].startswith(f"logs-{PREFIX}") for row in rows if row["record"] == "run")


def test_the_runs_of_a_case_are_in_the_order_of_their_numbers(save):
    for value in range(1, 12):
        case = save(make_run(value=value)).parent
    rows = json.loads(list_kpis([case], output_format="json").text)
    assert [row["value"] for row in rows if row["record"] == "run"] == list(range(1, 12))


def test_a_run_without_a_result_is_a_failure_beside_the_cases_others(repeated):
    (case,) = {run.parent for run in repeated}
    (case / "itr-2" / "worker-0" / "run.json").unlink()
    (case / "itr-9").mkdir()
    listing = list_kpis([case])
    assert [f"itr-{number} " in listing.text for number in (1, 2, 3, 9)] == [True, False, True, False]
    assert [failure.partition(": ")[0] for failure in listing.failures] == [
        str(case / name / "worker-0") for name in ("itr-2", "itr-9")
    ]
    assert all("no run.json there" in failure for failure in listing.failures)


def test_only_the_same_parameters_are_repetitions(save):
    runs = [
        save(make_run(value=100, BATCH_SIZE="8"), "logs-a"),
        save(make_run(value=110, BATCH_SIZE="32"), "logs-b"),
        save(make_run(value=120, BATCH_SIZE="32"), "logs-c"),
        save(make_run(value=999, BATCH_SIZE="32", effective={"CORES_PER_INSTANCE": "4"}), "logs-d"),
    ]
    text = list_kpis(runs).text
    table = read_table(text)
    assert table[0] == ["logs", "case", "BATCH_SIZE", "CORES_PER_INSTANCE", "KPI", "value", "verdict"]
    assert table[1] == ["logs-a/itr-1", THROUGHPUT, "8", "2", "Throughput (img/s)", "100.0", "valid"]
    assert read_table(text, REPEATED)[1:] == [
        [THROUGHPUT, "32", "2", "Throughput (img/s)", "115.0", "7.071", "115.0", "2", "0"]
    ]
    assert fits(text)


def test_an_invalid_run_shows_its_reason_and_never_a_value(save):
    runs = [
        save(make_run(value=100), "logs-a"),
        save(make_run(value=77777, criteria=[KILLED_INSTANCE]), "logs-b"),
        save(make_run(value=102), "logs-c"),
    ]
    for output_format in ("table", "csv", "json"):
        for all_kpis in (False, True):
            text = list_kpis(runs, output_format=output_format, all_kpis=all_kpis).text
            assert "77777" not in text
            assert "killed during execution" in " ".join(text.split())
    text = list_kpis(runs).text
    assert "INVALID [1]" in text
    assert "\n[1] Some instances were killed" in text
    assert read_table(list_kpis(runs).text, REPEATED)[-1][-2:] == ["2", "0"]


def test_an_unstable_run_counts_and_says_why(save):
    runs = [save(make_run(value=100)), save(make_run(value=110, criteria=[UNSTEADY]))]
    text = list_kpis(runs).text
    assert "110.0  unstable [1]\n\n[1] spread: 12.0 %, needed at most 5 %" in text
    assert read_table(text, REPEATED)[-1][-2:] == ["2", "1"]
    assert json.loads(list_kpis(runs, output_format="json").text)[-1]["unstable"] == 1


HOST = {
    "CPU": "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz",
    "CPUs used": "0-3",
    "kernel": "6.1.0",
    "TensorFlow": "2.15.0",
    "oneDNN": "v3.2.1",
    "model SHA-256": "a" * 64,
    "int8 graph SHA-256": "e" * 64,
    "dataset SHA-256": "d" * 64,
    "load average before": "0.10",
}


@pytest.mark.parametrize(
    ("name", "other", "shown"),
    [
        ("CPU", "AMD EPYC 9654 96-Core Processor", ["Intel Xeon Platinum 8480+", "AMD EPYC 9654 96-Core"]),
        ("CPUs used", "4-7", ["0-3", "4-7"]),
        ("kernel", "6.12.3", ["6.1.0", "6.12.3"]),
        ("TensorFlow", "2.21.0", ["2.15.0", "2.21.0"]),
        ("oneDNN", "v3.11", ["v3.2.1", "v3.11"]),
        ("model SHA-256", "b" * 64, ["a" * 12, "b" * 12]),
        ("int8 graph SHA-256", "f" * 64, ["e" * 12, "f" * 12]),
        ("dataset SHA-256", "c" * 64, ["d" * 12, "c" * 12]),
    ],
)
def test_runs_of_another_machine_engine_model_or_data_set_are_no_repetitions(save, name, other, shown):
    here, there = HOST, HOST | {name: other}
    values = [(here, 100), (here, 102), (there, 200), (there, 204)]
    runs = [save(make_run(value=value, facts=facts), f"logs-{n}") for n, (facts, value) in enumerate(values)]
    text = list_kpis(runs).text
    assert [row[1] for row in read_table(text, REPEATED)] == [name, *shown]
    assert [row[3:5] for row in read_table(text, REPEATED)[1:]] == [["101.0", "1.414"], ["202.0", "2.828"]]
    assert fits(text)
    records = json.loads(list_kpis(runs, output_format="json").text)
    assert [(one["facts"], one["mean"]) for one in records[4:]] == [({name: HOST[name]}, 101), ({name: other}, 202)]
    rows = list(csv.DictReader(io.StringIO(list_kpis(runs, output_format="csv").text)))
    assert [row[name] for row in rows] == [HOST[name]] * 2 + [other] * 2 + [HOST[name], other]


def test_conditions_that_vary_by_the_run_are_no_other_machine(save):
    loads = [HOST | {"load average before": load, "measured for": f"{load} s"} for load in ("0.10", "0.20")]
    text = list_kpis([save(make_run(facts=facts), f"logs-{n}") for n, facts in enumerate(loads)]).text
    assert read_table(text)[0] == ["logs", "case", "KPI", "value", "verdict"]
    assert read_table(text, REPEATED)[-1][-2:] == ["2", "0"]


def test_what_follows_from_the_parameters_has_no_column_beside_theirs(save):
    dummy = {name: value for name, value in HOST.items() if name != "dataset SHA-256"}
    runs = [
        save(make_run(facts=HOST, INSTANCES="1"), "logs-a"),
        save(make_run(facts=dummy | {"CPUs used": "0-7"}, INSTANCES="2"), "logs-b"),
    ]
    assert read_table(list_kpis(runs).text)[0] == ["logs", "case", "INSTANCES", "KPI", "value", "verdict"]


def test_the_table_fits_a_terminal(save):
    case = "throughput_amx_bfloat16_gated"
    settings = [{"BATCH_SIZE": str(size), "DATA_TYPE": kind} for size in (1, 128) for kind in ("dummy", "real")]
    runs = [
        save(make_run(case, 12345.6 / n, criteria=[KILLED_INSTANCE] * (n % 2), **setting))
        for n, setting in enumerate(settings, start=1)
    ]
    text = list_kpis(runs, params=True).text
    assert fits(text)
    assert text.count("Some instances were killed") == 1
    assert "BATCH_SIZE=128" in text


def test_all_shows_every_kpi_and_primary_only_one(save):
    more = {"Latency 95 % low": 13.25, "Latency 95 % high": 13.55, "Latency p50": 13.1163}
    extra = [Kpi(key=key, unit="ms", value=value) for key, value in more.items()]
    runs = [save(make_run(LATENCY, 13.4, unit="ms", extra=extra)) for _ in range(2)]
    assert "p50" not in list_kpis(runs).text
    text = list_kpis(runs, all_kpis=True).text
    rows = [["Latency (ms)", "13.40", "13.25", "13.55", "valid"], ["Latency p50 (ms)", "13.12", "-", "-", "valid"]]
    assert [row[1:] for row in read_table(text)] == [["KPI", "value", "low", "high", "verdict"], *rows, *rows]
    assert [row[1] for row in read_table(text, REPEATED)[1:]] == ["Latency (ms)", "Latency p50 (ms)"]
    assert fits(text)
    rows = [("Latency", 13.4, 13.25, 13.55), ("Latency p50", 13.1163, None, None)]
    records = json.loads(list_kpis(runs, all_kpis=True, output_format="json").text)
    assert [(one["kpi"], one["value"], one.get("low"), one.get("high")) for one in records[:4]] == rows * 2
    table = csv.DictReader(io.StringIO(list_kpis(runs, all_kpis=True, output_format="csv").text))
    assert [(row["kpi"], row["low"]) for row in table] == [
        *[("Latency", "13.25"), ("Latency p50", "")] * 2, ("Latency", ""), ("Latency p50", ""),
    ]  # fmt: skip


def test_params_adds_the_effective_parameters(repeated):
    assert "CORES_PER_INSTANCE=2" not in list_kpis(repeated).text
    assert f"{THROUGHPUT}/itr-2: BATCH_SIZE=1 CORES_PER_INSTANCE=2" in list_kpis(repeated, params=True).text
    (first, *_) = json.loads(list_kpis(repeated, params=True, output_format="json").text)
    assert first["parameters"] == {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "2"}


def test_json_is_a_list_of_objects(repeated, save):
    invalid = save(make_run(criteria=[KILLED_INSTANCE]), "logs-bad")
    records = json.loads(list_kpis([*repeated, invalid], output_format="json").text)
    assert records[0] == {
        "record": "run",
        "logs": f"logs-{PREFIX}{THROUGHPUT}/itr-1",
        "case": PREFIX + THROUGHPUT,
        "parameters": {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "2"},
        "facts": {},
        "kpi": "Throughput",
        "unit": "img/s",
        "value": 150.0,
        "verdict": "valid",
    }
    assert records[3]["verdict"] == "invalid"
    assert records[3]["reason"] == KILLED
    assert "value" not in records[3]
    assert records[4] == {
        "record": "repeated",
        "case": PREFIX + THROUGHPUT,
        "parameters": {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "2"},
        "facts": {},
        "kpi": "Throughput",
        "unit": "img/s",
        "mean": 153.0,
        "standard_deviation": pytest.approx(statistics.stdev([150, 152, 157])),
        "median": 152.0,
        "n": 3,
        "unstable": 0,
    }


@pytest.mark.parametrize("count", [1, 3])
def test_csv_has_the_same_columns_always(repeated, count):
    rows = list(csv.DictReader(io.StringIO(list_kpis(repeated[:count], output_format="csv").text)))
    assert tuple(rows[0]) == (*CSV_COLUMNS, "BATCH_SIZE", "CORES_PER_INSTANCE")
    assert float(rows[0]["value"]) == 150
    assert rows[0]["n"] == ""
    assert [row["n"] for row in rows if row["record"] == "repeated"] == ["3"] * (count == 3)


def test_csv_has_a_column_for_each_parameter_and_the_ends_of_intervals(save):
    interval = [
        Kpi(key=f"Throughput 95 % {end}", unit="img/s", value=value) for end, value in (("low", 99), ("high", 103))
    ]
    runs = [
        save(make_run(value=100, BATCH_SIZE="8", extra=interval), "logs-a"),
        save(make_run(value=110, CUSTOMER_ENV="A=1 B='two words, one comma'"), "logs-b"),
        save(make_run(criteria=[KILLED_INSTANCE]), "logs-c"),
    ]
    rows = list(csv.DictReader(io.StringIO(list_kpis(runs, output_format="csv").text)))
    assert tuple(rows[0]) == (*CSV_COLUMNS, "BATCH_SIZE", "CORES_PER_INSTANCE", "CUSTOMER_ENV")
    assert [row["BATCH_SIZE"] for row in rows] == ["8", "1", "1"]
    assert [row["CUSTOMER_ENV"] for row in rows] == ["", "A=1 B='two words, one comma'", ""]
    assert [(row["value"], row["low"], row["high"]) for row in rows] == [
        ("100.0", "99.0", "103.0"),
        ("110.0", "", ""),
        ("", "", ""),
    ]
    first, second, _ = json.loads(list_kpis(runs, output_format="json").text)
    assert (first["low"], first["high"]) == (99, 103)
    claims = save(
        make_run(value=5, value_="1").model_copy(update={"effective": {"value": "99", "verdict": "fine"}}), "x"
    )
    (row,) = csv.DictReader(io.StringIO(list_kpis([claims], output_format="csv").text))
    assert (row["value"], row["verdict"]) == ("5.0", "valid")
    assert "low" not in second


def test_a_directory_without_a_result_is_a_failure_beside_the_rest(repeated, tmp_path):
    (tmp_path / "logs-empty").mkdir()
    (new_logs_directory(tmp_path, "cut") / "run.json").write_text('{"schema_version": 1, "run_id"')
    listing = list_kpis([tmp_path / "logs-empty", *repeated, tmp_path / "logs-cut", tmp_path / "logs-not-there"])
    assert [THROUGHPUT in line for line in listing.text.splitlines()].count(True) == 4
    assert len(listing.failures) == 3
    assert "logs-empty: no itr-N there; no run of the case has begun" in listing.failures[0]
    assert "not a complete result" in listing.failures[1]


def test_a_result_cut_inside_a_character_is_a_failure_too(save):
    directory = save(make_run(criteria=[Criterion(name="interval", passed=True, found="±0.5 %", needed="±1 %")]))
    whole = (directory / "worker-0" / "run.json").read_bytes()
    (directory / "worker-0" / "run.json").write_bytes(whole[: whole.index("±".encode()) + 1])
    listing = list_kpis([directory])
    assert "not a complete result" in listing.failures[0]


@pytest.mark.parametrize("primary", [(), ("Throughput", "Latency")])
@pytest.mark.parametrize("criteria", [(), (UNSTEADY,)])
def test_a_run_that_is_not_invalid_has_one_primary_kpi(primary, criteria):
    fields = make_run(criteria=criteria).model_dump()
    fields["kpis"] = [{"key": key, "unit": "", "value": 1, "primary": True} for key in primary]
    with pytest.raises(ValidationError, match=f"{len(primary)} primary KPIs"):
        RunResult.model_validate(fields)
    fields["criteria"] = [KILLED_INSTANCE]
    assert RunResult.model_validate(fields).verdict == "invalid"


def test_only_failures_is_an_empty_table(tmp_path):
    for output_format, text in [("table", ""), ("json", "[]"), ("csv", ",".join(CSV_COLUMNS))]:
        listing = list_kpis([tmp_path], output_format=output_format)
        assert listing.text == text
        assert len(listing.failures) == 1


def test_directories_of_the_same_name_show_their_paths(save):
    runs = [save(make_run(), "logs-x", parent) for parent in ("before", "after")]
    text = list_kpis(runs).text
    assert "before/logs-x/itr-1" in text
    assert "after/logs-x/itr-1" in text


def test_no_directory_is_bad_usage():
    with pytest.raises(UsageError, match=r"logs-\*"):
        list_kpis([])


def test_cases_of_several_workloads_keep_their_names(save):
    other = make_run().model_copy(update={"case": f"test_vgg_inference_{THROUGHPUT}"})
    text = list_kpis([save(make_run()), save(other)]).text
    names = [f"logs-{PREFIX}{THROUGHPUT}/itr-1", f"logs-test_vgg_inference_{THROUGHPUT}/itr-1"]
    assert [row[0] for row in read_table(text)[1:]] == names
    assert fits(text)


def test_kpi_table_shows_intervals_percentiles_and_verdicts():
    runs = [
        make_run(
            extra=[
                Kpi(key="Throughput 95 % low", unit="img/s", value=150.9),
                Kpi(key="Throughput 95 % high", unit="img/s", value=152.04),
            ]
        ),
        make_run(
            LATENCY,
            13.4,
            unit="ms",
            extra=[Kpi(key="Latency p50", unit="ms", value=13.1), Kpi(key="Latency p99", unit="ms", value=15.25)],
        ),
        make_run("accuracy_avx_fp32", 86.3, unit="%", criteria=[KILLED_INSTANCE]),
    ]
    text = kpi_table(runs)
    assert read_table(text) == [
        ["case", "KPI", "value", "spread", "verdict"],
        [THROUGHPUT, "Throughput (img/s)", "151.4", "150.9 to 152.0 (95 %)", "valid"],
        [LATENCY, "Latency (ms)", "13.40", "p50=13.10 p99=15.25", "valid"],
        ["accuracy_avx_fp32", "-", "-", "-", "INVALID [1]"],
    ]
    assert text.endswith(f"\n\n[1] {KILLED}")
    assert fits(text)


def test_runs_of_one_case_are_told_apart_by_what_was_asked_of_each():
    def asked(case, value, **parameters):
        run = make_run(case, value)
        return run.model_copy(update={"requested": {**run.requested, **parameters}})

    runs = [
        asked(THROUGHPUT, 100.0, BATCH_SIZE="8", STEPS="10"),
        asked(THROUGHPUT, 120.0, BATCH_SIZE="16", STEPS="10"),
        asked("accuracy_avx_fp32", 80.0, BATCH_SIZE="50", STEPS="20"),
    ]
    text = kpi_table(runs)
    assert [row[:2] for row in read_table(text)] == [
        ["case", "settings"],
        [THROUGHPUT, "BATCH_SIZE=8"],
        [THROUGHPUT, "BATCH_SIZE=16"],
        ["accuracy_avx_fp32", "-"],
    ]
    assert fits(text)


def test_what_is_too_wide_is_broken_where_its_words_allow_and_numbers_last():
    header = ["case_name", "rate (img/s)", "empty", "verdict"]
    cells = [["a_long_name", "12.50 ±0.25", "", "unstable [1] [2]"], ["b", "7", "", "valid"]]
    whole = [header, ["a_long_name", "12.50 ±0.25", "-", "unstable [1] [2]"], ["b", "7", "-", "valid"]]
    for width in (None, 80, 40, 31):
        assert read_table(align(header, cells, width)) == whole
        assert max(map(len, align(header, cells, width).splitlines())) <= (width or 80)
    assert align(header, cells, 40).splitlines() == [
        "                  rate",
        "case_name      (img/s)  empty  verdict",
        "a_long_    12.50 ±0.25      -  unstable",
        "name                           [1] [2]",
        "b                    7      -  valid",
    ]


def test_a_note_stands_once_and_its_paths_and_options_whole():
    notes, path = Footnotes(), f"/{'long/' * 20}run-1.json"
    assert [notes.cite("INVALID", text) for text in (path, "", "no --option", path)] == [
        "INVALID [1]", "INVALID", "INVALID [2]", "INVALID [1]",
    ]  # fmt: skip
    assert notes.below("table").splitlines() == ["table", "", f"[1] {path}", "[2] no --option"]
