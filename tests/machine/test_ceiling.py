"""The machine's own ceiling: the program that measures it, what is made of its figures, and runs held against them."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest

from checkout import ROOT, WORKLOAD
from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.precisions import PRECISIONS
from cnnbench.cli.main import main
from cnnbench.machine.ceiling import Peak, find_peak_program, measure_ceiling, measure_peaks, utilize
from cnnbench.machine.host import read_cpuinfo
from cnnbench.machine.topology import read_topology
from cnnbench.proof.verdict import judge_ceiling
from cnnbench.results.record import load_run
from cnnbench.run.job import plan_case, prepare_job
from cnnbench.run.measurement import CEILING_RETRIES
from null_workload import CORES, THROUGHPUT, NullWorkload, clean_environment, run_kpi

FLAGS = read_cpuinfo().flags
KINDS = {  # alternatives of the /proc/cpuinfo flags that each needs
    "fp32": [{"avx512f"}, {"avx2", "fma"}],
    "vnni": [{"avx512_vnni"}, {"avx_vnni"}],
    "avx512_bf16": [{"avx512_bf16"}],
    "amx_int8": [{"amx_tile", "amx_int8"}],
    "amx_bf16": [{"amx_tile", "amx_bf16"}],
    "triad": [{"avx2", "fma"}],
}
HERE = [kind for kind, alternatives in KINDS.items() if any(flags <= FLAGS for flags in alternatives)]
CPUS = sorted(os.sched_getaffinity(0))
BRIEF = ("--seconds", "0.001", "--repeats", "2")
PREFIX = "test_resnet50v1_5_tensorflow_xeon_public_inference_"
GATED = f"{PREFIX}throughput_avx_fp32_gated"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, compiled without a warning."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler; on Debian and Ubuntu: apt-get install gcc libc6-dev")
    path = tmp_path_factory.mktemp("native") / "cnnbench-peak"
    strict = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run([compiler, *strict, "-o", path, ROOT / "native" / "peak.c"], check=True)
    return path


def run_program(program, *words, affinity=None):
    def confine():
        if affinity is not None:
            os.sched_setaffinity(0, affinity)

    return subprocess.run([program, *words], capture_output=True, text=True, preexec_fn=confine)


def read_kinds(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["kinds"]


def test_the_program_measures_every_kind_that_this_cpu_has(program):
    kinds = read_kinds(run_program(program, *BRIEF, "--cpus", ",".join(map(str, CPUS))))
    assert list(kinds) == HERE
    for one in kinds.values():
        assert all(math.isfinite(one[figure]) and one[figure] > 0 for figure in ("one_core", "all_cores"))
    units = {"fp32": "GFLOP/s", "vnni": "GOP/s", "avx512_bf16": "GFLOP/s", "amx_int8": "GOP/s", "amx_bf16": "GFLOP/s"}
    assert {kind: one["unit"] for kind, one in kinds.items()} == {
        kind: unit for kind, unit in {**units, "triad": "GB/s"}.items() if kind in HERE
    }


def test_the_program_measures_the_kinds_asked_for_on_the_cpus_asked_for(program):
    kinds = read_kinds(run_program(program, *BRIEF, "--cpus", str(CPUS[-1]), "triad", "fp32"))
    assert set(kinds) == {"fp32", "triad"}
    assert all(one["one_core"] == one["all_cores"] for one in kinds.values())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--cpus: must be given"),
        (["--cpus"], "--cpus: needs a value"),
        (["--cpus", ""], "--cpus : must be CPU numbers separated by commas"),
        (["--cpus", f"{CPUS[0]},"], "--cpus : must be CPU numbers"),
        (["--cpus", "0-1"], "--cpus 0-1: must be CPU numbers"),
        (["--cpus", "-1"], "--cpus -1: must be CPU numbers"),
        (["--cpus", "99999999999999999999"], "--cpus 99999999999999999999: this process may not use that CPU"),
        (["--cpus", f"{CPUS[0]},{CPUS[0]}"], f"--cpus {CPUS[0]}: is named twice"),
        (["--cpus", str(CPUS[0]), "fp16"], "fp16: no such kind; there are fp32, vnni, avx512_bf16"),
        (["--cpus", str(CPUS[0]), "--seconds", "0"], "--seconds 0: must be a number from 0.001 to 10"),
        (["--cpus", str(CPUS[0]), "--seconds", "nan"], "--seconds nan: must be a number"),
        (["--cpus", str(CPUS[0]), "--repeats", "1.5"], "--repeats 1.5: must be a whole number from 1 to 1000"),
        (["--cpus", str(CPUS[0]), "--repeats", "2x"], "--repeats 2x: must be a whole number"),
        (["--fast"], "--fast: no such option; usage: "),
    ],
)
def test_the_program_refuses_what_it_cannot_do(program, words, complaint):
    done = run_program(program, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"cnnbench-peak: {complaint}")


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is no other that could be denied")
def test_the_program_refuses_a_cpu_outside_its_affinity_mask(program):
    done = run_program(program, *BRIEF, "--cpus", f"{CPUS[0]},{CPUS[1]}", affinity={CPUS[0]})
    assert done.returncode == 2
    assert f"--cpus {CPUS[1]}: this process may not use that CPU" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_names_the_feature_that_a_kind_lacks(program, kind):
    if kind in HERE:
        pytest.skip(f"this CPU has {kind}")
    done = run_program(program, "--cpus", str(CPUS[0]), kind)
    assert done.returncode == 2
    assert f"{kind}: this CPU, or its operating system, lacks " in done.stderr


def test_every_precision_of_a_cpu_has_a_ceiling():
    assert {one.peak for one in PRECISIONS.values() if not one.on_gpu} == set(KINDS) - {"triad"}
    assert {one.peak for one in PRECISIONS.values() if one.on_gpu} == {""}


PEAK = {"unit": "GFLOP/s", "isa": "avx512f", "one_core": 100.0, "all_cores": 200.0}
TRIAD = {"unit": "GB/s", "isa": "avx2 and fma", "one_core": 10.0, "all_cores": 20.0}


@pytest.fixture
def fake(tmp_path):
    """Write a program in the place of the real one that logs its arguments; `text` may have $N, its call's number."""

    def write(text, code=0):
        path = tmp_path / "cnnbench-peak"
        script = f'echo "$@" >> "{tmp_path}/calls"\nN=$(wc -l < "{tmp_path}/calls")\n'
        path.write_text(f"#!/bin/sh\n{script}cat <<END\n{text}\nEND\nexit {code}\n")
        path.chmod(0o755)
        return path

    return write


def report(**kinds):
    return json.dumps({"kinds": kinds})


def test_a_ceiling_is_what_the_program_prints(fake, tmp_path):
    ceiling = measure_ceiling(fake(report(fp32=PEAK, triad=TRIAD)), "fp32", [0, 2])
    assert (ceiling.compute, ceiling.memory) == (Peak(**PEAK), Peak(**TRIAD))
    assert ceiling.describe() == "200 GFLOP/s of fp32 (avx512f) on CPUs 0,2, 100 on CPU 0 alone"
    assert (tmp_path / "calls").read_text() == "--cpus 0,2 fp32 triad\n"


def test_of_two_ceilings_the_larger_figures_count(fake):
    first = measure_ceiling(fake(report(fp32=PEAK, triad=TRIAD)), "fp32", [0, 1])
    second = measure_ceiling(
        fake(report(fp32=PEAK | {"all_cores": 190.0, "one_core": 105.0}, triad=TRIAD)), "fp32", [0]
    )
    both = first.raise_to(second)
    assert (both.compute.one_core, both.compute.all_cores, both.memory) == (105, 200, Peak(**TRIAD))


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        ("no JSON", 0, "printed no figures"),
        ("", 0, "printed no figures"),
        (report(), 0, "printed no figures"),
        (report(fp32=PEAK | {"all_cores": 0}, triad=TRIAD), 0, "greater than 0"),
        (report(fp32=PEAK | {"all_cores": "much"}, triad=TRIAD), 0, "valid number"),
        ('{"kinds": {"fp32": {"unit": "GFLOP/s", "isa": "x", "one_core": 1, "all_cores": Infinity}}}', 0, "finite"),
        (report(fp32=PEAK | {"unit": "MFLOP/s"}, triad=TRIAD), 0, "'GFLOP/s', 'GOP/s' or 'GB/s'"),
        (report(fp32=PEAK | {"mean": 1}, triad=TRIAD), 0, "Extra inputs"),
        (report(fp32=PEAK), 0, "has not measured triad, but fp32"),
        (report(fp32=PEAK, triad=TRIAD), 3, "failed with exit code 3"),
    ],
)
def test_a_program_that_does_not_measure_is_an_error(fake, text, code, complaint):
    with pytest.raises(CnnbenchError, match=complaint):
        measure_ceiling(fake(text, code), "fp32", [0])


def test_a_program_that_cannot_be_run_or_does_not_end_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "cnnbench-peak"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(CnnbenchError, match="Permission denied"):
        measure_peaks(path, [0])
    path.chmod(0o755)
    monkeypatch.setattr("cnnbench.machine.ceiling.TIMEOUT_S", 0.2)
    with pytest.raises(CnnbenchError, match=r"not done within 0.2 s"):
        measure_peaks(path, [0])


def test_utilization_counts_two_operations_for_each_multiply_accumulate(fake):
    ceiling = measure_ceiling(fake(report(fp32=PEAK, triad=TRIAD)), "fp32", [0, 1])
    utilization = utilize(ceiling, images_per_s=20, macs_per_image=4_000_000_000)
    assert (utilization.achieved, utilization.share) == (160, 0.8)
    passed = judge_ceiling(utilization)
    assert (passed.passed, passed.severity) == (True, "invalid")
    assert passed.found.startswith(
        "160 GFLOP/s are 80.0% of the peak measured, 200 GFLOP/s of fp32 (avx512f) on CPUs 0-1"
    )
    assert judge_ceiling(utilize(ceiling, 25, 4_000_000_000)).passed
    failed = judge_ceiling(utilize(ceiling, 25.1, 4_000_000_000))
    assert not failed.passed
    assert "something slowed the cores while the peak was measured" in failed.needed


def test_no_program_is_none_and_one_that_is_not_there_an_error(tmp_path):
    assert find_peak_program({}) is None
    with pytest.raises(CnnbenchError, match=r"CNNBENCH_PEAK=/no/peak: no such file; where there is a C compiler"):
        find_peak_program({"CNNBENCH_PEAK": "/no/peak"})


def test_a_job_without_the_program_notes_that_utilization_was_not_measured(fake):
    program = fake("")
    plan = plan_case(WORKLOAD, GATED, {}, {})
    without, with_program = prepare_job(plan, {}), prepare_job(plan, {"CNNBENCH_PEAK": str(program)})
    assert [note for note in without.notes if "utilization was not measured: CNNBENCH_PEAK names no program" in note]
    assert with_program.peak_program == program
    assert not [note for note in with_program.notes if "utilization" in note]


def test_what_has_no_arithmetic_to_time_needs_no_program(tmp_path):
    accuracy = prepare_job(plan_case(WORKLOAD, f"{PREFIX}accuracy_avx_fp32", {}, {}), {"CNNBENCH_PEAK": "/no/peak"})
    null = prepare_job(plan_case(NullWorkload(tmp_path).directory, THROUGHPUT, {}, {}), {"CNNBENCH_PEAK": "/no/peak"})
    assert accuracy.peak_program is None
    assert null.peak_program is None
    assert not [note for note in (*accuracy.notes, *null.notes) if "utilization" in note]


def test_the_command_tabulates_what_the_program_measures(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CNNBENCH_PEAK", str(fake(report(fp32=PEAK, triad=TRIAD))))
    cpus = [core.cpus[0] for core in read_topology().cores]
    assert main(["peak"]) == 0
    assert main(["peak", "--cpus", str(cpus[-1])]) == 0
    assert (tmp_path / "calls").read_text().splitlines() == [f"--cpus {','.join(map(str, cpus))}", f"--cpus {cpus[-1]}"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["fp32", "GFLOP/s", "avx512f", "100.0", "200.0"]


@pytest.mark.parametrize(
    ("program", "words", "code", "complaint"),
    [
        ("", [], 1, "CNNBENCH_PEAK is not set"),
        ("/no/peak", [], 1, "CNNBENCH_PEAK=/no/peak: no such file"),
        ("/bin/true", ["--cpus", "one"], 2, "neither a number nor an ascending range"),
        ("/bin/true", ["--cpus", "99999"], 2, "--cpus 99999: must be some of "),
        ("/bin/true", ["--cpus", ""], 2, "--cpus : must be some of "),
        ("/bin/true", [], 1, "/bin/true: printed no figures"),
    ],
)
def test_what_the_command_refuses(monkeypatch, capsys, program, words, code, complaint):
    monkeypatch.setenv("CNNBENCH_PEAK", program)
    assert main(["peak", *words]) == code
    assert complaint in capsys.readouterr().err


@pytest.fixture
def run_gated(engine_cache, tmp_path):
    """Run the gated case with a program that measures peaks; return what it printed and its logs."""

    def run(program, *arguments, case=GATED):
        words = ["--workload", WORKLOAD, "--case", case, "--logs-root", tmp_path, "--steps=8", *arguments]
        done = subprocess.run(
            [sys.executable, "-m", "cnnbench", "case", *map(str, words)],
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache), CNNBENCH_PEAK=str(program)),
            capture_output=True,
            text=True,
        )
        return done, tmp_path / f"logs-{case}" / "itr-1" / "worker-0"

    return run


@pytest.mark.engine
@pytest.mark.parametrize("case", [GATED, f"{PREFIX}latency_avx_fp32"])
def test_a_run_tells_its_utilization_of_the_larger_of_two_peaks(run_gated, fake, tmp_path, case):
    high = report(fp32=PEAK | {"all_cores": 1e6}, triad=TRIAD).replace("1000000.0", "${N}000000")
    done, logs = run_gated(fake(high), case=case)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    kpis = {(kpi.key, kpi.unit): kpi.value for kpi in run.kpis}
    assert kpis["Peak", "GFLOP/s"] == 2e6
    assert kpis["Memory bandwidth", "GB/s"] == 20
    assert kpis["Achieved", "GFLOP/s"] == pytest.approx(kpis["Throughput", "img/s"] * 2 * 4.089186304)
    assert kpis["Compute utilization", "%"] == pytest.approx(kpis["Achieved", "GFLOP/s"] / 2e6 * 100)
    used = ",".join(str(cpu) for one in run.plan["instances"] for cpu in one["cpus"])
    assert (tmp_path / "calls").read_text().splitlines() == [f"--cpus {used} fp32 triad"] * 2
    assert "Compute utilization (%): " in run_kpi(logs).stdout


@pytest.mark.engine
def test_a_peak_that_a_run_was_faster_than_is_measured_again(run_gated, fake, tmp_path):
    rising = report(fp32=PEAK | {"all_cores": 0.5}, triad=TRIAD).replace("0.5", "$((N / 4 * 1000000 + 1))")
    done, logs = run_gated(fake(rising))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {kpi.value for kpi in load_run(logs).kpis if kpi.key == "Peak"} == {1_000_001}
    assert len((tmp_path / "calls").read_text().splitlines()) == 4  # before, after, and two times more


@pytest.mark.engine
def test_a_run_faster_than_the_machine_is_invalid(run_gated, fake, tmp_path):
    done, logs = run_gated(fake(report(fp32=PEAK | {"all_cores": 0.5}, triad=TRIAD)))
    assert len((tmp_path / "calls").read_text().splitlines()) == 2 + CEILING_RETRIES
    assert done.returncode == 3, done.stdout + done.stderr
    run = load_run(logs)
    (ceiling,) = (criterion for criterion in run.failures if criterion.name == "ceiling")
    assert "of the peak measured, 0.5 GFLOP/s of fp32 (avx512f)" in ceiling.found
    assert f"ceiling: {ceiling.found}" in run_kpi(logs).stdout.splitlines()[-1]


@pytest.mark.engine
def test_a_run_whose_ceiling_cannot_be_measured_fails(run_gated, fake):
    done, logs = run_gated(fake("", code=1))
    assert done.returncode == 1
    assert "cnnbench-peak: failed with exit code 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not logs.parent.exists()


@pytest.mark.engine
def test_a_run_whose_ceiling_cannot_be_measured_again_is_invalid_and_keeps_what_it_measured(run_gated, fake):
    done, logs = run_gated(fake(report(fp32=PEAK, triad=TRIAD), code="$((N - 1))"))
    assert done.returncode == 3, done.stdout + done.stderr
    run = load_run(logs)
    (ceiling,) = (criterion for criterion in run.failures if criterion.name == "ceiling")
    assert "cnnbench-peak: failed with exit code 1" in ceiling.found
    assert "Throughput" in {kpi.key for kpi in run.kpis}
    assert "ceiling: " in run_kpi(logs).stdout.splitlines()[-1]


@pytest.mark.engine
def test_a_run_on_this_machine_is_held_against_its_ceiling(run_gated, program):
    done, logs = run_gated(program)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    run = load_run(logs)
    (ceiling,) = (criterion for criterion in run.criteria if criterion.name == "ceiling")
    assert f"on CPUs {run.facts['CPUs used']}" in ceiling.found
    assert {"Compute utilization", "Achieved", "Peak", "Memory bandwidth"} <= {kpi.key for kpi in run.kpis}
    assert len(run.plan["instances"]) <= CORES
