"""What a job says about the settings and the environment that it was given."""

from contextlib import suppress

import pytest

from checkout import ROOT, WORKLOAD
from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.workload import declared_cases
from cnnbench.machine.energy import find_zones
from cnnbench.machine.topology import read_topology
from cnnbench.run.job import find_energy_sources, plan_case, prepare_job
from model_files import write_graph
from null_workload import THROUGHPUT, NullWorkload
from sysfs import make_powercap_tree

ACCURACY = "test_resnet50v1_5_tensorflow_xeon_public_inference_accuracy_avx_fp32"
TRACED = "oneDNN traced while measuring, which costs throughput"


@pytest.fixture
def notes(tmp_path):
    """Return the notes on a throughput job of the null engine in some environment."""
    workload = NullWorkload(tmp_path)
    return lambda **environ: prepare_job(plan_case(workload.directory, THROUGHPUT, environ, {}), environ).notes


def test_a_variable_that_is_not_passed_on_is_named(notes):
    (note,) = [note for note in notes(ONEDNN_MAX_CPU_ISA="AVX2") if "not passed on" in note]
    assert "ONEDNN_MAX_CPU_ISA" in note


def test_a_parameter_is_not_among_what_is_not_passed_on(notes):
    found = notes(ONEDNN_VERBOSE="1")
    assert TRACED in found
    assert not [note for note in found if "not passed on" in note]


@pytest.mark.parametrize(("value", "traced"), [("1", True), ("all", True), ("0", False), ("none", False)])
def test_a_trace_that_customer_env_asks_for_is_noted(notes, value, traced):
    assert (TRACED in notes(CUSTOMER_ENV=f"ONEDNN_VERBOSE={value}")) is traced


def test_no_energy_is_read_of_several_hosts(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cnnbench.run.energy.find_zones",
        lambda: find_zones(make_powercap_tree(tmp_path, {"intel-rapl:0": "package-0"})),
    )
    hosts, workload = tmp_path / "hosts", NullWorkload(tmp_path)
    environ = {"NUM_MPI": "1", "CORES_PER_INSTANCE": "1", "HOSTFILE": str(hosts), "ENERGY_METER": "true"}
    for text, told in (
        ("localhost slots=1\n", "of what the meter reads: true"),
        ("localhost slots=1\n10.213.97.2 slots=1\n", "not measured: the instances are on several hosts"),
    ):
        hosts.write_text(text)
        planned = plan_case(workload.directory, THROUGHPUT, environ, {})
        assert find_energy_sources(planned, {}).describe() == told


def test_the_instance_mode_reaches_the_plan():
    latency = ACCURACY.replace("accuracy", "latency")
    job = prepare_job(plan_case(WORKLOAD, latency, {"INSTANCE_MODE": "numa"}, {}), {})
    topology = read_topology()
    planned = [len(instance.cpus) for instance in job.plan.instances]
    assert planned == [len(topology.cores_of_node(node)) for node in topology.nodes]
    assert job.effective["INSTANCE_MODE"] == "numa"


def test_accuracy_notes_the_steps_that_it_does_not_use():
    job = prepare_job(plan_case(WORKLOAD, ACCURACY, {"STEPS": "20"}, {"DATA_TYPE": "dummy"}), {})
    assert {"STEPS=20 not used: accuracy always goes over the whole set"} <= set(job.notes)
    assert (job.requested["STEPS"], job.requested["DATA_TYPE"]) == ("20", "dummy")
    assert (job.effective["STEPS"], job.effective["DATA_TYPE"]) == ("auto", "real")


SGX = ACCURACY.replace("_inference_accuracy", "_sgx_inference_throughput")


@pytest.mark.parametrize("content", [b"", b"fifteen bytes..", b"seventeen bytes.."])
def test_a_wrap_key_that_is_none_is_refused(tmp_path, content):
    key = tmp_path / "my.key"
    key.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^WRAP_KEY={key}: found {len(content)} bytes, needed 16"):
        plan_case(WORKLOAD, SGX, {"WRAP_KEY": str(key)}, {})


def test_a_wrap_key_needs_a_model(tmp_path):
    key = tmp_path / "my.key"
    key.write_bytes(bytes(16))
    case = THROUGHPUT.replace("_inference", "_sgx_inference")
    with pytest.raises(UsageError, match="the engine null has no model to encrypt"):
        plan_case(NullWorkload(tmp_path).directory, case, {"WRAP_KEY": str(key)}, {})


def test_an_enclave_gets_the_engines_environment_and_nothing_of_the_callers():
    callers = {"PATH": "/bin", "LD_PRELOAD": "x.so", "SECRET": "1"}
    job = prepare_job(plan_case(WORKLOAD, SGX, {"CUSTOMER_ENV": "A=1"}, {}), callers, enclaves=True)
    assert not set(callers) & set(job.environment)
    assert job.environment["A"] == "1"
    assert "GLIBC_TUNABLES" not in job.environment
    assert "GLIBC_TUNABLES" in prepare_job(plan_case(WORKLOAD, ACCURACY, {}, {}), {}).environment
    assert not [note for note in job.notes if "not passed on" in note]


INT8 = ACCURACY.replace("avx_fp32", "avx_int8")


def test_int8_is_skipped_with_a_python_that_cannot_quantise(cpu_flags, unsupported_python, tmp_path):
    cpu_flags("avx2 fma avx_vnni")
    with pytest.raises(SkippedError, match=r"^avx_int8: quantising a model to int8 needs TensorFlow 2\.15"):
        prepare_job(plan_case(WORKLOAD, INT8, {}, {}), {})
    write_graph(graph := tmp_path / "graph.pb")
    prepare_job(plan_case(WORKLOAD, INT8, {"MODEL": str(graph)}, {}), {})  # it may be int8 already
    prepare_job(plan_case(WORKLOAD, ACCURACY, {}, {}), {})


def test_an_sgx_case_needs_the_container_backend():
    with pytest.raises(SkippedError, match="BACKEND=native has not"):
        prepare_job(plan_case(WORKLOAD, SGX, {}, {}), {})


@pytest.mark.parametrize(
    ("variant", "customer", "onednn", "zendnn"),
    [("stock", "", "1", None), ("zentf", "", "0", "1"), ("zentf", "TF_ENABLE_ZENDNN_OPTS=0", "0", "0")],
)
def test_each_build_has_its_own_kernels_on(variant, customer, onednn, zendnn):
    planned = plan_case(WORKLOAD, ACCURACY, {"VARIANT": variant, "CUSTOMER_ENV": customer}, {})
    environment = prepare_job(planned, {"TF_ENABLE_ONEDNN_OPTS": "x", "TF_ENABLE_ZENDNN_OPTS": "x"}).environment
    assert environment["TF_ENABLE_ONEDNN_OPTS"] == onednn
    assert environment.get("TF_ENABLE_ZENDNN_OPTS") == zendnn


@pytest.mark.parametrize("directory", sorted(path.parent for path in (ROOT / "workload").glob("*/workload.yaml")))
def test_no_declared_case_is_refused_as_it_stands(directory):
    for case in declared_cases(directory, "GENERIC"):
        with suppress(SkippedError):
            plan_case(directory, case.name, {}, {})
