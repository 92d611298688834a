"""Which case an image's environment names, and how its logs are handed over, without a container."""

import os
import subprocess
import sys
import tarfile

import pytest

from checkout import WORKLOAD
from cnnbench.base.errors import UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.run.serve import GRAMINE_VARIABLE, _case_of
from null_workload import LATENCY, SLUG, THROUGHPUT, NullWorkload, clean_environment, run_kpi, step_of


@pytest.fixture
def workload(tmp_path):
    return NullWorkload(tmp_path)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, THROUGHPUT),
        ({"WORKLOAD": SLUG, "MODE": "latency", "PRECISION": "avx_fp32"}, LATENCY),
        ({"PRECISION": "avx_fp32", "CASE_TYPE": "gated"}, f"{THROUGHPUT}_gated"),
        ({"PRECISION": "avx_fp32", "CASE_TYPE": "", "MODE": ""}, THROUGHPUT),
        ({"PRECISION": "avx_fp32", GRAMINE_VARIABLE: "none"}, THROUGHPUT.replace(SLUG, f"{SLUG}_sgx")),
    ],
)
def test_the_environment_names_a_case(workload, environment, name):
    case = _case_of({"PRECISION": "avx_fp32", **environment}, load_workload(workload.directory))
    assert case.name == name


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORKLOAD": "vgg16"}, f"WORKLOAD=vgg16: this image has {SLUG}"),
        ({"MODE": "speed"}, "inference_speed_"),
        ({"PRECISION": "fp8"}, "throughput_fp8: not a test case of this workload"),
        ({"CASE_TYPE": "quick"}, "_quick: not a test case"),
        ({"FUNCTION": "training"}, "training"),
    ],
)
def test_an_environment_that_names_no_case(workload, environment, message):
    with pytest.raises(UsageError) as caught:
        _case_of(environment, load_workload(workload.directory))
    assert message in str(caught.value)


_SERVE = """
import os, pathlib, sys
from cnnbench.run.serve import serve_case
sys.exit(serve_case(os.environ, pathlib.Path(sys.argv[1])))
"""


def serve(workload, tmp_path, **environment):
    """Serve a case as a container would, attended; return where its logs were unpacked."""
    fifo = tmp_path / "export"
    os.mkfifo(fifo)
    settings = {"CNNBENCH_WORKLOAD": str(workload.directory), "CNNBENCH_ATTENDED": "1", "PRECISION": "avx_fp32"}
    settings |= {"CNNBENCH_CACHE": str(tmp_path / "cache"), **environment}
    command = [sys.executable, "-c", _SERVE, str(fifo)]
    with subprocess.Popen(command, env=clean_environment(**settings), stdin=subprocess.PIPE) as process:
        with fifo.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(tmp_path / "out")  # our own archive
        assert process.wait(timeout=60) == int((tmp_path / "out" / "status").read_text())
    return tmp_path / "out"


def test_the_logs_come_out_and_the_status_last(workload, tmp_path):
    logs = serve(workload, tmp_path, STEPS="20", CUSTOMER_ENV=step_of(5).partition("=")[2])
    assert (logs / "status").read_text() == "0\n"
    assert not (logs / "error").exists()
    assert run_kpi(logs).returncode == 0


def test_a_wrong_value_comes_out_as_an_error(workload, tmp_path):
    logs = serve(workload, tmp_path, BATCH_SIZE="0")
    assert (logs / "status").read_text() == "2\n"
    assert "BATCH_SIZE=0 (environment): must be 1 to 4096" in (logs / "error").read_text()


def test_a_launch_through_mpi_comes_out_as_refused(workload, tmp_path):
    logs = serve(workload, tmp_path, NUM_MPI="1")
    assert (logs / "status").read_text() == "2\n"
    assert "MPI=True: nothing is launched through MPI in a container" in (logs / "error").read_text()


def test_a_build_that_the_image_lacks_comes_out_as_a_skip_that_names_it(workload, tmp_path):
    logs = serve(workload, tmp_path, CNNBENCH_WORKLOAD=str(WORKLOAD), VARIANT="zentf")
    assert (logs / "status").read_text() == "77\n"
    assert "this image was made without tensorflow, which is needed: " in (logs / "error").read_text()


def test_it_ends_with_who_attends_to_it(workload, tmp_path):
    fifo = tmp_path / "export"
    os.mkfifo(fifo)
    settings = {"CNNBENCH_WORKLOAD": str(workload.directory), "CNNBENCH_ATTENDED": "1", "PRECISION": "avx_fp32"}
    settings |= {"STEPS": "1000000", "CUSTOMER_ENV": step_of(5).partition("=")[2]}
    command = [sys.executable, "-c", _SERVE, str(fifo)]
    with subprocess.Popen(command, env=clean_environment(**settings), stdin=subprocess.PIPE) as process:
        process.stdin.close()
        assert process.wait(timeout=60) == 130
