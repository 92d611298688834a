"""The parts of a worker that can be seen without a controller."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from cnnbench.engines.layers import Primitive
from cnnbench.engines.null.backend import NullBackend
from cnnbench.proof.trace import read_trace
from cnnbench.run.workers import TRACE_STEPS, trace_spec
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.process import (
    GENERATED,
    PROFILE,
    Instance,
    InstanceSpec,
    Predictions,
    WorkerSpec,
    _noise,
    bind_memory,
    fill_batch,
)
from null_workload import PATIENCE_S, clean_environment, wait_until
from worker_spec import SPEC


def test_an_instance_that_is_done_with_its_images_waits_for_the_others(tmp_path):
    spec = replace(
        SPEC,
        mode="accuracy",
        steps=3,
        instances=[InstanceSpec(0, sorted(os.sched_getaffinity(0)), [])],
        shared=str(tmp_path),
        logs=str(tmp_path),
    )
    spec.write(tmp_path / "spec.json")
    control = ControlBlock.create(tmp_path, 1)
    control.start_ns = time.monotonic_ns()
    command = [sys.executable, "-m", "cnnbench.worker", tmp_path / "spec.json"]
    with subprocess.Popen(command, env=clean_environment(OMP_NUM_THREADS="1")) as worker:
        wait_until((tmp_path / "instance-0" / "predictions.npy").exists, "the predictions")
        time.sleep(0.5)
        assert worker.poll() is None
        control.stop()
        assert worker.wait(timeout=PATIENCE_S) == 0
    assert (tmp_path / "instance-0" / "result.json").is_file()


def images(count):
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.float32)


def kept(tmp_path, *outputs):
    predictions = Predictions()
    for rows in outputs:
        predictions.keep(np.array(rows, dtype=np.float32))
    predictions.save(tmp_path / "predictions.npy")
    return np.load(tmp_path / "predictions.npy").tolist()


@pytest.mark.parametrize(("count", "size", "expected"), [(3, 2, [0, 1]), (2, 5, [0, 1, 0, 1, 0]), (1, 3, [0, 0, 0])])
def test_a_batch_has_its_size_and_repeats_the_images(count, size, expected):
    batch = fill_batch(images(count), size)
    assert batch[:, 0, 0, 0].tolist() == expected
    assert batch.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("copied", [True, False], ids=["for a CPU", "for a GPU"])
def test_generated_batches_are_copied_to_one_place_or_handed_to_a_gpus_engine_as_they_are(tmp_path, copied):
    spec = replace(SPEC, on_gpu=not copied, data_type="generated", logs=str(tmp_path))
    batches = Instance(spec, InstanceSpec(0, [0], []), NullBackend(), None)._batches()
    seen = [(batch.ctypes.data, float(batch.sum())) for batch, _ in zip(batches, range(2 * GENERATED), strict=False)]
    assert seen[:GENERATED] == seen[GENERATED:]
    assert len({content for _, content in seen}) == GENERATED
    assert len({place for place, _ in seen}) == (1 if copied else GENERATED)


class TellingBackend(NullBackend):
    """Answers at once, and tells as its only layer how many batches there were before it was asked."""

    def __init__(self):
        self.batches = []

    def infer(self, batch):
        self.batches.append(len(batch))
        return np.zeros((len(batch), 1001), dtype=np.float32)

    def layers(self):
        return [Primitive("matmul", "", "f32", "f32", "f32", "", "", len(self.batches), 0.0)]

    def profile(self, batch, path):
        self.batches.append(path.name)


@pytest.mark.parametrize(("mode", "size"), [("accuracy", 4), ("throughput", 300)])
def test_the_output_check_of_accuracy_does_not_grow_with_the_batch(tmp_path, mode, size):
    np.save(tmp_path / "check_images.npy", _noise(4, seed=0))
    sizes, images = {"batch_size": 300, "micro_batch_size": 300}, str(tmp_path / "check_images.npy")
    backend = TellingBackend()
    spec = replace(SPEC, **sizes, mode=mode, check_images=images, logs=str(tmp_path))
    Instance(spec, InstanceSpec(0, [0], []), backend, None, np.load(spec.check_images))._check_outputs()
    assert backend.batches == [size]
    assert len(np.load(tmp_path / "instance-0" / "check.npy")) == 4


def count_images(monkeypatch, directory, spec):
    """Return how many images a worker infers with 32 to check, 2 steps to warm up and one measured step."""
    directory.mkdir()
    np.save(directory / "check.npy", np.zeros((32, 8, 8, 3), np.float32))
    paths = {"check_images": str(directory / "check.npy"), "logs": str(directory), "shared": str(directory)}
    spec, control, backend = replace(spec, **paths, warmup_steps=2), ControlBlock.create(directory, 2), TellingBackend()
    control.start_ns = time.monotonic_ns()
    control.stop()
    instance = Instance(spec, spec.instances[0], backend, None, np.load(spec.check_images))
    measured = [np.zeros((spec.batch_size, 8, 8, 3), np.float32)] * 3
    monkeypatch.setattr(instance, "_batches", lambda: iter(measured))
    instance._measure()
    return sum(size for size in backend.batches if size != PROFILE)


def test_what_an_accuracy_run_infers_beside_its_images_does_not_grow_with_its_batches(tmp_path, monkeypatch):
    cases = [
        ("accuracy", 25, 25, False, 50 + 2 * 25, 25),
        ("accuracy", 300, 300, False, 32 + 2 * 32, 32),
        ("accuracy", 4096, 4096, False, 32 + 2 * 32, 32),
        ("accuracy", 300, 10, False, 40 + 2 * 10, 10),
        ("accuracy", 300, 50, True, 32 + 2 * 32, 32),
        ("throughput", 300, 300, False, 300 + 2 * 300, 300),
        ("latency", 40, 20, False, 40 + 2 * 40, 40),
    ]
    for number, (mode, batch, micro, whole, beside, traced) in enumerate(cases):
        spec = replace(SPEC, mode=mode, batch_size=batch, micro_batch_size=micro, whole_steps=whole)
        assert count_images(monkeypatch, tmp_path / f"{number}", spec) == beside + batch, spec
        tracing, logs = trace_spec(spec, tmp_path), tmp_path / f"{number}-trace"
        assert count_images(monkeypatch, logs, tracing) == (1 + TRACE_STEPS) * traced, spec
        parts = traced // min(tracing.micro_batch_size, traced)  # of one size, so that the last tells of all
        assert len(read_trace(logs).layers) == parts


def measure_telling(monkeypatch, logs, on_gpu, tells=True, index=0):
    """Measure steps of 4 images in parts of 2, and a last step of 1; return what the engine was handed."""
    changes = {"on_gpu": on_gpu, "tells": tells, "mode": "accuracy", "batch_size": 4}
    spec = replace(SPEC, **changes, shared=str(logs), logs=str(logs))
    control, backend = ControlBlock.create(logs, 2), TellingBackend()
    control.start_ns = time.monotonic_ns()
    control.stop()
    instance = Instance(spec, InstanceSpec(index, [0], []), backend, None)
    monkeypatch.setattr(instance, "_batches", lambda: iter([_noise(1, seed=0)]))
    instance._measure()
    return spec, backend.batches


def test_on_a_gpu_what_was_measured_tells_the_layers_of_a_whole_step_in_the_end(tmp_path, monkeypatch):
    spec, batches = measure_telling(monkeypatch, tmp_path, on_gpu=True)
    assert batches[-4:] == [1, PROFILE, 2, 2]
    assert [layer.macs for layer in read_trace(tmp_path / "trace").layers] == [len(batches)] * 2  # for each part
    assert WorkerSpec.read(tmp_path / "trace" / "spec.json") == spec
    _, others = measure_telling(monkeypatch, tmp_path, on_gpu=True, index=1)
    assert others[-1] == 1  # the first instance has told it


def test_on_a_cpu_it_tells_those_of_one_part_where_accuracy_is_measured(tmp_path, monkeypatch):
    _, batches = measure_telling(monkeypatch, tmp_path, on_gpu=False)
    assert batches[-3:] == [1, PROFILE, 2]
    assert [layer.macs for layer in read_trace(tmp_path / "trace").layers] == [len(batches)]


def test_nothing_is_told_where_a_tracing_process_does(tmp_path, monkeypatch):
    _, batches = measure_telling(monkeypatch, tmp_path, on_gpu=False, tells=False)
    assert batches[-1] == 1
    assert not (tmp_path / "trace").exists()


def test_noise_is_like_images_and_differs_between_instances():
    first, again, other = (_noise(2, seed) for seed in (0, 0, 1))
    assert first.shape == (2, 224, 224, 3)
    assert first.dtype == np.float32
    assert -120 <= first.min() < -110
    assert 125 < first.max() <= 135
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_five_best_classes_are_kept_in_their_order(tmp_path):
    first = [0.0, 0.1, 0.3, 0.05, 0.2, 0.04, 0.31]
    second = [0.9, 0.01, 0.02, 0.03, 0.04, 0.0, 0.0]
    assert kept(tmp_path, [first, second], [second]) == [[6, 2, 4, 1, 3], [0, 4, 3, 2, 1], [0, 4, 3, 2, 1]]


def test_of_equal_classes_the_lower_come_first(tmp_path):
    assert kept(tmp_path, [[0.1] * 1001]) == [[0, 1, 2, 3, 4]]
    tied = np.zeros(1001)
    tied[[900, 20, 500]] = 0.3
    assert kept(tmp_path, [tied]) == [[20, 500, 900, 0, 1]]


def test_an_instance_without_images_predicts_nothing(tmp_path):
    assert kept(tmp_path) == []


def test_memory_that_is_not_bound_says_why():
    assert bind_memory(None) == "not bound: its cores lie in several or unknown NUMA nodes, or it is not to be"


def test_memory_that_cannot_be_bound_says_why():
    code = "from cnnbench.worker.process import bind_memory; print(bind_memory(1023))"  # in a process of its own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("not bound: set_mempolicy"), done.stderr


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, steps=10, memory_node=1, trace_steps=1, instances=[])])
def test_a_spec_is_read_as_it_was_written(tmp_path, spec):
    spec.write(tmp_path / "spec.json")
    assert WorkerSpec.read(tmp_path / "spec.json") == spec


def test_a_worker_ends_when_its_controller_is_already_gone(tmp_path):
    replace(SPEC, controller=1 if os.getpid() != 1 else 2).write(tmp_path / "spec.json")
    command = [sys.executable, "-m", "cnnbench.worker", str(tmp_path / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_worker_in_an_enclave_looks_neither_for_its_parent_nor_for_its_memory(tmp_path):
    control = ControlBlock.create(tmp_path, 1)
    control.start_ns = 1
    control.stop()
    instance = InstanceSpec(0, [min(os.sched_getaffinity(0))], [])
    spec = replace(SPEC, controller=0, enclave=True, shared=str(tmp_path), logs=str(tmp_path), instances=[instance])
    spec.write(tmp_path / "spec.json")
    command = [sys.executable, "-m", "cnnbench.worker", str(tmp_path / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "instance-0/result.json").read_text())
    assert result["resident_bytes"] is None
    assert result["steps"] == len(np.load(tmp_path / "instance-0/steps.npy")) == 1
