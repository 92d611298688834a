"""What an engine of our own lets us try: it is stopped, crashes, or may not give away a capability."""

import signal
import subprocess

import pytest

from cnnbench.results.record import load_run
from cnnbench.worker.control import State
from container_engine import CLI, ContainerWorkload, ask, explain_no_private_engine, private_engine
from null_workload import PATIENCE_S, run_kpi, step_of

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(bool(explain_no_private_engine()), reason=explain_no_private_engine()),
]

CAPABILITY_NOTE = "the engine refused the capability SYS_NICE, without which memory cannot be bound"


@pytest.fixture(scope="module")
def data(images, tmp_path_factory):
    """Where private engines have their data, with the image in it."""
    directory = tmp_path_factory.mktemp("engine")
    with (
        private_engine(directory) as engine,
        subprocess.Popen([*CLI, "save", images.dummy], stdout=subprocess.PIPE) as image,
    ):
        command = [*CLI, "--host", engine.host, "load"]
        subprocess.run(command, stdin=image.stdout, stdout=subprocess.DEVNULL, check=True)
    yield directory
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "crashed"])
def test_an_engine_that_ends_while_a_run_measures(images, data, tmp_path, monkeypatch, number):
    workload = ContainerWorkload(images, tmp_path)
    with private_engine(data) as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        with workload.start("--steps=1000000", step_of(5)) as controller:
            workload.wait_for_state(State.MEASURING)
            engine.end(number)
            output, _ = controller.communicate(timeout=PATIENCE_S)
        assert controller.returncode == 3, output
        assert "#INVALID RESULT: " in output
        assert "Traceback" not in output
        assert run_kpi(workload.logs()).returncode == 3
        engine.start()
        done = workload.run("--steps=20", step_of(5))
        assert done.returncode == 0, done.stdout + done.stderr
        assert workload.containers() == []
        assert ask("ps", "--all", "--quiet").stdout == ""


def test_an_engine_without_the_capability(images, data, tmp_path, monkeypatch):
    """An older runc refuses such a container, a newer one starts it without; either way the run is a good one."""
    workload = ContainerWorkload(images, tmp_path)
    with private_engine(data, "setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice") as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        done = workload.run("--steps=20", step_of(5))
        assert done.returncode == 0, done.stdout + done.stderr
        assert workload.containers() == []
    assert load_run(workload.logs()).notes in ([], [CAPABILITY_NOTE])
