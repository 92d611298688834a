"""An image as `docker run` starts it by hand: the parameters by -e, the logs out of /export-logs."""

import subprocess

import pytest

from cnnbench.results.record import load_run
from container_engine import CLI, ask, is_running, tell
from null_workload import SLUG, run_kpi, wait_until

pytestmark = pytest.mark.container

STEPS = {"STEPS": "20", "CUSTOMER_ENV": "CNNBENCH_NULL_STEP_MS=5"}


@pytest.fixture
def start(images):
    """Start a container as the user guide does; removed after the test."""
    started = []

    def run(**environment):
        words = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        started.append(tell("run", "--rm", "--detach", *words, images.dummy))
        return started[-1]

    yield run
    for container in started:
        tell("rm", "-f", container)
        wait_until_removed(container)


def wait_until_removed(container):
    """Wait for a container to be gone, which the engine sees to after it has answered."""
    wait_until(lambda: ask("inspect", container).returncode != 0, f"{container} is removed")


def fetch_logs(container, directory):
    """Wait for a container's logs and unpack them, as the user guide does."""
    directory.mkdir()
    reader = subprocess.Popen([*CLI, "exec", container, "cat", "/export-logs"], stdout=subprocess.PIPE)
    subprocess.run(["tar", "xf", "-", "-C", directory], stdin=reader.stdout, check=True, timeout=60)
    assert reader.wait() == 0


def test_a_case_by_hand(start, tmp_path):
    container = start(
        WORKLOAD=SLUG, MODE="latency", PRECISION="avx_fp32", BATCH_SIZE="2", INSTANCE_MODE="numa", **STEPS
    )
    fetch_logs(container, tmp_path / "logs")
    kpi = run_kpi(tmp_path / "logs")
    assert kpi.returncode == 0, kpi.stdout
    assert [line.split(":")[0] for line in kpi.stdout.splitlines() if line.startswith("*")] == ["*Latency mean (ms)"]
    assert "## BATCH_SIZE: 2" in kpi.stdout.splitlines()
    result = load_run(tmp_path / "logs")
    assert result.case == f"test_{SLUG}_inference_latency_avx_fp32"
    assert result.effective["INSTANCE_MODE"] == "numa"
    assert (tmp_path / "logs" / "status").read_text() == "0\n"
    assert not (tmp_path / "logs" / "error").exists()
    assert is_running(container)  # until it is removed, so that `docker logs` shows what it printed
    assert kpi.stdout.splitlines()[-1] in tell("logs", container).splitlines()
    stopped = ask("stop", "--time", "20", container)
    assert stopped.returncode == 0
    wait_until_removed(container)  # by --rm


def test_a_reader_that_comes_late(start, tmp_path):
    container = start(**{**STEPS, "STEPS": "1"})
    assert ask("exec", container, "sleep", "3").returncode == 0
    fetch_logs(container, tmp_path / "logs")
    assert (tmp_path / "logs" / "status").is_file()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"BATCH_SIZE": "0"}, "BATCH_SIZE=0 (environment): must be 1 to 4096"),
        ({"WORKLOAD": "vgg16"}, f"WORKLOAD=vgg16: this image has {SLUG}"),
        ({"PLATFORM": "XYZ"}, "PLATFORM=XYZ"),
        ({"PRECISION": "fp8"}, "test_harness_inference_throughput_fp8: not a test case"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_value_is_told_in_the_logs(start, tmp_path, setting, message):
    container = start(**setting)
    fetch_logs(container, tmp_path / "logs")
    assert (tmp_path / "logs" / "status").read_text() == "2\n"
    assert message in (tmp_path / "logs" / "error").read_text()
    assert run_kpi(tmp_path / "logs").returncode == 3
    printed = ask("logs", container)
    assert "Traceback" not in printed.stderr
    assert f"cnnbench: {(tmp_path / 'logs' / 'error').read_text()}" in printed.stderr
