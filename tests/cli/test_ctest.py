"""ctest.sh of a real build directory, with a stub in the place of `cnnbench case`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmake_build import NAME, PREFIX, ROOT, run_cmake, write_stub
from cnnbench.cases.parameters import FIELDS, parameters_of
from cnnbench.cases.workload import load_workload
from cnnbench.cli.parameters import describe_parameters
from null_workload import SLUG, clean_environment, write_checkout

ONE = ("-R", "latency_avx_int8")  # one case, which may share weights


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ctest")
    done = run_cmake(directory / "build", write_stub(directory / "python"), "-DPLATFORM=SPR")
    assert done.returncode == 0, done.stderr
    return directory / "build" / "workload" / NAME / "ctest.sh"


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv("STUB_LOG", str(path))
    for name in FIELDS:
        monkeypatch.delenv(name, raising=False)
    return path


def run(script, *arguments):
    return subprocess.run([script, *arguments], capture_output=True, text=True)


def runs(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def seen(log, *names):
    return [tuple(one["environment"].get(name) for name in names) for one in runs(log)]


def announced(done):
    return [line for line in done.stdout.splitlines() if line.startswith("run ")]


def test_arguments_go_to_ctest_in_order_and_unchanged(script, log):
    done = run(script, "-L", "avx_fp32", "-LE", "pkm|gated", "-E", "latency|accuracy", "-V")
    assert done.returncode == 0, done.stderr
    assert [one["arguments"][5] for one in runs(log)] == [f"{PREFIX}inference_throughput_avx_fp32"]
    assert "plan of" in done.stdout
    assert not announced(done)


def test_the_exit_code_is_ctests(script, log, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "2")
    monkeypatch.setenv("BATCH_SIZE", "2")
    monkeypatch.setenv("STUB_EXIT", "3")
    assert run(script, *ONE).returncode == 8


SLIPS = {
    ("-R", "typo"): "-R typo: selects none of the {count} cases; -N lists what there is",
    (
        "-R",
        "thruput_avx_fp32",
    ): "-R thruput_avx_fp32: selects none of the {count} cases; did you mean throughput_avx_fp",
    ("-R", "^latency_avx-fp32$"): "did you mean latency_avx_fp32",
    ("-R", "(latency|accuracy)_AVX_FP32"): "did you mean avx_fp32?",
    ("-L", "avx_fp23"): "-L avx_fp23: selects none of the {count} cases; did you mean avx_fp32",
    ("-R", "latency", "-L", "throughput"): "-R latency -L throughput: selects no case, though each part of it does;",
    ("-R", "latency", "-E", "."): "-E .: selects none of the {count} cases; -N lists",
    ("-LE", "SPR"): "-LE SPR: selects none",
    ("-I", "7000,9000"): "-I 7000,9000: selects none",
    ("-I", "latency"): "-I latency: must be Start,End,Stride,number,number... or a file of that",
    ("-R",): "-R: needs a value",
    ("--testcase", f"{PREFIX}inference_throughput_avx_int8", "-L", "latency"): "selects no case, though each",
    ("--set", "BATCH_SIZE=1 2", "-R", "typo"): "-R typo: selects none",
    ("-R", "["): "-R [: no regular expression of ctest's: Unmatched []; a \\ before",
    ("-E", "latency("): "-E latency(: no regular expression of ctest's: Unmatched parentheses;",
    ("-L", "avx", "-LE", "*"): "-LE *: no regular expression of ctest's: ",
    ("--loop", "2", "-R", "a\\"): "-R a\\: no regular expression of ctest's: Trailing backslash;",
}
"""What ctest itself takes no offence at, and what is said of it here."""


def test_to_select_no_case_is_an_error_that_names_near_ones(script, log):
    count = run(script, "-N").stdout.count(": test_")
    for arguments, needed in SLIPS.items():
        done = run(script, *arguments)
        assert done.returncode == 2, (arguments, done.stdout)
        assert needed.format(count=count) in done.stderr
        assert "Traceback" not in done.stderr
    assert not log.exists()


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--dryrun", "did you mean --dry-run?"),
        ("--testcases=x", "did you mean --testcase?"),
        ("--output-on-failures", "did you mean --output-on-failure?"),
        ("--zzz", "see --help, and ctest --help"),
    ],
)
def test_an_option_that_nobody_has_is_refused_before_anything_runs(script, log, word, hint):
    for more in ((), ("--set", "BATCH_SIZE=1 2")):
        done = run(script, word, *more, *ONE)
        assert done.returncode == 2
        assert f"{word.partition('=')[0]}: neither ctest.sh nor ctest has it; {hint}" in done.stderr
    assert not log.exists() or not log.read_text()


@pytest.mark.parametrize("more", [["-N"], ["--no-tests=ignore"], ["--no-tests=ignore", "--set", "BATCH_SIZE=1"]])
def test_to_select_no_case_is_right_where_it_is_asked_for(script, log, more):
    done = run(script, *more, "-R", "typo")
    assert done.returncode == 0, done.stderr
    assert "Test project" in done.stdout
    assert not log.exists()


@pytest.mark.parametrize("word", ["--help-manual-list", "--version", "--print-labels"])
def test_what_runs_no_case_is_ctests_alone(script, word):
    done = run(script, word)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_set_is_one_run_for_each_combination(script, log):
    done = run(script, "--set", "BATCH_SIZE=1 8/CORES_PER_INSTANCE=1 2", *ONE)
    assert done.returncode == 0, done.stderr
    assert seen(log, "BATCH_SIZE", "CORES_PER_INSTANCE") == [("1", "1"), ("1", "2"), ("8", "1"), ("8", "2")]
    assert announced(done) == [
        "run 1 of 4: BATCH_SIZE=1 CORES_PER_INSTANCE=1",
        "run 2 of 4: BATCH_SIZE=1 CORES_PER_INSTANCE=2",
        "run 3 of 4: BATCH_SIZE=8 CORES_PER_INSTANCE=1",
        "run 4 of 4: BATCH_SIZE=8 CORES_PER_INSTANCE=2",
    ]


def test_repeated_sets_zip_and_text_arrives_as_it_is(script, log):
    text = "A=$(id) B='two words' C=`id`"
    done = run(script, "--set=BATCH_SIZE=1 2 4 ...8", "--set", "STEPS=8 4 2 1", f"--set=CUSTOMER_ENV={text}", *ONE)
    assert done.returncode == 0, done.stderr
    assert seen(log, "BATCH_SIZE", "STEPS", "CUSTOMER_ENV") == [
        ("1", "8", text),
        ("2", "4", text),
        ("4", "2", text),
        ("8", "1", text),
    ]


def test_listing_is_not_repeated_for_each_combination(script, log):
    done = run(script, "-N", "--set", "BATCH_SIZE=1 2 3", "--loop", "5")
    assert done.stdout.count("Total Tests:") == 1
    assert not announced(done)
    assert not log.exists()


def test_loop_repeats_everything(script, log):
    done = run(script, "--loop", "3", "--set", "BATCH_SIZE=1 2", *ONE)
    assert seen(log, "BATCH_SIZE") == [("1",), ("2",)] * 3
    assert announced(done)[-1] == "run 6 of 6: BATCH_SIZE=2"


def test_a_loop_without_a_set_says_so(script, log):
    assert announced(run(script, "--loop=2", *ONE)) == ["run 1 of 2: as declared", "run 2 of 2: as declared"]


def test_a_failed_run_stops_the_sweep(script, log, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "2")
    monkeypatch.setenv("STUB_EXIT", "3")
    done = run(script, "--set", "BATCH_SIZE=1 2 3", *ONE)
    assert done.returncode == 8  # ctest's own code for failed tests
    assert seen(log, "BATCH_SIZE") == [("1",), ("2",)]


def test_continue_goes_on_and_keeps_the_exit_code(script, log, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "2")
    monkeypatch.setenv("STUB_EXIT", "3")
    done = run(script, "--continue", "--set", "BATCH_SIZE=1 2 3", *ONE)
    assert done.returncode == 8
    assert seen(log, "BATCH_SIZE") == [("1",), ("2",), ("3",)]


def test_testcase_is_exact(script, log):
    assert run(script, "--testcase", f"{PREFIX}inference_throughput_avx_int8").returncode == 0
    assert [one["arguments"][5] for one in runs(log)] == [f"{PREFIX}inference_throughput_avx_int8"]


def test_config_and_options_and_dry_run_reach_the_case(script, log, tmp_path, monkeypatch):
    (tmp_path / "my settings.yaml").write_text("'*_latency_*':\n  BATCH_SIZE: 4\n")
    monkeypatch.chdir(tmp_path)
    done = run(
        script, "--config", "my settings.yaml", "--options", "--steps=5 --customer_env='A=1 B=2'", "--dry-run", *ONE
    )
    assert done.returncode == 0, done.stderr
    environment = runs(log)[0]["environment"]
    assert environment["CNNBENCH_CONFIG"] == str(tmp_path / "my settings.yaml")
    assert json.loads(environment["CNNBENCH_OPTIONS"]) == ["--steps=5", "--customer_env=A=1 B=2"]
    assert environment["CNNBENCH_DRY_RUN"] == "1"
    assert "plan of" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--set", "BATCH_SIZE"], "NAME=VALUE"),
        (["--set"], "--set: needs a value"),
        (["--set", "BATCH_SIZE=0"], "BATCH_SIZE=0 (--set): must be 1 to 4096"),
        (["--set", "BATCH_SIZE=1 8 x"], "BATCH_SIZE=x (--set)"),
        (["--set", "BATCH_SIZE=1 2 4 ...33"], "33 is not in the series; the nearest terms are 32 and 64"),
        (["--set", "BATCH_SIZE=1 2 5 ...32"], "neither linear"),
        (["--set", "BATCH_SIZE=1 2", "--set", "STEPS=1 2 3"], "zip"),
        (["--set", "BATCH_SIZE=1", "--set", "BATCH_SIZE=2"], "another --set"),
        (["--set", "BATCHSIZE=1"], "BATCHSIZE: no such parameter"),
        (["--set", "PRECISION=avx_int8"], "choose cases with -R"),
        (["--set", "BATCH_SIZE=1/"], "BATCH_SIZE=1/ (--set)"),
        (["--set", "WEIGHT_SHARING=True", "-R", "fp32"], "not supported for avx_fp32"),
        (["--set", "MIN_TIME=5 50/MAX_TIME=20"], "MIN_TIME=50"),
        (["--set", "CUSTOMER_ENV=A='1"], "CUSTOMER_ENV=A='1 (--set)"),
        (["--set", "BATCH_SIZE=1 2", "-N", "--set", "STEPS=x ...3"], "whole numbers"),
        (["--loop", "0"], "--loop 0: must be a whole number of 1 or more"),
        (["--loop", "2", "--loop", "3"], "given twice"),
        (
            ["--testcase", f"{PREFIX}inference_throughput_avx_int9"],
            f"did you mean {PREFIX}inference_throughput_avx_int8",
        ),
        (["--testcase", "latency"], "no such case here"),
        (["--config", "/no/such.yaml"], "/no/such.yaml: no such settings file"),
        (["--options", "--batch_size=0"], "BATCH_SIZE=0 (--options)"),
        (["--options", "--batchsize=1"], "BATCHSIZE: no such parameter"),
        (["--options", "'"], "--options '"),
        (["--loop", "2", "-R", "no such"], "selects none of"),
        (["--set", "MODEL=such.pb"], "MODEL=such.pb: no such file"),
        (["--dry-run", "--options", "--model=resnet50_v2"], "MODEL=resnet50_v2: no such file"),
    ],
)
def test_a_bad_request_runs_nothing(script, log, arguments, needed):
    done = run(script, *arguments)
    assert done.returncode == 2
    assert needed in done.stderr
    assert "Traceback" not in done.stderr
    assert not log.exists()


def test_the_environment_is_checked_with_the_sweep(script, log, monkeypatch):
    monkeypatch.setenv("STEPS", "many")
    done = run(script, "--set", "BATCH_SIZE=1", *ONE)
    assert done.returncode == 2
    assert "STEPS=many (environment)" in done.stderr
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("'*_int8': {BATCH_SIZE: 2}\n'*_int4': {BATCH_SIZE: 2}\n", "section *_int4: matches no case"),
        ("'*': {BATCH_SIZE: -1}\n", "BATCH_SIZE=-1 ({config}): must be 1 to 4096"),
        ("'*': {BATCHSIZE: 1}\n", "BATCHSIZE: no such parameter"),
        ("'*': {MODE: latency}\n", "MODE=latency ({config}): the case"),
    ],
)
def test_a_bad_settings_file_runs_nothing(script, log, tmp_path, text, needed):
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    done = run(script, "--config", str(config))
    assert done.returncode == 2
    assert needed.format(config=config) in done.stderr
    assert not log.exists()


def test_a_relative_model_is_found_from_where_ctest_sh_was_called(script, log, tmp_path, monkeypatch):
    (tmp_path / "my graph.pb").touch()
    monkeypatch.chdir(tmp_path)
    assert run(script, "--set", "MODEL=my graph.pb", *ONE).returncode == 0
    monkeypatch.setenv("MODEL", "my graph.pb")
    assert run(script, *ONE).returncode == 0
    assert seen(log, "CNNBENCH_DIRECTORY") == [(str(tmp_path),)] * 2


def test_a_sweep_that_sets_steps_does_not_stop_at_accuracy(script, log):
    done = run(script, "--set", "STEPS=20", "-R", "(throughput|accuracy)_avx_fp32$")
    assert done.returncode == 0, done.stderr
    assert seen(log, "STEPS") == [("20",), ("20",)]


def test_what_a_failed_case_printed_is_shown(script, log, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "2")
    monkeypatch.setenv("STUB_EXIT", "3")
    monkeypatch.setenv("BATCH_SIZE", "2")
    monkeypatch.delenv("CTEST_OUTPUT_ON_FAILURE", raising=False)
    assert "plan of" in run(script, *ONE).stdout
    monkeypatch.setenv("CTEST_OUTPUT_ON_FAILURE", "0")
    assert "plan of" not in run(script, *ONE).stdout


@pytest.fixture
def checkout(tmp_path):
    """A build directory whose cases the real `cnnbench case` runs, on the null engine."""
    precisions = "set(PRECISIONS avx_fp32 avx_bfloat16)\nset(SGX_PRECISIONS avx_fp32)"
    source = write_checkout(tmp_path / "checkout", "GENERIC", precisions)
    done = run_cmake(tmp_path / "build", Path(sys.executable), "-DPLATFORM=GENERIC", source=source)
    assert done.returncode == 0, done.stderr
    return tmp_path / "build" / "workload" / "Harness" / "ctest.sh"


def run_clean(script, *arguments, cwd=None, **environment):
    return subprocess.run(
        [script, *arguments], env=clean_environment(**environment), cwd=cwd, capture_output=True, text=True
    )


def test_progress_reaches_a_file_whole_though_ctest_keeps_what_a_case_prints(checkout, tmp_path):
    with (tmp_path / "log").open("w") as log:
        command = [checkout, "-R", f"test_{SLUG}_inference_throughput_avx_fp32"]
        done = subprocess.run(command, env=clean_environment(STEPS="10"), stdout=log, stderr=log)
    text = (tmp_path / "log").read_text()
    assert done.returncode == 0, text
    assert "measuring throughput avx_fp32: 10 of 10 steps" in text
    assert "100% tests passed" in text


def test_the_reason_of_a_skipped_case_is_told_at_the_end(checkout):
    done = run_clean(checkout, "-R", "sgx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"skipped: test_{SLUG}_sgx_inference_throughput_avx_fp32: "
        "SGX cases run in a Gramine container, which BACKEND=native has not"
    )


def test_the_models_absolute_path_is_in_the_plan(checkout, tmp_path):
    (tmp_path / "my.pb").touch()
    for setting in (["--set", "MODEL=my.pb"], ["--options", "--model=./my.pb"]):
        done = run_clean(
            checkout, "--dry-run", "-R", f"test_{SLUG}_inference_throughput_avx_fp32", *setting, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"  MODEL={tmp_path}/my.pb\n" in done.stdout


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_case_and_the_sweep(script, log, tmp_path, monkeypatch, number):
    ready = tmp_path / "ready"
    monkeypatch.setenv("STUB_READY", str(ready))
    command = [script, "--continue", "--set", "BATCH_SIZE=1 2 3", *ONE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        os.kill(process.pid, number)  # to ctest.sh alone, unlike the terminal's Ctrl-C
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    (case,) = runs(log)
    assert case["signal"] == number
    assert not _is_running(case["pid"])
    assert output.count("run ") == 1


def test_help_tells_the_own_options_and_leaves_the_rest_to_ctest(script):
    done = run(script, "-h")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--set", "--loop", "--config", "--continue", "--describe-params"))
    assert "Everything else goes to ctest" in done.stdout


def test_the_parameters_are_described_with_the_workloads_defaults(script):
    done = run(script, "--describe-params")
    assert done.stdout == describe_parameters(load_workload(ROOT / "workload" / NAME)) + "\n"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == list(parameters_of("graph"))
    by_name = {row[0]: row for row in rows}
    assert by_name["BATCH_SIZE"][1].startswith("1; `*_throughput_*` 32;")
    assert by_name["BATCH_SIZE"][2] == "1 to 4096"
    assert by_name["MODE"][1] == "by the case's name"


def test_the_script_survives_odd_paths(tmp_path, log):
    build = tmp_path / "it's a $(build)"
    done = run_cmake(build, write_stub(tmp_path / "python"), "-DPLATFORM=SKX")
    assert done.returncode == 0, done.stderr
    done = run(build / "workload" / NAME / "ctest.sh", "--set", "BATCH_SIZE=2", "-L", "latency")
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs(log)[0]["directory"] == str(build / "workload" / NAME)


@pytest.mark.parametrize("word", ["--batch_size=8", "--steps", "--weight-sharing"])
def test_a_parameter_that_ctest_would_ignore_is_refused(script, log, word):
    done = run(script, word, *ONE)
    assert done.returncode == 2
    assert f"{word}: ctest would ignore it; give it as --set" in done.stderr
    assert runs(log) == []


def test_ctests_own_verbose_is_no_parameter(script):
    assert "Test command:" in run(script, "--verbose", *ONE).stdout
