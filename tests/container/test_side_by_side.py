"""Several runs with one engine: each leaves the others' containers alone."""

import subprocess

import pytest

from cnnbench.results.record import load_run
from cnnbench.worker.control import State
from container_engine import ContainerWorkload, find_containers, is_running
from null_workload import PATIENCE_S, THROUGHPUT, clean_environment, run_kpi, step_of, wait_until

pytestmark = pytest.mark.container


def test_two_runs_at_once_do_not_disturb_each_other(workload):
    with workload.start("--steps=2000", step_of(5)) as first:
        name = workload.wait_for_state(State.MEASURING)
        second = workload.run("--steps=20", step_of(5))
        assert second.returncode == 0, second.stdout + second.stderr
        assert workload.containers() == [name]
        output, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, output
    runs = [load_run(workload.logs(number)) for number in range(2)]
    assert [run.effective["STEPS"] for run in runs] == ["2000", "20"]
    assert runs[0].run_id != runs[1].run_id
    assert all(run_kpi(workload.logs(number)).returncode == 0 for number in range(2))


def test_stop_removes_the_containers_of_its_own_build_directory(images, build_directory, workload):
    script = build_directory / "ctest.sh"
    settings = clean_environment(STEPS="1000000", CUSTOMER_ENV="CNNBENCH_NULL_STEP_MS=5")
    command = [script, "-R", f"^{THROUGHPUT}$"]
    other = ContainerWorkload(images, workload.logs_root.parent)
    with (
        other.start("--steps=1000000", step_of(5)) as theirs,
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as ours,
    ):
        name = other.wait_for_state(State.MEASURING)
        wait_until(lambda: [one for one in find_containers(build_directory) if is_running(one)], "our container")
        (own,) = find_containers(build_directory)
        done = subprocess.run([script, "--stop"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"removed {own}\n"
        output, _ = ours.communicate(timeout=PATIENCE_S)
        assert ours.returncode == 8
        assert "#INVALID RESULT: " in output
        assert is_running(name)
        theirs.terminate()
        theirs.communicate(timeout=PATIENCE_S)
    assert subprocess.run([script, "--stop"], capture_output=True, text=True).stdout == ""
