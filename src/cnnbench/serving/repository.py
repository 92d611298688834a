"""Write a model repository for Triton Server: networks, as the project's own engines infer them."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.checkout import SOURCES
from cnnbench.base.disk import make_directory
from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import FIELDS, Parameters
from cnnbench.engines.exported import is_export
from cnnbench.engines.registry import Share, TritonBackend
from cnnbench.inputs.networks import ImageForm
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job
from cnnbench.run.workers import worker_specs
from cnnbench.serving.programs import PYTHON
from cnnbench.worker.client import INPUT, OUTPUT
from cnnbench.worker.served import spec_name

VERSION = "1"
"""The version of a model in its repository: there is one."""
CLASSES = 1000
SERVICE = "cnnbench.json"
"""The file beside the models that says how a server of them is started."""
NETWORK = "network"
FORM = "network.json"
"""What a prepared network was made as; among it the form of its images."""
TOGETHER = ("MAX_BATCH_SIZE", "PREFERRED_BATCH_SIZE", "MAX_QUEUE_DELAY_US")
"""The parameters of what a server puts together of several requests."""

_MODEL = '''"""What Triton Server loads: cnnbench's engine, as instance-N.json beside this file says."""

import sys

sys.path.insert(0, {sources!r})

from cnnbench.worker.served import TritonPythonModel  # noqa: E402, F401
'''


class Service(BaseModel):
    """How a server of exported models is started: the build of the engine, and what its processes' environment has.

    `backend`: Triton's own that has the models; its Python one has this program's engine. `planned`: the CPUs of each
    model, where it cannot go there by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    variant: str
    environment: dict[str, str]
    models: tuple[str, ...]
    backend: str = PYTHON
    planned: dict[str, tuple[int, ...]] = {}

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs that a server of these models is pinned to; none where they pin themselves."""
        return tuple(sorted({cpu for cpus in self.planned.values() for cpu in cpus}))

    @classmethod
    def read(cls, directory: Path) -> "Service":
        """Read that of a repository; raise UsageError where there is none, or none of this program's."""
        path = directory / SERVICE
        if not directory.is_dir():
            raise UsageError(f"{directory}: no such directory; `cnnbench triton export --output` makes one")
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise UsageError(
                f"{directory}: no export wrote this: it has no {SERVICE}; `cnnbench triton export` writes that"
            ) from error
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; export the models again") from error
        except ValidationError as error:
            raise UsageError(f"{path}: {error.errors()[0]['msg']}; export the models again") from error


def write_repository(job: Job, inputs: Inputs, run_id: str, shared: Path, logs: Path, directory: Path) -> str:
    """Write a job's network as a model, with an instance for each of the plan, into a directory; return its name.

    `shared`, `logs`: where its instances put their samples and their results.
    """
    name = model_name(job.parameters)
    version = directory / name / VERSION
    if (version / spec_name(0)).is_file():  # one of ours, from before
        shutil.rmtree(version)
    make_directory(version, "give another directory")
    batch = job.parameters.images_per_execution
    for spec in worker_specs(job, inputs, run_id, shared, logs):
        for plan in spec.instances:
            one = replace(spec, instances=[plan], batch_size=batch, micro_batch_size=batch, tells=False)
            one.write(version / spec_name(plan.index))
    (version / "model.py").write_text(_MODEL.format(sources=str(SOURCES)), encoding="utf-8")
    assert inputs.model is not None
    assert inputs.model.form is not None
    config = configure(job.parameters, inputs.model.form, len(job.plan.instances))
    (directory / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return name


def export_model(job: Job, inputs: Inputs, directory: Path) -> str:
    """Write a job's network as a model that needs nothing of the cache; return its name."""
    assert inputs.model is not None
    name = write_repository(job, inputs, "", Path(), Path(), directory)
    version = directory / name / VERSION
    shutil.copytree(inputs.model.graph, version / NETWORK)
    shutil.copyfile(inputs.model.check_images, version / NETWORK / inputs.model.check_images.name)
    images = f"{NETWORK}/{inputs.model.check_images.name}"
    for path in version.glob("instance-*.json"):
        fields = json.loads(path.read_bytes())
        fields |= {"model": NETWORK, "check_images": images, "logs": "", "shared": "", "sampling": None}
        path.write_text(json.dumps(fields, indent=1), encoding="utf-8")
    return name


def check_backend(job: Job, backend: TritonBackend) -> None:
    """Raise UsageError for a job whose network a backend of Triton's own cannot be handed as it is."""
    p, held = job.parameters, job.precision.held_as or job.precision.data_type
    if held not in backend.numbers:
        raise UsageError(
            f"--precision {job.precision.name}: --backend {backend.name} takes no network in {held}; it takes "
            f"{', '.join(sorted(backend.numbers))}; --backend {PYTHON} has what the engine itself can"
        )
    if p.ahead_of_time or job.engine.ahead_of_time or (p.network_file and is_export(Path(p.network_file))):
        raise UsageError(
            f"AHEAD_OF_TIME, NETWORK_FILE: --backend {backend.name} compiles a network itself, and takes none that is "
            "compiled already; leave it out, or give the ONNX file"
        )
    if not backend.puts_together:
        for name in TOGETHER:
            if getattr(p, name.lower()) != FIELDS[name].default:
                raise UsageError(
                    f"{name}: --backend {backend.name} computes each request as it came, of any size; leave it out"
                )


def export_file(job: Job, inputs: Inputs, directory: Path, backend: TritonBackend) -> str:
    """Write a job's network as a model of a backend of Triton's own, which is handed its file; return its name."""
    assert inputs.model is not None
    assert inputs.model.form is not None
    name = model_name(job.parameters)
    version = directory / name / VERSION
    if (version / backend.called).is_file():  # one of ours, from before
        shutil.rmtree(version)
    make_directory(version, "give another directory")
    shutil.copyfile(inputs.model.graph / backend.file, version / backend.called)
    shutil.copyfile(inputs.model.check_images.with_name(FORM), version / FORM)
    share = Share(len(job.plan.instances), job.plan.cores_per_instance, job.precision.data_type)
    config = configure(job.parameters, inputs.model.form, share.instances, backend, backend.parameters(share))
    (directory / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return name


def model_name(parameters: Parameters) -> str:
    """Return what a network is called in requests, as the specification has it."""
    return parameters.topology.replace("_", "-")


def configure(
    parameters: Parameters,
    form: ImageForm,
    instances: int,
    backend: TritonBackend | None = None,
    settings: Mapping[str, str] | None = None,
) -> str:
    """Return the text of a model's config.pbtxt; `backend`: Triton's own, with its `settings`, else the Python one."""
    p, batching, data_type = parameters, "", "TYPE_UINT8" if form.as_bytes else "TYPE_FP32"
    together = not backend or backend.puts_together
    if together and p.dynamic_batching:
        sizes = _numbers(map(int, p.preferred_batch_size.split()))
        preferred = f"  preferred_batch_size: {sizes}\n" if p.preferred_batch_size else ""
        batching = f"dynamic_batching {{\n{preferred}  max_queue_delay_microseconds: {p.max_queue_delay_us}\n}}\n"
    batch = [] if together else [-1]  # which is none of the dimensions where the server knows batches
    image, classes = _numbers([*batch, form.size, form.size, 3]), _numbers([*batch, CLASSES])
    own = "".join(
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in (settings or {}).items()
    )
    return (
        f"name: {json.dumps(model_name(p))}\n"
        f"backend: {json.dumps(backend.name if backend else PYTHON)}\n"
        + (f"default_model_filename: {json.dumps(backend.called)}\n" if backend else "")
        + f"max_batch_size: {p.images_per_execution if together else 0}\n"
        f'input [{{ name: "{INPUT}" data_type: {data_type} dims: {image} }}]\n'
        f'output [{{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: {classes} }}]\n'
        f"instance_group [{{ kind: KIND_CPU count: {instances} }}]\n"
        f"{batching}{own}"
    )


def _numbers(values: Iterable[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"
