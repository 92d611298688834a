"""Be a model of Triton Server's: an instance of its Python backend that infers as every worker does.

The `model.py` of a model repository imports `TritonPythonModel` from here, in a stub process that the server starts for
each instance of the model, with the Python of the engine's environment. Beside it lies the worker spec of each.
"""

import ctypes
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.results.samples import SAMPLES
from cnnbench.worker.client import INPUT, OUTPUT
from cnnbench.worker.process import bind_memory, fill_batch, load_backend, read_affinities, read_resident_bytes
from cnnbench.worker.sampler import Sampler
from cnnbench.worker.spec import WorkerSpec


def spec_name(number: int) -> str:
    """Return the file name of an instance's spec."""
    return f"instance-{number}.json"


def hand_over(array: np.ndarray) -> object:
    """Return a copy of an array as a DLPack capsule, which is the way to a server's tensors that knows every NumPy.

    Who takes it has to rename it, and gives another name than the standard's, of which NumPy's destructor of the
    capsule complains; it has nothing to do then, and is left out.
    """
    capsule: object = np.array(array).__dlpack__()
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return capsule


class TritonPythonModel:
    """One instance of the model: pinned to its cores, with a network of its own."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the network of this instance, check what it answers, and infer once at each size that may come.

        Engines compile for a size when they first see it, which is not to be while requests wait.
        """
        import triton_python_backend_utils as triton  # type: ignore[import-not-found]

        self._triton = triton
        number = int(args["model_instance_name"].rpartition("_")[2])
        directory = Path(args["model_repository"]) / args["model_version"]
        spec = WorkerSpec.read(directory / spec_name(number))
        self._spec = spec = replace(spec, model=str(directory / spec.model))  # absolute, or beside it
        (plan,) = spec.instances
        for task in Path("/proc/self/task").iterdir():  # the stub's own threads are there already
            with suppress(ProcessLookupError):  # one may end at any moment
                os.sched_setaffinity(int(task.name), plan.cpus)
        self._memory = bind_memory(spec.memory_node)
        self._sampler = None
        if spec.sampling:
            where = Path(spec.shared) / f"samples-{plan.index}"
            self._sampler = Sampler(where, spec.sampling.capacity, spec.sampling.period_ns)
        began_s = time.monotonic()
        self._backend = load_backend(spec)
        if self._sampler:
            self._sampler.arm()
        images = np.load(directory / spec.check_images)
        for size in range(1, spec.batch_size + 1):
            self._backend.infer(fill_batch(images, size))
        self._check(images)
        self._load_s = time.monotonic() - began_s
        if self._sampler:
            self._sampler.record()

    def _check(self, images: np.ndarray) -> None:
        """Write what this instance answers to the check images, at the largest size that it computes at once."""
        if not self._spec.logs:
            return
        size = min(self._spec.batch_size, len(images))
        outputs = [self._backend.infer(fill_batch(images[at:], size)) for at in range(0, len(images), size)]
        self._logs.mkdir(parents=True, exist_ok=True)
        np.save(self._logs / "check.npy", np.concatenate(outputs)[: len(images)])

    @property
    def _logs(self) -> Path:
        return Path(self._spec.logs) / f"instance-{self._spec.instances[0].index}"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Infer the images of all requests that the server has put together, and answer each with its own."""
        batches = [np.from_dlpack(self._triton.get_input_tensor_by_name(one, INPUT)) for one in requests]
        outputs = self._backend.infer(np.concatenate(batches))
        ends = np.cumsum([len(one) for one in batches])
        return [
            self._triton.InferenceResponse([self._triton.Tensor.from_dlpack(OUTPUT, hand_over(part))])
            for part in np.split(outputs, ends[:-1])
        ]

    def finalize(self) -> None:
        """Write what this instance was, as every worker does, and give back what was loaded."""
        self._tell()
        self._backend.close()

    def _tell(self) -> None:
        if not self._spec.logs:
            return
        (plan,) = self._spec.instances
        if self._sampler:
            self._sampler.finish(self._logs / SAMPLES)
        result = {
            "run_id": self._spec.run_id,
            "index": plan.index,
            "pid": os.getpid(),
            "cpus": plan.cpus,
            "load_s": round(self._load_s, 3),
            "memory": self._memory,
            "resident_bytes": read_resident_bytes(),
            "affinities": read_affinities(),
            "versions": self._backend.describe(),
        }
        partial = self._logs / "result.json.partial"
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(self._logs / "result.json")
