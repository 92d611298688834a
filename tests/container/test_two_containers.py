"""Two containers of a run: what they have in common, what they reach, and that neither they nor the network is left."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from cnnbench.launch.container import (
    BUILD_LABEL,
    OWNER_LABEL,
    SHM,
    Container,
    ContainerSpec,
    Owner,
    internal_network,
    remove_orphans,
    run_command,
    stop_containers,
)
from container_engine import CLI, ask, find_containers, tell

pytestmark = pytest.mark.container

NEIGHBOUR = f"{SHM}/neighbour"
IDLE = ("python", "-c", "import time; time.sleep(600)")
FIRST = """
import os, subprocess, time, urllib.request
from pathlib import Path
from cnnbench.launch.beside import Neighbour
from cnnbench.machine.cgroup import read_cpu_quotas

neighbour = Neighbour.find(Path("/dev/shm/neighbour"))
site = Path("/dev/shm/site")
site.mkdir()
(site / "word").write_text("served")
words = ["python", "-m", "http.server", "--bind", neighbour.address, "--directory", str(site), "8000"]
with neighbour.launch(words, dict(os.environ), Path("/dev/shm/log")).process() as server:
    while True:
        try:
            print(urllib.request.urlopen(f"http://{neighbour.address}:8000/word", timeout=5).read().decode())
            break
        except OSError:
            assert server.exit_code is None, server.describe_end()
            time.sleep(0.1)
    print(Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\\0")[2].decode())
    process = Path(f"/proc/{server.pid}")
    print(*(quota.cpus for quota in read_cpu_quotas(process, process / "root")))
    print(os.readlink(f"/proc/{server.pid}/ns/net") == os.readlink("/proc/self/ns/net"))
print(server.exit_code)
"""


@pytest.fixture
def pair(images, tmp_path):
    """The specifications of two containers of a run, neither of them started."""
    name = f"cnnbench-beside-{tmp_path.name.replace('_', '-')}-{os.getpid()}"
    first = ContainerSpec(
        name=name,
        image=images.dummy,
        labels={BUILD_LABEL: str(tmp_path), OWNER_LABEL: Owner.of(os.getpid()).label},
        environment={},
        cpus=frozenset(os.sched_getaffinity(0)),
        nodes=frozenset(),
        memory_bytes=500_000_000,
        pids=100,
        mounts={},
        devices=(),
        sys_nice=False,
        extra=("--cpus", "0.75"),
        network=f"{name}-network",
        is_shared=True,
        program=IDLE,
    )
    program = ("python", "-I", "-m", "cnnbench.launch.beside", NEIGHBOUR)
    quota = ("--cpus", "0.5")
    yield first, replace(first, name=f"{name}-server", beside=name, program=program, extra=quota)
    stop_containers(CLI, tmp_path)


def started(spec, directory):
    container = Container(CLI, spec.name, directory / spec.name)
    container.start(run_command(CLI, spec))
    assert container.wait_until_running(), container.output
    return container


@pytest.fixture
def elsewhere(images, pair):
    """A container on the engine's own network that answers at port 8000, by its name, and its address."""
    name = f"{pair[0].name}-elsewhere"
    words = ("--rm", "--detach", f"--label={BUILD_LABEL}={pair[0].labels[BUILD_LABEL]}", "--entrypoint", "python")
    tell("run", *words, "--name", name, images.dummy, "-m", "http.server", "--directory", "/tmp", "8000")
    return name, tell("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)


def reaches(container, address):
    connect = f"import urllib.request; urllib.request.urlopen('http://{address}:8000', timeout=3)"
    return ask("exec", container, "python", "-c", connect).returncode == 0


def test_what_runs_beside_is_asked_over_a_network_that_no_other_is_on(pair, elsewhere, tmp_path):
    first, second = pair
    with internal_network(CLI, first.network, first.labels):
        one, other = started(first, tmp_path), started(second, tmp_path)
        try:
            done = ask("exec", first.name, "python", "-c", FIRST)
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == ["served", "http.server", "0.5", "False", "-9"]
            assert not any(reaches(name, elsewhere[1]) for name in (first.name, second.name))
            assert reaches(*elsewhere)
        finally:
            other.remove()
            one.remove()
    assert find_containers(tmp_path) == [elsewhere[0]]
    assert first.network not in tell("network", "ls", "--format", "{{.Name}}").split()


def test_the_second_ends_with_the_first(pair, tmp_path):
    first, second = pair
    with internal_network(CLI, first.network, first.labels):
        one, other = started(first, tmp_path), started(second, tmp_path)
        try:
            tell("kill", first.name)
            tell("wait", second.name)
            assert not other.inspect()[0]["Running"]
        finally:
            other.remove()
            one.remove()


def test_what_a_killed_run_has_left_is_removed_by_the_next_its_network_too(pair, tmp_path):
    first, second = pair
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        labels = first.labels | {OWNER_LABEL: Owner.of(owner.pid).label}
        tell(
            *["network", "create", "--internal"],
            *(f"--label={name}={value}" for name, value in labels.items()),
            first.network,
        )
        for spec in (first, second):
            words = run_command(CLI, replace(spec, labels=labels))[len(CLI) + 2 :]
            tell("run", "--detach", *words)
        remove_orphans(CLI)
        assert len(find_containers(tmp_path)) == 2  # their owner lives
        owner.kill()
    remove_orphans(CLI)
    assert not find_containers(tmp_path)
    assert first.network not in tell("network", "ls", "--format", "{{.Name}}").split()


def test_stop_names_and_removes_them_all(pair, tmp_path):
    first, second = pair
    tell("network", "create", "--internal", f"--label={BUILD_LABEL}={tmp_path}", first.network)
    for spec in (first, second):
        tell("run", "--detach", *run_command(CLI, spec)[len(CLI) + 2 :])
    assert sorted(stop_containers(CLI, tmp_path)) == [first.name, first.network, second.name]
    assert not stop_containers(CLI, tmp_path)
