"""What `cnnbench export` is given that it cannot read or write, and files of results that are not all of them good."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import junitparser
import pytest

from cnnbench.cli.main import main
from cnnbench.report.export.formats import FORMATS, SUFFIXES
from run_files import CASE, make_run, save_run, save_set

SCHEMA_2 = "it is of schema 2; read it with the version of cnnbench that wrote it"


@pytest.fixture
def call(capsys):
    """Call a command; return its exit code, its output and its errors."""

    def run(*words):
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def logs(tmp_path):
    """Return the logs of five repeated runs."""
    return save_set(tmp_path / "runs", [100.0, 100.4, 99.7, 100.2, 99.9]) / f"logs-{CASE}"


def spoil_schema(path):
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2', 1))


SPOILT = {
    "cut off": (lambda path: path.write_text(path.read_text()[:500]), "not a complete result of schema 1"),
    "empty": (lambda path: path.write_text(""), "not a complete result of schema 1"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a complete result of schema 1"),
    "deep": (lambda path: path.write_text("[" * 5000), "not a complete result of schema 1"),
    "surrogate": (lambda path: path.write_text('{"case": "\\ud800"}'), "not a complete result of schema 1"),
    "newer": (spoil_schema, SCHEMA_2),
    "unknown": (lambda path: path.write_text('{"schema_version": "x"}'), "it is of schema 'x'"),
    "absent": (lambda path: path.unlink(), "no run.json there"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "no run.json there"),
    "loop": (lambda path: (path.unlink(), path.symlink_to(path)), "no run.json there"),
    "fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "no run.json there"),
    "unreadable": (lambda path: (path.unlink(), path.symlink_to("/proc/self/mem")), "Input/output error"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_run_that_cannot_be_read_is_told_and_the_others_are_written(call, logs, tmp_path, what):
    spoil, told = SPOILT[what]
    spoil(logs / "itr-2" / "worker-0" / "run.json")
    file = tmp_path / "x.json"
    code, output, errors = call("export", logs, "-o", file)
    assert code == 1
    assert told in errors
    assert "itr-2" in errors
    assert output.endswith(" 4 runs\n")
    assert len(json.loads(file.read_text())["runs"]) == 4
    for words in (["list-kpi"], ["report", "-o", tmp_path / "page.html"], ["list-kpi", "--format", "junit"]):
        code, output, errors = call(*words, logs)
        assert (code, told in errors) == (1, True), words
    suites = junitparser.JUnitXml.fromstring(output.encode())
    (unread,) = (suite for suite in suites if suite.name == "not read")
    assert (unread.tests, unread.errors) == (1, 1)
    assert told in next(iter(unread)).result[0].message


def test_files_without_permission_are_told_and_the_others_are_read(call):
    with tempfile.TemporaryDirectory() as name:  # that of pytest lets nobody else in
        root = Path(name)
        root.chmod(0o755)
        logs = save_set(root, [100.0, 101.0, 102.0]) / f"logs-{CASE}"
        assert call("export", logs, "--format", "csv")[0] == 0  # and all modules are imported
        (logs / "itr-1" / "worker-0" / "run.json").chmod(0)
        (logs / "itr-2").chmod(0)
        user = os.geteuid()
        try:
            os.seteuid(user or 65534)  # root may read everything
            found = [call(*words, logs) for words in (["export", "--format", "csv"], ["list-kpi", "--format", "csv"])]
        finally:
            os.seteuid(user)
        (logs / "itr-2").chmod(0o755)
    for code, output, errors in found:
        assert code == 1
        assert "itr-3" in output
        assert "permission denied" in errors
        assert all(f"itr-{number}" in errors for number in (1, 2))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda runs: runs[1]["result"].update(schema_version=2), f"run 2 (logs-{CASE}/itr-2): {{}}{SCHEMA_2}"),
        (lambda runs: runs[1].update(result=None), f"run 2 (logs-{CASE}/itr-2): {{}}"),
        (lambda runs: runs[1].pop("result"), f"run 2 (logs-{CASE}/itr-2): {{}}"),
        (lambda runs: runs[1]["result"].update(more=1), f"run 2 (logs-{CASE}/itr-2): {{}}Extra inputs"),
        (lambda runs: runs[1].pop("logs"), "run 2: has no name of logs"),
        (lambda runs: runs.__setitem__(1, 7), "run 2: has no name of logs"),
    ],
)
def test_of_a_file_of_results_what_is_good_is_read(call, logs, tmp_path, spoil, told):
    file, other = tmp_path / "x.json", save_set(tmp_path / "b", [90.0, 90.1, 90.2, 90.3, 90.4], begin=20)
    assert call("export", logs, "-o", file)[0] == 0
    document = json.loads(file.read_text())
    spoil(document["runs"])
    file.write_text(json.dumps(document))
    told = told.format("not a complete result of schema 1: ")
    for words in (
        ["export", file, "-o", tmp_path / "again.json"], ["list-kpi", file],
        ["report", file, "-o", tmp_path / "page.html"], ["compare", file, other],
    ):  # fmt: skip
        code, output, errors = call(*words)
        assert f"x.json, {told}" in errors, words
        assert code == (4 if words[0] == "compare" else 1)
    assert len(json.loads((tmp_path / "again.json").read_text())["runs"]) == 4
    assert "4, 5" in output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"format": "cnnbench results", "schema_version": 2, "runs": []}', "results of schema 2, needed 1; read them"),
        ('{"format": "cnnbench results", "schema_version": true, "runs": []}', "results of schema True, needed 1"),
        ('{"format": "cnnbench results", "runs": []}', "results of schema None, needed 1"),
        ('{"format": "cnnbench results", "schema_version": 1}', "it has no list of runs"),
        ('{"format": "cnnbench results", "schema_version": 1, "runs": {}}', "it has no list of runs"),
        ('{"format": "cnnbench results", "schema_version": 1, "runs": [', "not a complete result of schema 1"),
        ("[]", "not a complete result of schema 1"),
        ("a text", "not a complete result of schema 1"),
    ],
)
def test_a_file_that_is_none_of_results_is_refused_and_the_rest_is_read(call, logs, tmp_path, text, told):
    file = tmp_path / "x.json"
    file.write_text(text)
    for words in (["export", "--format", "csv"], ["list-kpi"], ["report", "-o", tmp_path / "page.html"]):
        code, output, errors = call(*words, file, logs)
        assert code == 1
        assert f"{file}: " in errors
        assert told in errors
        assert "100.4" in output or "5 runs" in output
    code, _, errors = call("compare", logs, file)
    assert code == 2
    assert told in errors


def test_without_any_run_nothing_is_written(call, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("what was there")
    (tmp_path / "empty").mkdir()
    (tmp_path / "logs-begun").mkdir()
    (tmp_path / "logs-loop").symlink_to("logs-loop")
    (tmp_path / "\x1b[31m\udcff").mkdir()
    for name, told in (
        ("empty", "no run.json there"), ("logs-begun", "no itr-N there"), ("not-there", "no run.json there"),
        ("logs-loop", "logs-loop: "), ("\x1b[31m\udcff", "\\x1b[31m\\udcff: no run.json there"),
    ):  # fmt: skip
        code, output, errors = call("export", tmp_path / name, "-o", file)
        assert (code, output) == (1, "")
        assert told in errors
        assert "no run to export" in errors
        code, _, errors = call("list-kpi", tmp_path / name)
        assert (code, told in errors) == (1, True)
    assert file.read_text() == "what was there"
    assert list(tmp_path.glob(".x*")) == []


def test_names_of_logs_need_not_be_text(call, logs, tmp_path):
    strange = logs.rename(tmp_path / "logs-\udcff")
    for suffix in SUFFIXES:
        assert call("export", strange, "-o", tmp_path / f"x{suffix}")[0] == 0
    assert json.loads((tmp_path / "x.json").read_text())["runs"][0]["logs"] == "logs-\\udcff/itr-1"
    for words in (["--format", "table"], ["--format", "csv"], ["--format", "json"]):
        assert "udcff/itr-1" in call("list-kpi", *words, strange)[1]


def test_options_that_cannot_be_are_refused(call, logs, tmp_path):
    file, folder = tmp_path / "text", tmp_path / "folder.csv"
    file.write_text("")
    folder.mkdir()
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    known = ", ".join(FORMATS)
    rows = [
        ([], f"needs -o FILE, or --format: {known}"),
        (["--format", "docx"], f"--format docx: no such format; there are {known}"),
        (["--format", "xlsx"], "--format xlsx: is no text, so it needs -o FILE"),
        (["--format", "parquet"], "--format parquet: is no text, so it needs -o FILE"),
        (["-o", tmp_path / "x.docx"], f"x.docx: .docx tells no format; name it with --format ({known}), or the file"),
        (["-o", tmp_path / "x"], "x: no suffix tells no format"),
        (["-o", folder], "folder.csv: is a directory; name a file in it"),
        (["-o", tmp_path / "fifo.csv"], "fifo.csv: is no regular file"),
        (["-o", tmp_path / "loop.csv"], "loop.csv: cannot be written to (Too many levels of symbolic links)"),
        (["-o", file / "x.csv"], "x.csv: cannot be written to (Not a directory)"),
        (["-o", "/proc/x.csv"], "-o /proc/x.csv: cannot be written to (No such file or directory)"),
        (["--schema"], "--schema: prints the schema alone"),
    ]
    for words, told in rows:
        code, output, errors = call("export", *words, logs)
        assert (code, output) == (2, ""), words
        assert told in errors
    assert call("export", "--format", "csv")[0] == 2
    for words in (["--all"], ["--primary"], ["--params"]):
        code, _, errors = call("list-kpi", "--format", "junit", *words, logs)
        assert (code, "--format junit: has all KPIs and parameters" in errors) == (2, True)


def test_a_file_is_replaced_whole_or_not_at_all(call, logs, tmp_path):
    there, link = tmp_path / "there.json", tmp_path / "link.json"
    there.write_text("what was there")
    there.chmod(0o640)
    link.symlink_to(there)
    words = [sys.executable, "-B", "-I", "-m", "cnnbench", "export", str(logs), "-o"]
    for file in (link, tmp_path / "new.xlsx", tmp_path / "new.parquet"):
        done = subprocess.run(
            [*words, file], capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert "the file-size limit (ulimit -f) is reached: make room, or name another file with -o" in done.stderr
    assert there.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "runs", "there.json"]
    assert call("export", logs, "-o", link)[0] == 0
    assert link.is_symlink()
    assert len(json.loads(there.read_text())["runs"]) == 5
    assert there.stat().st_mode & 0o777 == 0o640
    assert call("export", link, "-o", link)[0] == 0
    assert len(json.loads(there.read_text())["runs"]) == 5
    assert call("export", logs, "-o", tmp_path / "made" / "x.csv")[0] == 0


@pytest.mark.parametrize(
    ("name", "module"), [("xlsx", "xlsxwriter"), ("parquet", "pyarrow"), ("parquet", "pyarrow.parquet")]
)
def test_what_is_not_installed_is_named_with_how_to_get_it(call, logs, tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    file = tmp_path / "x.dat"
    code, output, errors = call("export", logs, "--format", name, "-o", file)
    assert (code, output) == (2, "")
    assert f"{name}: needs {module.partition('.')[0]}, which is not installed: run script/setup.sh report" in errors
    assert not file.exists()


def test_a_run_given_twice_by_its_file_is_compared_once(call, logs, tmp_path):
    file = tmp_path / "x.json"
    other = save_run(tmp_path / "b", make_run(90.0, 20))
    assert call("export", logs, other.parent, "-o", file)[0] == 0
    code, _, errors = call("compare", file, other.parent)
    assert code == 2
    assert "both have the run" in errors
