"""The manifest of a case, rendered and checked in the image that it is for; neither SGX nor Gramine is needed."""

import subprocess
from pathlib import Path

import pytest

from checkout import WORKLOAD
from cnnbench.cases.workload import load_workload
from cnnbench.launch.trusted import tomllib
from cnnbench.run.images import GRAMINE_LABEL, ImageOptions, inference_image
from cnnbench.run.serve import ATTENDED_VARIABLE
from container_engine import CLI, ask

pytestmark = pytest.mark.container

INSIDE = f"/opt/cnnbench/workload/{WORKLOAD.name}"
CASE = "test_resnet50v1_5_tensorflow_xeon_public_sgx_inference_throughput_avx_fp32"


@pytest.fixture(scope="module")
def image(engine):
    """The name of the image for enclaves that test.sh has made, and the version of Gramine in it."""
    name = inference_image(load_workload(WORKLOAD), "real", True, ImageOptions(release="test"))
    done = ask("inspect", "--type", "image", "--format", f'{{{{index .Config.Labels "{GRAMINE_LABEL}"}}}}', name)
    if done.returncode != 0:
        pytest.skip(f"no image {name}: test.sh makes it")
    return name, done.stdout.strip()


def run_inside(name, *command, text=None):
    """Run a command in a container that has no more than a case's container has."""
    options = ["--rm", "--interactive", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    words = [*CLI, "run", *options, "--entrypoint", command[0], name, *command[1:]]
    return subprocess.run(words, input=text, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def manifest(image):
    """Return what `cnnbench manifest` does in the image with some more options."""
    name, gramine = image
    without = ["--without-gramine"] if gramine == "none" else []
    command = ["python", "-m", "cnnbench", "manifest", "--workload", INSIDE, "--case", CASE, *without]
    return lambda *options: run_inside(name, *command, *options)


def test_the_program_finds_every_trusted_file_as_it_says(manifest):
    done = manifest("--check")
    assert done.returncode == 0, done.stderr
    assert "trusted files: all there, with their hashes" in done.stdout


def test_another_program_finds_every_trusted_file_too(image, manifest):
    done = manifest()
    assert done.returncode == 0, done.stderr
    files = tomllib.loads(done.stdout)["sgx"]["trusted_files"]
    paths = {file["uri"].removeprefix("file:"): file["sha256"] for file in files}
    lasting = {path: digest for path, digest in paths.items() if not path.startswith("/tmp/")}
    assert len(paths) - len(lasting) == 1  # the spec of that very run
    assert any(path.endswith("/folded.pb") for path in lasting)
    sums = "".join(f"{digest}  {path}\n" for path, digest in lasting.items())
    checked = run_inside(image[0], "sha256sum", "--check", "--quiet", "-", text=sums)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_manifest_of_an_image_without_gramine_is_not_made_by_itself(image):
    name, gramine = image
    if gramine != "none":
        pytest.skip(f"{name} has Gramine {gramine}")
    command = ["python", "-m", "cnnbench", "manifest", "--workload", INSIDE, "--case", CASE]
    done = run_inside(name, *command)
    assert done.returncode == 1
    assert "gramine-sgx: not on PATH" in done.stderr
    assert "GRAMINE=none" in done.stderr


def test_the_image_has_what_starts_enclaves(image):
    for tool in ("setpriv", "taskset"):
        assert run_inside(image[0], tool, "--version").returncode == 0


def test_a_case_is_skipped_in_it_where_there_is_no_sgx(image):
    if Path("/dev/sgx_enclave").exists():
        pytest.skip("this host has SGX")
    held = "cat /export-logs > /tmp/logs.tar & mkfifo /tmp/held; exec 3<>/tmp/held; python -m cnnbench container <&3"
    done = run_inside(image[0], "env", f"{ATTENDED_VARIABLE}=1", "sh", "-c", held)
    assert done.returncode == 77, done.stderr
    assert "/dev/sgx_enclave: not there" in done.stderr
    assert ("gramine-sgx: not on PATH" in done.stderr) == (image[1] == "none")
