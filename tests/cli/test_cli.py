"""The commands of `cnnbench` other than `run`, as a user types them."""

import json
import subprocess
import sys

import pytest

from cnnbench.cases.platforms import load_platforms
from cnnbench.cli.commands import GROUPS, INTERNAL
from cnnbench.cli.configuring import find_tool
from cnnbench.cli.main import main
from null_workload import ROOT, NullWorkload, clean_environment, step_of

CODES = [platform.code for platform in load_platforms()]
COMMANDS = {name: command for group in (*GROUPS.values(), INTERNAL) for name, command in group.items()}
SLOW = {"pandas", "scipy", "numpy", "pydantic", "yaml", "PIL"}
"""Packages that take longer to import than a help text, or ctest, may take to come."""

IMPORTED = """
import contextlib, io, json, sys
from cnnbench.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    before, output = set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    found.append([code, output.getvalue(), sorted(set(sys.modules) - before if found else sys.modules)])
print(f"FOUND{json.dumps(found)}")
"""
"""Run command lines in one process; print each one's exit code, its output and the modules that it was to import."""


def run_noting_imports(*lines):
    command = [sys.executable, "-c", IMPORTED, json.dumps(lines)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.rpartition("FOUND")[2])


@pytest.fixture
def cnnbench(capsys, monkeypatch, tmp_path):
    """Run a command; return its exit code, standard output and standard error."""
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path / "cache"))

    def run(*words):
        try:
            code = main(words)
        except SystemExit as error:  # argparse's way to end
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    workload = NullWorkload(tmp_path_factory.mktemp("logs"))
    done = workload.run("--steps=20", "--instances=1", step_of(2))
    assert done.returncode == 0, done.stderr
    return workload.logs()


def test_help_groups_the_commands_for_people_and_shows_no_others(cnnbench):
    code, output, _ = cnnbench("--help")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    told = {line.split()[0]: line for line in output.splitlines() if line.startswith("  ")}
    for title, group in GROUPS.items():
        assert f"\n\n{title}:\n  {next(iter(group))} " in output
        assert all(told[name].endswith(command.summary) for name, command in group.items())
    assert not set(told) & set(INTERNAL)


def test_the_help_of_a_command_imports_no_other_command():
    modules = {command.module for command in COMMANDS.values()}
    found = run_noting_imports(*([name, "--help"] for name in COMMANDS))
    for (name, command), (code, output, imported) in zip(COMMANDS.items(), found, strict=True):
        assert code == 0, output
        assert ("run.sh [OPTION]" if name == "quickstart" else f"usage: cnnbench {name}") in output
        assert modules & set(imported) == {command.module}, name


def test_what_needs_no_workload_imports_nothing_slow(tmp_path):
    (tmp_path / "CTestTestfile.cmake").write_text('add_test(one "/bin/true")')
    ctest = ["ctest", "--build-dir", str(tmp_path), "--ctest", find_tool("ctest"), "--workload", "/no/such", "--"]
    for line, needed in (
        (["--help"], "measure:"),
        ([], "a COMMAND is required"),
        (["zzz"], "no such command"),
        ([*ctest, "-N"], ""),
        ([*ctest, "--show-only=json-v1"], ""),
        ([*ctest, "-R", "onn"], "selects none of the 1 cases; did you mean one?"),
        ([*ctest, "--help"], "ctest.sh [OPTION]"),
    ):
        ((_, output, imported),) = run_noting_imports(line)
        assert needed in output
        assert not {name.partition(".")[0] for name in imported} & SLOW, line
    ((code, _, imported),) = run_noting_imports([*ctest, "-R", "on", "--continue"])
    assert code == 0
    assert {name.partition(".")[0] for name in imported} & SLOW == {"pydantic"}  # what tells how far it is


def test_a_table_of_one_run_imports_neither_pandas_nor_scipy(logs):
    for line in (["list-kpi", str(logs)], ["list-kpi", "--all", "--params", str(logs)]):
        ((code, output, imported),) = run_noting_imports(line)
        assert code == 0, output
        assert "Throughput" in output
        assert not {"pandas", "scipy"} & set(imported)


def test_platform_prints_the_code_of_this_machine(cnnbench):
    code, output, _ = cnnbench("platform")
    assert code == 0
    assert output.strip() in CODES


@pytest.mark.parametrize("name", ["SPR", "spr"])
def test_platform_checks_a_name(cnnbench, name):
    assert cnnbench("platform", name) == (0, "SPR\n", "")


def test_an_unknown_platform_lists_the_known_ones(cnnbench):
    code, output, errors = cnnbench("platform", "Z80")
    assert code == 2
    assert not output
    assert f"PLATFORM=Z80: must be one of {', '.join(CODES)}" in errors


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ([], "required"),
        (["zzz"], "zzz: no such command; there are run, launch, benchmark, ab, fleet, sweep, validate, list-kpi, "),
        (["list-kpis"], "list-kpis: no such command; did you mean list-kpi?"),
        (["--fast"], "--fast: no such command"),
        (["platform", "--fast"], "unrecognized arguments: --fast"),
        (["platform", "SPR", "GNR"], "unrecognized arguments: GNR"),
        (["stage", "--fast"], "unrecognized arguments: --fast"),
        (["list-kpi", "--fast", "logs"], "unrecognized arguments: --fast"),
        (["list-kpi"], "required: RUNS"),
        (["list-kpi", "--format", "xml", "logs"], "invalid choice: 'xml'"),
        (["list-kpi", "--primary", "--all", "logs"], "not allowed with argument"),
        (["case", "--case", "test_x"], "required: --workload, --logs-root"),
        (["case", "--backend", "mainframe"], "invalid choice: 'mainframe'"),
        (["case", "--hang-after", "soon"], "invalid float value: 'soon'"),
        (["case", "--timeout", "1h"], "invalid float value: '1h'"),
    ],
)
def test_a_bad_command_line_is_bad_usage(cnnbench, words, needed):
    code, output, errors = cnnbench(*words)
    assert code == 2
    assert not output
    assert needed in errors


def test_stage_lists_what_can_be_staged(cnnbench, tmp_path):
    code, output, _ = cnnbench("stage", "--list")
    assert code == 0
    origins = dict(line.split(": ", 1) for line in output.splitlines())
    assert {"procedural", "resnet50v1_5", "imagenet", "imagenet2012-val"} <= set(origins)
    assert origins["procedural"] == "made on this machine"
    assert origins["imagenet2012-val"].startswith("http")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--from", "a.tar"], "--from and --sha256 are for one NAME at a time"),
        (["--sha256", "0" * 64, "imagenet2012-val", "imagenet2012-devkit"], "for one NAME at a time"),
        (["procedural", "--from", "a.tar"], "--from a.tar: procedural is made on this machine and takes no file"),
        (["resnet50v1_5", "--from", "a.pb"], "--from a.pb: resnet50v1_5 is made on this machine"),
        (["imagenet2012-val", "--from", "/no/such.tar"], "/no/such.tar: not a file that can be read"),
        (["imagenet2021"], "imagenet2021"),
        (["procedural", "--fit", "out"], "--fit out: makes what the sources keep and stages nothing; leave names"),
        (["imagenet2012-val", "--verify", "--from", "a.tar"], "--verify reads what is staged and stages nothing"),
        (["--verify", "--engine", "tensorflow"], "leave --from, --engine and --case out"),
        (["--case", "test_x"], "give both"),
        (["--workload", "workload/ResNet50-FP8-Public"], "give both"),
        (["--verify", "imagenet2021"], "imagenet2021"),
    ],
)
def test_a_bad_staging_stages_nothing(cnnbench, tmp_path, words, needed):
    code, output, errors = cnnbench("stage", *words)
    assert code == 2
    assert needed in errors
    assert not output
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.name.endswith(".lock")]


@pytest.mark.parametrize("name", [None, "procedural", "resnet50v1_5", "imagenet", "imagenet2012-val", "resnet50_v1"])
def test_verify_stages_nothing(cnnbench, tmp_path, name):
    code, output, errors = cnnbench("stage", "--verify", *([name] if name else []))
    assert code == 1
    assert not output
    missing = name or "procedural"
    assert errors.startswith(f"cnnbench: {missing}: not staged, there is no {tmp_path / 'cache'}/")
    assert f"run `cnnbench stage {missing}`" in errors
    assert not (tmp_path / "cache").exists()


def test_list_kpi_tabulates_a_run(cnnbench, logs):
    code, output, errors = cnnbench("list-kpi", str(logs))
    assert code == 0, errors
    assert "Throughput" in output
    code, output, _ = cnnbench("list-kpi", "--all", "--params", "--format", "json", str(logs))
    assert code == 0
    assert "Latency mean" in output
    assert "WARMUP_STEPS" in output
    json.loads(output)


def test_list_kpi_names_the_broken_logs_and_shows_the_good(cnnbench, logs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    text = (logs / "run.json").read_text()
    (tmp_path / "cut" / "run.json").write_text(text[: len(text) // 2])
    code, output, errors = cnnbench("list-kpi", str(logs), *(str(tmp_path / name) for name in ("empty", "cut", "none")))
    assert code == 1
    assert "Throughput" in output
    for name in ("empty", "cut", "none"):
        assert str(tmp_path / name) in errors


def test_the_version_of_the_schema_must_be_known(cnnbench, logs, tmp_path):
    changed = (logs / "run.json").read_text().replace('"schema_version": 1', '"schema_version": 2')
    (tmp_path / "run.json").write_text(changed)
    code, _, errors = cnnbench("list-kpi", str(tmp_path))
    assert code == 1
    assert "not a complete result of schema 1" in errors


def test_ctest_and_quickstart_keep_their_options(cnnbench):
    """What follows `ctest ... --` is for ctest.sh: argparse must not take it for its own."""
    workload = str(ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public")
    code, output, _ = cnnbench(
        "ctest", "--build-dir", ".", "--ctest", "ctest", "--workload", workload, "--", "--describe-params"
    )
    assert code == 0
    assert "BATCH_SIZE" in output
