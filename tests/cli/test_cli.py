"""The commands of `cnnbench` other than `run`, as a user types them."""

import json

import pytest

from cnnbench.cases.platforms import load_platforms
from cnnbench.cli.main import main
from null_workload import ROOT, NullWorkload, step_of

CODES = [platform.code for platform in load_platforms()]


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
        (["measure"], "invalid choice: 'measure'"),
        (["platform", "--fast"], "unrecognized arguments: --fast"),
        (["platform", "SPR", "GNR"], "unrecognized arguments: GNR"),
        (["stage", "--fast"], "unrecognized arguments: --fast"),
        (["list-kpi", "--fast", "logs"], "unrecognized arguments: --fast"),
        (["list-kpi"], "required: DIR"),
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
    ],
)
def test_a_bad_staging_stages_nothing(cnnbench, tmp_path, words, needed):
    code, output, errors = cnnbench("stage", *words)
    assert code == 2
    assert needed in errors
    assert not output
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.name.endswith(".lock")]


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
