import os
from pathlib import Path

import pytest

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.topology import (
    UNKNOWN_NODE,
    Core,
    format_cpu_list,
    parse_cpu_list,
    read_cgroup_cpus,
    read_topology,
)
from sysfs import make_sysfs_tree, write


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8", (0, 1, 2, 3, 8)), ("0", (0,)), ("", ()), ("\n", ()), ("4,0-1\n", (0, 1, 4)), ("7-7", (7,))],
)
def test_cpu_lists_are_parsed(text, cpus):
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "-1", "0-3:1/2", "1.5", "0 1"])
def test_a_malformed_cpu_list_is_named(text):
    with pytest.raises(UsageError, match="CPU list"):
        parse_cpu_list(text)


@pytest.mark.parametrize(("cpus", "text"), [((0, 1, 2, 3, 8), "0-3,8"), ((), ""), ((5,), "5"), ((9, 8, 1, 1), "1,8-9")])
def test_cpu_lists_are_formatted(cpus, text):
    assert format_cpu_list(cpus) == text


def test_two_sockets_with_smt(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=2))
    assert topology.cores == (
        Core(0, (0, 4), socket=0, node=0),
        Core(1, (1, 5), socket=0, node=0),
        Core(2, (2, 6), socket=1, node=1),
        Core(3, (3, 7), socket=1, node=1),
    )
    assert topology.smt
    assert topology.sockets == (0, 1)
    assert topology.nodes == (0, 1)
    assert topology.cpus == tuple(range(8))


def test_core_ids_that_repeat_across_packages_are_different_cores(tmp_path):
    tree = make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=2, threads_per_core=1)
    ids = [(tree / f"devices/system/cpu/cpu{cpu}/topology/core_id").read_text().strip() for cpu in range(4)]
    assert ids == ["0", "1", "0", "1"]
    topology = read_topology(tree)
    assert [core.cpus for core in topology.cores] == [(0,), (1,), (2,), (3,)]
    assert not topology.smt


def test_a_socket_with_several_nodes(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=4, nodes_per_socket=2))
    assert topology.nodes == (0, 1, 2, 3)
    assert [core.cpus[0] for core in topology.cores_of_node(1)] == [2, 3]
    assert [core.node for core in topology.cores_of_socket(1)] == [2, 2, 3, 3]


def test_a_node_that_spans_sockets(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=2, nodes={0: range(8)}))
    assert topology.nodes == (0,)
    assert len(topology.cores_of_node(0)) == 4
    assert len(topology.cores_of_socket(1)) == 2


def test_without_numa_everything_is_node_0(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, nodes={}))
    assert topology.nodes == (0,)


def test_a_cpu_that_no_node_lists_has_no_known_node(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, cores_per_socket=2, threads_per_core=1, nodes={0: [0]}))
    assert [core.node for core in topology.cores] == [UNKNOWN_NODE, 0]
    assert topology.cores[0].cpus == (1,)


def test_a_node_of_memory_only_has_no_cores(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, nodes={0: range(8), 1: ()}))
    assert topology.nodes == (0,)


def test_a_single_core(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, cores_per_socket=1, threads_per_core=1))
    assert topology.cores == (Core(0, (0,), socket=0, node=0),)
    assert not topology.smt


def test_offline_cpus_are_left_out(tmp_path):
    # Core 1 lost its second thread, core 3 both.
    topology = read_topology(make_sysfs_tree(tmp_path, offline=(5, 3, 7)))
    assert [core.cpus for core in topology.cores] == [(0, 4), (1,), (2, 6)]
    assert topology.smt


def test_smt_switched_off_leaves_one_thread_a_core(tmp_path):
    topology = read_topology(make_sysfs_tree(tmp_path, offline=(4, 5, 6, 7)))
    assert [core.cpus for core in topology.cores] == [(0,), (1,), (2,), (3,)]
    assert not topology.smt


def test_affinity_and_cpuset_both_cut(tmp_path):
    tree = make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=2)
    topology = read_topology(tree, affinity=frozenset({1, 2, 5, 6, 7}), cgroup_cpus=frozenset({0, 1, 6, 7}))
    assert topology.cores == (
        Core(0, (1,), socket=0, node=0),  # the second thread of cpu 1, cpu 5, is not in the cpuset
        Core(1, (6,), socket=1, node=1),  # only the second thread is allowed: still a core
        Core(2, (7,), socket=1, node=1),
    )
    assert topology.smt


def test_the_newer_sibling_file_name_is_read_too(tmp_path):
    tree = make_sysfs_tree(tmp_path, cores_per_socket=2)
    for cpu in range(4):
        topology = tree / f"devices/system/cpu/cpu{cpu}/topology"
        (topology / "thread_siblings_list").rename(topology / "core_cpus_list")
    assert [core.cpus for core in read_topology(tree).cores] == [(0, 2), (1, 3)]


def test_an_unknown_package_is_socket_0(tmp_path):
    tree = make_sysfs_tree(tmp_path, cores_per_socket=1, threads_per_core=1)
    write(tree / "devices/system/cpu/cpu0/topology/physical_package_id", "-1")
    assert read_topology(tree).sockets == (0,)


def test_no_usable_cpu_says_what_was_found(tmp_path):
    tree = make_sysfs_tree(tmp_path)
    with pytest.raises(UsageError, match=r"online are 0-7, the affinity mask has 8-9, the cgroup cpuset has no limit"):
        read_topology(tree, affinity=frozenset({8, 9}))


def test_a_tree_without_cpus_names_the_missing_file(tmp_path):
    with pytest.raises(CnnbenchError, match="devices/system/cpu/online: No such file"):
        read_topology(tmp_path)


def test_cores_of_one_kind_may_differ_a_little_in_capacity(tmp_path):
    tree = make_sysfs_tree(tmp_path, threads_per_core=1)
    for cpu, capacity in enumerate((446, 1024, 1009, 440)):  # the fastest of a kind are a few percent faster
        write(tree / f"devices/system/cpu/cpu{cpu}/cpu_capacity", str(capacity))
    kinds = ["capacity 446", "capacity 1024", "capacity 1024", "capacity 446"]
    assert [core.kind for core in read_topology(tree).cores] == kinds
    for cpu, capacity in enumerate((1024, 1018, 1009, 990)):
        write(tree / f"devices/system/cpu/cpu{cpu}/cpu_capacity", str(capacity))
    assert {core.kind for core in read_topology(tree).cores} == {""}


def test_where_memory_comes_from(tmp_path):
    tree = make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=2)
    for node, kilobytes in enumerate((64, 0)):
        write(tree / f"devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:       {kilobytes} kB")
        write(tree / f"devices/system/node/node{node}/distance", ("10 21", "21 10")[node])
    topology = read_topology(tree)
    assert [topology.memory_nodes(cpus) for cpus in ([0], [2, 7], [0, 3], [])] == [{0}, {0}, {0}, set()]


def test_cores_of_a_cache_stand_together_whatever_their_numbers(tmp_path):
    tree = make_sysfs_tree(tmp_path, threads_per_core=1, cache_cores=2)
    for cpu in range(4):
        shared = "0,2" if cpu % 2 == 0 else "1,3"
        write(tree / f"devices/system/cpu/cpu{cpu}/cache/index1/shared_cpu_list", shared)
    assert [core.cpus for core in read_topology(tree).cores] == [(0,), (2,), (1,), (3,)]


def make_proc_self(tmp_path: Path, membership: str, *mounts: str) -> Path:
    proc = tmp_path / "proc"
    write(proc / "cgroup", membership)
    write(proc / "mountinfo", "\n".join(mounts))
    return proc


def mount_v1(point: Path, root: str = "/") -> str:
    return f"34 31 0:31 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,cpuset"


def mount_v2(point: Path, root: str = "/") -> str:
    return f"30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def test_cgroup_v2_limits(tmp_path):
    write(tmp_path / "cg/user/job/cpuset.cpus.effective", "0-1,4")
    proc = make_proc_self(tmp_path, "0::/user/job", mount_v2(tmp_path / "cg"))
    assert read_cgroup_cpus(proc) == {0, 1, 4}


def test_cgroup_v2_without_the_controller_inherits_from_the_nearest_parent_that_has_it(tmp_path):
    write(tmp_path / "cg/cpuset.cpus.effective", "0-7")
    write(tmp_path / "cg/user/cpuset.cpus.effective", "2-3")
    (tmp_path / "cg/user/job").mkdir()
    proc = make_proc_self(tmp_path, "0::/user/job", mount_v2(tmp_path / "cg"))
    assert read_cgroup_cpus(proc) == {2, 3}


@pytest.mark.parametrize("name", ["cpuset.effective_cpus", "cpuset.cpus"])
def test_cgroup_v1_limits(tmp_path, name):
    write(tmp_path / "cpuset/docker/abc" / name, "1-2")
    write(tmp_path / "cpuset/cpuset.cpus", "0-7")
    proc = make_proc_self(tmp_path, "4:memory:/x\n3:cpuset:/docker/abc\n0::/", mount_v1(tmp_path / "cpuset"))
    assert read_cgroup_cpus(proc) == {1, 2}


def test_cgroup_v1_prefers_the_effective_cpus(tmp_path):
    write(tmp_path / "cpuset/cpuset.effective_cpus", "1")
    write(tmp_path / "cpuset/cpuset.cpus", "0-7")
    assert read_cgroup_cpus(make_proc_self(tmp_path, "3:cpuset:/", mount_v1(tmp_path / "cpuset"))) == {1}


def test_a_container_sees_its_own_cgroup_at_the_mount_point(tmp_path):
    write(tmp_path / "cpuset/cpuset.cpus", "3")
    proc = make_proc_self(tmp_path, "3:cpuset:/docker/abc", mount_v1(tmp_path / "cpuset", root="/docker/abc"))
    assert read_cgroup_cpus(proc) == {3}


def test_a_cgroup_outside_the_namespace_falls_back_to_the_mount_point(tmp_path):
    write(tmp_path / "cg/cpuset.cpus.effective", "0-1")
    proc = make_proc_self(tmp_path, "0::/../../elsewhere", mount_v2(tmp_path / "cg"))
    assert read_cgroup_cpus(proc) == {0, 1}


def test_v1_and_v2_together_are_intersected(tmp_path):
    write(tmp_path / "v1/cpuset.cpus", "0-2")
    write(tmp_path / "v2/cpuset.cpus.effective", "1-3")
    proc = make_proc_self(tmp_path, "3:cpuset:/\n0::/", mount_v1(tmp_path / "v1"), mount_v2(tmp_path / "v2"))
    assert read_cgroup_cpus(proc) == {1, 2}


def test_mount_points_with_spaces_are_found(tmp_path):
    write(tmp_path / "c g/cpuset.cpus.effective", "5")
    proc = make_proc_self(tmp_path, "0::/", mount_v2(Path(str(tmp_path / "c g").replace(" ", "\\040"))))
    assert read_cgroup_cpus(proc) == {5}


def test_without_cgroups_nothing_is_restricted(tmp_path):
    assert read_cgroup_cpus(tmp_path / "absent") is None
    assert read_cgroup_cpus(make_proc_self(tmp_path, "0::/", mount_v2(tmp_path / "cg"))) is None


def test_this_machine():
    topology = read_topology()
    assert set(topology.cpus) <= os.sched_getaffinity(0)
    assert sum(len(core.cpus) for core in topology.cores) == len(topology.cpus)
    if read_cgroup_cpus() is None or os.sched_getaffinity(0) <= read_cgroup_cpus():
        assert set(topology.cpus) == os.sched_getaffinity(0)
