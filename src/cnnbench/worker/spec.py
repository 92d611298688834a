"""Say all that a worker needs to know: written by what starts it, read by the worker."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnnbench.inputs.image_set import CHECK_IMAGES
from cnnbench.inputs.networks import ImageForm
from cnnbench.worker.loadgen import LoadGenSpec

FAILURE = "failure"
"""The file of an instance's logs that says why it could not go on, where it knows."""


def count_proof(mode: str, images_per_step: int, part: int, on_gpu: bool) -> int:
    """Return the images of a step that warms up or is traced: as many as are timed, and few where accuracy is measured.

    There it is one part of a step, or less: parts that differed in size would be layers that no engine tells as one.
    """
    return min(part, CHECK_IMAGES) if mode == "accuracy" and not on_gpu else images_per_step


@dataclass(frozen=True)
class InstanceSpec:
    """One instance of a worker: its number, its logical CPUs and the files of its share of the images."""

    index: int
    cpus: list[int]
    files: list[str]


@dataclass(frozen=True)
class Sampling:
    """How a worker is sampled: how many samples there is room for, and the CPU time of a thread between two (ns)."""

    capacity: int
    period_ns: int


@dataclass(frozen=True)
class Arrivals:
    """When a client sends: so many requests a second at random (Poisson), from a seed."""

    rate_per_s: float
    seed: int


@dataclass(frozen=True)
class WorkerSpec:
    """All a worker needs to know. Paths are absolute.

    `engine`: its name, for people. `backend`, `reader`, `options_type`: its parts as "module:Name"; `options`: its
    own, unread. `whole_steps`: whether it is handed whole steps, and parts them itself.
    `model`, `check_images`: empty for an engine without a model. `form`: what a network wants of images; None for a
    graph. `batch_size`: images of a step, handed to the engine in parts of `micro_batch_size`. `data_type`: as the
    parameter says: one batch for all steps, one of several made beforehand, or what is read. `io_threads`: how many
    decode an instance's images. `memory_node`: the NUMA node to bind to, None for none. `steps`: None to go on until
    the stop sign. `trace_steps`: with a number, run so many steps, marking each, after one to warm up, and end, without
    barrier or times. `sampling`: None where nothing samples. `tells`: whether the first instance tells what its steps
    were, once it has measured. `arrivals`: None to send a batch when the one before is answered. `one_checks`: whether
    the first instance alone checks the outputs, as where all ask the same server. `loadgen`: how LoadGen decides what
    is inferred and when; None where it does not. `shared`: the directory of the control block and the step times.
    `logs`: where results go, empty for nowhere. `controller`: the process that starts the worker and without which it
    ends. `enclave`: whether it runs in one, where its parent and its resident memory cannot be seen; what started it
    ties it to the controller then.
    """

    run_id: str
    controller: int
    engine: str
    backend: str
    reader: str
    options_type: str
    options: dict[str, Any]
    whole_steps: bool
    model: str
    precision: str
    number_type: str
    on_gpu: bool
    form: ImageForm | None
    batch_size: int
    micro_batch_size: int
    mode: str
    data_type: str
    io_threads: int
    steps: int | None
    warmup_steps: int
    trace_steps: int | None
    instances: list[InstanceSpec]
    memory_node: int | None
    check_images: str
    shared: str
    logs: str
    verbose: bool
    enclave: bool = False
    sampling: Sampling | None = None
    tells: bool = False
    arrivals: Arrivals | None = None
    one_checks: bool = False
    loadgen: LoadGenSpec | None = None

    @property
    def proof_batch_size(self) -> int:
        """How many images a step has that warms up or is traced."""
        part = self.batch_size if self.whole_steps else self.micro_batch_size
        return count_proof(self.mode, self.batch_size, part, self.on_gpu)

    def write(self, path: Path) -> None:
        """Write the spec as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "WorkerSpec":
        """Read what `write` wrote."""
        fields = json.loads(path.read_text())
        fields["instances"] = [InstanceSpec(**instance) for instance in fields["instances"]]
        fields["sampling"] = Sampling(**fields["sampling"]) if fields.get("sampling") else None
        fields["arrivals"] = Arrivals(**fields["arrivals"]) if fields.get("arrivals") else None
        fields["loadgen"] = LoadGenSpec(**fields["loadgen"]) if fields.get("loadgen") else None
        fields["form"] = ImageForm(**fields["form"]) if fields["form"] else None
        return cls(**fields)
