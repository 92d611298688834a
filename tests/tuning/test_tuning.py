"""`cnnbench sweep` on the null engine: real processes and files. A step takes the same time at any batch size."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cmake_build import run_cmake
from cnnbench.base.errors import SkippedError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import FIELDS
from cnnbench.cases.workload import load_sections
from cnnbench.cli.main import main
from cnnbench.results.record import Criterion, Kpi, load_run
from cnnbench.tuning.settings import ranking
from cnnbench.tuning.space import Space
from cnnbench.tuning.sweep import Outcome, run_sweep
from null_workload import (
    CORES,
    SLUG,
    NullWorkload,
    clean_environment,
    find_specs,
    find_workers,
    step_of,
    wait_until,
    write_checkout,
)
from read_table import read_tables

PKM = f"test_{SLUG}_inference_throughput_avx_fp32_pkm"
LATENCY = f"test_{SLUG}_inference_latency_avx_fp32"
QUICK = ("--steps=20", "--instances=1", step_of(2))
SLOW = ("--steps=40", "--instances=1", step_of(20))
PATIENCE_S = 120
FAST, NEAR, FAR = (f"BATCH_SIZE={batch} CORES_PER_INSTANCE=1" for batch in (64, 60, 1))

STAGING_FAILS = """
import sys
from cnnbench.cli import main as cli
from cnnbench.run import native as native_run
from cnnbench.base.errors import CnnbenchError
stage = native_run.stage_inputs
def stage_inputs(job, cache):
    if job.parameters.batch_size == 64:
        raise CnnbenchError("no environment can be made")
    return stage(job, cache)
native_run.stage_inputs = stage_inputs
sys.exit(cli.main())
"""
"""`cnnbench`, but staging fails at batch size 64."""


class Sweep:
    """A workload to tune, and the state directory of its sweep."""

    def __init__(self, directory, *words):
        self.workload = NullWorkload(directory)
        self.state = directory / "state"
        self.file = self.state / "bkm-generic.yaml"
        self.words = words
        source = self.workload.directory
        (source / "CMakeLists.txt").write_text(
            "add_workload(CASES throughput latency accuracy throughput_gated throughput_pkm)\n"
        )
        (source / "cmake").mkdir()
        (source / "cmake" / "GENERIC.cmake").write_text("set(PRECISIONS avx_fp32)\n")

    def arguments(self, *words):
        directories = ["--workload", str(self.workload.directory), "--state", str(self.state)]
        return ["sweep", *directories, "--platform", "generic", *self.words, *words]

    def start(self, *words, program=("-m", "cnnbench")):
        return subprocess.Popen(
            [sys.executable, *program, *self.arguments(*words)],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words, code=0):
        """Run it to its end; return what it says, its standard output first."""
        with self.start(*words) as process:
            output, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, output + errors
        assert "Traceback" not in errors
        return output, errors

    def ended(self, case=PKM):
        """Return the logs of the runs that have ended, in their order."""
        found = [path.parent for path in (self.state / f"logs-{case}").glob("itr-*/worker-0/status")]
        return sorted(found, key=lambda path: int(path.parent.name[4:]))

    def measured(self, case=PKM):
        """Count the valid runs by batch size and round."""
        runs = [load_run(path) for path in self.ended(case)]
        return Counter(
            (run.requested["BATCH_SIZE"], next(note for note in run.notes if "tuning sweep" in note))
            for run in runs
            if run.verdict != "invalid"
        )

    def rewrite(self, number, change, case=PKM):
        """Change what the file of a run says."""
        path = self.ended(case)[number] / "run.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def make_steady(run):
    """Have a run say that it was steady, and ten times as slow at batch size 1."""
    run["kpis"][0]["value"] = 50 if run["requested"]["BATCH_SIZE"] == "1" else 5
    for criterion in run["criteria"]:
        criterion["passed"] = True


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


@pytest.fixture
def cnnbench(capsys, monkeypatch):
    """Run a command in this process, which is quicker, where it must end before it has measured anything."""
    for name in [*FIELDS, "PLATFORM"]:
        monkeypatch.delenv(name, raising=False)

    def run(words):
        try:
            code = main(words)
        except SystemExit as error:  # argparse's way to end
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One whole sweep that several tests look at."""
    sweep = Sweep(tmp_path_factory.mktemp("done"), *QUICK, "--rounds", "3")
    space = f"BATCH_SIZE=1 60 64/CORES_PER_INSTANCE=1 {CORES + 1}"
    sweep.output, sweep.errors = sweep.run("--set", space)
    return sweep


def cells(output, row):
    """Return the cells of a setting's row, or that of a precision, by their columns, with the notes that they cite."""
    found = re.findall(r"^\[(\d+)\] (.+(?:\n {4,}.+)*)", output, re.MULTILINE)
    notes = {number: " ".join(text.split()) for number, text in found}
    wanted = [word.partition("=")[2] or word for word in row.split()]
    for header, *rows in read_tables(output):
        for one in rows:
            if one[: len(wanted)] == wanted:
                told = [re.sub(r" \[(\d+)\]$", lambda cited: f": {notes[cited[1]]}", cell) for cell in one]
                return dict(zip(header, told, strict=True))
    raise AssertionError(f"no row {row} in {output}")


def test_a_sweep_ends_in_the_summary_table(done):
    best = cells(done.output, "avx_fp32")
    assert list(best)[:5] == ["precision", "BS", "CPI", "CPU", "value"]
    assert best["BS"] in ("60", "64")
    assert (best["CPI"], best["unit"], best["instances"]) == ("1", "img/s", "1")
    assert re.fullmatch(r"[0-9.]+ to [0-9.]+ \(75 %\)|one run", best["interval"])
    assert float(best["value"]) > 1000
    assert f"page: {done.state / 'report.html'}" in done.output
    assert (done.state / "report.html").is_file()


def test_every_setting_has_its_line_and_what_is_out_its_reason(done):
    assert "of the speed of" in cells(done.output, FAR)["outcome"]
    assert cells(done.output, f"BATCH_SIZE=64 CORES_PER_INSTANCE={CORES + 1}")["outcome"].startswith(
        "dropped: CORES_PER_INST"
    )
    assert re.search(rf"dropped .*BATCH_SIZE=1 CORES_PER_INSTANCE={CORES + 1}.*: must be 1 to {CORES}", done.errors)


def test_progress_tells_setting_round_and_time(done):
    assert re.search(
        r"throughput avx_fp32, round 1 of 3, run 2 of 3: BATCH_SIZE=\d+ CORES_PER_INSTANCE=1; "
        r"\d:\d\d:\d\d so far, at most \d:\d\d:\d\d left",
        done.errors,
    )


def test_each_run_is_a_normal_result_and_the_clearly_slower_setting_has_fewer(done):
    measured = done.measured()
    assert set(measured.values()) == {1}
    assert measured["1", "round 1 of a tuning sweep"]
    assert ("1", "round 3 of a tuning sweep") not in measured  # nor in round 2, if its first run was steady
    assert {batch for batch, text in measured if "round 1" in text} == {"1", "60", "64"}
    assert (done.ended()[0] / "kpi.log").is_file()


def test_config_takes_the_file_and_it_says_what_it_rests_on(done):
    text = done.file.read_text()
    run = load_run(done.ended()[0])
    for fact in ("CPU", "kernel"):
        assert f"# {fact}: {run.facts[fact]}" in text
    assert re.search(r"^# Best-known settings of Harness on GENERIC, .* 20\d\d-\d\d-\d\d", text)
    assert "# cnnbench sweep " in text
    assert str(done.state) not in text
    assert re.search(r"^# Throughput: [0-9.]+ img/s, .* run", text, re.MULTILINE)
    sections = load_sections(done.file)
    assert list(sections) == ["*_throughput_avx_fp32_pkm", "*_throughput_avx_fp32"]
    best = {"CORES_PER_INSTANCE": "1", "INSTANCES": "1", "BATCH_SIZE": cells(done.output, "avx_fp32")["BS"]}
    assert sections["*_throughput_avx_fp32"] == sections["*_throughput_avx_fp32_pkm"] == best
    used = done.workload.run("--steps=20", step_of(2), "--config", str(done.file))
    assert used.returncode == 0, used.stderr
    assert f"## BATCH_SIZE: {best['BATCH_SIZE']}" in used.stdout


@pytest.mark.parametrize("keys", [(), ("Throughput",)], ids=["without a KPI of its kind", "with a figure"])
def test_the_figure_of_an_invalid_run_is_not_shown(done, keys):
    run = load_run(done.ended()[0])
    failed = Criterion(name="precision", passed=False, found="f32", needed="int8")
    kpis = [Kpi(key="Other load", unit="%", value=77), *(kpi for kpi in run.kpis if kpi.key in keys)]
    invalid = run.model_copy(update={"kpis": kpis, "criteria": [failed]})
    text = ranking(Outcome(TestCase.parse(PKM, SLUG), {FAST: {1: invalid}}, None, {FAST: "round 1: invalid"}))
    assert cells(text, FAST) == {
        "BATCH_SIZE": "64", "CORES_PER_INSTANCE": "1", "median": "-", "interval": "-", "runs": "0", "unstable": "0",
        "outcome": "dropped: round 1: invalid",
    }  # fmt: skip


def test_an_output_in_no_directory_is_refused_at_once(sweep):
    _, errors = sweep.run("--output", "/no/such/bkm.yaml", code=2)
    assert "--output /no/such/bkm.yaml: there is no directory /no/such" in errors
    assert not sweep.ended()


def test_an_existing_file_stays_unless_forced(done):
    before, runs = done.file.read_text(), len(done.ended())
    _, errors = done.run("--set", "BATCH_SIZE=1 60 64/CORES_PER_INSTANCE=1", code=2)
    assert "bkm-generic.yaml: is there already; --overwrite does so, --output names another" in errors
    assert done.file.read_text() == before
    done.run("--set", f"BATCH_SIZE=1 60 64/CORES_PER_INSTANCE=1 {CORES + 1}", "--overwrite")
    assert len(done.ended()) == runs
    assert done.file.read_text() == before


def test_a_sweep_that_was_killed_goes_on_with_what_is_missing(tmp_path):
    sweep = Sweep(tmp_path, *SLOW, "--rounds", "2", "--set", "BATCH_SIZE=60 64/CORES_PER_INSTANCE=1")
    with sweep.start() as process:
        wait_until(lambda: len(sweep.ended()) == 1 and find_workers(sweep.state), "the second run")
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not find_workers(sweep.state), "the end of the workers")
    kept = sweep.ended()
    before = (kept[0] / "run.json").stat().st_mtime_ns
    assert not sweep.file.exists()
    _, errors = sweep.run()
    assert f"goes on from {len(kept)} runs" in errors
    assert (kept[0] / "run.json").stat().st_mtime_ns == before
    assert set(sweep.measured().values()) == {1}
    assert {key for key in sweep.measured() if "round 1" in key[1]} == {
        ("60", "round 1 of a tuning sweep"),
        ("64", "round 1 of a tuning sweep"),
    }
    assert sweep.file.is_file()


def test_an_interrupted_sweep_says_how_to_go_on_and_counts_no_half_run(tmp_path):
    sweep = Sweep(tmp_path, *SLOW, "--rounds", "1", "--set", "BATCH_SIZE=60 64/CORES_PER_INSTANCE=1")
    with sweep.start() as process:
        wait_until(lambda: len(sweep.ended()) == 1 and find_workers(sweep.state), "the second run")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert not output
    assert not sweep.file.exists()
    assert not find_workers(sweep.state)
    output, errors = sweep.run()
    assert "dropped" not in output
    assert sum(sweep.measured().values()) == 2


def test_a_setting_whose_instance_is_killed_is_dropped_with_the_reason(tmp_path):
    sweep = Sweep(tmp_path, *SLOW, "--rounds", "1", "--set", "BATCH_SIZE=60 64/CORES_PER_INSTANCE=1")

    def victims():
        specs = find_specs(sweep.state).items()
        return [pid for pid, spec in specs if json.loads(spec.read_text())["batch_size"] == 64]

    with sweep.start() as process:
        wait_until(victims, "the run at batch size 64")
        os.kill(victims()[0], signal.SIGKILL)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert f"dropped {FAST}: round 1: invalid: Some instances were killed" in errors
    assert "was killed by SIGKILL" in cells(output, FAST)["outcome"]
    assert cells(output, "avx_fp32")["BS"] == "60"
    sweep.run("--overwrite")  # it stays dropped
    assert len(sweep.ended()) == 2


def test_a_setting_whose_inputs_cannot_be_staged_is_dropped_with_the_reason(sweep):
    space = ("--set", "BATCH_SIZE=60 64/CORES_PER_INSTANCE=1", "--rounds=2")
    with sweep.start(*space, *QUICK, program=("-c", STAGING_FAILS)) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert f"dropped {FAST}: no environment can be made" in errors
    assert cells(output, FAST)["outcome"] == "dropped: no environment can be made"
    assert cells(output, "avx_fp32")["BS"] == "60"
    assert sweep.file.is_file()


def test_when_all_settings_fail_there_is_no_file(sweep):
    space = ("--set", "BATCH_SIZE=1 2/CORES_PER_INSTANCE=1", "--rounds=1")
    output, errors = sweep.run(*space, "--customer_env=CNNBENCH_NULL_STEP_MS=abc", code=3)
    assert "could not convert string to float: 'abc'" in output
    assert "no setting of any case has a valid result" in errors
    assert not sweep.file.exists()


def test_a_setting_that_is_not_done_in_time_is_dropped_and_the_next_one_can_still_be_interrupted(sweep):
    space = ("--set", "BATCH_SIZE=60 64/CORES_PER_INSTANCE=1", "--rounds=1", "--timeout=2")
    with sweep.start(*space, "--steps=100000", "--instances=1", step_of(20)) as process:
        wait_until(lambda: len(sweep.ended()) == 1 and find_workers(sweep.state), "the second run")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert "not done within TIMEOUT=2 s" in errors
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


def test_a_changed_space_extends_a_sweep_beside_the_best_so_far(tmp_path):
    sweep = Sweep(tmp_path, *QUICK, "--rounds", "2")
    sweep.run("--set", "BATCH_SIZE=1 64/CORES_PER_INSTANCE=1")
    before = sweep.measured()
    sweep.run("--set", "BATCH_SIZE=1 2 64/CORES_PER_INSTANCE=1", "--overwrite")
    added = set(sweep.measured()) - set(before)
    assert {("2", "round 3 of a tuning sweep"), ("64", "round 3 of a tuning sweep")} <= added
    assert "1" not in {batch for batch, _ in added}


def test_other_parameters_or_another_machine_or_engine_are_not_mixed_in(tmp_path):
    sweep = Sweep(tmp_path, "--instances=1", step_of(2), "--rounds=1", "--set", "BATCH_SIZE=60 64/CORES_PER_INSTANCE=1")
    sweep.run("--steps=20")
    runs = len(sweep.ended())
    _, errors = sweep.run("--steps=30", "--overwrite", code=2)
    assert "holds runs of" in errors
    assert "STEPS was '20' there, and is '30' now; give another directory" in errors

    sweep.rewrite(0, lambda run: run["facts"].update({"TensorFlow": "1.0"}))
    sweep.rewrite(1, lambda run: run["facts"].update({"TensorFlow": "2.0"}))
    _, errors = sweep.run("--steps=20", "--overwrite", code=2)
    assert "TensorFlow was '1.0' there, and is '2.0' now" in errors

    sweep.rewrite(1, lambda run: run["facts"].update({"TensorFlow": "1.0", "CPU": "Z80"}))
    _, errors = sweep.run("--steps=20", "--overwrite", code=2)
    assert "CPU was 'Z80' there, and is " in errors

    sweep.rewrite(1, lambda run: run["facts"].update({"CPU": load_run(sweep.ended()[0]).facts["CPU"]}))
    sweep.rewrite(0, lambda run: run["facts"].update({"CPUs used": "0-63"}))
    _, errors = sweep.run("--steps=20", "--overwrite", code=2)
    assert "CPUs used was '0-63' there, and is " in errors
    assert len(sweep.ended()) == runs


def test_latency_is_better_the_lower(tmp_path):
    words = ("--rounds=1", "--case", "*_latency_avx_fp32", "--set", "BATCH_SIZE=1 2/CORES_PER_INSTANCE=1")
    sweep = Sweep(tmp_path, *QUICK, *words)
    output, _ = sweep.run()
    assert "ms" in cells(output, "avx_fp32").values()
    for number in range(2):
        sweep.rewrite(number, make_steady, LATENCY)
    output, _ = sweep.run("--overwrite")
    assert cells(output, "avx_fp32")["BS"] == "2"
    assert "10% of the speed of BATCH_SIZE=2" in cells(output, "BATCH_SIZE=1 CORES_PER_INSTANCE=1")["outcome"]
    assert list(load_sections(sweep.file)) == ["*_latency_avx_fp32"]


def test_two_sweeps_do_not_share_a_directory(sweep):
    sweep.state.mkdir()
    descriptor = os.open(sweep.state, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        _, errors = sweep.run("--set", "BATCH_SIZE=1/CORES_PER_INSTANCE=1", code=2)
    finally:
        os.close(descriptor)
    assert "another sweep is running there" in errors


def test_when_no_case_can_run_here_the_sweep_is_skipped(tmp_path):
    case, said = TestCase(SLUG, "throughput", "amx_int8"), []
    space = Space(case, {}, {"BATCH_SIZE=1": SkippedError("needs amx_int8, which this CPU has not")})
    with pytest.raises(SkippedError, match="no case of the sweep can run here"):
        run_sweep([space], tmp_path / "state", 1, pytest.fail, said.append)
    assert said == [f"skipped: {case.name}: needs amx_int8, which this CPU has not"]
    assert not (tmp_path / "state").exists()


def test_a_dry_run_prints_the_settings_and_measures_nothing(sweep, cnnbench):
    code, output, _ = cnnbench(sweep.arguments("--set", f"BATCH_SIZE=8/CORES_PER_INSTANCE=1 {CORES + 1}", "--dry-run"))
    assert code == 0
    assert f"{PKM}: 1 settings" in output
    assert f"BATCH_SIZE=8 CORES_PER_INSTANCE=1: {CORES} instances of 1 cores" in output
    assert f"BATCH_SIZE=8 CORES_PER_INSTANCE={CORES + 1}: cannot run here: " in output
    assert not sweep.state.exists()


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--rounds", "0"], "--rounds 0: must be 1 to 1000"),
        (["--rounds", "few"], "invalid int value: 'few'"),
        (["--set", "STEPS=10 20"], "a sweep tunes BATCH_SIZE, CORES_PER_INSTANCE, INSTANCES, VARIANT; give others as"),
        (["--set", "BATCH=1"], "BATCH: no such parameter"),
        (["--set", "BATCH_SIZE=0"], "BATCH_SIZE=0 (--set): must be 1 to 4096"),
        (["--set", "VARIANT=itex mkl"], "VARIANT=mkl (--set): must be auto, itex"),
        (["--set", "INSTANCES=auto none"], "INSTANCES=none (--set): must be"),
        (["--set", "BATCH_SIZE=1", "--batch_size=2"], "BATCH_SIZE=2 (argument): is given by --set too"),
        (["--steps=none"], "STEPS=none (argument): must be"),
        (["--stepz=1"], "STEPZ: no such parameter"),
        (["--precision=avx_fp32", "--mode=latency"], "MODE=latency (argument): the case"),
        (["--case", "*_accuracy_*"], "--case *_accuracy_*: matches no case that can be tuned; there are test_harness"),
        (["--case", "*_gated"], "matches no case that can be tuned"),
        (["--platform", "Z80"], "PLATFORM=Z80: must be one of"),
        (["--platform", "SPR"], "PLATFORM=SPR: Harness is not available on it; it is on GENERIC"),
        (["--config", "none.yaml"], "none.yaml: no such settings file"),
        (["--output", __file__], "test_tuning.py: is there already"),
        (["--output", __file__, "--dry-run"], "test_tuning.py: is there already"),
        (["--state", "/proc/none", "--dry-run"], "--state /proc/none: cannot be written to"),
        (["--hang-after", "0"], "--hang-after 0: must be more than 0"),
        (["--timeout", "-1"], "--timeout -1: must be more than 0"),
        (["--workload", "none"], "none: no workload.yaml there"),
    ],
)
def test_bad_usage_measures_nothing(sweep, cnnbench, words, needed):
    code, output, errors = cnnbench(sweep.arguments(*words))
    assert code == 2
    assert not output
    assert needed in errors
    assert not sweep.state.exists()


def test_the_state_directory_must_be_given(cnnbench):
    code, _, errors = cnnbench(["sweep", "--workload", "."])
    assert code == 2
    assert "required: --state" in errors


def test_a_build_directory_has_scripts_for_it_and_for_plain_sweeps_over_the_same_parameters(tmp_path):
    checkout = write_checkout(tmp_path / "checkout", "GENERIC")
    done = run_cmake(tmp_path / "build", Path(sys.executable), "-DPLATFORM=GENERIC", source=checkout)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "build" / "workload" / "Harness"
    space = "BATCH_SIZE=8/CORES_PER_INSTANCE=1/INSTANCES=auto 1/VARIANT=stock"
    words = [directory / "ctest.sh", "--dry-run", "--set", space]
    done = subprocess.run(words, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run 2 of 2: BATCH_SIZE=8 CORES_PER_INSTANCE=1 INSTANCES=1 VARIANT=stock" in done.stdout
    assert re.findall(r"  INSTANCES=(\d+)", done.stdout) == [str(CORES), "1"]

    words = ["--case", "*_throughput_*", "--set", "BATCH_SIZE=8/CORES_PER_INSTANCE=1", "--rounds=1", *QUICK]
    done = subprocess.run([directory / "sweep.sh", *words], env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (directory / "sweep" / "bkm-generic.yaml").is_file()
