"""`cnnbench export`, as a user calls it: what it writes is read back by the libraries that its users use."""

import csv
import importlib.metadata
import io
import json
import re

import jsonschema
import junitparser
import openpyxl
import pandas
import pytest
from lxml import etree
from markdown_it import MarkdownIt

from checkout import ROOT
from cnnbench.cli.main import main
from cnnbench.report.export.formats import FORMATS, SUFFIXES
from cnnbench.report.export.parquet import COLUMNS
from cnnbench.report.text import printable
from cnnbench.results.record import INTERRUPTED_RUN, SEEN, Criterion, Kpi, RunResult
from run_files import CASE, INVALID, UNSTEADY, WORKLOAD, make_run, save_run, save_set

KEPT = ROOT / "tests" / "results" / "schema-1"
"""Files of schema 1, as later versions must read them."""
ENDS = [
    Kpi(key="Throughput 95 % low", unit="img/s", value=98.5),
    Kpi(key="Throughput 95 % high", unit="img/s", value=103),
]
FIGURES = [*ENDS, Kpi(key="Latency p50", unit="ms", value=0.00052)]
OTHER = "test_other_inference_throughput_avx_fp32"
INTERRUPTED = Criterion(name="instances", passed=False, found=INTERRUPTED_RUN, needed="")

HOSTILE = (
    "a|b", "<script>alert(1)</script>", "=1+1", "+1", "-1+1", "@A1", "\t=1", "\r\n=1", "\ra", "a\nb", "\x1b[31m",
    "\ufffe", "]]>", "&amp; &#124;", "_x0041_", "'a'", '"b",c', "[l](javascript:x)", "`c`", "# d", "**e**", "_f_",
    "- g", "1. h", "~~i~~", "a\\|b", "\u202eright", "http://x.y", "\U0001f600",
)  # fmt: skip
"""What texts of a run may be without being markup, a formula, or the end of a row."""


@pytest.fixture
def call(capsys):
    """Call a command; return its exit code, its output and its errors."""

    def run(*words):
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def logs(tmp_path):
    """Return the logs of two workloads: repeated runs, an unstable, an invalid and an interrupted one, two batches."""
    root = tmp_path / "runs"
    measured = {"measured for": "2.50 s, 100 steps"}
    save_set(root, [100.0, 104.0], extra=FIGURES, facts=measured)
    save_run(root, make_run(101.0, 3, criteria=[UNSTEADY], extra=FIGURES, facts=measured))
    save_run(root, make_run(1.0, 4, criteria=[INVALID]))
    save_run(root, make_run(50.0, 5, BATCH_SIZE="1", PRECISION="avx_fp32"))
    save_run(root, make_run(7.0, 6, case=OTHER, workload="Other"))
    save_run(
        root, make_run(1.0, 7, case=OTHER, workload="Other", criteria=[INTERRUPTED], facts={SEEN: INTERRUPTED_RUN})
    )
    return sorted(root.glob("logs-*"))


def results(logs):
    """Return the results by the names of their logs."""
    paths = sorted(path for one in logs for path in one.glob("itr-*/worker-0/run.json"))
    return {"/".join(path.parts[-4:-2]): RunResult.model_validate_json(path.read_bytes()) for path in paths}


def read_document(path):
    """Return a file of results, held against the published schema."""
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((ROOT / "doc" / "results.schema.json").read_text()))
    return document


def test_json_has_the_whole_results_and_is_read_wherever_runs_are(call, logs, tmp_path):
    file, again = tmp_path / "x.json", tmp_path / "again.json"
    code, output, errors = call("export", *logs, "-o", file)
    assert (code, errors) == (0, "")
    assert output.startswith(f"wrote {file}, ")
    document = read_document(file)
    assert {one["logs"]: RunResult.model_validate(one["result"]) for one in document["runs"]} == results(logs)
    assert {one["logs"]: (one["verdict"], one["reason"]) for one in document["runs"]} == {
        name: (run.verdict, run.reason) for name, run in results(logs).items()
    }
    assert call("export", file, "-o", again)[0] == 0
    assert again.read_bytes() == file.read_bytes()
    assert call("list-kpi", "--all", file) == call("list-kpi", "--all", *logs)
    assert call("list-kpi", "--all", "--format", "csv", file) == call("list-kpi", "--all", "--format", "csv", *logs)
    assert call("report", file, "-o", tmp_path / "page.html")[1].endswith(" 7 runs\n")
    save_set(tmp_path / "b", [90.0, 91.0, 90.5], begin=20)
    from_file, from_logs = (call("compare", one, tmp_path / "b", "--format", "json") for one in (file, logs[0].parent))
    assert from_file[0] == from_logs[0] == 4
    assert from_file[1].replace(str(file), "A") == from_logs[1].replace(str(logs[0].parent), "A")


def test_the_published_schema_is_that_of_the_models_and_of_a_run_json(call, logs):
    published = (ROOT / "doc" / "results.schema.json").read_text()
    assert call("export", "--schema") == (0, published, "")
    run_schema = {**json.loads(published), "$ref": "#/$defs/RunResult"}
    jsonschema.Draft202012Validator.check_schema(run_schema)
    document = json.loads((logs[0] / "itr-1" / "worker-0" / "run.json").read_text())
    jsonschema.validate(document, run_schema)
    for spoilt in ({**document, "more": 1}, {**document, "schema_version": 2}, {"case": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, run_schema)


def test_files_of_schema_1_are_read_as_they_were_written(call, tmp_path):
    document = read_document(KEPT / "results.json")
    assert [one["verdict"] for one in document["runs"]] == ["unstable", "valid", "unstable", "invalid"]
    assert call("export", KEPT / "results.json", "--format", "json")[1] == (KEPT / "results.json").read_text()
    (worker := tmp_path / "logs-kept" / "itr-1" / "worker-0").mkdir(parents=True)
    (worker / "run.json").write_bytes((KEPT / "run.json").read_bytes())
    for path in (KEPT / "results.json", KEPT / "run.json", tmp_path / "logs-kept"):
        for words in (["list-kpi"], ["report", "-o", tmp_path / "page.html"], ["export", "--format", "csv"]):
            code, output, errors = call(*words, path)
            assert (code, errors) == (0, ""), (path, words)
            assert "233511" in output or "page.html" in output
    save_set(tmp_path / "b", [90.0], begin=20)
    assert call("compare", KEPT / "results.json", tmp_path / "b")[0] == 0


def test_csv_and_markdown_are_the_tables_of_list_kpi(call, logs, tmp_path):
    for suffix, name in ((".csv", "csv"), (".md", "markdown")):
        file = tmp_path / f"x{suffix}"
        assert call("export", *logs, "-o", file)[0] == 0
        printed = call("list-kpi", "--all", "--format", name, *logs)
        assert printed == (0, file.read_text(), "")
        assert call("export", *logs, "--format", name) == printed
    tables = read_markdown((tmp_path / "x.md").read_text())
    assert tables[0][0] == ["logs", "BATCH_SIZE", "KPI", "value", "low", "high", "verdict"]
    assert [row[2:] for row in tables[0][1:3]] == [
        ["Throughput (img/s)", "100.0", "98.50", "103.0", "valid"],
        ["Latency p50 (ms)", "0.0005200", "-", "-", "valid"],
    ]
    invalid = [row for row in tables[0] if row[-1].startswith("INVALID")]
    assert [row[2:6] for row in invalid] == [["-", "-", "-", "-"]] * 2
    assert tables[1][0][0] == "repeated runs of"
    assert "1. spread: 12 %, needed at most 10 %" in (tmp_path / "x.md").read_text()


def read_markdown(text):
    """Return the tables of a Markdown text as a browser would show them; there is nothing else in it but texts."""
    tables = []
    for token in MarkdownIt("commonmark", {"linkify": False}).enable("table").enable("strikethrough").parse(text):
        assert token.type not in ("html_block", "fence", "code_block", "heading_open", "hr", "blockquote_open"), token
        if token.type == "table_open":
            tables.append([])
        if token.type == "tr_open":
            tables[-1].append([])
        if token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special", "softbreak"}, token
            if tables and token.level == 4:
                tables[-1][-1].append("".join(child.content for child in token.children))
    return tables


def test_junit_is_what_ci_systems_read(call, logs, tmp_path):
    file = tmp_path / "x.xml"
    assert call("export", *logs, "-o", file)[0] == 0
    assert call("list-kpi", "--format", "junit", *logs) == (0, file.read_text(), "")
    check_junit(file)
    suites = {suite.name: suite for suite in junitparser.JUnitXml.fromfile(str(file))}
    assert {name: (suite.tests, suite.failures, suite.errors, suite.skipped) for name, suite in suites.items()} == {
        WORKLOAD: (5, 1, 0, 0), "Other": (2, 0, 1, 0),
    }  # fmt: skip
    suite = suites[WORKLOAD]
    cases = {case.name: case for case in suite}
    assert (suite.timestamp, suite.time) == ("2026-01-01T00:00:00", 7.5)
    assert list(cases) == [f"logs-{CASE}/itr-{number}" for number in range(1, 6)]
    first, unstable, invalid = (cases[f"logs-{CASE}/itr-{number}"] for number in (1, 3, 4))
    assert (first.classname, first.time, first.is_passed) == (CASE, 2.5, True)
    told = properties(first)
    assert told["*Throughput (img/s)"] == "100.0"
    assert told["Latency p50 (ms)"] == "0.00052"
    assert (told["parameter BATCH_SIZE"], told["verdict"]) == ("8", "valid")
    assert unstable.is_passed
    assert (properties(unstable)["verdict"], properties(unstable)["reason"]) == (
        "unstable",
        "spread: 12 %, needed at most 10 %",
    )
    assert "itr-3: unstable: spread: 12 %" in suite.child(junitparser.junitparser.SystemOut).text
    assert [(one.message, one.type) for one in invalid.result] == [(INVALID.found, "INVALID")]
    assert not any("Throughput" in name for name in properties(invalid))
    (interrupted,) = (case for case in suites["Other"] if case.is_error)
    assert interrupted.result[0].message == INTERRUPTED_RUN


def properties(case):
    return {one.name: one.value for one in case.child(junitparser.Properties)}


def check_junit(file):
    """Hold a file against the schema of Ant's JUnit task, which ReFrame has; test cases have no properties in that."""
    (path,) = (one for one in importlib.metadata.files("reframe-hpc") if one.name == "junit.xsd")
    tree = etree.parse(file)
    for one in tree.findall(".//testcase/properties"):
        assert all(set(entry.attrib) == {"name", "value"} and entry.tag == "property" for entry in one)
        one.getparent().remove(one)
    etree.XMLSchema(etree.parse(str(path.locate()))).assertValid(tree)


def read_sheets(file):
    """Return the rows of each sheet by what their first cell says; no cell is anything but a text or a number."""
    book = openpyxl.load_workbook(file)
    sheets = {}
    for sheet in book:
        assert {cell.data_type for row in sheet.iter_rows() for cell in row} <= {"s", "n"}
        assert not any(cell.hyperlink for row in sheet.iter_rows() for cell in row)
        sheets[sheet.title] = {row[0].value: [cell.value for cell in row[1:]] for row in sheet.iter_rows()}
    return book, sheets


def test_a_workbook_has_a_sheet_per_workload_and_a_column_per_case(call, logs, tmp_path):
    file = tmp_path / "x.xlsx"
    assert call("export", *logs, "-o", file)[0] == 0
    book, sheets = read_sheets(file)
    assert list(sheets) == [WORKLOAD, "Other"]
    sheet, rows = book[WORKLOAD], sheets[WORKLOAD]
    assert rows["case"] == [CASE] * 6
    assert rows["run"] == ["median of 3 of 4 runs", "itr-1", "itr-2", "itr-3", "itr-4", "itr-5"]
    assert rows["verdict"] == [
        "2 of 4 valid, 1 of 4 unstable, 1 of 4 INVALID", "valid", "valid", "unstable", "INVALID", "valid",
    ]  # fmt: skip
    assert rows["reason"][0] == f"itr-3: {rows['reason'][3]}; itr-4: {INVALID.found}"
    assert rows["reason"][4] == INVALID.found
    assert rows["## BATCH_SIZE"] == [8, 8, 8, 8, 8, 1]
    assert rows["## PRECISION"] == [None] * 5 + ["avx_fp32"]
    assert rows["*Throughput (img/s)"] == [101, 100, 104, 101, None, 50]
    assert rows["Throughput 95 % low (img/s)"] == [None, 98.5, 98.5, 98.5, None, None]
    assert rows["# CPU"] == ["EPYC"] * 6
    order = [next(at for at, name in enumerate(rows) if name and name.startswith(mark)) for mark in ("##", "*", "# ")]
    assert order == sorted(order)
    assert sheet.freeze_panes == "B3"
    assert [sheet.column_dimensions[name].outlineLevel for name in "BCG"] == [0, 1, 0]
    assert 20 < sheet.column_dimensions["A"].width < 50
    formats = {row[0].value: row[2].number_format for row in sheet.iter_rows()}
    assert (formats["*Throughput (img/s)"], formats["Latency p50 (ms)"]) == ("0.0", "0.0000000")


def test_sheets_have_names_that_excel_takes(call, tmp_path):
    names = ["a" * 40, "A" * 41, "a/b:c*?[d]\\", "'quoted'", "History", " ", "\U0001f600" * 20, "a" * 31]
    for number, name in enumerate(names):
        save_run(tmp_path / "runs", make_run(1.0, number, case=f"test_{number}", workload=name))
    file = tmp_path / "x.xlsx"
    assert call("export", *sorted((tmp_path / "runs").iterdir()), "-o", file)[0] == 0
    found = openpyxl.load_workbook(file).sheetnames
    assert len({name.lower() for name in found}) == len(names)
    for name in found:
        assert 1 <= len(name.encode("utf-16-le")) / 2 <= 31
        assert not re.search(r"[\[\]:*?/\\]|^'|'$", name)
        assert name.lower() != "history"


def test_what_excel_has_no_room_for_is_cut_or_goes_on_in_another_sheet(call, tmp_path, monkeypatch):
    monkeypatch.setattr("cnnbench.report.export.workbook.MOST_COLUMNS", 4)
    for number in range(7):
        save_run(tmp_path / "runs", make_run(1.0 + number, case=f"test_{number}", facts={"long": "x" * 40_000}))
    file = tmp_path / "x.xlsx"
    assert call("export", *sorted((tmp_path / "runs").iterdir()), "-o", file)[0] == 0
    _, sheets = read_sheets(file)
    assert {name: len(rows["case"]) for name, rows in sheets.items()} == {
        WORKLOAD: 3, f"{WORKLOAD} (2)": 3, f"{WORKLOAD} (3)": 1,
    }  # fmt: skip
    assert sheets[WORKLOAD]["# long"][0] == "x" * 32_766 + "…"


def test_parquet_has_a_row_per_run_and_kpi_with_typed_columns(call, logs, tmp_path):
    file = tmp_path / "x.parquet"
    assert call("export", *logs, "-o", file)[0] == 0
    frame = pandas.read_parquet(file)
    assert list(frame.columns) == [column[0] for column in COLUMNS]
    first = frame.iloc[0]
    assert (first.logs, first.kpi, first.unit, first.value, first.low, first.high, first.primary) == (
        f"logs-{CASE}/itr-1", "Throughput", "img/s", 100.0, 98.5, 103.0, True,
    )  # fmt: skip
    assert first.started == pandas.Timestamp("2026-01-01", tz="UTC")
    assert (first.batch_size, first.cores_per_instance, dict(first.facts)["CPU"]) == (8, 2, "EPYC")
    assert dict(first.parameters)["CORES_PER_INSTANCE"] == "2"
    invalid = frame[frame.verdict == "invalid"]
    assert len(invalid) == 2
    assert invalid[["kpi", "unit", "value", "low", "high"]].isna().all(axis=None)
    assert list(invalid.reason) == [INVALID.found, INTERRUPTED_RUN]
    assert frame.groupby("case").size().to_dict() == {CASE: 8, OTHER: 2}
    assert frame[frame.primary == True].groupby("batch_size").value.median().to_dict() == {1: 50.0, 8: 100.5}  # noqa: E712


@pytest.fixture
def hostile(tmp_path):
    """Return logs whose names, cases, parameters, facts, KPIs and reasons are hostile."""
    for number, text in enumerate(HOSTILE):
        run = make_run(
            10.0 + number, number, case=f"{text}{number}", workload=text, key=f"Throughput {text}", unit=text,
            facts={text: text, "CPU": text}, notes=[text], run_id=text + str(number), CUSTOMER_ENV=text,
            criteria=[Criterion(name=text, passed=False, found=text, needed=text, severity="unstable")],
            **{f"P{text}": text},
        )  # fmt: skip
        name = f"logs-{text.replace('/', '_')}{number}"
        (worker := tmp_path / "runs" / name / "itr-1" / "worker-0").mkdir(parents=True)
        (worker / "run.json").write_text(run.model_dump_json())
    return sorted((tmp_path / "runs").iterdir())


def test_no_text_of_a_run_is_markup_or_a_formula(call, hostile, tmp_path):
    found = {}
    for suffix in SUFFIXES:
        found[suffix] = tmp_path / f"x{suffix}"
        code, _, errors = call("export", *hostile, "-o", found[suffix])
        assert (code, errors) == (0, ""), suffix
    expected = sorted(printable(text) for text in HOSTILE)

    document = read_document(found[".json"])
    assert sorted(one["result"]["workload"] for one in document["runs"]) == sorted(HOSTILE)

    rows = list(csv.DictReader(io.StringIO(found[".csv"].read_bytes().decode(), newline="")))
    assert {row["CUSTOMER_ENV"] for row in rows} == set(HOSTILE)

    (table,) = read_markdown(found[".md"].read_text())
    at = table[0].index("CUSTOMER_ENV")
    shown = [row[at] for row in table[1:]]
    assert "@\u2060A1" in shown  # so that nobody of that name is told
    assert sorted(text.replace("\u2060", "") for text in shown) == sorted(text.strip() for text in expected)
    assert all(len(row) == len(table[0]) for row in table)

    check_junit(found[".xml"])
    cases = [case for suite in junitparser.JUnitXml.fromfile(str(found[".xml"])) for case in suite]
    assert sorted(properties(case)["parameter CUSTOMER_ENV"] for case in cases) == expected

    book, sheets = read_sheets(found[".xlsx"])
    assert sorted(rows["## CUSTOMER_ENV"][0] for rows in sheets.values()) == expected
    cells = [
        cell for sheet in book for row in sheet.iter_rows() for cell in row if str(cell.value)[:1] in ("=", "+", "@")
    ]
    assert len(cells) > 3
    assert all(cell.quotePrefix for cell in cells)  # so that they stay texts when somebody edits them

    frame = pandas.read_parquet(found[".parquet"])
    assert sorted(frame.workload) == sorted(HOSTILE)

    for words in (["list-kpi", "--all", "--params"], ["list-kpi", "--format", "markdown", "--params"]):
        _, output, _ = call(*words, *hostile)
        assert printable(output.replace("\n", "")) == output.replace("\n", "")


def test_compare_writes_markdown(call, tmp_path):
    text = "6.2 <b>|x\n# y"
    a = save_set(tmp_path / "a", [100.0, 100.4, 99.7, 100.2, 99.9], facts={"kernel": "6.1"})
    b = save_set(tmp_path / "b", [90.0, 90.4, 89.7, 90.2, 89.9], begin=10, facts={"kernel": text})
    save_run(b, make_run(1, 20, criteria=[INVALID]))
    code, output, errors = call("compare", a, b, "--format", "markdown")
    assert (code, errors) == (4, "")
    cases, conditions = read_markdown(output)
    assert cases[0] == ["case", "A", "B", "ratio", "from", "to", "runs", "verdict"]
    assert (cases[1][1], cases[1][-1]) == ("100.0", "slower [1]")
    assert conditions[1] == ["kernel", "6.1", printable(text)]
    assert "1. B: 1 of 6 runs invalid" in output


def test_the_documents_have_all_formats_and_columns():
    text = (ROOT / "doc" / "exports.md").read_text()
    for name in FORMATS:
        assert f"`{name}`" in text
    for name, kind, meaning, _ in COLUMNS:
        assert f"| `{name}` | {kind} | {meaning} |" in text


def test_the_examples_of_the_documents_work(call, logs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in (".json", ".csv", ".xml", ".xlsx", ".parquet"):
        assert call("export", *logs, "-o", f"results{suffix}")[0] == 0
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "doc" / "exports.md").read_text(), re.DOTALL)
    assert len(examples) == 5
    for example in examples:
        exec(compile(example, "exports.md", "exec"), {})
