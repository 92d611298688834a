"""Where MPI is to start ranks, the command that starts them, and what is refused; nothing is started here."""

from dataclasses import asdict
from pathlib import Path

import pytest

from cnnbench.base.errors import InvalidMeasurementError, SkippedError, UsageError
from cnnbench.base.start import START
from cnnbench.launch.mpi import (
    RankReport,
    Ranks,
    find_mpirun,
    mpirun_command,
    note_moves,
    plan_ranks,
    read_hostfile,
)
from cnnbench.launch.plan import PlanRequest, place_instance, plan_instances
from cnnbench.launch.rank import MOST_OUTPUT_BYTES, Mirror, read_output
from cnnbench.machine.topology import read_topology
from cnnbench.worker.control import ControlBlock
from sysfs import make_sysfs_tree

HERE = Ranks(4, "ppr:2:socket", 8, None)
TAIL = ["/env/bin/python", "-I", START, "cnnbench.launch.rank", "/dev/shm/run/job.json", "/logs"]


def command_of(ranks, root):
    return mpirun_command(Path("/bin/mpirun"), ranks, Path(TAIL[0]), Path(TAIL[-2]), Path(TAIL[-1]), root=root)


def test_the_command_maps_and_binds_as_mpi_does():
    command = command_of(HERE, root=False)
    assert command[:3] == ["/bin/mpirun", "-n", "4"]
    words = " ".join(command)
    assert "--map-by ppr:2:socket:pe=8 --bind-to core" in words
    assert "-x OPENBLAS_NUM_THREADS" in words  # other hosts get no variable of itself
    assert command[-6:] == TAIL
    assert "--allow-run-as-root" not in words
    assert "--hostfile" not in words


def test_root_and_hosts_have_options_of_their_own():
    command = command_of(Ranks(4, "ppr:2:node", 1, Path("/a/hosts")), root=True)
    assert command[:6] == ["/bin/mpirun", "--allow-run-as-root", "-n", "4", "--hostfile", "/a/hosts"]


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1\n", {"node1": None}),
        ("node1 slots=2\n# node9\nnode2 slots = 4 max_slots=8 # its twin\n", {"node1": 2, "node2": 4}),
        ("node1 slots=2\nnode1 slots=3\n", {"node1": 5}),
        ("node1\n\nnode1 slots=3\n", {"node1": 3}),
        ("node1 max-slots=1\nnode2 max-slots=1 slots=2\n", {"node1": None, "node2": 2}),
    ],
)
def test_hosts_and_slots_of_a_hostfile(tmp_path, text, hosts):
    path = tmp_path / "hosts"
    path.write_text(text)
    assert read_hostfile(path) == hosts


def test_a_hostfile_without_hosts_or_that_is_not_there(tmp_path):
    path = tmp_path / "hosts"
    with pytest.raises(UsageError, match="hosts: no such file; needed are lines such as"):
        read_hostfile(path)
    path.write_text("# none yet\n")
    with pytest.raises(UsageError, match="hosts: no host in it"):
        read_hostfile(path)
    for line in ("node1 slots=many", "node1 slots=", "node1 slots=-1", "\x7fELF"):
        path.write_text(f"node0\n{line}\n")
        with pytest.raises(UsageError, match=r"hosts: '.*'; needed are lines such as `node1 slots=2`$"):
            read_hostfile(path)


@pytest.fixture
def machine(tmp_path):
    def make(**layout):
        return read_topology(make_sysfs_tree(tmp_path / "machine", **layout))

    return make


@pytest.fixture
def snc2(machine):
    """2 sockets of 2 NUMA nodes, 4 cores a node."""
    return machine(sockets=2, cores_per_socket=8, nodes_per_socket=2)


@pytest.mark.parametrize(
    ("request_", "mapping", "cores", "count"),
    [
        (PlanRequest("throughput", num_mpi=2), "ppr:2:socket", 4, 4),
        (PlanRequest("throughput", num_mpi=3), "ppr:3:socket", 2, 6),
        (PlanRequest("throughput", num_mpi=2, cores_per_instance=1), "ppr:2:socket", 1, 4),
        (PlanRequest("latency", num_mpi=1), "ppr:1:socket", 4, 2),
        (PlanRequest("throughput"), "ppr:1:socket", 8, 2),
        (PlanRequest("throughput", instance_mode="numa"), "ppr:1:numa", 4, 4),
        (PlanRequest("throughput", cores_per_instance=2), "ppr:2:numa", 2, 8),
        (PlanRequest("throughput", cores_per_instance=3), "ppr:1:numa", 3, 4),
        (PlanRequest("throughput", cores_per_instance=2, instances=1), "ppr:1:node", 2, 1),
        (PlanRequest("throughput", cores_per_instance=1, instances=4, replicas=2), "ppr:4:node", 2, 4),
        (PlanRequest("throughput", cores_per_instance=4, weight_sharing=True), "ppr:1:socket", 8, 2),
    ],
)
def test_ranks_are_mapped_as_planned(snc2, request_, mapping, cores, count):
    plan = plan_instances(snc2, request_)
    ranks, spread = plan_ranks(plan, snc2, request_.num_mpi, "")
    assert (ranks.mapping, ranks.cores, ranks.count) == (mapping, cores, count)
    assert spread == plan


def test_ranks_are_mapped_to_the_caches_they_are_planned_in(machine):
    topology = machine(sockets=2, cores_per_socket=16, nodes_per_socket=2, cache_cores=4)
    for request, mapping in [
        (PlanRequest("throughput", cores_per_instance=3), "ppr:1:l3cache"),  # else MPI would fill a node in order
        (PlanRequest("latency", cores_per_instance=2), "ppr:2:l3cache"),
        (PlanRequest("throughput", cores_per_instance=8), "ppr:1:numa"),
        (PlanRequest("throughput"), "ppr:1:socket"),
        (PlanRequest("throughput", cores_per_instance=3, instances=2), "ppr:2:node"),
    ]:
        assert plan_ranks(plan_instances(topology, request), topology, None, "")[0].mapping == mapping


def test_what_mpi_bound_otherwise_than_planned_is_told(machine):
    topology = machine(cores_per_socket=8, atoms=4, cache_cores=4, threads_per_core=1)
    plan = plan_instances(topology, PlanRequest("latency", cores_per_instance=3, instances=2))
    assert [one.kinds for one in plan.instances] == [("core",), ("atom",)]
    placed = [place_instance(at, at, topology.cores[3 * at : 3 * at + 3], True, "host") for at in range(2)]
    bound = RankReport([asdict(one) for one in placed], "Open MPI", {}, []).bound(plan)
    assert note_moves(plan, bound) == [
        "MPI bound instance 1 to more than one last-level cache, other than planned",
        "MPI bound instance 1 to more than one kind of core, other than planned",
    ]
    assert note_moves(plan, plan) == note_moves(bound, bound) == []


def test_ranks_a_socket_lie_in_their_socket_in_order(snc2):
    plan = plan_instances(snc2, PlanRequest("throughput", num_mpi=3))
    assert [one.cpus for one in plan.instances] == [(0, 1), (2, 3), (4, 5), (8, 9), (10, 11), (12, 13)]
    assert [one.sockets for one in plan.instances] == [(0,)] * 3 + [(1,)] * 3


def test_every_host_of_a_file_has_the_same_ranks(snc2, tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=4\nnode2 slots=4\n")
    plan = plan_instances(snc2, PlanRequest("throughput", num_mpi=2))
    ranks, spread = plan_ranks(plan, snc2, 2, str(hostfile))
    assert (ranks.count, ranks.hostfile) == (8, hostfile)
    assert [one.host for one in spread.instances] == ["node1"] * 4 + ["node2"] * 4
    assert [one.index for one in spread.instances] == [one.process for one in spread.instances] == list(range(8))
    assert (spread.cores, len(spread.cpus)) == (32, 16)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (PlanRequest("throughput", num_mpi=9), "NUM_MPI=9: must be 1 to 8, the usable cores of this host's smallest"),
        (PlanRequest("throughput", num_mpi=3, cores_per_instance=3), "CORES_PER_INSTANCE=3: needs 9 cores in each so"),
    ],
)
def test_what_a_socket_has_no_room_for(snc2, request_, reason):
    with pytest.raises(UsageError, match=reason):
        plan_instances(snc2, request_)


def test_a_host_without_slots_enough(snc2, tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=4\nnode2 slots=3\n")
    plan = plan_instances(snc2, PlanRequest("throughput", num_mpi=2))
    with pytest.raises(UsageError, match="node2 has slots=3, but is to have 4 ranks; raise it"):
        plan_ranks(plan, snc2, 2, str(hostfile))


def test_processes_that_differ_in_cores(machine):
    uneven = machine(sockets=2, cores_per_socket=4, threads_per_core=1, offline=[7])
    plan = plan_instances(uneven, PlanRequest("throughput"))
    with pytest.raises(UsageError, match="MPI=True: gives every process as many cores, but these have 3-4; give NUM_"):
        plan_ranks(plan, uneven, None, "")


def test_without_mpirun_the_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SkippedError, match="no mpirun on PATH; needed is Open MPI: apt-get install openmpi-bin"):
        find_mpirun()


def test_another_mpi_is_told_by_its_version(monkeypatch, tmp_path):
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SkippedError, match="mpirun is HYDRA build details:; needed is Open MPI's: apt-get install"):
        find_mpirun()


def test_of_much_output_the_end_is_kept_and_the_cut_told(tmp_path):
    path = tmp_path / "output.log"
    path.write_bytes(b"all of it\n")
    assert read_output(path) == b"all of it\n"
    path.write_bytes(b"x" * MOST_OUTPUT_BYTES + b"\nthe last line\n")
    kept = read_output(path)
    first, *_, last = kept.decode().splitlines()
    assert first == f"(cut: of {MOST_OUTPUT_BYTES + 15} bytes, the last {MOST_OUTPUT_BYTES})"
    assert last == "the last line"
    assert len(kept) == MOST_OUTPUT_BYTES + len(first) + 1


class SilentRanks:
    """A communicator of two ranks that never say anything."""

    size = 2

    def improbe(self, tag):
        return None


def test_rank_0_does_not_wait_for_the_last_words_of_all_when_the_controller_is_dead(tmp_path):
    ControlBlock.create(tmp_path, 1)  # nobody holds its directory
    with pytest.raises(InvalidMeasurementError, match="the controller is gone"):
        Mirror(SilentRanks(), tmp_path).drain()
