"""Runs whose processes are ranks of a real mpirun: on this host, on two network namespaces, and disturbed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from checkout import NETWORKS_SLUG as SLUG
from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.harness.line import DIRECTORY
from cnnbench.launch.local import SHARED_PREFIX
from cnnbench.launch.mpi import find_mpirun
from cnnbench.machine.topology import read_topology
from cnnbench.results.record import KILLED, load_run
from cnnbench.results.samples import SAMPLES, Samples
from cnnbench.staging.environments import RANKS, locked_python
from cnnbench.worker.control import ControlBlock, State
from damaged_images import damage_image
from null_workload import (
    CORES,
    PATIENCE_S,
    NullWorkload,
    clean_environment,
    process_files,
    run_kpi,
    step_of,
    wait_until,
)

TOPOLOGY = read_topology()
INSTANCES = min(CORES, 2)
EACH_A_CORE = ("--mpi", "--cores_per_instance=1", f"--instances={INSTANCES}", step_of(5))
ENDLESS = (*EACH_A_CORE, "--steps=1000000")
LOAD_S = 300
"""How long loading may take on a busy machine."""


@pytest.fixture(scope="module", autouse=True)
def _mpi(engine_cache):
    try:
        find_mpirun()
        locked_python(RANKS, engine_cache)
    except SkippedError as error:
        pytest.skip(str(error))
    except CnnbenchError as error:
        pytest.skip(f"MPI's ranks have no environment: {error}")


class MpiWorkload(NullWorkload):
    """A null workload whose runs' temporary files have a place of their own, which tells them from other runs'."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.environment = {"TMPDIR": str(self.temporary), "OMPI_MCA_btl_vader_backing_directory": str(self.temporary)}
        self.places: list[tuple[Path, Path]] = []
        """Of each rank, in order: its logs and its shared files."""

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return super().run(*arguments, **self.environment, **environment)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return super().start(*arguments, **self.environment, **environment)

    def processes(self, *words: str) -> list[int]:
        """Return mpirun, the ranks and their workers, of these those whose command has all these words."""
        commands = {pid: text.decode(errors="replace").split("\0") for pid, text in process_files("cmdline").items()}
        places = f"{self.logs_root}/", f"{self.temporary}/"
        own = {pid: command for pid, command in commands.items() if any(word.startswith(places) for word in command)}
        return sorted(pid for pid, command in own.items() if all(word in command for word in words))

    def mpirun(self) -> int:
        (pid,) = self.processes("--map-by")
        return pid

    def ranks(self) -> list[int]:
        return [pid for pid in self.processes("cnnbench.launch.rank") if pid != self.mpirun()]

    def workers(self) -> list[int]:
        return self.processes("cnnbench.worker")

    def wait_for_specs(self, ranks: int) -> list[Path]:
        """Wait until so many ranks have written their workers' specs, into their logs; return these in order."""
        wait_until(lambda: len(self._specs()) == ranks, f"{ranks} ranks")
        found = self._specs()
        self.places = [(spec.parents[1], Path(json.loads(spec.read_text())["shared"])) for spec in found]
        return found

    def _specs(self) -> list[Path]:
        found = [path for path in self.temporary.glob(f"{SHARED_PREFIX}*/process-*/spec.json") if path.stat().st_size]
        return sorted(found, key=lambda path: path.parent.name)

    def wait_until_measuring(self, ranks: int) -> None:
        """Wait until all of so many ranks, of one instance each, measure."""
        self.wait_for_specs(ranks)
        control = ControlBlock(self.shared())
        for index in range(ranks):
            wait_until(lambda index=index: control.state(index) >= State.MEASURING, f"instance {index} measuring")

    def assert_ended(self) -> None:
        wait_until(lambda: not self.processes(), "the end of all ranks and workers")

    def left_over(self) -> list[Path]:
        """Return what mpirun and the ranks have left beside the logs."""
        return [*self.temporary.iterdir(), *(shared for _, shared in self.places if shared.exists())]


@pytest.fixture
def workload(tmp_path):
    workload = MpiWorkload(tmp_path)
    yield workload
    for _, shared in workload.places:
        shutil.rmtree(shared, ignore_errors=True)


def test_the_instances_are_ranks_bound_to_cores_of_their_own(workload):
    cores = len(TOPOLOGY.cores_of_socket(TOPOLOGY.sockets[0]))
    each = min(cores, 2)
    arguments = [f"--num_mpi={each}", "--steps=auto", "--min_time=1", "--max_time=2", step_of(5)]
    done = workload.run(*arguments, TOKEN_OF_THE_CALLER="kept-to-itself")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(workload.logs())
    assert run.verdict in ("valid", "unstable"), run.reason
    instances = each * len(TOPOLOGY.sockets)
    effective = {name: run.effective[name] for name in ("MPI", "INSTANCES", "CORES_PER_INSTANCE")}
    assert effective == {"MPI": "True", "INSTANCES": str(instances), "CORES_PER_INSTANCE": str(cores // each)}
    assert run.facts["MPI"].startswith("Open MPI v")
    assert run.facts["MPI ranks"].startswith(f"{instances} on ")
    bound = [one["cpus"] for one in run.plan["instances"]]
    assert [one["cpus"] for one in run.instances] == bound
    assert len({cpu for cpus in bound for cpu in cpus}) == instances * (cores // each)
    assert {one["rank"] for one in run.instances} == set(range(instances))
    for index in range(instances):
        rows = np.load(workload.logs() / f"instance-{index}" / "steps.npy")
        assert (np.diff(rows.ravel()) >= 0).all()
        assert (rows[-1, 2] - rows[0, 0]) / 1e9 >= 1
    assert any(criterion.name == "interval" for criterion in run.criteria)
    assert run_kpi(workload.logs()).returncode == 0
    assert not workload.processes()
    assert not workload.left_over()
    kept = [path for path in workload.logs_root.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"kept-to-itself" in path.read_bytes()]


@pytest.mark.engine
def test_a_network_is_measured_and_sampled_in_ranks(engine_cache, pytorch_python, tmp_path):
    case = f"test_{SLUG}_inference_throughput_avx_fp32_resnet18"
    command = ["--workload", str(DIRECTORY), "--case", case, "--logs-root", str(tmp_path)]
    each = min(2, len(TOPOLOGY.cores_of_socket(TOPOLOGY.sockets[0])))
    done = subprocess.run(
        [sys.executable, "-m", "cnnbench", "case", *command, f"--num_mpi={each}", "--batch_size=8", "--steps=8"],
        env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / f"logs-{case}" / "itr-1" / "worker-0")
    figures = {kpi.key: kpi.value for kpi in run.kpis}
    assert figures["ISA share"] >= 95
    assert figures["Outputs top-1 agreement"] == 100
    assert len({one["pid"] for one in run.instances}) == each * len(TOPOLOGY.sockets)
    for one in run.instances:
        steps = np.load(tmp_path / f"logs-{case}/itr-1/worker-0/instance-{one['index']}/steps.npy")
        assert steps.shape == (8, 3)
        samples = Samples.load(tmp_path / f"logs-{case}/itr-1/worker-0/instance-{one['index']}" / SAMPLES)
        assert np.mean(steps[0, 0] <= samples.records["time_ns"].astype(np.int64)) > 0.9
    assert "samples among multiply-accumulates" in next(one.found for one in run.criteria if one.name == "precision")


@pytest.mark.engine
def test_an_image_that_cannot_be_decoded_is_named_through_mpi(engine_cache, pytorch_python, tmp_path):
    bad = damage_image(engine_cache, tmp_path / "cache", 40)  # beyond those that the network is prepared with
    case = f"test_{SLUG}_inference_throughput_avx_fp32_resnet18"
    command = ["--workload", str(DIRECTORY), "--case", case, "--logs-root", str(tmp_path), "--num_mpi=1"]
    done = subprocess.run(
        [sys.executable, "-m", "cnnbench", "case", *command, "--data_type=real", "--batch_size=8", "--steps=100"],
        env=clean_environment(CNNBENCH_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(rf"^#INVALID RESULT: rank 0 on \S+: {bad}: cannot be decoded: ", done.stdout, re.MULTILINE)
    assert load_run(tmp_path / f"logs-{case}" / "itr-1" / "worker-0").reason.startswith("rank 0 on ")


@pytest.fixture
def endless(workload):
    """A run that measures until it is disturbed; what is left when it has ended is checked."""
    with workload.start(*ENDLESS, "--hang-after=20") as controller:
        workload.wait_until_measuring(INSTANCES)
        yield controller
        output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3, output
    assert f"#INVALID RESULT: {KILLED}" in output.splitlines()
    assert not any(line.startswith("*") for line in output.splitlines())
    assert not load_run(workload.logs()).kpis
    workload.assert_ended()


def seen_at_the_end(controller, workload):
    controller.wait(PATIENCE_S)
    for index in range(INSTANCES):  # what was measured until then is kept
        assert np.load(workload.logs() / f"instance-{index}" / "steps.npy").shape[1] == 3
    return load_run(workload.logs()).facts["what was seen"]


def test_a_killed_worker_is_told_with_its_rank(endless, workload):
    (victim, *_) = workload.workers()
    os.kill(victim, signal.SIGKILL)
    seen = seen_at_the_end(endless, workload)
    assert re.match(rf"rank \d on \S+: process {victim} was killed by SIGKILL; last in process-\d/output.log: ", seen)
    assert not workload.left_over()


def test_a_killed_rank_takes_its_worker_and_all_others_with_it(endless, workload):
    os.kill(workload.ranks()[-1], signal.SIGKILL)
    assert "exited on signal 9 (Killed)" in seen_at_the_end(endless, workload)


def test_a_killed_mpirun_takes_all_ranks_with_it(endless, workload):
    mpirun = workload.mpirun()
    os.kill(mpirun, signal.SIGKILL)
    assert f"process {mpirun} was killed by SIGKILL" in seen_at_the_end(endless, workload)


def test_an_interrupted_run_leaves_nothing_behind(endless, workload):
    endless.send_signal(signal.SIGTERM)
    assert seen_at_the_end(endless, workload) == "the run was interrupted"
    assert not workload.left_over()


def test_a_stopped_worker_counts_as_hung(workload):
    with workload.start(*ENDLESS, "--hang-after=8") as controller:
        workload.wait_until_measuring(INSTANCES)
        os.kill(workload.workers()[-1], signal.SIGSTOP)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3
    assert "hung: no step for 8 s" in load_run(workload.logs()).facts["what was seen"]
    workload.assert_ended()


def test_a_run_whose_time_is_up_says_so(workload):
    done = workload.run(*ENDLESS, "--timeout=6")
    assert done.returncode == 3, done.stderr
    assert "#INVALID RESULT: not done within TIMEOUT=6 s" in done.stdout.splitlines()
    workload.assert_ended()


def test_a_rank_that_fails_ends_all_others_and_tells_why(workload):
    with workload.start(*EACH_A_CORE, "--steps=200") as controller:
        last = workload.wait_for_specs(INSTANCES)[-1].parent
        (last / "steps.npy").write_text("no array")
        output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3, output
    assert re.search(r"#INVALID RESULT: rank \d+ on \S+: (Value|Unpickling)Error: ", output)
    assert "Traceback" in (workload.logs() / "mpi" / "output.log").read_text()
    workload.assert_ended()


def test_a_controller_killed_while_the_results_are_gathered_leaves_no_rank(workload):
    """The last rank has a pipe among its logs, at which it stands, and all others with it, while somebody holds it."""
    with workload.start(*EACH_A_CORE, "--steps=200") as controller:
        pipe = workload.wait_for_specs(INSTANCES)[-1].parent / "pipe"
        os.mkfifo(pipe)
        held = []

        def is_read():
            with suppress(OSError):  # nobody reads it yet
                held.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            return held

        wait_until(is_read, "the last gathering")
        shared = workload.shared()
        controller.kill()
        controller.wait()
        workload.assert_ended()
        os.close(held[0])
    assert "the controller is gone" in (workload.logs() / "mpi" / "output.log").read_text()
    assert not workload.left_over()
    shutil.rmtree(shared)  # the one thing that a killed controller cannot clear away


@pytest.mark.skipif(len(TOPOLOGY.cpus) < 2, reason="needs two CPUs, one of them to be ruled out")
def test_cpus_that_the_run_may_not_use_are_not_measured_on(workload):
    command = ["taskset", "--cpu-list", str(TOPOLOGY.cpus[-1]), *workload.command("--mpi", "--steps=5", step_of(1))]
    done = subprocess.run(
        command, env=clean_environment(**workload.environment), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "MPI heeds no mask such as taskset's; lift it" in done.stdout


def test_what_mpirun_says_of_ranks_that_it_could_not_start_is_passed_on(workload, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("no-such-host.invalid slots=4096\n")
    done = workload.run("--num_mpi=1", f"--hostfile={hosts}", "--steps=5", OMPI_MCA_plm_rsh_agent="false")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "#INVALID RESULT: mpirun could not start the ranks: " in done.stdout


class Namespaces:
    """Two network namespaces with a cable between, the second with another name and monotonic clock, as of a host."""

    def __init__(self, directory: Path) -> None:
        self._names = [f"cnnbench-{letter}-{os.getpid()}" for letter in "ab"]
        self._links = [f"cnnb{letter}{os.getpid()}" for letter in "ab"]
        self.agent, self.hostfile = directory / "agent", directory / "hosts"

    def __enter__(self) -> "Namespaces":
        for name in self._names:
            self._ip("netns", "add", name)
        first, second = self._names
        self._ip("link", "add", self._links[0], "netns", first, "type", "veth", "peer", self._links[1], "netns", second)
        for number, (name, link) in enumerate(zip(self._names, self._links, strict=True), start=1):
            self._ip("-n", name, "addr", "add", f"10.213.97.{number}/24", "dev", link)
            for device in (link, "lo"):
                self._ip("-n", name, "link", "set", device, "up")
        self.hostfile.write_text("10.213.97.1 slots=4096\n10.213.97.2 slots=4096\n")
        self.write_agent()
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def write_agent(self, before: str = ":") -> None:
        """Write what enters the second one in place of ssh, after a command in a mount namespace of its own."""
        self.agent.write_text(
            f"#!/bin/sh\nshift\nexec nsenter --net=/var/run/netns/{self._names[1]} "
            "unshare --uts --mount --time --monotonic 100000 --fork --kill-child "
            f'sh -c "hostname second; {before}; $*"\n'
        )
        self.agent.chmod(0o755)

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        """Start a command in the first one; what is started is its process itself, for signals."""
        enter = ["nsenter", f"--net=/var/run/netns/{self._names[0]}", "unshare", "--uts"]
        return subprocess.Popen(
            [*enter, "sh", "-c", f"hostname first; exec {shlex.join(command)}"],
            env=clean_environment(OMPI_MCA_plm_rsh_agent=str(self.agent), **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def namespaces(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("making network namespaces takes root")
    for tool in ("ip", "nsenter", "unshare"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}; on Debian and Ubuntu: apt-get install iproute2 util-linux")
    made = Namespaces(tmp_path)
    try:
        made.__enter__()
    except subprocess.CalledProcessError as error:
        made.__exit__()
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield made
    made.__exit__()


def start_on_both(namespaces, workload, steps):
    arguments = ["--num_mpi=1", "--cores_per_instance=1", f"--hostfile={namespaces.hostfile}", f"--steps={steps}"]
    return namespaces.start(workload.command(*arguments, step_of(20)), **workload.environment)


def run_on_both(namespaces, workload):
    """Run a case to its end; return its exit code and what it printed."""
    with start_on_both(namespaces, workload, 60) as controller:
        output, _ = controller.communicate(timeout=LOAD_S)
    return controller.returncode, output


def test_two_hosts_are_measured_over_one_window_and_their_logs_come_through_mpi(namespaces, workload):
    workload.logs_root.mkdir()
    namespaces.write_agent(before=f"mount -t tmpfs none {workload.logs_root}")  # the second has no way to these logs
    code, output = run_on_both(namespaces, workload)
    assert code == 0, output
    run = load_run(workload.logs())
    each = len(TOPOLOGY.sockets)
    assert run.facts["MPI ranks"].startswith(f"{each} on first, {each} on second; ")
    assert "times of other hosts known to" in run.facts["MPI ranks"]
    assert [one["host"] for one in run.plan["instances"]] == ["first"] * each + ["second"] * each
    assert {one["host"] for one in run.instances} == {"first", "second"}
    (clocks,) = (criterion for criterion in run.criteria if criterion.name == "clocks")
    assert clocks.severity == "unstable"
    steps = [np.load(workload.logs() / f"instance-{index}" / "steps.npy") for index in range(2 * each)]
    assert {rows.shape for rows in steps} == {(60, 3)}
    assert (workload.logs() / f"process-{each}" / "output.log").exists()
    begins = [rows[0, 0] / 1e9 for rows in steps]
    assert max(begins) - min(begins) < 10  # the second's own clock is 100,000 s ahead
    for index, rows in enumerate(steps):
        times = Samples.load(workload.logs() / f"instance-{index}" / SAMPLES).records["time_ns"].astype(np.int64)
        assert (np.abs(times - rows[0, 0]) < 20e9).all()
    throughput = next(kpi.value for kpi in run.kpis if kpi.primary)
    window_s = (min(rows[-1, 2] for rows in steps) - max(rows[0, 0] for rows in steps)) / 1e9
    completed = sum(len(rows) for rows in steps)
    assert throughput <= completed / window_s
    assert run_kpi(workload.logs()).returncode == 0
    assert not workload.processes()


def test_a_host_that_lacks_what_the_run_reads_is_named_with_it(namespaces, workload):
    engine = Path(sys.executable)  # the null engine's Python is the controller's
    namespaces.write_agent(before=f"mount -t tmpfs none {engine.parent}")
    code, output = run_on_both(namespaces, workload)
    assert code == 3, output
    assert re.search(rf"#INVALID RESULT: rank \d+ on second: {engine} is not there; every host needs", output)


def test_a_host_whose_cpu_lacks_the_precision_is_named_with_what_it_lacks(namespaces, workload, tmp_path):
    (tmp_path / "cpuinfo").write_text(re.sub(r"\b(avx2|fma)\b", "", Path("/proc/cpuinfo").read_text()))
    namespaces.write_agent(before=f"mount --bind {tmp_path}/cpuinfo /proc/cpuinfo")
    code, output = run_on_both(namespaces, workload)
    assert code == 3, output
    assert re.search(r"#INVALID RESULT: rank \d+ on second: avx_fp32: this CPU lacks avx2 and fma", output)


def test_the_first_host_must_be_the_one_that_the_run_is_started_on(namespaces, workload):
    namespaces.hostfile.write_text("10.213.97.2 slots=4096\n")
    namespaces.write_agent(before="mount -t tmpfs none /dev/shm")
    code, output = run_on_both(namespaces, workload)
    assert code == 3, output
    reason = "rank 0 on second: .* not there; HOSTFILE is to name the host that the run is started on first"
    assert re.search(reason, output)
    assert not load_run(workload.logs()).kpis


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_nothing_is_left_on_another_host(namespaces, workload, number):
    ranks = 2 * len(TOPOLOGY.sockets)
    with start_on_both(namespaces, workload, 1_000_000) as controller:
        workload.wait_until_measuring(ranks)
        assert len(workload.workers()) == ranks
        shared = workload.shared()
        controller.send_signal(number)
        controller.communicate(timeout=PATIENCE_S)
        workload.assert_ended()
    assert controller.returncode == (3 if number == signal.SIGINT else -number)
    assert not [path for place in workload.places[: ranks // 2] for path in place if path.exists()]  # on the first
    shutil.rmtree(shared, ignore_errors=number == signal.SIGINT)  # a killed controller cannot clear it away


def test_a_rank_killed_on_another_host_is_told(namespaces, workload):
    with start_on_both(namespaces, workload, 1_000_000) as controller:
        workload.wait_until_measuring(2 * len(TOPOLOGY.sockets))
        (victim, *_) = (pid for pid in workload.ranks() if on_second(pid))
        os.kill(victim, signal.SIGKILL)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3
    assert re.search(r"on node \S+ exited on signal 9 \(Killed\)", load_run(workload.logs()).facts["what was seen"])
    workload.assert_ended()


def on_second(pid):
    """Say whether a process is on the second host, which alone has a clock of its own."""
    return Path(f"/proc/{pid}/ns/time").readlink() != Path("/proc/self/ns/time").readlink()
