"""A case in a container: the same plan, parameters and logs as on this machine, through ctest.sh and kpi.sh."""

import itertools
import json
import re
import shlex
import subprocess

import pytest

from cnnbench.results.differences import list_differences
from cnnbench.results.record import load_run
from cnnbench.results.samples import SAMPLES, Samples
from cnnbench.run.judging import judge_run
from cnnbench.run.watching import MARK
from container_engine import CLI
from following import follow
from null_workload import CORES, SLUG, THROUGHPUT, NullWorkload, clean_environment, run_kpi, step_of

pytestmark = pytest.mark.container

SETTING = {"STEPS": "20", "CUSTOMER_ENV": "CNNBENCH_NULL_STEP_MS=5"}


@pytest.fixture
def ctest(build_directory):
    def run(*arguments, **environment):
        command = [build_directory / "ctest.sh", "-R", f"^{THROUGHPUT}$", *arguments]
        return subprocess.run(
            command, env=clean_environment(**SETTING, **environment), cwd="/", capture_output=True, text=True
        )

    return run


def starred(text):
    return [line for line in text.splitlines() if line.startswith("*")]


def test_ctest_sh_runs_a_case_in_a_container(images, ctest):
    done = ctest("-V")
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"\*Throughput \(img/s\): 1[0-9]{2}\.", done.stdout)) == 1
    logs = images.directory / f"logs-{THROUGHPUT}"
    worker = logs / "itr-1" / "worker-0"
    names = {path.name for path in worker.iterdir()}
    assert names >= {"run.json", "kpi.log", "status", "container.log", "container.json", "instance-0", "process-0"}
    assert "export.tar" not in names
    assert json.loads((worker / "record.json").read_text())["sampled"]
    assert Samples.load(worker / "instance-0" / SAMPLES).maps.count("libcnnbench-sampler.so") > 1
    assert (worker / "status").read_text() == "0\n"
    assert "measuring throughput avx_fp32: 20 of 20 steps" in (worker / "container.log").read_text()
    described = json.loads((worker / "container.json").read_text())
    assert described["command"][: len(CLI) + 1] == [*CLI, "run"]
    assert (described["state"]["Status"], described["state"]["ExitCode"]) == ("exited", 0)
    for directory in (logs, worker):
        kpi = run_kpi(directory, images.directory / "kpi.sh")
        assert kpi.returncode == 0, kpi.stdout
        assert len(starred(kpi.stdout)) == 1
    listed = subprocess.run([images.directory / "list-kpi.sh", logs], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "\nthroughput_avx_fp32/itr-1  Throughput (img/s)" in listed.stdout


def test_its_parameters_take_effect_as_on_this_machine(workload, tmp_path):
    options = ("--steps=20", "--cores_per_instance=1", "--batch_size=3", step_of(5))
    assert workload.run(*options).returncode == 0
    native = NullWorkload(tmp_path / "native")
    assert native.run(*options).returncode == 0
    inside, outside = load_run(workload.logs()), load_run(native.logs())
    assert inside.effective == outside.effective
    assert inside.requested == outside.requested
    assert inside.plan == outside.plan
    assert inside.facts["container image"].startswith(f"{SLUG}-dummy:test-")
    assert not list_differences(inside, judge_run(workload.logs()))


def test_energy_is_read_outside_over_the_window_inside(workload, tmp_path):
    meter = tmp_path / "meter"
    meter.write_text('#!/bin/bash\nwhile sleep 0.1; do echo "$(date +%s.%N) 80 W"; done\n')
    meter.chmod(0o755)
    done = workload.run("--steps=100", step_of(5), "--idle_time=0.2", f"--energy_meter={meter}")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(workload.logs())
    kpis = {kpi.key: kpi.value for kpi in run.kpis}
    assert (kpis["Power"], kpis["Idle power"]) == pytest.approx((80, 80))
    assert kpis["Efficiency"] == pytest.approx(kpis["Throughput"] / 80)
    assert run.facts["energy"] == f"of what the meter reads: {meter}"
    assert run.effective["ENERGY_METER"] == run.requested["ENERGY_METER"] == str(meter)
    command = json.loads((workload.logs() / "container.json").read_text())["command"]
    assert not any(word.startswith("ENERGY_METER") for word in command)
    assert not list_differences(run, judge_run(workload.logs()))


def test_how_far_it_is_is_told_from_inside_and_is_no_part_of_its_log(workload):
    done, told = follow(workload.command("--steps=150", step_of(20)), workload.logs_root, clean_environment())
    assert done.returncode == 0, done.stderr
    phases = [status.now.phase.name for status in told]
    assert phases.index("starting the container") < phases.index("measuring throughput avx_fp32")
    assert any(one.now.throughput and one.now.throughput.half_width for one in told)
    assert ("docker", "measuring") in {(one.backend, at.state) for one in told for at in one.now.instances}
    assert MARK not in (workload.logs() / "container.log").read_text()
    assert MARK not in done.stdout + done.stderr


def test_a_loop_runs_a_container_each_time(images, ctest):
    done = ctest("--set", "BATCH_SIZE=2", "--loop", "2")
    assert done.returncode == 0, done.stdout
    runs = sorted((images.directory / f"logs-{THROUGHPUT}").glob("itr-*/worker-0"))
    assert [load_run(run).effective["BATCH_SIZE"] for run in runs] == ["2", "2"]
    assert len({load_run(run).run_id for run in runs}) == 2


def test_a_dry_run_prints_the_command_line_and_starts_nothing(images, ctest):
    done = ctest("--dry-run", DOCKER_OPTIONS="--hostname 'a b'")
    assert done.returncode == 0, done.stdout
    (line,) = re.findall(r"command line:\n(?:\d+: )?  (.*)", done.stdout)
    words = shlex.split(line)
    assert words[: len(CLI) + 1] == [*CLI, "run"]
    assert words[-3:] == ["--hostname", "a b", images.dummy]
    assert "STEPS=20" in words
    assert not (images.directory / f"logs-{THROUGHPUT}").exists()


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        pytest.param(
            ["--instances=2", "--cores_per_instance=1"],
            "flex",
            marks=pytest.mark.skipif(CORES < 2, reason="one physical core: nothing to divide"),
        ),
        (["--instance_mode=numa"], "numa"),
    ],
)
def test_instances_have_the_cores_asked_for(workload, options, mode):
    done = workload.run(*options, "--steps=20", step_of(5))
    assert done.returncode == 0, done.stdout + done.stderr
    result = load_run(workload.logs())
    assert result.effective["INSTANCE_MODE"] == mode
    planned = [set(one["cpus"]) for one in result.plan["instances"]]
    if mode == "flex":
        assert [len(cpus) for cpus in planned] == [1, 1]
    assert [set(itertools.chain(*one["affinities"].values())) for one in result.instances] == planned


def test_customer_env_arrives_as_it_is_written_and_nothing_else_of_the_callers(workload):
    text = "CNNBENCH_NULL_STEP_MS=5 ODD='a b=\"c\" $HOME'"
    done = workload.run("--steps=5", f"--customer_env={text}", OMP_NUM_THREADS="7")
    assert done.returncode == 0, done.stderr
    assert load_run(workload.logs()).effective["CUSTOMER_ENV"] == text
    command = json.loads((workload.logs() / "container.json").read_text())["command"]
    assert f"CUSTOMER_ENV={text}" in command
    assert not any(word.startswith("OMP_NUM_THREADS") for word in command)  # nothing else of the caller's leaks in
