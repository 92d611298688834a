"""`cnnbench validate` on the null engine: run, killed and resumed, repeated, judged, and refused."""

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from cnnbench.cases.expectation import read_expectations
from cnnbench.cases.parameters import precisions_of
from cnnbench.cases.platforms import detect_platform
from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.cli import validate
from cnnbench.cli.main import main
from cnnbench.machine.checks import Check
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.record import find_iterations, load_run
from null_workload import PATIENCE_S, THROUGHPUT, clean_environment, process_files, step_of, wait_until, write_checkout
from run_files import INVALID, UNSTEADY, make_run, save_run

CODE = detect_platform(read_cpuinfo())
GATED, PKM = f"{THROUGHPUT}_gated", f"{THROUGHPUT}_pkm"
HERE = {"host name": platform.node(), "CPU": read_cpuinfo().model_name or ""}
PROGRAM = """
import sys
from pathlib import Path
from cnnbench.cli import validate
from cnnbench.cli.main import main
validate.REPOSITORY, validate.LOOK_S = Path(sys.argv[1]), 0.1
sys.exit(main(["validate", *sys.argv[2:]]))
"""
"""`cnnbench validate`, but of the workloads of a checkout."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = write_checkout(tmp_path_factory.mktemp("validate") / "checkout", CODE)
    workload = checkout / "workload" / "Harness"
    (workload / "CMakeLists.txt").write_text("add_workload(CASES throughput throughput_gated throughput_pkm)\n")
    (checkout / "workload" / "quick.yaml").write_text("'*': {MIN_TIME: 0.2, MAX_TIME: 0.4}\n")
    return checkout


@pytest.fixture
def here(checkout, monkeypatch):
    """Have commands of this process validate the checkout's workload, from its directory."""
    monkeypatch.setattr(validate, "REPOSITORY", checkout)
    monkeypatch.setattr(validate, "LOOK_S", 0.0001)
    monkeypatch.chdir(checkout)
    before = signal.getsignal(signal.SIGTERM)
    yield checkout
    signal.signal(signal.SIGTERM, before)


def write_expected(checkout, **more):
    entry = {"case": PKM, "value": 1e6, "low": 0.9e6, "high": 1.1e6, "unit": "img/s", "source": "a guess"} | more
    path = checkout / "workload" / "Harness" / "expect" / f"{CODE}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([entry]))
    return path


def logs_of(folder, case):
    return folder / "build" / "workload" / "Harness" / f"logs-{case}"


def leave(folder, case, *runs):
    """Leave runs of this machine in a validation's folder, each a value and what it was judged by."""
    root = logs_of(folder, case).parent
    for number, (value, criteria) in enumerate(runs):
        save_run(root, make_run(value, number, case=case, workload="Harness", criteria=criteria, facts=HERE))


def start(checkout, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, checkout, *arguments],
        cwd=checkout,
        env=clean_environment(CNNBENCH_CACHE=str(checkout / "cache")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


QUICK = ("--quick", "--workload", "Harness", "--repeats", "0", step_of(2))


@pytest.fixture(scope="module")
def resumed(checkout):
    """A quick validation that was killed in its second case and called again; what that printed, and its folder."""
    path = write_expected(checkout)
    folder = checkout / "swept"
    slow = logs_of(folder, PKM) / "itr-1" / "worker-0" / "process-0"
    with start(checkout, *QUICK, "-o", str(folder)) as process:
        wait_until(slow.exists, "the second case")
        first = load_run(logs_of(folder, GATED) / "itr-1" / "worker-0").run_id
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    wait_until(
        lambda: not [pid for pid, line in process_files("cmdline").items() if str(folder).encode() in line],
        "the end of what it had started",
    )
    with start(checkout, *QUICK, "-o", str(folder)) as process:
        output, told = process.communicate(timeout=PATIENCE_S)
    path.unlink()
    return folder, first, process.returncode, output, told


def test_a_killed_validation_goes_on_with_what_has_no_result(resumed):
    folder, first, code, _, told = resumed
    assert code == 4, told
    assert load_run(logs_of(folder, GATED) / "itr-1" / "worker-0").run_id == first
    assert len(find_iterations(logs_of(folder, GATED))) == 1
    assert f"{PKM}: run 2 of 2" in told
    assert f"{GATED}: run" not in told
    counting = json.loads((folder / "verdict.json").read_text())
    assert [one["state"] for one in counting["cases"]] != []
    assert {one["case"] for one in counting["cases"]} == {GATED, PKM}
    assert counting["exit_code"] == 4
    assert {"governor", "steal", "throttling of the cases"} <= {one["knob"] for one in counting["checks"]}


def test_it_ends_in_the_page_and_a_verdict_against_what_is_expected(resumed):
    folder, _, _, output, _ = resumed
    assert "cnnbench report" in (folder / "report.html").read_text()
    verdict = output[output.index(f"{CODE}, ") :]
    assert "below [1]" in verdict
    assert "a guess" in verdict
    assert "no expectation" in verdict
    assert max(len(line) for line in verdict.splitlines() if str(folder) not in line and CODE not in line) <= 80


def test_the_same_folder_is_judged_again_by_other_expectations_without_a_run(resumed, here, capsys):
    folder = resumed[0]
    path = write_expected(here, value=10, low=1, high=20)
    again = ["validate", *QUICK, "-o", str(folder)]
    assert main([*again, "--format", "json"]) == 0
    text = capsys.readouterr()
    assert [one["word"] for one in json.loads(text.out)["expected"]] == ["above"]
    assert "run 1 of" not in text.err
    path.write_text("- {case: nothing}\n")
    assert main(again) == 2
    assert "entry 1, value: Field required" in capsys.readouterr().err
    path.unlink()


def test_a_folder_of_another_plan_or_of_something_else_is_refused_unless_told(resumed, here, tmp_path, capsys):
    folder = resumed[0]
    before = (folder / "plan.json").read_bytes()
    assert main(["validate", *QUICK, "--runs", "2", "--customer_env=A=b", "-o", str(folder)]) == 2
    text = capsys.readouterr().err
    assert f"{folder}: is of another plan:\n  runs: 1, now 2\n  options: " in text
    assert "--replan" in text
    other = json.loads(before)
    other["machine"]["host"] = "elsewhere"
    (folder / "plan.json").write_text(json.dumps(other))
    assert main(["validate", *QUICK, "-o", str(folder)]) == 2
    assert "machine: host=elsewhere" in capsys.readouterr().err
    assert main(["validate", *QUICK, "--replan", "-o", str(folder)]) == 0
    assert (folder / "plan.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["validate", *QUICK, "-o", str(tmp_path)]) == 2
    assert "has notes.txt and no plan.json" in capsys.readouterr().err
    (folder / "plan.json").write_text("{")
    assert main(["validate", *QUICK, "-o", str(folder)]) == 1
    assert "no plan" in capsys.readouterr().err
    (folder / "plan.json").write_bytes(before)


def test_unstable_cases_are_repeated_up_to_the_limit_and_invalid_ones_are_told(here, tmp_path, capsys):
    folder = tmp_path / "sweep"
    leave(folder, PKM, (50, (UNSTEADY,)))  # as of a validation that was killed before it had written its plan
    leave(folder, GATED, (1, (INVALID,)))
    arguments = ["validate", "--quick", "-o", str(folder), "--repeats", "1", step_of(2)]
    assert main([*arguments, "--dry-run"]) == 0
    plan = [line.split()[-3:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("test_")]
    assert plan == [["1", "0"], ["1", "1"]]
    assert not (folder / "plan.json").exists()
    assert main(arguments) == 3
    text = capsys.readouterr()
    assert f"{PKM}: again, as it was unstable" in text.err
    assert len(find_iterations(logs_of(folder, PKM))) == 2
    assert len(find_iterations(logs_of(folder, GATED))) == 1
    assert text.out.index("INVALID:\n  Some instances were killed") < text.out.index(f"    {GATED}")
    assert main(arguments) == 3
    assert len(find_iterations(logs_of(folder, PKM))) == 2


def test_a_case_that_cannot_run_and_one_that_fails_are_told_with_the_reason(here, tmp_path, capsys):
    lacking = [name for name in precisions_of("graph") if missing_for_precision(PRECISIONS[name], read_cpuinfo().flags)]
    if not lacking:
        pytest.skip("this CPU runs every precision")
    config = tmp_path / "large.yaml"
    config.write_text("'*_avx_fp32_*': {CORES_PER_INSTANCE: 4000}\n")
    declaration = here / "workload" / "Harness" / "cmake" / f"{CODE}.cmake"
    before = declaration.read_text()
    declaration.write_text(f"set(PRECISIONS avx_fp32 {lacking[0]})\n")
    arguments = ["validate", "--quick", "-o", str(tmp_path / "sweep"), "--config", str(config), "-R", "_pkm$"]
    try:
        assert main(arguments) == 1
    finally:
        declaration.write_text(before)
    text = capsys.readouterr()
    failed, skipped = text.out.index("\nfailed:\n"), text.out.index("\nskipped:\n")
    assert "CORES_PER_INSTANCE=4000: must be 1 to" in text.out[failed:skipped]
    assert f"{lacking[0]}: " in text.out[skipped:]
    assert "run 2 of 2" in text.err


def test_a_ctrl_c_ends_it_and_says_how_to_go_on(checkout, tmp_path):
    folder = tmp_path / "sweep"
    with start(checkout, *QUICK[:-1], step_of(20), "--steps=10000", "-o", str(folder)) as process:
        wait_until((logs_of(folder, GATED) / "itr-1" / "worker-0" / "process-0").exists, "the first case")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert f"what has a result is in {folder}; the same command goes on from there" in told
    assert not (folder / "verdict.json").exists()


def test_what_was_measured_is_expected_from_then_on_and_not_written_over(here, tmp_path, capsys):
    folder = tmp_path / "sweep"
    leave(folder, PKM, (100, ()), (101, ()), (102, ()))
    arguments = ["validate", "-o", str(folder), "--runs", "3", "--write-expect", "-R", "_pkm$"]
    assert main(arguments) == 0
    path = here / "workload" / "Harness" / "expect" / f"{CODE}.yaml"
    (made,) = read_expectations(path)
    assert (made.case, made.value, made.unit) == (PKM, 101, "img/s")
    assert platform.node() in made.source
    before = path.read_bytes()
    assert main(arguments) == 2
    assert f"{path} is there; --overwrite replaces" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert "within" in capsys.readouterr().out
    assert path.read_bytes() == before
    path.unlink()


def test_what_the_machine_lacks_is_told_with_its_remedy(here, monkeypatch, capsys):
    found = [Check("governor", "poor", "powersave", "performance", "cpupower frequency-set -g performance")]
    monkeypatch.setattr(validate, "check_machine", lambda seconds: found)
    assert main(["validate", "--check"]) == 1
    assert "[1] governor: cpupower frequency-set -g performance" in capsys.readouterr().out
    found[:] = [Check("governor", "not known", "no such file", "performance")]
    assert main(["validate", "--check"]) == 0
    assert "not known [1]" in capsys.readouterr().out


BAD = {
    "an unknown workload": (["--workload", "Harnes"], 2, "--workload Harnes: no such workload; did you mean Harness?"),
    "an unknown platform": (["--platform", "VAX"], 2, "PLATFORM=VAX: must be one of"),
    "a platform without cases": (["--platform", "MILAN"], 77, "nothing to validate on MILAN"),
    "no case": (["-R", "nothing"], 2, "-R nothing: selects none of the 3 cases"),
    "a bad expression": (["-R", "("], 2, "-R (: no regular expression"),
    "only cases that are not quick": (["--quick", "-R", "fp32$"], 2, "of which --quick takes those that end in gated"),
    "no runs": (["--runs", "0"], 2, "--runs 0: must be 1 to 100"),
    "too many repeats": (["--repeats", "99"], 2, "--repeats 99: must be 0 to 20"),
    "an unknown parameter": (["--bacth_size=1"], 2, "BACTH_SIZE: no such parameter"),
    "a bad parameter": (["--batch_size=0"], 2, "BATCH_SIZE=0"),
    "an option of cmake that is ours": (["-D", "PLATFORM=SPR"], 2, "-D PLATFORM=SPR: PLATFORM is not given so"),
    "no option of cmake": (["-D", "REGISTRY"], 2, "-D REGISTRY: must be NAME=VALUE"),
    "a place that is none": (["-o", "/proc/nothing"], 2, "-o /proc/nothing: cannot be written to"),
    "too few runs to expect anything": (["--write-expect"], 2, "--write-expect: 1 runs of each case; needed 3"),
    "no settings file": (["--config", "none.yaml"], 2, "none.yaml"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_anything_runs(here, capsys, what):
    arguments, code, complaint = BAD[what]
    folder = here / "refused"  # the same for all, as it takes long to configure
    output = [] if "-o" in arguments else ["-o", str(folder)]
    assert main(["validate", *output, *arguments]) == code
    assert complaint in capsys.readouterr().err
    assert not list(folder.rglob("run.json"))
    assert "a bad parameter" in what or not (folder / "plan.json").exists()
    (folder / "plan.json").unlink(missing_ok=True)
