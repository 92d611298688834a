"""A server of a user's image, which is here the wheel's with a stand-in for ONNX Runtime's backend; nothing is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

from cnnbench.engines.registry import find_engine
from cnnbench.launch.container import OWNER_LABEL
from cnnbench.serving.programs import find_libpython
from cnnbench.serving.server import STOP_S
from cnnbench.staging.environments import engine_python
from container_engine import BUILD_S, CLI, ask, is_running, tell
from null_workload import PATIENCE_S, wait_until
from triton_server import (
    MODEL,
    OBSTACLE,
    assert_nothing_left,
    export,
    serving,
    wait_until_ready,
    wheel,
    write_installation,
)
from triton_server import ask as ask_model

pytestmark = [
    pytest.mark.container,
    pytest.mark.engine,
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
    pytest.mark.usefixtures("pytorch_python"),
]

TAG = f"cnnbench-test-{os.getpid()}"
NUMBER = f"{sys.version_info[0]}.{sys.version_info[1]}"
_DOCKERFILE = f"""\
ARG BASE_IMAGE
FROM ${{BASE_IMAGE}}
COPY tritonserver /opt/tritonserver
ENV PATH=/opt/tritonserver/bin:/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/opt/tritonserver/lib
LABEL cnnbench.test={TAG}
"""
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging")


def build(context, base, name):
    """Make an image of a directory that has a `tritonserver`."""
    (context / "Dockerfile").write_text(_DOCKERFILE)
    command = [*CLI, "build", "--quiet", "--build-arg", f"BASE_IMAGE={base}", "--tag", f"{TAG}:{name}", str(context)]
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_S)
    return f"{TAG}:{name}"


@pytest.fixture(scope="module")
def base(base_image):
    """An image with the C libraries of Debian 12."""
    return base_image or "debian:bookworm-slim"


@pytest.fixture(scope="module")
def image(base, engine_cache, tmp_path_factory):
    """The image: a server with its libraries, Python's, the stand-in and what that imports."""
    context = tmp_path_factory.mktemp("image")
    root, libraries = context / "tritonserver", context / "tritonserver" / "lib"
    write_installation(context / "linked", engine_cache, "onnxruntime")
    shutil.copytree(context / "linked", root)  # of files, not of links
    shutil.rmtree(context / "linked")
    shutil.copytree(wheel(engine_cache).parents[1] / "nvidia_pytriton.libs", libraries)
    shutil.copy(find_libpython() / f"libpython{NUMBER}.so.1.0", libraries)
    shutil.copy(Path(sys.base_prefix) / "bin" / "python3", root / "bin")  # by which its library finds the rest
    unneeded = shutil.ignore_patterns("*-packages", "__pycache__", "test", "config-*", "idlelib")
    shutil.copytree(sysconfig.get_path("stdlib"), libraries / f"python{NUMBER}", ignore=unneeded)
    packages = engine_python(find_engine("onnxruntime"), "cpu", engine_cache).parents[1]
    for name in PACKAGES:
        for path in packages.glob(f"lib/python*/site-packages/{name}"):
            shutil.copytree(path, libraries / f"python{NUMBER}" / "site-packages" / name, ignore=unneeded)
    yield build(context, base, "server")
    shutil.rmtree(context)
    ask("rmi", f"{TAG}:server")


@pytest.fixture
def scripted(base, tmp_path):
    """Make an image whose `tritonserver` is a shell script."""
    made = []

    def make(script):
        program = tmp_path / "image" / "tritonserver" / "bin" / "tritonserver"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        made.append(build(tmp_path / "image", base, "script"))
        return made[0]

    yield make
    for name in made:
        ask("rmi", name)


@pytest.fixture(scope="module")
def models(engine_cache, tmp_path_factory):
    """A repository for ONNX Runtime's backend."""
    directory = tmp_path_factory.mktemp("models, exported") / "models"  # a comma, which --mount parts by
    export(directory, "--backend=onnxruntime", "--instances=1")
    return directory


@pytest.fixture(scope="module")
def checked(engine_cache, tmp_path_factory):
    """The fixed images and the answers to them."""
    directory = tmp_path_factory.mktemp("checked") / "models"
    export(directory, "--engine=onnxruntime", "--instances=1")
    return directory / MODEL / "1" / "network"


def containers(pid):
    """Return the containers of a server's that a process attends to."""
    form = f'{{{{.Names}}}} {{{{.Label "{OWNER_LABEL}"}}}}'
    lines = tell("ps", "--all", "--filter", f"label={OWNER_LABEL}", "--format", form).splitlines()
    return [name for name, owner in map(str.split, lines) if owner.split("/")[3] == str(pid)]


def assert_gone(pid):
    """See that there is no container of a process any more, nor anything else of a server of it."""
    wait_until(lambda: not containers(pid), "the end of the container")
    assert_nothing_left(pid)


def refused(directory, *options, **environment):
    """Return how serving fails, and what it says; nothing may be left."""
    with serving(directory, *options, **environment) as server:
        _, errors = server.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in errors
    if not environment:
        assert containers(server.pid) == []
    assert_nothing_left(server.pid)
    return server.returncode, errors


def test_an_images_server_serves_on_loopback_alone_and_is_gone_after_a_signal(models, image, checked, engine_cache):
    with serving(models, "--server-image", image) as server:
        addresses = wait_until_ready(server)
        reference = np.load(checked / "reference.npy")
        for protocol, address in zip(("grpc", "http"), addresses, strict=False):
            told, answers = ask_model(engine_cache, address, checked / "check_images.npy", protocol)
            assert "batch-size must be <= 8" in told[0]
            assert max(np.abs(np.array(one) - reference[: len(one)]).max() for one in answers) < 1e-3
        (name,) = containers(server.pid)
        found = json.loads(tell("inspect", name))[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0, server.stderr.read()
        assert containers(server.pid) == []
    assert_gone(server.pid)
    host = found["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["AutoRemove"]) == (True, ["ALL"], True)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["CpusetCpus"] == ",".join(
        map(str, json.loads((models / "cnnbench.json").read_text())["planned"][MODEL])
    )
    published = {f"{one['HostIp']}:{one['HostPort']}" for ports in host["PortBindings"].values() for one in ports}
    assert published == set(addresses)
    (mount,) = found["Mounts"]
    assert (mount["Source"], mount["RW"]) == (str(models), False)
    assert found["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"


def test_a_killed_controller_takes_its_container_along(models, image):
    with serving(models, "--server-image", image) as server:
        wait_until_ready(server)
        assert containers(server.pid)
        server.kill()
        server.wait()
        assert_gone(server.pid)


def test_a_killed_container_is_told(models, image):
    with serving(models, "--server-image", image) as server:
        wait_until_ready(server)
        tell("kill", *containers(server.pid))
        _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 3
    assert "Triton Server has ended: ended with exit code 137" in errors
    assert_gone(server.pid)


def test_what_outlives_its_controller_is_removed_by_the_next(models, scripted):
    hanging = scripted("exec sleep 600")
    with serving(models, "--server-image", hanging) as server:
        wait_until(lambda: any(map(is_running, containers(server.pid))), "a container")
        server.kill()  # the container has STOP_S to end by itself, and does not listen
        server.wait()
        (left,) = containers(server.pid)
    assert is_running(left)
    code, _ = refused(models, "--server-image", hanging, "--start-timeout=1")
    assert code == 1
    assert_gone(server.pid)


def test_a_backend_that_the_image_has_not_is_named_by_the_server(image, engine_cache, tmp_path):
    export(tmp_path / "models", "--backend=openvino", "--instances=1")
    code, errors = refused(tmp_path / "models", "--server-image", image)
    assert code == 1
    assert re.search(r"Triton Server did not start: .*backend.*'openvino'", errors), errors


def test_a_server_that_ends_at_its_start(models, scripted):
    code, errors = refused(models, "--server-image", scripted("echo error: it will not; exit 4"))
    assert code == 1
    assert "cnnbench: Triton Server did not start: error: it will not; its log: " in errors


@pytest.mark.parametrize("ending", ["limit", "signal"])
def test_a_server_that_hangs_at_its_start(models, scripted, ending):
    hanging = scripted("echo error: it hangs; exec sleep 600")
    began_s = time.monotonic()
    if ending == "limit":
        code, errors = refused(models, "--server-image", hanging, "--start-timeout=2")
        assert code == 1
        assert "Triton Server was not ready within 2 s: error: it hangs; its log: " in errors
    else:
        with serving(models, "--server-image", hanging) as server:
            wait_until(lambda: any(map(is_running, containers(server.pid))), "a container")
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE_S) == 0
            assert containers(server.pid) == []
        assert_gone(server.pid)
    assert time.monotonic() - began_s < STOP_S  # it is not waited for what does not listen


def test_an_image_that_is_missing_or_has_no_server(models, base):
    code, errors = refused(models, "--server-image", "cnnbench-no-such:image")
    assert code == 2
    assert "--server-image cnnbench-no-such:image: no such image here; `docker pull" in errors
    code, errors = refused(models, "--server-image", base)
    assert code == 1
    assert re.search(r'Triton Server did not start: .*"?tritonserver"?.* not found', errors), errors


def test_an_engine_that_does_not_answer(models, engine):
    code, errors = refused(models, "--server-image", "any", DOCKER_HOST="unix:///no/such.sock")
    assert code == 1
    assert "unix:///no/such.sock" in errors
    code, errors = refused(models, "--server-image", "any", "--container-cli", "no-such-engine")
    assert code == 1
    assert "no-such-engine: not found" in errors
