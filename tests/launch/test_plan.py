import itertools
import json

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.launch.instances import InstancePlan
from cnnbench.launch.plan import PlanRequest, plan_instances
from cnnbench.machine.topology import Topology, read_topology
from sysfs import make_sysfs_tree, write


@pytest.fixture
def machine(tmp_path):
    def make(affinity: set[int] | None = None, **layout) -> Topology:
        tree = make_sysfs_tree(tmp_path / f"machine{len(list(tmp_path.iterdir()))}", **layout)
        return read_topology(tree, None if affinity is None else frozenset(affinity))

    return make


@pytest.fixture
def two_sockets(machine):
    """2 sockets, 8 cores each, SMT: CPUs 0-7 and 8-15, siblings 16-31."""
    return machine(sockets=2, cores_per_socket=8)


@pytest.fixture
def snc2(machine):
    """2 sockets of 2 nodes, 4 cores a node."""
    return machine(sockets=2, cores_per_socket=8, nodes_per_socket=2)


@pytest.fixture
def nps4(machine):
    """1 socket of 4 nodes, 4 cores a node."""
    return machine(sockets=1, cores_per_socket=16, nodes_per_socket=4)


def cpus(plan):
    return [instance.cpus for instance in plan.instances]


def span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


@pytest.mark.parametrize("mode", ["throughput", "accuracy"])
def test_throughput_is_one_instance_a_socket_on_one_thread_a_core(two_sockets, mode):
    plan = plan_instances(two_sockets, PlanRequest(mode))
    assert cpus(plan) == [span(0, 7), span(8, 15)]
    assert plan.instances == (
        InstancePlan(index=0, process=0, cpus=span(0, 7), sockets=(0,), nodes=(0,), memory_node=0),
        InstancePlan(index=1, process=1, cpus=span(8, 15), sockets=(1,), nodes=(1,), memory_node=1),
    )
    assert [instance.threads for instance in plan.instances] == [8, 8]
    assert plan.idle_cores == 0
    assert plan.notes == ()


def test_latency_is_4_cores_an_instance_and_as_many_as_fit(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("latency"))
    assert cpus(plan) == [span(0, 3), span(4, 7), span(8, 11), span(12, 15)]
    assert [one.process for one in plan.instances] == [0, 1, 2, 3]
    assert plan.notes == ()


def test_cores_given_fill_node_by_node_and_the_rest_is_idle(snc2):
    plan = plan_instances(snc2, PlanRequest("throughput", cores_per_instance=3))
    assert cpus(plan) == [span(0, 2), span(4, 6), span(8, 10), span(12, 14)]
    assert [one.memory_node for one in plan.instances] == [0, 1, 2, 3]
    assert plan.idle_cores == 4
    assert plan.notes == ("4 of 16 usable cores stay idle",)


def test_throughput_on_a_socket_of_several_nodes_spans_them_and_says_so(snc2):
    plan = plan_instances(snc2, PlanRequest("throughput"))
    assert cpus(plan) == [span(0, 7), span(8, 15)]
    assert [(one.nodes, one.memory_node) for one in plan.instances] == [((0, 1), None), ((2, 3), None)]
    assert plan.notes == (
        "instances 0-1 span more than one NUMA node, so memory is not bound to one: "
        "CORES_PER_INSTANCE=4 or less fits in one",
    )


def test_larger_than_a_node_takes_whole_nodes_of_one_socket(nps4):
    plan = plan_instances(nps4, PlanRequest("throughput", cores_per_instance=8))
    assert cpus(plan) == [span(0, 7), span(8, 15)]
    assert [one.nodes for one in plan.instances] == [(0, 1), (2, 3)]


def test_larger_than_a_node_touches_as_few_nodes_as_it_can(nps4):
    plan = plan_instances(nps4, PlanRequest("throughput", cores_per_instance=6))
    assert [one.nodes for one in plan.instances] == [(0, 1), (1, 2)]
    assert cpus(plan) == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)]
    assert plan.idle_cores == 4


def test_larger_than_a_node_stays_in_its_socket(snc2):
    plan = plan_instances(snc2, PlanRequest("throughput", cores_per_instance=5))
    assert cpus(plan) == [span(0, 4), span(8, 12)]
    assert plan.idle_cores == 6


def test_larger_than_a_socket_spans_sockets_and_says_so(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", cores_per_instance=12))
    assert cpus(plan) == [span(0, 11)]
    assert plan.instances[0].sockets == (0, 1)
    assert plan.instances[0].memory_node is None
    assert plan.notes[0] == "instance 0 spans more than one socket"
    assert plan.notes[-1] == "4 of 16 usable cores stay idle"


def test_a_node_that_spans_sockets_still_binds_memory(machine):
    topology = machine(sockets=2, cores_per_socket=4, nodes={0: range(16)})
    plan = plan_instances(topology, PlanRequest("throughput", cores_per_instance=3))
    assert cpus(plan) == [span(0, 2), span(4, 6)]  # inside a socket, not 3 cores of each and 2 over
    plan = plan_instances(topology, PlanRequest("throughput", cores_per_instance=8))
    assert cpus(plan) == [span(0, 7)]
    assert plan.instances[0].memory_node == 0
    assert plan.notes == ("instance 0 spans more than one socket",)


def test_instances_given_divide_the_cores_over_the_nodes(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", instances=4))
    assert cpus(plan) == [span(0, 3), span(4, 7), span(8, 11), span(12, 15)]
    plan = plan_instances(two_sockets, PlanRequest("throughput", instances=6))
    assert cpus(plan) == [(0, 1), (2, 3), (4, 5), (8, 9), (10, 11), (12, 13)]  # 3 on each socket, not 4 and 2
    assert plan.idle_cores == 4
    plan = plan_instances(two_sockets, PlanRequest("throughput", instances=3))
    assert cpus(plan) == [span(0, 3), span(4, 7), span(8, 11)]


def test_one_instance_for_the_whole_machine(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", instances=1))
    assert cpus(plan) == [span(0, 15)]
    assert "instance 0 spans more than one socket" in plan.notes


def test_latency_with_instances_given_keeps_4_cores(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("latency", instances=2))
    assert cpus(plan) == [span(0, 3), span(4, 7)]
    assert plan.notes == ("8 of 16 usable cores stay idle",)


def test_latency_with_more_instances_than_fit_at_4_cores_shrinks(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("latency", instances=5))
    assert {one.threads for one in plan.instances} == {3}
    assert len(plan.instances) == 5
    assert plan.notes[0] == (
        "CORES_PER_INSTANCE: 3 instead of the default 4: INSTANCES=5 and this host has 16 usable cores"
    )


def test_instances_that_fit_only_across_nodes_cross_and_say_so(machine):
    topology = machine(cores_per_socket=8, nodes_per_socket=2)
    plan = plan_instances(topology, PlanRequest("throughput", cores_per_instance=3, instances=2))
    assert cpus(plan) == [(0, 1, 2), (4, 5, 6)]
    topology = machine(sockets=1, cores_per_socket=10, nodes_per_socket=2)
    plan = plan_instances(topology, PlanRequest("throughput", cores_per_instance=3, instances=3))
    assert cpus(plan) == [(0, 1, 2), (3, 4, 8), (5, 6, 7)]
    assert [one.memory_node for one in plan.instances] == [0, None, 1]
    assert plan.notes == (
        "instance 1 spans more than one NUMA node, so memory is not bound to one: "
        "at most 2 instances of 3 cores fit without",
        "1 of 10 usable cores stay idle",
    )


def test_instances_that_must_cross_stay_in_a_socket_where_they_can(machine):
    # Nodes of 3 cores, 2 a socket: a third instance of 2 cores in a socket takes the odd core of both nodes.
    topology = machine(sockets=2, cores_per_socket=6, nodes_per_socket=2)
    plan = plan_instances(topology, PlanRequest("latency", cores_per_instance=2, instances=6))
    assert cpus(plan) == [(0, 1), (2, 5), (3, 4), (6, 7), (8, 11), (9, 10)]
    assert all(len(one.sockets) == 1 for one in plan.instances)


def test_a_default_that_does_not_fit_shrinks_and_says_so(machine):
    plan = plan_instances(machine(cores_per_socket=2), PlanRequest("latency"))
    assert cpus(plan) == [(0, 1)]
    assert plan.notes == ("CORES_PER_INSTANCE: 2 instead of the default 4: this host has 2 usable cores",)


def test_a_single_core(machine):
    topology = machine(cores_per_socket=1, threads_per_core=1)
    assert cpus(plan_instances(topology, PlanRequest("throughput"))) == [(0,)]
    plan = plan_instances(topology, PlanRequest("latency"))
    assert cpus(plan) == [(0,)]
    assert plan.notes == ("CORES_PER_INSTANCE: 1 instead of the default 4: this host has 1 usable core",)


def test_the_latency_default_shrinks_rather_than_spans_sockets(machine):
    plan = plan_instances(machine(sockets=2, cores_per_socket=3), PlanRequest("latency"))
    assert cpus(plan) == [(0, 1, 2), (3, 4, 5)]
    assert plan.notes == (
        "CORES_PER_INSTANCE: 3 instead of the default 4: no socket of this host has more than 3 usable cores",
    )


def test_offline_cores_are_not_planned(machine):
    # Cores 1 and 6 are gone, core 2 lost its first thread.
    topology = machine(sockets=2, cores_per_socket=4, offline=(1, 9, 6, 14, 2))
    plan = plan_instances(topology, PlanRequest("throughput"))
    assert cpus(plan) == [(0, 3, 10), (4, 5, 7)]


def test_a_restricted_cpuset_plans_only_what_is_allowed(machine):
    # Socket 0 keeps cores 0, 1 and the second thread of core 2; socket 1 keeps core 5.
    topology = machine({0, 8, 1, 10, 5}, sockets=2, cores_per_socket=4)
    plan = plan_instances(topology, PlanRequest("throughput"))
    assert cpus(plan) == [(0, 1, 10), (5,)]
    assert plan.cores_per_instance == 3
    assert plan.notes == ("instances differ in cores as the sockets do: 3 on socket 0, 1 on socket 1",)


def test_two_siblings_of_one_core_are_one_core(machine):
    topology = machine({0, 4}, cores_per_socket=4)
    with pytest.raises(UsageError, match=r"INSTANCES=2: must be 1 to 1, the usable physical cores of this host"):
        plan_instances(topology, PlanRequest("throughput", instances=2))


def test_nodes_that_differ_in_size_are_not_crossed_for_what_fits_in_the_larger(machine):
    topology = machine({0, 1, 2, 3, 4, 5, 6}, cores_per_socket=8, nodes_per_socket=2, threads_per_core=1)
    plan = plan_instances(topology, PlanRequest("latency"))
    assert cpus(plan) == [(0, 1, 2, 3)]
    assert plan.notes == ("3 of 7 usable cores stay idle",)


def test_a_cpu_without_a_node_is_planned_apart_and_never_bound(machine):
    topology = machine(cores_per_socket=4, threads_per_core=1, nodes={0: [0, 1]})
    plan = plan_instances(topology, PlanRequest("throughput", cores_per_instance=2))
    assert [(one.cpus, one.memory_node) for one in plan.instances] == [((2, 3), None), ((0, 1), 0)]


def test_weight_sharing_is_one_process_a_socket(snc2):
    plan = plan_instances(snc2, PlanRequest("latency", weight_sharing=True))
    assert cpus(plan) == [span(0, 3), span(4, 7), span(8, 11), span(12, 15)]
    assert [one.process for one in plan.instances] == [0, 0, 1, 1]
    assert [[one.index for one in process] for process in plan.processes] == [[0, 1], [2, 3]]


def test_weight_sharing_never_spans_sockets(machine):
    topology = machine(sockets=2, cores_per_socket=6)
    with pytest.raises(UsageError, match=r"CORES_PER_INSTANCE=8: must be 1 to 6.*WEIGHT_SHARING"):
        plan_instances(topology, PlanRequest("throughput", cores_per_instance=8, weight_sharing=True))
    with pytest.raises(UsageError, match=r"at most 2 instances of 4 fit without crossing sockets"):
        plan_instances(topology, PlanRequest("throughput", cores_per_instance=4, instances=3, weight_sharing=True))
    plan = plan_instances(topology, PlanRequest("throughput", cores_per_instance=4, instances=3))
    assert [one.sockets for one in plan.instances] == [(0,), (0, 1), (1,)]
    plan = plan_instances(topology, PlanRequest("throughput", instances=1, weight_sharing=True))
    assert cpus(plan) == [span(0, 5)]


EVERY_MODE = pytest.mark.parametrize("mode", ["throughput", "latency", "accuracy"])


@EVERY_MODE
def test_one_instance_for_each_numa_node(snc2, mode):
    plan = plan_instances(snc2, PlanRequest(mode, instance_mode="numa"))
    assert cpus(plan) == [span(0, 3), span(4, 7), span(8, 11), span(12, 15)]
    assert [(one.nodes, one.memory_node) for one in plan.instances] == [((node,), node) for node in range(4)]
    assert [one.process for one in plan.instances] == [0, 1, 2, 3]
    assert (plan.idle_cores, plan.notes) == (0, ())


@EVERY_MODE
def test_one_instance_for_each_socket(snc2, mode):
    plan = plan_instances(snc2, PlanRequest(mode, instance_mode="socket"))
    assert cpus(plan) == [span(0, 7), span(8, 15)]
    assert plan.idle_cores == 0
    assert plan.notes == (
        "instances 0-1 span more than one NUMA node, so memory is not bound to one: "
        "with INSTANCE_MODE=numa each would lie in one",
    )


def test_a_node_or_socket_gives_the_cores_that_may_be_used(machine):
    # Node 0 keeps cores 0 and 1, node 1 core 4 by its second thread, and node 2 nothing.
    topology = machine({0, 1, 20, 12}, sockets=2, cores_per_socket=8, nodes_per_socket=2)
    plan = plan_instances(topology, PlanRequest("latency", instance_mode="numa"))
    assert [(one.cpus, one.memory_node) for one in plan.instances] == [((0, 1), 0), ((20,), 1), ((12,), 3)]
    assert plan.notes == ("instances differ in cores as the NUMA nodes do: 2 on node 0, 1 on node 1, 1 on node 3",)
    plan = plan_instances(topology, PlanRequest("latency", instance_mode="socket"))
    assert cpus(plan) == [(0, 1, 20), (12,)]
    assert plan.notes[0] == "instances differ in cores as the sockets do: 3 on socket 0, 1 on socket 1"


def test_instances_of_the_nodes_of_a_socket_share_weights(snc2):
    plan = plan_instances(snc2, PlanRequest("throughput", weight_sharing=True, instance_mode="numa"))
    assert [one.process for one in plan.instances] == [0, 0, 1, 1]
    plan = plan_instances(snc2, PlanRequest("throughput", weight_sharing=True, instance_mode="socket"))
    assert [one.process for one in plan.instances] == [0, 1]


def test_a_node_that_spans_sockets_is_one_instance_but_shares_no_weights(machine):
    topology = machine(sockets=2, cores_per_socket=4, nodes={0: range(16)})
    plan = plan_instances(topology, PlanRequest("throughput", instance_mode="numa"))
    assert [(one.cpus, one.memory_node) for one in plan.instances] == [(span(0, 7), 0)]
    with pytest.raises(UsageError, match=r"INSTANCE_MODE=numa: NUMA node 0 has cores of sockets 0-1.*WEIGHT_SHARING"):
        plan_instances(topology, PlanRequest("throughput", weight_sharing=True, instance_mode="numa"))


def test_without_numa_the_machine_is_one_node(machine):
    plan = plan_instances(machine(cores_per_socket=2, nodes={}), PlanRequest("latency", instance_mode="numa"))
    assert [(one.cpus, one.nodes) for one in plan.instances] == [((0, 1), (0,))]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (PlanRequest("latency", cores_per_instance=17), r"CORES_PER_INSTANCE=17: must be 1 to 16"),
        (PlanRequest("latency", cores_per_instance=0), r"CORES_PER_INSTANCE=0: must be 1 to 16"),
        (PlanRequest("latency", instances=0), r"INSTANCES=0: must be 1 to 16"),
        (PlanRequest("throughput", instances=17), r"INSTANCES=17: must be 1 to 16"),
        (
            PlanRequest("latency", cores_per_instance=4, instances=5),
            r"INSTANCES=5 with CORES_PER_INSTANCE=4: needs 20 physical cores, this host has 16 usable; "
            r"at most 4 instances of 4 fit",
        ),
    ],
)
def test_explicit_values_that_do_not_fit_are_refused(two_sockets, request_, message):
    with pytest.raises(UsageError, match=message):
        plan_instances(two_sockets, request_)


@pytest.mark.parametrize("mode", ["throughput", "latency"])
@pytest.mark.parametrize("weight_sharing", [False, True])
@pytest.mark.parametrize("nodes_per_socket", [1, 2, 3])
def test_every_plan_that_is_made_is_sound(machine, mode, weight_sharing, nodes_per_socket):
    topology = machine({*range(11), 13, 18, 19}, sockets=2, cores_per_socket=6, nodes_per_socket=nodes_per_socket)
    core_of = {cpu: core.id for core in topology.cores for cpu in core.cpus}
    for size in (None, *range(1, 12)):
        for count in (None, *range(1, 12)):
            request = PlanRequest(mode, size, count, weight_sharing)
            try:
                plan = plan_instances(topology, request)
            except UsageError:
                assert size is not None  # a number of instances up to the number of cores always has a plan
                continue
            used = [core_of[cpu] for one in plan.instances for cpu in one.cpus]
            assert len(used) == len(set(used)) == len(topology.cores) - plan.idle_cores
            assert count in (None, len(plan.instances))
            assert size in (None, *{one.threads for one in plan.instances})
            assert not weight_sharing or all(len(one.sockets) == 1 for one in plan.instances)


def test_a_plan_is_plain_data(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("latency", instances=1))
    assert json.loads(json.dumps(plan.to_dict())) == {
        "instances": [
            {
                "index": 0,
                "process": 0,
                "cpus": [0, 1, 2, 3],
                "sockets": [0],
                "nodes": [0],
                "memory_node": 0,
                "threads": 4,
            }
        ],
        "processes": [[0]],
        "cores": 4,
        "cores_per_instance": 4,
        "idle_cores": 12,
        "notes": ["12 of 16 usable cores stay idle"],
    }


def test_replicas_share_a_process_and_have_cores_of_their_own(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", cores_per_instance=2, instances=2, replicas=3))
    assert [one.process for one in plan.instances] == [0, 0, 0, 1, 1, 1]
    assert [one.threads for one in plan.instances] == [2] * 6
    assert len(set(plan.cpus)) == 12


def test_replicas_divide_the_cores_where_nothing_else_is_said(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", replicas=4))
    assert ([one.process for one in plan.instances], plan.cores) == ([0] * 4, 16)


def test_a_process_that_would_lack_a_replica_is_not_planned(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", cores_per_instance=3, replicas=3))
    assert [one.process for one in plan.instances] == [0, 0, 0]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (PlanRequest("throughput", replicas=17), "REPLICAS=17: must be 1 to 16"),
        (PlanRequest("throughput", instances=6, replicas=3), "INSTANCES=6 with REPLICAS=3: must be 1 to 5"),
        (PlanRequest("throughput", cores_per_instance=9, replicas=2), "REPLICAS=2: more than the instances"),
    ],
)
def test_replicas_that_do_not_fit_are_refused(two_sockets, request_, words):
    with pytest.raises(UsageError, match=words):
        plan_instances(two_sockets, request_)


def test_without_numa_awareness_no_memory_is_bound(two_sockets):
    plan = plan_instances(two_sockets, PlanRequest("throughput", cores_per_instance=2, numa_aware=False))
    assert {one.memory_node for one in plan.instances} == {None}


GENOA = {"sockets": 2, "cores_per_socket": 96, "cache_cores": 8}
MILAN = {"sockets": 2, "cores_per_socket": 64, "cache_cores": 8, "nodes_per_socket": 4}
SPR_SNC4 = {"sockets": 2, "cores_per_socket": 56, "cache_cores": 56, "nodes_per_socket": 4}
SRF = {"sockets": 1, "cores_per_socket": 144, "threads_per_core": 1, "cache_cores": 144}
HYBRID = {"cores_per_socket": 12, "threads_per_core": 1, "cache_cores": 12, "atoms": 4}

PLACEMENTS = [
    # machine, what is asked for, instances, caches of an instance, idle cores
    (GENOA, {"cores_per_instance": 7}, 24, {1}, 24),
    (GENOA, {"cores_per_instance": 8}, 24, {1}, 0),
    (GENOA, {"cores_per_instance": 4}, 48, {1}, 0),
    (GENOA, {"cores_per_instance": 16}, 12, {2}, 0),
    (GENOA, {"cores_per_instance": 7, "instances": 26}, 26, {1, 7}, 10),
    (GENOA, {}, 2, {12}, 0),
    (GENOA, {"instances": 24}, 24, {1}, 0),
    (GENOA, {"instances": 26}, 26, {1, 7}, 10),  # 7 cores each, as without caches, and not 4
    (GENOA, {"instances": 20}, 20, {2}, 12),
    (GENOA | {"offline": [0]}, {"cores_per_instance": 8}, 24, {1}, 0),
    (GENOA | {"offline": [0, 192]}, {"cores_per_instance": 8}, 23, {1}, 7),
    (MILAN, {"cores_per_instance": 6}, 16, {1}, 32),
    (MILAN, {"cores_per_instance": 16}, 8, {2}, 0),
    (SPR_SNC4, {"cores_per_instance": 14}, 8, {1}, 0),
    (SPR_SNC4, {"cores_per_instance": 28}, 4, {1}, 0),
    (SRF, {"cores_per_instance": 4}, 36, {1}, 0),
    (SRF, {"cores_per_instance": 5}, 28, {1}, 4),
    (GENOA | {"cache_cores": 0}, {"cores_per_instance": 7}, 26, {0}, 10),
]


def test_an_instance_lies_in_one_cache_where_it_fits_then_in_a_node(machine):
    for layout, asked, instances, caches, idle in PLACEMENTS:
        topology = machine(**layout)
        for mode in ("throughput", "latency") if asked.get("cores_per_instance") else ("throughput",):
            plan = plan_instances(topology, PlanRequest(mode, **asked))
            told = (len(plan.instances), {len(one.caches) for one in plan.instances}, plan.idle_cores)
            assert told == (instances, caches, idle), (layout, asked, mode)
            used = [cpu for one in plan.instances for cpu in one.cpus]
            assert len(used) == len(set(used))


def test_what_did_not_fit_in_one_cache_is_noted(machine):
    genoa = machine(**GENOA)
    plan = plan_instances(genoa, PlanRequest("throughput", cores_per_instance=7, instances=26))
    (note,) = [note for note in plan.notes if "cache" in note]
    assert note.endswith("more than one last-level (L3) cache, as none had cores enough left")
    assert len([one for one in plan.instances if len(one.caches) > 1]) == 2
    whole = plan_instances(genoa, PlanRequest("throughput", cores_per_instance=16))
    assert not [note for note in whole.notes if "cache" in note]


def test_an_instance_has_cores_of_one_kind_unless_more_are_asked_for(machine):
    topology = machine(**HYBRID)
    for request, kinds in [
        (PlanRequest("throughput"), [("core",), ("atom",)]),
        (PlanRequest("throughput", instance_mode="numa"), [("core",), ("atom",)]),
        (PlanRequest("throughput", instances=1), [("core",)]),
        (PlanRequest("throughput", cores_per_instance=4), [("core",), ("core",), ("atom",)]),
        (PlanRequest("latency"), [("core",), ("core",), ("atom",)]),
        (PlanRequest("throughput", cores_per_instance=12), [("core", "atom")]),
    ]:
        plan = plan_instances(topology, request)
        assert [one.kinds for one in plan.instances] == kinds
        (note,) = [note for note in plan.notes if "kinds" in note]
        assert ("the others wait for" in note) is (len(kinds[0]) > 1)
    assert "kinds" not in plan_instances(machine(), PlanRequest("latency")).to_dict()["instances"][0]


CLIENT = {"cores_per_socket": 24, "threads_per_core": 1, "cache_cores": 24, "atoms": 16}


def test_defaults_fit_the_kinds_of_cores_that_there_are(machine):
    for layout, request, expected in [
        # A layout's cores, what is asked for, and the cores of each kind that instances have.
        (CLIENT, PlanRequest("throughput", instances=1), "8 core"),  # not the 16 small ones
        (CLIENT, PlanRequest("throughput", instances=2), "8 core, 8 atom"),
        (CLIENT, PlanRequest("throughput", instances=3), "8 core, 8 atom, 8 atom"),
        (CLIENT, PlanRequest("latency", instances=1), "4 core"),
        (
            CLIENT | {"cores_per_socket": 10, "atoms": 8},
            PlanRequest("latency"),
            "2 core, 2 atom, 2 atom, 2 atom, 2 atom",
        ),
        (CLIENT | {"cores_per_socket": 4, "atoms": 2}, PlanRequest("latency"), "2 core, 2 atom"),
        (CLIENT | {"cores_per_socket": 8, "atoms": 3}, PlanRequest("latency", instances=2), "3 core, 3 atom"),
        (CLIENT, PlanRequest("throughput", 6, 4), "6 core, 6 core+atom, 6 atom, 6 atom"),
    ]:
        plan = plan_instances(machine(**layout), request)
        assert ", ".join(f"{one.threads} {'+'.join(one.kinds)}" for one in plan.instances) == expected, request
    plan = plan_instances(machine(**CLIENT | {"cores_per_socket": 10, "atoms": 8}), PlanRequest("latency"))
    assert plan.notes[0] == (
        "CORES_PER_INSTANCE: 2 instead of the default 4: no socket of this host has more than 2 usable core cores"
    )


def test_every_plan_on_caches_and_kinds_is_sound(machine):
    caches = machine(
        set(range(20)), sockets=2, cores_per_socket=12, nodes_per_socket=2, threads_per_core=1, cache_cores=5
    )
    for topology in (caches, machine(**CLIENT), machine(**CLIENT | {"cores_per_socket": 5, "atoms": 2})):
        core_of, most = {cpu: core.id for core in topology.cores for cpu in core.cpus}, len(topology.cores)
        for mode, sharing in (("throughput", False), ("throughput", True), ("latency", False), ("latency", True)):
            for size, count in itertools.product((None, *range(1, most + 1)), repeat=2):
                try:
                    plan = plan_instances(topology, PlanRequest(mode, size, count, sharing))
                except UsageError:
                    assert size is not None
                    continue
                used = [core_of[cpu] for one in plan.instances for cpu in one.cpus]
                assert len(used) == len(set(used)) == most - plan.idle_cores
                assert count in (None, len(plan.instances)), (mode, size, count, sharing)
                assert size in (None, *{one.threads for one in plan.instances})
                assert not sharing or all(len(one.sockets) == 1 for one in plan.instances)
                assert size is not None or all(len(one.kinds) < 2 for one in plan.instances)


def test_instances_of_two_kinds_share_no_process(machine):
    plan = plan_instances(machine(**HYBRID), PlanRequest("latency", weight_sharing=True))
    assert [(one.process, one.kinds) for one in plan.instances] == [(0, ("core",)), (0, ("core",)), (1, ("atom",))]


def test_a_kind_of_core_without_a_counter_of_its_own_is_planned_too(tmp_path):
    tree = make_sysfs_tree(tmp_path, **HYBRID)
    write(tree / "devices/cpu_atom/cpus", "8-9")
    write(tree / "devices/cpu_lowpower/cpus", "10")
    plan = plan_instances(read_topology(tree), PlanRequest("throughput", cores_per_instance=1))
    assert [one.kinds for one in plan.instances][-4:] == [("atom",), ("atom",), ("lowpower",), ("other",)]


def test_an_instance_over_nodes_of_one_memory_is_not_said_to_be_unbound(tmp_path):
    tree = make_sysfs_tree(tmp_path, nodes_per_socket=2, threads_per_core=1)
    for node, kilobytes in enumerate((64, 0)):
        write(tree / f"devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:       {kilobytes} kB")
        write(tree / f"devices/system/node/node{node}/distance", ("10 12", "12 10")[node])
    plan = plan_instances(read_topology(tree), PlanRequest("throughput"))
    assert plan.instances[0].memory_node == 0
    assert plan.notes == ("NUMA node 1 has no memory: memory is bound to node 0, the nearest that has",)


def test_memory_is_bound_to_the_nearest_node_that_has_some(tmp_path):
    tree = make_sysfs_tree(tmp_path, sockets=2, cores_per_socket=4, nodes_per_socket=2, threads_per_core=1)
    nodes = [(0, "10 12 32 32"), (64, "12 10 32 32"), (64, "32 32 10 12"), (0, "32 32 12 10")]
    for node, (kilobytes, distances) in enumerate(nodes):
        write(tree / f"devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:       {kilobytes} kB")
        write(tree / f"devices/system/node/node{node}/distance", distances)
    plan = plan_instances(read_topology(tree), PlanRequest("throughput", cores_per_instance=2))
    assert [(one.nodes, one.memory_node) for one in plan.instances] == [((0,), 1), ((1,), 1), ((2,), 2), ((3,), 2)]
    assert [note for note in plan.notes if "no memory" in note] == [
        "NUMA node 0 has no memory: memory is bound to node 1, the nearest that has",
        "NUMA node 3 has no memory: memory is bound to node 2, the nearest that has",
    ]
    unaware = plan_instances(read_topology(tree), PlanRequest("throughput", cores_per_instance=2, numa_aware=False))
    assert {one.memory_node for one in unaware.instances} == {None}
    assert not [note for note in unaware.notes if "no memory" in note]
