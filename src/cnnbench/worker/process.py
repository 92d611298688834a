"""Be one worker process: pin, load, check the outputs, warm up, measure, write what happened.

Started as `python start.py cnnbench.worker SPEC.json` with the engine's Python. A worker holds one instance, or, with
weight sharing, all instances of a socket as pinned threads on one set of weights. It ends when its parent does.
"""

import contextlib
import ctypes
import itertools
import json
import math
import mmap
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.signals import end_with_parent
from cnnbench.engines.interface import Backend, LoadSpec
from cnnbench.engines.layers import STEP_MARK, TRACE_DIRECTORY, write_layers
from cnnbench.engines.registry import import_part
from cnnbench.results.samples import SAMPLES
from cnnbench.results.steps import StepTimes
from cnnbench.worker.control import ControlBlock
from cnnbench.worker.loadgen import LOADGEN, STEP_IMAGES, Queries, Samples
from cnnbench.worker.loop import measure_arrivals, measure_steps, warm_up_until_start
from cnnbench.worker.sampler import Sampler
from cnnbench.worker.spec import FAILURE, Arrivals, InstanceSpec, WorkerSpec

WAIT_S = 0.05
"""How often an instance that is done with its images looks whether all are."""

PROFILE = "profile.json"
"""The file of a trace that an engine's profile is in."""

GENERATED = 4
"""How many batches are made beforehand where each step has another."""

LAST_STEPS = 16
"""Of how many steps before the start the rate counts that LoadGen is to expect."""

DECODED = 32
"""How many images are decoded at a time where LoadGen says which."""

TOP = 5
"""How many of an image's best classes are kept."""

_SYS_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_MPOL_BIND = 2


def bind_memory(node: int | None) -> str:
    """Bind this process's memory to a NUMA node; say how that went."""
    if node is None:
        return "not bound: its cores lie in several or unknown NUMA nodes, or it is not to be"
    number = _SYS_SET_MEMPOLICY.get(os.uname().machine)
    if number is None:
        return f"not bound: set_mempolicy is not known on {os.uname().machine}"
    mask_words = node // 64 + 1
    mask = (ctypes.c_ulong * mask_words)()
    mask[node // 64] = 1 << (node % 64)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _MPOL_BIND, mask, mask_words * 64 + 1) != 0:
        return f"not bound: set_mempolicy: {os.strerror(ctypes.get_errno())}"
    return f"bound to node {node}"


def read_affinities() -> dict[int, list[int]]:
    """Return the CPUs that each thread of this process may run on."""
    affinities = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread of the engine's may end at any moment
            affinities[int(task.name)] = sorted(os.sched_getaffinity(int(task.name)))
    return affinities


def read_resident_bytes(pid: int | str = "self", kind: str = "VmRSS") -> int:
    """Return the resident memory of a process; `kind`: as the kernel calls it, such as RssAnon, what is its own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no {kind}")


def _involuntary_switches() -> int:
    """Return how often the kernel has taken a core from a thread of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def best_classes(outputs: np.ndarray) -> np.ndarray:
    """Return the best classes of outputs (N x classes): the best first and, of equals, the lower first (N x TOP)."""
    return np.argsort(-outputs, axis=1, kind="stable")[:, :TOP]


class Predictions:
    """Keep the best classes of every image, in order."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def keep(self, outputs: np.ndarray) -> None:
        """Keep a step's outputs (N x classes) as its best classes."""
        self.add(best_classes(outputs))

    def add(self, best: np.ndarray) -> None:
        """Add the best classes of some images (N x TOP)."""
        self._kept.append(best)

    def save(self, path: Path) -> None:
        """Write them (int64, images x TOP)."""
        np.save(path, np.concatenate(self._kept) if self._kept else np.empty((0, TOP), dtype=np.int64))


class Instance:
    """One instance of this worker: runs in its own pinned thread."""

    def __init__(
        self,
        spec: WorkerSpec,
        plan: InstanceSpec,
        backend: Backend,
        sampler: Sampler | None,
        images: np.ndarray | None = None,
        queries: Queries | None = None,
    ) -> None:
        self._spec, self._plan, self._backend, self._sampler = spec, plan, backend, sampler
        self._queries = queries
        self._logs = Path(spec.logs) / f"instance-{plan.index}"
        self._logs.mkdir(exist_ok=True)
        self._images = _noise(GENERATED, seed=plan.index) if images is None else images
        self._batch = fill_batch(self._images, spec.proof_batch_size)

    def run(self) -> None:
        """Pin this thread, check the outputs, and measure; an error ends the whole process at once."""
        try:
            os.sched_setaffinity(0, self._plan.cpus)
            self._measure()
        except CnnbenchError as error:
            print(error, flush=True)
            _tell_failure(self._logs, error)
            os._exit(1)
        except BaseException:  # noqa: BLE001 - reported here, and the controller takes the exit code for a crash
            traceback.print_exc()
            os._exit(1)  # the other threads would go on at the barrier for ever

    def _batches(self) -> Iterator[np.ndarray]:
        spec = self._spec
        if not self._plan.files:
            return self._generated() if spec.data_type == "generated" else itertools.repeat(self._batch)
        read = import_part(spec.reader)
        repeat = spec.mode != "accuracy"
        batches = read(self._plan.files, spec.batch_size, spec.io_threads, repeat=repeat, form=spec.form)
        return itertools.chain([next(batches)], batches)  # the first batch starts the prefetching, before the barrier

    def _generated(self) -> Iterator[np.ndarray]:
        """Yield one buffer for ever, each time with another of the batches made beforehand copied into it.

        For a GPU the batches themselves are yielded, as its engine copies each of them to the device.
        """
        size = self._spec.batch_size
        made = [fill_batch(np.roll(self._images, -number, axis=0), size) for number in range(GENERATED)]
        if self._spec.on_gpu:
            yield from itertools.cycle(made)
        for batch in itertools.cycle(made):
            self._batch[:] = batch
            yield self._batch

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        """Hand a step's images to the engine, in parts where it takes fewer at once."""
        size = self._spec.micro_batch_size
        if len(batch) <= size or self._spec.whole_steps or self._queries:
            return self._backend.infer(batch)
        return np.concatenate([self._backend.infer(batch[at : at + size]) for at in range(0, len(batch), size)])

    def _check_outputs(self) -> None:
        """Infer the check images in batches of the measured size and write the outputs.

        Where accuracy is measured no size is, so that what is beyond the images would be inferred for nothing.
        """
        if not self._spec.check_images or (self._spec.one_checks and self._plan.index):
            return
        images, size = self._images, self._spec.micro_batch_size
        if self._spec.mode == "accuracy":
            size = min(size, len(images))
        outputs = [self._backend.infer(fill_batch(images[at:], size)) for at in range(0, len(images), size)]
        np.save(self._logs / "check.npy", np.concatenate(outputs)[: len(images)])

    def _profile(self, directory: Path) -> None:
        """Have the engine profile a step, or the part of one that it is handed at once, where that is asked for."""
        self._backend.profile(self._batch[: self._spec.micro_batch_size], directory / PROFILE)

    def _tell_layers(self, directory: Path) -> None:
        """Write what the engine says that a step computes, where it does."""
        layers = self._backend.layers()
        if layers is not None:
            write_layers(layers * -(-len(self._batch) // self._spec.micro_batch_size), directory)

    def _note_times(self, taken_s: deque[float]) -> Iterator[np.ndarray]:
        """Yield the batch for ever, and note when."""
        while True:
            taken_s.append(time.monotonic())
            yield self._batch

    def _measure(self) -> None:
        spec, index, infer = self._spec, self._plan.index, self._infer
        if spec.trace_steps is not None:
            infer(self._batch)  # the warm-up: it makes the primitives and brings the weights into their order
            self._profile(Path(spec.logs))  # before the first mark: what a profiler has run is no step
            for number in range(spec.trace_steps):
                print(f"{STEP_MARK},{number + 1}", flush=True)
                infer(self._batch)
            self._tell_layers(Path(spec.logs))
            return
        shared = Path(spec.shared)
        control, times = ControlBlock(shared), StepTimes(shared, index)
        if self._sampler:
            self._sampler.arm()
        self._check_outputs()  # under the sampler's signals, as all that is measured
        if self._queries:
            batches = self._queries.batches(index, fill_batch(self._images, max(self._queries.sizes())))
        else:
            batches = self._batches()
        taken_s: deque[float] = deque(maxlen=LAST_STEPS)
        endless = itertools.repeat(self._batch) if spec.mode == "accuracy" else batches
        if self._queries:
            endless = self._note_times(taken_s)
            for size in self._queries.sizes():  # engines compile for a size when they first see it
                infer(fill_batch(self._images, size))
        warm_up_until_start(control, index, infer, endless, spec.warmup_steps)
        if self._queries:
            self._queries.expect(len(self._batch) * (len(taken_s) - 1) / (taken_s[-1] - taken_s[0]))
        if self._sampler:
            self._sampler.record()
        predictions = Predictions() if spec.mode == "accuracy" else None
        keep = predictions.keep if predictions else None
        if self._queries:
            keep = partial(self._queries.complete, index)
        switches, began_s, cpu_s = _involuntary_switches(), time.monotonic(), time.process_time()
        if spec.arrivals:
            gaps_s, send = draw_gaps(spec.arrivals), self._backend.send
            recorded = measure_arrivals(control, times, index, send, batches, gaps_s, spec.steps)
        else:
            recorded = measure_steps(control, times, index, infer, batches, spec.steps, keep)
        switches, loaded_s = _involuntary_switches() - switches, time.monotonic() - began_s
        cpu_s = time.process_time() - cpu_s
        np.save(self._logs / "steps.npy", StepTimes.read(shared, index))
        if spec.tells and index == 0:
            directory = Path(spec.logs) / TRACE_DIRECTORY
            directory.mkdir()
            spec.write(directory / "spec.json")
            self._profile(directory)
            infer(self._batch)  # a whole step, which the last one need not have been
            self._tell_layers(directory)
        if self._queries:
            np.save(self._logs / STEP_IMAGES, np.array(self._queries.answered[index], dtype=np.int64))
        if predictions:
            if self._queries:  # by whichever instance a sample was answered, it is of the share it was dealt into
                share = range(index, self._queries.samples.count, len(spec.instances))
                predictions.add(np.array([self._queries.outputs[one] for one in share]).reshape(-1, TOP))
            predictions.save(self._logs / "predictions.npy")
        if keep:
            while not control.stopped:  # to end while others are still at their shares would look like a crash
                time.sleep(WAIT_S)
        self.result = {
            "run_id": spec.run_id,
            "index": index,
            "pid": os.getpid(),
            "steps": recorded,
            "involuntary_switches": switches,
            "loaded_s": loaded_s,
            "cpu_s": cpu_s,
            "cpus": self._plan.cpus,
        }

    def write_result(self, facts: dict[str, object]) -> None:
        """Write result.json, last of all and whole: its presence says that the instance finished."""
        partial = self._logs / "result.json.partial"
        partial.write_text(json.dumps(self.result | facts, indent=1))
        partial.replace(self._logs / "result.json")


def draw_gaps(arrivals: Arrivals) -> Iterator[float]:
    """Yield the times between arrivals (s) for ever: exponential, as those of many who do not know of each other."""
    random = np.random.Generator(np.random.PCG64(arrivals.seed))
    while True:
        yield from random.exponential(1 / arrivals.rate_per_s, 1024)


def _tell_failure(logs: Path, error: CnnbenchError) -> None:
    logs.mkdir(exist_ok=True)
    (logs / FAILURE).write_text(str(error), encoding="utf-8")


def _noise(count: int, seed: int) -> np.ndarray:
    """Return images of noise (float32, N x 224 x 224 x 3), for an engine without a model."""
    noise = np.random.Generator(np.random.PCG64(seed)).random((count, 224, 224, 3), dtype=np.float32)
    return noise * 255 - 120


def fill_batch(images: np.ndarray, size: int) -> np.ndarray:
    """Return a batch of exactly `size` images, repeating the given ones.

    It begins at a page, so that an engine can read it where it is: TensorFlow copies what is not aligned to 64 bytes.
    """
    shape = (size, *images.shape[1:])
    batch = np.frombuffer(mmap.mmap(-1, math.prod(shape) * images.itemsize), dtype=images.dtype).reshape(shape)
    batch[:] = images[np.arange(size) % len(images)]
    return batch


def load_backend(spec: WorkerSpec) -> Backend:
    """Return the engine's backend with the network loaded."""
    backend: Backend = import_part(spec.backend)()
    backend.load(
        LoadSpec(
            model=Path(spec.model),
            number_type=spec.number_type,
            on_gpu=spec.on_gpu,
            threads=max(len(instance.cpus) for instance in spec.instances),
            callers=len(spec.instances),
            verbose=spec.verbose,
            micro_batch_size=spec.micro_batch_size,
            data_type=spec.data_type,
            options=import_part(spec.options_type)(**spec.options),
        )
    )
    return backend


def _samples(spec: WorkerSpec, images: np.ndarray) -> Samples:
    """Return what LoadGen's samples are: the fixed batch, or, where the instances have files, these."""
    shares = [one.files for one in spec.instances]
    files = [one for dealt in itertools.zip_longest(*shares) for one in dealt if one is not None]
    read = partial(import_part(spec.reader), form=spec.form, repeat=False) if files else None

    def decode(names: list[str]) -> Iterator[np.ndarray]:
        assert read is not None
        return itertools.chain.from_iterable(read(names, min(len(names), DECODED), spec.io_threads))

    return Samples(images, files, decode if files else None)


def _run_loadgen(queries: Queries, spec: WorkerSpec) -> None:
    """Have LoadGen send its queries from this thread, once all instances stand at the barrier."""
    control, logs = ControlBlock(Path(spec.shared)), Path(spec.logs) / LOADGEN
    logs.mkdir()
    while not control.start_ns:
        if control.stopped:
            return
        time.sleep(WAIT_S)
    try:
        queries.run(logs, len(spec.instances))
    except CnnbenchError as error:
        print(error, flush=True)
        _tell_failure(Path(spec.logs) / f"instance-{spec.instances[0].index}", error)
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Run the worker that a spec file describes."""
    spec = WorkerSpec.read(Path(arguments[0]))
    if not spec.enclave:
        end_with_parent(spec.controller, signal.SIGKILL)
    cpus = sorted(cpu for instance in spec.instances for cpu in instance.cpus)
    os.sched_setaffinity(0, cpus)  # before the engine starts its threads: they inherit it
    memory = bind_memory(spec.memory_node)
    began_s = time.monotonic()
    sampler = None
    if spec.sampling:
        where = Path(spec.shared) / f"samples-{spec.instances[0].index}"
        sampler = Sampler(where, spec.sampling.capacity, spec.sampling.period_ns)
    try:
        backend = load_backend(spec)
    except CnnbenchError as error:
        print(error, flush=True)
        _tell_failure(Path(spec.logs) / f"instance-{spec.instances[0].index}", error)
        sys.exit(1)
    load_s = time.monotonic() - began_s

    images = np.load(spec.check_images) if spec.check_images else None
    queries = None
    if spec.loadgen and images is not None:
        keep = best_classes if spec.mode == "accuracy" else None
        queries = Queries(spec.loadgen, _samples(spec, images), spec.batch_size, keep)
    instances = [Instance(spec, plan, backend, sampler, images, queries) for plan in spec.instances]
    runners = [threading.Thread(target=instance.run) for instance in instances]
    for runner in runners:
        runner.start()
    if queries:
        _run_loadgen(queries, spec)
    for runner in runners:
        runner.join()
    if sampler:
        sampler.finish(Path(spec.logs) / f"instance-{spec.instances[0].index}" / SAMPLES)
    if spec.trace_steps is None:
        facts: dict[str, object] = {
            "load_s": round(load_s, 3),
            "memory": memory,
            "resident_bytes": None if spec.enclave else read_resident_bytes(),
            "affinities": read_affinities(),
            "versions": backend.describe(),
        }
        for instance in instances:
            instance.write_result(facts)
    backend.close()
