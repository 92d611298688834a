"""What a run tells of itself while it goes on, and that this is all it does: real runs of the null engine."""

import os
import signal

import pytest

from cnnbench.launch.local import Limits, Run, WorkerLaunch, keep_off
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.status import status_lines
from cnnbench.results.record import load_run
from cnnbench.run.status import DIRECTORY, read_build
from cnnbench.worker.control import ControlBlock, State
from following import follow, read_cases
from null_workload import CORES, NullWorkload, clean_environment, find_workers, step_of, wait_until


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run of so many steps, what was told meanwhile, and the workload."""
    workload = NullWorkload(tmp_path_factory.mktemp("followed"))
    arguments = ("--steps=150", "--warmup_steps=150", step_of(20))
    done, seen = follow(workload.command(*arguments), workload.logs_root, clean_environment())
    assert done.returncode == 0, done.stderr
    (workload.logs_root / "CTestTestfile.cmake").touch()
    return workload, seen, done


def test_a_run_is_told_from_its_start_to_its_end(followed):
    _, seen, _ = followed
    phases = list(dict.fromkeys(status.now.phase.name for status in seen))
    assert phases.index("loading and warming up") < phases.index("measuring throughput avx_fp32")
    states = list(dict.fromkeys(one.state for status in seen for one in status.now.instances))
    assert [one for one in states if one in ("warming up", "measuring")] == ["warming up", "measuring"]


def test_throughput_so_far_and_the_time_left_are_those_that_came(followed):
    workload, seen, _ = followed
    run = load_run(workload.logs())
    (found,) = (kpi.value for kpi in run.kpis if kpi.primary)
    rates = [status.now.throughput for status in seen if status.now.throughput]
    assert rates[-1].half_width
    assert abs(rates[-1].mean - found) < max(0.2 * found, 5 * rates[-1].half_width)
    for phase in ("loading and warming up", "measuring throughput avx_fp32"):
        assert any(status.now.phase.name == phase and status.now.phase.left_s for status in seen)
    last = [status.now.phase for status in seen if status.now.phase.name.startswith("measuring")][-1]
    assert (last.total, last.unit) == (150, "steps")


@pytest.mark.skipif("hypervisor" not in read_cpuinfo().flags, reason="no virtual machine: it has what can be read")
def test_the_nominal_frequency_of_a_virtual_machine_is_not_told_as_the_one_now(followed):
    _, seen, _ = followed
    assert {status.now.frequency_mhz for status in seen} == {None}


def test_the_progress_of_a_log_file_has_the_rate(followed):
    _, _, done = followed
    lines = [line for line in done.stderr.splitlines() if line.startswith("measuring throughput")]
    assert lines
    assert all(" ± " in line and line.count("img/s") == 1 for line in lines)


def test_what_ended_is_told_afterwards(followed):
    workload, _, _ = followed
    build = read_build(workload.logs_root)
    assert not build.is_running
    (end,) = build.ended_alone
    assert end.logs == str(workload.logs())
    assert end.headline.startswith("Throughput (img/s): ")
    assert status_lines(build)[:2] == ["nothing is running", f"last: {end.case}"]
    assert [path.name for path in (workload.logs_root / DIRECTORY).iterdir()] == ["alone.ends"]


@pytest.mark.parametrize("killed", ["worker", "controller"])
def test_what_was_killed_is_told_as_dead(tmp_path, killed):
    workload = NullWorkload(tmp_path)
    with workload.start("--steps=100000", step_of(5)) as process:
        (workload.logs_root).mkdir(exist_ok=True)

        def states():
            return [one.state for status in read_cases(workload.logs_root) for one in status.now.instances]

        wait_until(lambda: "measuring" in states(), "a run that measures")
        if killed == "controller":
            process.kill()
            process.wait()
        else:
            os.kill(find_workers(workload.logs())[0], signal.SIGKILL)
            process.wait()
    (workload.logs_root / "CTestTestfile.cmake").touch()
    build = read_build(workload.logs_root)
    assert not build.is_running
    if killed == "controller":
        (status,) = build.alone
        assert status.is_gone()
        assert status_lines(build)[1].startswith("died: test_harness")
        assert workload.run("--steps=5").returncode == 0  # nothing of it is in the way of the next
    else:
        (end,) = build.ended_alone
        assert end.verdict == "invalid"


def test_an_instance_whose_process_has_ended_too_early_is_dead(tmp_path):
    ControlBlock.create(tmp_path, 3).set_state(2, State.DONE)
    launch = WorkerLaunch(["false"], {}, tmp_path / "log", (1, 2))
    with launch.process() as worker:
        wait_until(lambda: worker.exit_code is not None, "its end")
        run = Run([worker], range(3), tmp_path, Limits(None, hang_s=60))
        assert run.seen == [(State.LOADING, 0, False), (State.LOADING, 0, True), (State.DONE, 0, False)]


def test_a_case_that_cannot_begin_is_told_with_its_reason(tmp_path):
    workload = NullWorkload(tmp_path)
    workload.logs_root.mkdir()
    (workload.logs_root / "CTestTestfile.cmake").touch()
    assert workload.run("--batch_size=0").returncode == 2
    (end,) = read_build(workload.logs_root).ended_alone
    assert end.verdict == "failed"
    assert "BATCH_SIZE=0" in end.headline


def test_a_status_that_cannot_be_written_costs_no_measurement(tmp_path):
    workload = NullWorkload(tmp_path)
    workload.logs_root.mkdir()
    (workload.logs_root / DIRECTORY).write_text("in the way")
    done = workload.run("--steps=5")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(CORES < 2, reason="one physical core: there is no other to go to")
def test_the_controller_keeps_off_the_measured_cores_where_there_are_others():
    before = os.sched_getaffinity(0)
    measured = {min(before)}
    with keep_off(measured):
        assert not os.sched_getaffinity(0) & measured
    with keep_off(before):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before
