"""Images made by `make`: what they say of themselves, how a failed one is told, a registry between two engines."""

import json
import re
import shutil
import signal
import socket
import subprocess

import pytest

from cmake_build import find_tool
from cnnbench.results.record import load_run
from container_engine import BUILD_S, IMAGE_NAME, ContainerWorkload, ask, configure, tell
from null_workload import step_of, wait_until

pytestmark = pytest.mark.container


def make(build, *target):
    """Run `make` on a build directory."""
    command = [find_tool("cmake"), "--build", build, *(["--target", *target] if target else [])]
    return subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)


def git(directory, *arguments):
    command = ["git", "-C", directory, "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_images_say_what_they_are_and_hold(images, base_image):
    labels = json.loads(tell("image", "inspect", "--format", "{{json .Config.Labels}}", images.dummy))
    assert labels["cnnbench.workload"] == "Harness"
    assert labels["org.opencontainers.image.title"] == "the harness itself: dummy"
    assert labels["org.opencontainers.image.revision"] == git(images.source, "rev-parse", "HEAD")
    bom = json.loads(labels["cnnbench.bom"])
    assert bom["base_image"] == labels["org.opencontainers.image.base.name"]
    assert base_image in ("", bom["base_image"])
    installed = tell("run", "--rm", "--entrypoint", "python", images.dummy, "-m", "pip", "freeze", "--all")
    versions = dict(line.lower().replace("_", "-").split("==") for line in installed.splitlines())
    listed = bom["python"]["installer.lock"] | bom["python"]["controller.lock"]
    assert listed.items() <= versions.items()
    assert versions.keys() - listed.keys() <= {"pip", "setuptools"}  # the venv's own
    debian = tell("run", "--rm", "--entrypoint", "dpkg-query", images.dummy, "-W", "-f", "${Version}", "python3")
    assert debian == bom["debian"]["python3"]


def test_images_hold_what_they_need_and_no_more(images):
    listed = tell("run", "--rm", "--entrypoint", "ls", images.dummy, "-A", "/opt/cnnbench").split()
    assert sorted(listed) == [".venv", "requirements", "src", "workload"]


def test_make_bom_lists_what_the_images_are_made_of(images):
    done = make(images.build, "bom")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^# Harness\nbase image: .+\ndebian: python3 ", done.stdout, re.MULTILINE)
    assert re.search(r"^controller\.lock: numpy [0-9.]+$", done.stdout, re.MULTILINE)


def test_a_failed_build_fails_make_and_names_its_log(images, tmp_path, base_image):
    source = tmp_path / "checkout"
    shutil.copytree(images.source, source, symlinks=True)
    python = (source / "python").read_text()
    (source / "python").write_text(python.replace(str(images.source), str(source)))
    with (source / "workload" / "Harness" / "Dockerfile").open("a") as dockerfile:
        dockerfile.write("RUN echo 'it is broken' >&2; exit 9\n")
    release = f"{images.release}-broken"
    configured = configure(tmp_path / "build", source, f"-DRELEASE={release}", f"-DBASE_IMAGE={base_image}")
    assert configured.returncode == 0, configured.stderr
    done = make(tmp_path / "build")
    tell("rmi", f"harness-benchmark:{release}")
    log = tmp_path / "build" / "workload" / "Harness" / "image-dummy.log"
    assert done.returncode != 0
    assert f"building {IMAGE_NAME}:{release} failed with exit code " in done.stderr
    assert f"log: {log}" in done.stderr
    assert "it is broken" in log.read_text()
    assert ask("image", "inspect", f"{IMAGE_NAME}:{release}").returncode != 0
    assert not list(log.parent.glob("context-*"))


def test_an_archive_with_a_wrong_checksum_fails_the_build(images, tmp_path):
    """The null workload has no models, so that the Dockerfile is built directly, on its benchmark image."""
    dataset = tmp_path / "dataset"
    (dataset / "datasets").mkdir(parents=True)
    (dataset / "resnet50_v1.pb").write_text("not the published graph")
    (dataset / "Dockerfile").write_text("FROM scratch\nCOPY datasets /opt/cnnbench/cache/datasets\n")
    empty = f"harness-inference-dataset:{images.release}"
    tell("build", "--tag", empty, str(dataset))
    settings = {"BENCHMARK_IMAGE": images.dummy.replace("dummy", "benchmark"), "DATASET_IMAGE": empty}
    settings |= {"DATASET_FROM": "local", "MODELS": "resnet50_v1", "ENGINE": "null"}
    arguments = [word for name, value in settings.items() for word in ("--build-arg", f"{name}={value}")]
    done = ask("build", "--force-rm", "--file", str(images.source / "Dockerfile.1.model"), *arguments, str(tmp_path))
    tell("rmi", empty)
    assert done.returncode != 0
    assert "dataset/resnet50_v1.pb is not the file in the manifest" in done.stdout + done.stderr


def test_a_missing_engine_is_told_by_make(images, tmp_path):
    done = configure(tmp_path / "build", images.source, "-DCONTAINER_CLI=no-such-engine")
    assert done.returncode == 0, done.stderr
    made = make(tmp_path / "build")
    assert made.returncode != 0
    assert "no-such-engine: not found; install it, or choose another with -DCONTAINER_CLI" in made.stderr
    assert "Traceback" not in made.stderr


@pytest.fixture
def registry(tmp_path):
    """An empty registry on the loopback, which engines need not be told of; its HOST:PORT."""
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry: not found; on Debian and Ubuntu: apt-get install docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
    )
    command = ["docker-registry", "serve", tmp_path / "registry.yml"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        host, port = address.split(":")
        try:
            wait_until(lambda: _answers(host, int(port)), "the registry")
            yield address
        finally:
            process.send_signal(signal.SIGTERM)


def _answers(host, port):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_pushed_images_are_pulled_for_a_run(images, registry, tmp_path, base_image):
    options = [f"-DREGISTRY={registry}", f"-DRELEASE={images.release}", f"-DBASE_IMAGE={base_image}"]
    configured = configure(tmp_path / "build", images.source, *options)
    assert configured.returncode == 0, configured.stderr
    names = [f"{registry}/harness-{role}:{images.release}" for role in ("dummy", "benchmark")]
    try:
        made = make(tmp_path / "build")
        assert made.returncode == 0, made.stderr
        pushed = make(tmp_path / "build", "push")
        assert pushed.returncode == 0, pushed.stderr
        assert all(f"pushed {name}\n" in pushed.stdout for name in names)
        tell("rmi", *names)
        workload = ContainerWorkload(images, tmp_path, "--registry", registry)
        done = workload.run("--steps=5", step_of(5))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"cnnbench: pulling {names[0]}" in done.stderr
        assert load_run(workload.logs()).facts["container image"].startswith(names[0])
    finally:
        ask("rmi", *names)
