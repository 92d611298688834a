"""Runs whose processes are ranks of a real mpirun: on this host, on two network namespaces, and disturbed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from checkout import NETWORKS_SLUG as SLUG
from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.harness.line import DIRECTORY
from cnnbench.launch.local import SHARED_PREFIX
from cnnbench.launch.mpi import REPORT, find_mpirun
from cnnbench.machine.topology import read_topology
from cnnbench.results.record import KILLED, load_run
from cnnbench.staging.environments import RANKS, locked_python
from cnnbench.worker.control import ControlBlock, State
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


@pytest.fixture
def workload(tmp_path):
    return NullWorkload(tmp_path)


def processes_of(directory, *words):
    """Return the processes of a run below a directory: mpirun, ranks, and workers, which are told by their parents."""
    commands = {pid: command.decode(errors="replace").split("\0") for pid, command in process_files("cmdline").items()}
    ranks = {pid for pid, command in commands.items() if any(word.startswith(f"{directory}/") for word in command[1:])}
    children = set()
    for pid, stat in process_files("stat").items():
        parent = int(stat.decode(errors="replace").rpartition(")")[2].split()[1])
        if parent in ranks and "cnnbench.worker" in commands.get(pid, []):
            children.add(pid)
    return [pid for pid in sorted(ranks | children) if all(word in commands[pid] for word in words)]


def ranks_of(directory):
    return [
        pid for pid in processes_of(directory, "cnnbench.launch.rank") if pid not in processes_of(directory, "--map-by")
    ]


def workers_of(directory):
    return processes_of(directory, "cnnbench.worker")


def wait_until_measuring(workload, *instances):
    wait_until((workload.logs() / "mpi" / REPORT).exists, "all ranks")
    control = ControlBlock(workload.shared())
    for index in instances:
        wait_until(lambda index=index: control.state(index) >= State.MEASURING, f"instance {index} measuring")


def traces_of_mpi():
    """Return what an mpirun that could not clear up has left."""
    directories = Path(tempfile.gettempdir()).glob("ompi.*/pid.*")
    return {*directories, *Path("/dev/shm").glob("vader_segment*")}


def rank_specs(directory):
    """Return the specs of workers in the logs that ranks have below a directory of temporary files."""
    return [path for path in directory.glob(f"{SHARED_PREFIX}*/process-*/spec.json") if path.is_file()]


def shared_of(spec):
    return Path(json.loads(spec.read_text())["shared"])


@pytest.fixture
def left_over(workload):
    """Return what mpirun and killed ranks of the workload's run have left since; it is removed afterwards."""

    def found():
        plans = [path for path in Path("/dev/shm").glob(f"{SHARED_PREFIX}*/planned.json") if path.is_file()]
        own = {path.parent for path in plans if str(workload.logs_root) in path.read_text()}
        logs = {spec.parents[1] for spec in rank_specs(Path(tempfile.gettempdir())) if shared_of(spec) in own}
        return (traces_of_mpi() - before) | own | logs

    before = traces_of_mpi()
    yield found
    for path in found():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_the_planned_instances_are_ranks_bound_to_cores_of_their_own(workload):
    instances = min(CORES, 2)
    arguments = ["--mpi", "--steps=60", step_of(5), f"--instances={instances}", "--cores_per_instance=1"]
    done = workload.run(*arguments, TOKEN_OF_THE_CALLER="kept-to-itself")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(workload.logs())
    assert run.verdict in ("valid", "unstable"), run.reason
    assert run.effective["MPI"] == "True"
    assert run.facts["MPI"].startswith("Open MPI v")
    assert run.facts["MPI ranks"].startswith(f"{instances} on ")
    bound = [one["cpus"] for one in run.plan["instances"]]
    assert [one["cpus"] for one in run.instances] == bound
    assert len({cpu for cpus in bound for cpu in cpus}) == instances
    assert {one["rank"] for one in run.instances} == set(range(instances))
    for index in range(instances):
        rows = np.load(workload.logs() / f"instance-{index}" / "steps.npy")
        assert rows.shape == (60, 3)
        assert (np.diff(rows.ravel()) >= 0).all()
    assert run_kpi(workload.logs()).returncode == 0
    assert not processes_of(workload.logs_root)
    left = [path for path in workload.logs_root.rglob("*") if path.is_file()]
    assert not [path for path in left if b"kept-to-itself" in path.read_bytes()]


def test_ranks_a_socket_decide_how_many_instances_there_are_and_steps_auto_ends(workload):
    done = workload.run("--num_mpi=1", "--steps=auto", "--min_time=1", "--max_time=2", step_of(5))
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(workload.logs())
    assert int(run.effective["INSTANCES"]) == len(TOPOLOGY.sockets)
    assert run.effective["CORES_PER_INSTANCE"] == str(len(TOPOLOGY.cores_of_socket(TOPOLOGY.sockets[0])))
    rows = np.load(workload.logs() / "instance-0" / "steps.npy")
    assert (rows[-1, 2] - rows[0, 0]) / 1e9 >= 1
    assert any(criterion.name == "interval" for criterion in run.criteria)


@pytest.mark.engine
def test_a_network_is_measured_in_ranks_and_traced_before(engine_cache, pytorch_python, tmp_path):
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


ENDLESS = ("--mpi", "--steps=1000000", "--cores_per_instance=1", f"--instances={min(CORES, 2)}", step_of(5))


@pytest.fixture
def endless(workload, left_over):
    """A run that measures until it is disturbed; what is left when it has ended is checked."""
    with workload.start(*ENDLESS, "--hang-after=20") as controller:
        wait_until_measuring(workload, *range(min(CORES, 2)))
        yield controller
        output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3, output
    assert f"#INVALID RESULT: {KILLED}" in output.splitlines()
    assert not any(line.startswith("*") for line in output.splitlines())
    assert not load_run(workload.logs()).kpis
    wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")


def end(controller):
    controller.wait(PATIENCE_S)


def test_a_killed_worker_is_told_with_its_rank(endless, workload):
    (victim, *_) = workers_of(workload.logs_root)
    os.kill(victim, signal.SIGKILL)
    end(endless)
    seen = load_run(workload.logs()).facts["what was seen"]
    assert re.match(rf"rank \d on \S+: process {victim} was killed by SIGKILL; last in process-\d/output.log: ", seen)
    for index in range(min(CORES, 2)):  # what was measured until then is kept
        assert np.load(workload.logs() / f"instance-{index}" / "steps.npy").shape[1] == 3


@pytest.fixture
def temporary(tmp_path):
    """Return a directory of temporary files for one run alone."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


def test_ranks_have_their_logs_among_temporary_files_and_remove_them_when_they_fail(workload, temporary):
    with workload.start(*ENDLESS, TMPDIR=str(temporary)) as controller:
        wait_until_measuring(workload, *range(min(CORES, 2)))
        assert len(rank_specs(temporary)) == min(CORES, 2)
        os.kill(workers_of(workload.logs_root)[-1], signal.SIGKILL)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3
    assert not list(temporary.glob(f"{SHARED_PREFIX}*"))


def test_a_rank_that_fails_ends_all_others_and_tells_why(workload, temporary):
    arguments = ("--mpi", "--cores_per_instance=1", f"--instances={min(CORES, 2)}", step_of(5))
    limits = ("--steps=auto", "--min_time=3", "--max_time=6")
    with workload.start(*arguments, *limits, TMPDIR=str(temporary)) as controller:
        wait_until_measuring(workload, *range(min(CORES, 2)))
        last = max(rank_specs(temporary), key=lambda spec: spec.parent.name).parent
        (last / "steps.npy").write_text("no array")
        output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3, output
    assert re.search(r"#INVALID RESULT: rank \d+ on \S+: (Value|Unpickling)Error: ", output)
    assert "Traceback" in (workload.logs() / "mpi" / "output.log").read_text()
    wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")


def test_a_killed_rank_takes_its_worker_and_all_others_with_it(endless, workload):
    os.kill(ranks_of(workload.logs_root)[-1], signal.SIGKILL)
    end(endless)
    assert "exited on signal 9 (Killed)" in load_run(workload.logs()).facts["what was seen"]


def test_a_killed_mpirun_takes_all_ranks_with_it(endless, workload):
    (mpirun,) = processes_of(workload.logs_root, "--map-by")
    os.kill(mpirun, signal.SIGKILL)
    end(endless)
    assert f"process {mpirun} was killed by SIGKILL" in load_run(workload.logs()).facts["what was seen"]


def test_a_stopped_worker_counts_as_hung(workload):
    with workload.start(*ENDLESS, "--hang-after=8") as controller:
        wait_until_measuring(workload, *range(min(CORES, 2)))
        os.kill(workers_of(workload.logs_root)[-1], signal.SIGSTOP)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3
    assert "hung: no step for 8 s" in load_run(workload.logs()).facts["what was seen"]
    wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_an_interrupted_run_leaves_nothing_behind(endless, workload, left_over, number):
    endless.send_signal(number)
    end(endless)
    assert load_run(workload.logs()).facts["what was seen"] == "the run was interrupted"
    assert len(np.load(workload.logs() / "instance-0" / "steps.npy"))
    wait_until(lambda: not left_over(), "the end of what others' mpirun have here too")


def test_a_killed_controller_leaves_no_rank(workload, left_over):
    with workload.start(*ENDLESS) as controller:
        wait_until_measuring(workload, 0)
        shared = workload.shared()
        controller.kill()
        controller.wait()
        wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")
    wait_until(lambda: not left_over(), "the end of what others' mpirun have here too")
    shutil.rmtree(shared)  # the one thing that it cannot clear away


def test_a_run_whose_time_is_up_says_so(workload):
    done = workload.run(*ENDLESS, "--timeout=15")
    assert done.returncode == 3, done.stderr
    assert "#INVALID RESULT: not done within TIMEOUT=15 s" in done.stdout.splitlines()
    wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")


@pytest.mark.skipif(len(TOPOLOGY.cpus) < 2, reason="needs two CPUs, one of them to be ruled out")
def test_cpus_that_the_run_may_not_use_are_not_measured_on(workload):
    command = ["taskset", "--cpu-list", str(TOPOLOGY.cpus[-1]), *workload.command("--mpi", "--steps=5", step_of(1))]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE_S)
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

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command in the first one; what is started is its process itself, for signals."""
        enter = ["nsenter", f"--net=/var/run/netns/{self._names[0]}", "unshare", "--uts"]
        return subprocess.Popen(
            [*enter, "sh", "-c", f"hostname first; exec {shlex.join(command)}"],
            env=clean_environment(OMPI_MCA_plm_rsh_agent=str(self.agent)),
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
    return namespaces.start(workload.command(*arguments, step_of(20)))


def run_on_both(namespaces, workload):
    """Run a case to its end; return its exit code and what it printed."""
    with start_on_both(namespaces, workload, 60) as controller:
        output, _ = controller.communicate(timeout=LOAD_S)
    return controller.returncode, output


def test_two_hosts_are_measured_over_one_window(namespaces, workload):
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
    begins = [rows[0, 0] / 1e9 for rows in steps]
    assert max(begins) - min(begins) < 10  # the second's own clock is 100,000 s ahead
    throughput = next(kpi.value for kpi in run.kpis if kpi.primary)
    window_s = (min(rows[-1, 2] for rows in steps) - max(rows[0, 0] for rows in steps)) / 1e9
    completed = sum(len(rows) for rows in steps)
    assert throughput <= completed / window_s
    assert run_kpi(workload.logs()).returncode == 0
    assert not processes_of(workload.logs_root)


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


def test_logs_come_from_hosts_that_have_no_room_for_them(namespaces, workload):
    workload.logs_root.mkdir()
    namespaces.write_agent(before=f"mount -t tmpfs none {workload.logs_root}")
    code, output = run_on_both(namespaces, workload)
    assert code == 0, output
    assert (workload.logs() / f"process-{len(TOPOLOGY.sockets)}" / "output.log").exists()


def test_the_first_host_must_be_the_one_that_the_run_is_started_on(namespaces, workload):
    namespaces.hostfile.write_text("10.213.97.2 slots=4096\n")
    namespaces.write_agent(before="mount -t tmpfs none /dev/shm")
    code, output = run_on_both(namespaces, workload)
    assert code == 3, output
    reason = "rank 0 on second: .* not there; HOSTFILE is to name the host that the run is started on first"
    assert re.search(reason, output)
    assert not load_run(workload.logs()).kpis


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
@pytest.mark.usefixtures("left_over")
def test_nothing_is_left_on_another_host(namespaces, workload, number):
    with start_on_both(namespaces, workload, 1_000_000) as controller:
        wait_until_measuring(workload, *range(2 * len(TOPOLOGY.sockets)))
        assert len(workers_of(workload.logs_root)) == 2 * len(TOPOLOGY.sockets)
        controller.send_signal(number)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == (3 if number == signal.SIGINT else -number)
    wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")


@pytest.mark.usefixtures("left_over")
def test_a_rank_killed_on_another_host_is_told(namespaces, workload):
    with start_on_both(namespaces, workload, 1_000_000) as controller:
        wait_until_measuring(workload, *range(2 * len(TOPOLOGY.sockets)))
        (victim, *_) = (pid for pid in ranks_of(workload.logs_root) if on_second(pid))
        os.kill(victim, signal.SIGKILL)
        controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 3
    assert re.search(r"on node \S+ exited on signal 9 \(Killed\)", load_run(workload.logs()).facts["what was seen"])
    wait_until(lambda: not processes_of(workload.logs_root), "the end of all ranks and workers")


def on_second(pid):
    """Say whether a process is on the second host, which alone has a clock of its own."""
    return Path(f"/proc/{pid}/ns/time").readlink() != Path("/proc/self/ns/time").readlink()
