"""kpi.sh over logs that the harness has written: the KPI text when they are whole, and never a KPI when they are not.

The real script runs with nothing but one awk on its PATH, once for each awk of this machine.
"""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from checkout import ROOT, WORKLOAD
from cnnbench.results.kpi_text import kpi_line, write_logs
from cnnbench.results.record import KILLED, Criterion, Kpi, RunResult, load_run

BASH = shutil.which("bash")
AWKS = sorted({Path(path).resolve() for name in ("awk", "mawk", "gawk", "busybox") if (path := shutil.which(name))})
KPI_LINE = re.compile(r"\*?[^#:,]+ \([^)]+\): ")

OK = Criterion(name="pinning", passed=True, found="all threads on 0,1", needed="every thread on the planned CPUs")
UNSTEADY = Criterion(name="spread", passed=False, found="12.0%", needed="at most 10%", severity="unstable")
KILLED_INSTANCE = Criterion(name="instances", passed=False, found=KILLED, needed="")
KPIS = [
    Kpi(key="Throughput", unit="img/s", value=151.42, primary=True),
    Kpi(key="Throughput 95 % low", unit="img/s", value=150.9),
    Kpi(key="Latency p50", unit="ms", value=13.1),
    Kpi(key="Input wait", unit="%", value=0.0),
    Kpi(key="Throughput drift", unit="%", value=-0.25),
]


def make_run(run_id="20250101T000000Z-0badcafe", criteria=(OK,), kpis=KPIS, **effective):
    return RunResult(
        run_id=run_id,
        started="2025-01-01T00:00:00+00:00",
        workload="ResNet50-TensorFlow-Xeon-Public",
        case="test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_avx_fp32_gated",
        requested={"PRECISION": "avx_fp32", "INSTANCES": "auto"},
        effective={"PRECISION": "avx_fp32", "INSTANCES": "2", "CORES_PER_INSTANCE": "1"} | effective,
        facts={"CPU": "A CPU (R): 2,0 GHz * 2", "kernel": "6.1"},
        plan={},
        instances=[],
        kpis=list(kpis),
        criteria=list(criteria),
        notes=["1 of 3 usable cores stay idle"],
    )


def save_run(directory, run=None, status=0, instances=2):
    """Write what a run leaves: the instances' results, then run.json, kpi.log and status."""
    run = run or make_run()
    for index in range(instances):
        (directory / f"instance-{index}").mkdir(parents=True)
        result = {"run_id": run.run_id, "index": index, "pid": 4242 + index, "steps": 10, "cpus": [index]}
        (directory / f"instance-{index}" / "result.json").write_text(json.dumps(result, indent=1))
    directory.mkdir(exist_ok=True)
    write_logs(run, directory, status)
    return directory


@pytest.fixture
def logs(tmp_path):
    return save_run(tmp_path / "logs-case")


@pytest.fixture(params=AWKS, ids=lambda path: path.name)
def kpi_sh(request, tmp_path):
    """Run the script with one awk; it finds no other program."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "awk").symlink_to(request.param)

    def run(*arguments, script=ROOT / "kpi.sh", cwd=tmp_path):
        return subprocess.run(
            [BASH, script, *map(str, arguments)],
            cwd=cwd,
            env={"PATH": str(tmp_path / "bin")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def assert_no_kpi(done, *words):
    lines = done.stdout.splitlines()
    assert done.returncode == 3, done
    assert lines[-1].startswith("#INVALID RESULT: ")
    assert all(line.startswith("#") for line in lines)
    assert not any(KPI_LINE.match(line) for line in lines)
    for one in words:
        assert one in lines[-1]


def test_whole_logs_print_the_kpi_text(kpi_sh, logs):
    done = kpi_sh(logs)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "# test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_avx_fp32_gated",
        "# started 2025-01-01T00:00:00+00:00",
        "## PRECISION: avx_fp32",
        "## INSTANCES: 2",
        "## CORES_PER_INSTANCE: 1",
        "# CPU: A CPU (R): 2,0 GHz * 2",
        "# kernel: 6.1",
        "# note: 1 of 3 usable cores stay idle",
        "# ok pinning: all threads on 0,1",
        "# verdict: valid",
        "*Throughput (img/s): 151.4",
        "Throughput 95 % low (img/s): 150.9",
        "Latency p50 (ms): 13.10",
        "Input wait (%): 0.000",
        "Throughput drift (%): -0.2500",
    ]


def test_an_unstable_run_prints_its_kpis_and_says_so(kpi_sh, tmp_path):
    done = kpi_sh(save_run(tmp_path / "logs", make_run(criteria=[OK, UNSTEADY])))
    assert done.returncode == 0
    assert "# unstable spread: 12.0%, needed at most 10%" in done.stdout
    assert "# verdict: unstable (spread: 12.0%, needed at most 10%)" in done.stdout
    assert "*Throughput (img/s): 151.4" in done.stdout


def test_the_directory_is_the_present_one_by_default(kpi_sh, logs):
    assert kpi_sh(cwd=logs).stdout == kpi_sh(logs).stdout


@pytest.fixture
def runs(tmp_path):
    """The logs of a case: run N has the latency N."""
    for number in (1, 2, 9, 10):
        kpis = [KPIS[0], Kpi(key="Latency p50", unit="ms", value=number)]
        save_run(tmp_path / "logs-case" / f"itr-{number}" / "worker-0", make_run(kpis=kpis))
    return tmp_path / "logs-case"


@pytest.mark.parametrize("slash", ["", "/"])
def test_of_the_logs_of_a_case_the_last_run_is_taken(kpi_sh, runs, slash):
    done = kpi_sh(f"{runs}{slash}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"# {runs}/itr-10/worker-0, the last of 4 runs"
    assert done.stdout.splitlines()[1:] == kpi_sh(runs / "itr-10" / "worker-0").stdout.splitlines()
    assert done.stdout.endswith("Latency p50 (ms): 10.00\n")


def test_of_one_run_its_worker_is_taken(kpi_sh, runs):
    whole = kpi_sh(runs / "itr-9" / "worker-0").stdout
    assert whole.endswith("Latency p50 (ms): 9.000\n")
    assert kpi_sh(runs / "itr-9").stdout == f"# {runs}/itr-9/worker-0\n{whole}"
    assert kpi_sh(cwd=runs / "itr-9").stdout == f"# ./worker-0\n{whole}"


def test_what_is_no_run_is_not_counted(kpi_sh, runs):
    for name in ("itr-11.old", "itr-x", "itr-"):
        save_run(runs / name / "worker-0")
    (runs / "itr-12").write_text("")
    assert kpi_sh(runs).stdout.startswith(f"# {runs}/itr-10/worker-0, the last of 4 runs\n")


def test_a_last_run_without_a_worker_does_not_give_an_earlier_runs_kpis(kpi_sh, runs):
    (runs / "itr-11").mkdir()
    for directory in (runs, runs / "itr-11"):
        assert_no_kpi(kpi_sh(directory), "/itr-11: kpi.log is missing or empty; the run did not end")


@pytest.mark.parametrize("name", ["two words", "x=1", "it's", "$(touch x)", "*"])
def test_a_directory_with_an_odd_name(kpi_sh, tmp_path, name):
    save_run(tmp_path / name)
    for argument in (name, tmp_path / name):
        done = kpi_sh(argument)
        assert (done.returncode, done.stderr) == (0, "")
        assert "*Throughput (img/s): 151.4" in done.stdout


def test_the_workloads_script_is_this_one(kpi_sh, logs):
    assert (WORKLOAD / "kpi.sh").resolve() == ROOT / "kpi.sh"
    assert kpi_sh(logs, script=WORKLOAD / "kpi.sh").stdout == kpi_sh(logs).stdout


@pytest.mark.parametrize("arguments", [("a", "b"), ("--help",), ("-x",)])
def test_bad_usage(kpi_sh, arguments):
    done = kpi_sh(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: kpi.sh [DIR]")


def test_no_directory(kpi_sh, tmp_path):
    assert_no_kpi(kpi_sh(tmp_path / "nowhere"), "nowhere: no such directory")


@pytest.mark.parametrize("name", ["kpi.log", "status"])
@pytest.mark.parametrize("content", [None, ""])
def test_a_missing_or_empty_file(kpi_sh, logs, name, content):
    (logs / name).unlink()
    if content is not None:
        (logs / name).write_text(content)
    assert_no_kpi(kpi_sh(logs), f"{name} is missing or empty")


@pytest.mark.parametrize("name", ["kpi.log", "status"])
def test_a_directory_in_the_place_of_a_file(kpi_sh, logs, name):
    (logs / name).unlink()
    (logs / name).mkdir()
    assert_no_kpi(kpi_sh(logs), name)


@pytest.mark.parametrize("status", ["1", "3", "00", "", "0 1", "valid"])
def test_a_status_that_is_not_zero(kpi_sh, logs, status):
    (logs / "status").write_text(f"{status}\n")
    assert_no_kpi(kpi_sh(logs), f"the run ended with status {status}")


def test_a_kpi_log_cut_off_at_any_line(kpi_sh, logs):
    lines = (logs / "kpi.log").read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (logs / "kpi.log").write_text("".join(lines[:kept]))
        assert_no_kpi(kpi_sh(logs), "kpi.log is cut off")


def test_a_kpi_log_cut_off_inside_a_line(kpi_sh, logs):
    content = (logs / "kpi.log").read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    header, kpi, footer = ends[0], content.index(b"*Throughput"), ends[-2]
    for kept in (
        1,
        7,
        header - 1,
        header,
        kpi + 1,
        kpi + 20,
        kpi + 23,
        footer,
        footer + 1,
        footer + 9,
        len(content) - 3,
    ):
        (logs / "kpi.log").write_bytes(content[:kept])
        assert_no_kpi(kpi_sh(logs))


def test_a_kpi_log_that_lost_a_line_inside(kpi_sh, logs):
    lines = (logs / "kpi.log").read_text().splitlines(keepends=True)
    for lost in range(len(lines)):
        (logs / "kpi.log").write_text("".join(lines[:lost] + lines[lost + 1 :]))
        assert_no_kpi(kpi_sh(logs))


def test_a_file_of_something_else(kpi_sh, logs):
    (logs / "kpi.log").write_text("*Throughput (img/s): 151.4\n")
    assert_no_kpi(kpi_sh(logs), "not a kpi log of schema 1")


def test_a_later_schema(kpi_sh, logs):
    text = (logs / "kpi.log").read_text()
    (logs / "kpi.log").write_text(text.replace("schema 1", "schema 2"))
    assert_no_kpi(kpi_sh(logs), "not a kpi log of schema 1")


@pytest.mark.parametrize("other", ["20250101T000000Z-0badcafe", "20250102T000000Z-00c0ffee"])
def test_two_kpi_logs_in_one(kpi_sh, logs, tmp_path, other):
    second = save_run(tmp_path / "other", make_run(run_id=other))
    (logs / "kpi.log").write_text((logs / "kpi.log").read_text() + (second / "kpi.log").read_text())
    assert_no_kpi(kpi_sh(logs), "mixed")


def test_a_kpi_log_inside_another(kpi_sh, logs, tmp_path):
    second = save_run(tmp_path / "other", make_run(run_id="20250102T000000Z-00c0ffee"))
    first = (logs / "kpi.log").read_text().splitlines(keepends=True)
    (logs / "kpi.log").write_text("".join(first[:5]) + (second / "kpi.log").read_text() + "".join(first[5:]))
    assert_no_kpi(kpi_sh(logs), "mixed")


def test_a_missing_instance(kpi_sh, logs):
    (logs / "instance-1" / "result.json").unlink()
    assert_no_kpi(kpi_sh(logs), "1 of 2 instances have a result")


def test_an_instance_too_many(kpi_sh, logs):
    shutil.copytree(logs / "instance-1", logs / "instance-2")
    assert_no_kpi(kpi_sh(logs), "of 2 instances")


def test_no_instance_at_all(kpi_sh, tmp_path):
    assert_no_kpi(kpi_sh(save_run(tmp_path / "logs", instances=0)), "0 of 2 instances have a result")


@pytest.mark.parametrize("instances", [None, "0", "auto"])
def test_a_kpi_log_that_does_not_say_how_many_instances_there_were(kpi_sh, tmp_path, instances):
    run = make_run(INSTANCES=instances or "")
    if instances is None:
        del run.effective["INSTANCES"]
    assert_no_kpi(kpi_sh(save_run(tmp_path / "logs", run, instances=0)), "instances")


def test_an_instances_result_cut_off_anywhere(kpi_sh, logs):
    path = logs / "instance-1" / "result.json"
    lines = path.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        path.write_text("".join(lines[:kept]))
        assert_no_kpi(kpi_sh(logs))


def test_an_instances_result_of_another_run(kpi_sh, logs, tmp_path):
    other = save_run(tmp_path / "other", make_run(run_id="20250102T000000Z-00c0ffee"))
    shutil.copy(other / "instance-1" / "result.json", logs / "instance-1" / "result.json")
    assert_no_kpi(kpi_sh(logs), "instance-1/result.json is of another run")


@pytest.mark.parametrize("primary", [0, 2])
def test_not_exactly_one_primary_kpi(kpi_sh, tmp_path, primary):
    kpis = [replace(kpi, primary=index < primary) for index, kpi in enumerate(KPIS)]
    run = make_run().model_copy(update={"kpis": kpis})  # a copy is not checked: RunResult itself refuses these
    assert_no_kpi(kpi_sh(save_run(tmp_path / "logs", run)), f"{primary} primary KPIs instead of one")


@pytest.mark.parametrize("key", ["Latency, mean", "Latency: mean", "Latency *", "**Latency"])
def test_a_key_that_would_not_be_read_back(kpi_sh, tmp_path, key):
    kpis = [*KPIS, Kpi(key=key, unit="ms", value=1.0)]
    assert_no_kpi(kpi_sh(save_run(tmp_path / "logs", make_run(kpis=kpis))), "a line that is no KPI")


@pytest.mark.parametrize("status", [3, 0])
def test_an_invalid_run_gives_its_reason(kpi_sh, tmp_path, status):
    run = make_run(criteria=[OK, UNSTEADY, KILLED_INSTANCE])
    done = kpi_sh(save_run(tmp_path / "logs", run, status))
    assert_no_kpi(done, KILLED)
    assert "## INSTANCES: 2" in done.stdout.splitlines()


def test_a_killed_run_gives_the_documented_line(kpi_sh, tmp_path):
    done = kpi_sh(save_run(tmp_path / "logs", make_run(criteria=[KILLED_INSTANCE]), status=3, instances=0))
    assert done.stdout.splitlines()[-1] == f"#INVALID RESULT: {KILLED}"


def test_a_reason_of_several_lines_stays_on_one(kpi_sh, tmp_path):
    broken = Criterion(name="outputs", passed=False, found="first\n*Throughput (img/s): 9", needed="all")
    assert_no_kpi(kpi_sh(save_run(tmp_path / "logs", make_run(criteria=[broken]), status=3)), "first *Throughput")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (151.42, "151.4"),
        (1.0, "1.000"),
        (12345.6, "12346"),
        (99999.96, "100000"),
        (0.00123456, "0.001235"),
        (-2.5, "-2.500"),
        (1e-12, "0.000000000"),
        (3.2e15, "3200000000000000"),
    ],
)
def test_numbers_have_a_point_and_no_exponent(value, text):
    assert kpi_line(Kpi(key="Latency", unit="ms", value=value)) == f"Latency (ms): {text}"


def test_logs_hold_the_whole_run_and_the_status_comes_last(logs):
    assert load_run(logs) == make_run()
    assert (logs / "status").read_text() == "0\n"
    lines = (logs / "kpi.log").read_text().splitlines()
    assert lines[0] == "# cnnbench kpi log, schema 1, run 20250101T000000Z-0badcafe"
    assert lines[-1] == "# end of run 20250101T000000Z-0badcafe: 15 lines"
    assert len(lines) == 17
