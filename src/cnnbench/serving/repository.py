"""Write a model repository for Triton Server: networks, as the project's own engines infer them."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.checkout import SOURCES
from cnnbench.base.disk import make_directory
from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import Parameters
from cnnbench.inputs.networks import ImageForm
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job
from cnnbench.run.workers import worker_specs
from cnnbench.worker.client import INPUT, OUTPUT
from cnnbench.worker.served import spec_name

VERSION = "1"
"""The version of a model in its repository: there is one."""
CLASSES = 1000
SERVICE = "cnnbench.json"
"""The file beside the models that says how a server of them is started."""
NETWORK = "network"

_MODEL = '''"""What Triton Server loads: cnnbench's engine, as instance-N.json beside this file says."""

import sys

sys.path.insert(0, {sources!r})

from cnnbench.worker.served import TritonPythonModel  # noqa: E402, F401
'''


class Service(BaseModel):
    """How a server of exported models is started: the build of the engine, and what its processes' environment has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    variant: str
    environment: dict[str, str]
    models: tuple[str, ...]

    @classmethod
    def read(cls, directory: Path) -> "Service":
        """Read that of a repository; raise UsageError where there is none, or none of this program's."""
        path = directory / SERVICE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; `cnnbench triton export` writes it") from error
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


def model_name(parameters: Parameters) -> str:
    """Return what a network is called in requests, as the specification has it."""
    return parameters.topology.replace("_", "-")


def configure(parameters: Parameters, form: ImageForm, instances: int) -> str:
    """Return the text of a model's config.pbtxt."""
    p, batching = parameters, ""
    if p.dynamic_batching:
        sizes = _numbers(map(int, p.preferred_batch_size.split()))
        preferred = f"  preferred_batch_size: {sizes}\n" if p.preferred_batch_size else ""
        batching = f"dynamic_batching {{\n{preferred}  max_queue_delay_microseconds: {p.max_queue_delay_us}\n}}\n"
    data_type = "TYPE_UINT8" if form.as_bytes else "TYPE_FP32"
    image, classes = _numbers([form.size, form.size, 3]), _numbers([CLASSES])
    return (
        f"name: {json.dumps(model_name(p))}\n"
        'backend: "python"\n'
        f"max_batch_size: {p.images_per_execution}\n"
        f'input [{{ name: "{INPUT}" data_type: {data_type} dims: {image} }}]\n'
        f'output [{{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: {classes} }}]\n'
        f"instance_group [{{ kind: KIND_CPU count: {instances} }}]\n"
        f"{batching}"
    )


def _numbers(values: Iterable[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"
