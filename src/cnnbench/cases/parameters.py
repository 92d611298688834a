"""Hold the one table of parameters: names (in upper case outside), types, bounds, defaults and help.

Command line, environment, settings files and documents are all made from it. A parameter belongs to all workloads, or
to those of one harness: TensorFlow's frozen graph, or the networks that other engines are handed.
"""

import re
import shlex
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from cnnbench.engines.registry import Harness

Function = Literal["inference"]
Mode = Literal["throughput", "latency", "accuracy"]
CaseType = Literal["", "gated", "pkm"]
InstanceMode = Literal["flex", "numa", "socket"]
PrecisionName = Literal[
    "avx_int8",
    "avx_fp32",
    "avx_bfloat16",
    "amx_int8",
    "amx_bfloat16",
    "amx_bfloat32",
    "cuda_fp32",
    "cuda_float16",
    "cuda_bfloat16",
]
TopologyName = Literal[
    "resnet50v1_5",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_b4",
    "resnext50",
    "resnext101",
]

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _parse_environment(value: object) -> object:
    """Read `A=1 B='two words'` as a shell would quote it, without a shell: nothing is expanded or run."""
    if not isinstance(value, str):
        return value
    pairs = {}
    for word in shlex.split(value):
        name, separator, text = word.partition("=")
        if not separator or not _ENVIRONMENT_NAME.fullmatch(name):
            raise ValueError(f"{word!r} is not NAME=VALUE")
        pairs[name] = text
    return pairs


def _of(harness: Harness, default: Any, description: str) -> Any:
    """Return a field that only one harness's workloads have."""
    return Field(default, description=description, json_schema_extra={"harness": harness})


Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Cores = Annotated[int, Field(ge=1, le=4096)]


class Parameters(BaseModel):
    """The one table of parameters: names (in upper case outside), types, bounds, defaults and help."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    function: Function = Field("inference", description="what to run")
    mode: Mode = Field("throughput", description="what to measure")
    case_type: CaseType = Field(
        "", description="gated: a quick run with STEPS=10, BATCH_SIZE=1 and all cores of a socket; pkm: the common run"
    )
    precision: PrecisionName = Field("avx_fp32", description="data type, and the instruction set or device")
    data_type: Literal["dummy", "generated", "real"] = Field(
        "dummy",
        description="input: a batch kept in memory, one of several made on the host and copied in for each step, or "
        "JPEG files decoded while measuring; accuracy always reads real",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(1, description="images an inference step takes")
    cores_per_instance: Cores | Auto = Field(
        "auto", description="physical cores of an instance; auto: 4 for latency, else all of a socket"
    )
    instances: Cores | Auto = Field("auto", description="processes measured together; auto: as many as fit")
    instance_mode: InstanceMode = Field(
        "flex",
        description="flex: as CORES_PER_INSTANCE and INSTANCES say; numa: one instance for each NUMA node, with all of "
        "its cores; socket: likewise for each socket",
    )
    steps: Count | Auto = Field(
        "auto",
        description="steps to measure in each instance; auto: until the 95 % confidence interval of throughput is "
        "within 1 %, between MIN_TIME and MAX_TIME seconds",
    )
    warmup_steps: Annotated[int, Field(ge=1, le=10_000)] = Field(5, description="steps before the measured ones")
    min_time: Annotated[float, Field(ge=0.1, le=86_400)] = Field(10, description="least seconds of STEPS=auto")
    max_time: Annotated[float, Field(ge=0.1, le=86_400)] = Field(60, description="most seconds of STEPS=auto")
    weight_sharing: bool = _of(
        "tensorflow",
        False,
        "one process a socket, whose pinned threads share the weights; not for avx_fp32 and amx_bfloat32",
    )
    variant: Literal["auto", "itex", "stock", "zentf"] = _of(
        "tensorflow",
        "auto",
        "TensorFlow build; auto: itex where this Python and CPU can run it, else stock; zentf is AMD's and "
        "not for avx_int8 and amx_int8",
    )
    topology: TopologyName = Field("resnet50v1_5", description="the network")
    model: str = _of("tensorflow", "", "a frozen graph to measure instead, as a path or a staged artefact's name")
    wrap_key: str = _of(
        "tensorflow", "", "sgx_ cases only: a file with the key (16 bytes) to encrypt the model with; see doc/sgx.md"
    )
    engine: Literal["pytorch", "inductor", "onnxruntime", "openvino", "auto"] = _of(
        "cnn",
        "pytorch",
        "what runs the network: PyTorch's eager mode, torch.compile with frozen weights, ONNX Runtime or OpenVINO; "
        "auto: the fastest of those that can, by a trial of a few seconds each before the run",
    )
    weights: str = _of("cnn", "", "a checkpoint of the network, .safetensors or .pth, in place of random weights")
    norm_type: Literal["batch", "group", "none"] = _of("cnn", "batch", "the network's normalisation layers")
    norm_num_groups: Annotated[int, Field(ge=1, le=4096)] | Auto = _of(
        "cnn", "auto", "groups of NORM_TYPE=group; auto: 32"
    )
    enable_fast_groupnorm: bool = _of("cnn", False, "group norm and its activation as one scale and shift")
    efficientnet_expand_ratio: Annotated[float, Field(ge=1, le=16)] | Auto = _of(
        "cnn", "auto", "expansion of EfficientNet's blocks; auto: 6, as published"
    )
    efficientnet_group_dim: Annotated[int, Field(ge=1, le=256)] | Auto = _of(
        "cnn", "auto", "channels in each group of EfficientNet's depthwise convolutions; auto: 1, as published"
    )
    eight_bit_io: bool = _of("cnn", False, "hand images over as bytes, to be normalised inside the network")
    normalization_location: Literal["host", "device", "none"] = _of(
        "cnn", "host", "where images are normalised: before they are handed over, inside the network, or nowhere"
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto = _of(
        "cnn", "auto", "images the network takes at once, of which BATCH_SIZE is a multiple; auto: BATCH_SIZE"
    )
    device_iterations: Annotated[int, Field(ge=1, le=10_000)] = _of("cnn", 1, "batches of a step")
    replicas: Annotated[int, Field(ge=1, le=4096)] = _of(
        "cnn", 1, "copies of the network in each instance's process, each with CORES_PER_INSTANCE of its own"
    )
    numa_aware: bool = _of("cnn", True, "bind the memory of an instance to its NUMA node, where it lies in one")
    half_partial: bool = _of(
        "cnn", False, "let a GPU's 16-bit matrix products be summed up in 16 bits; its convolutions and CPUs never are"
    )
    cuda_graphs: bool = _of(
        "cnn", False, "cuda_ precisions: record the network's call once in a CUDA graph, and replay that"
    )
    profile: bool = _of(
        "cnn", False, "have PyTorch profile a step beside the measured ones, into trace/profile.json of the logs"
    )
    pipeline_splits: str = _of(
        "cnn",
        "",
        "layers, separated by spaces, at which the network is cut into stages that work at once, each on its share of "
        "an instance's cores",
    )
    num_io_threads: Cores | Auto = _of(
        "cnn", "auto", "threads that decode an instance's images; auto: one for each of its cores"
    )
    model_cache_path: str = _of("cnn", "", "a directory for what engines compile; empty: below the cache")
    dataset: Literal["procedural", "imagenet"] = Field("procedural", description="the images of DATA_TYPE=real")
    verbose: bool = Field(False, description="let the framework log to the instances' logs")
    onednn_verbose: bool = Field(
        False, description="have oneDNN trace into the instances' logs while measuring, which slows them"
    )
    force: bool = Field(False, description="make it an error, not a skip, when this CPU lacks what the precision needs")
    mpi: bool = Field(False, description="launch the processes through MPI, each as a rank of Open MPI's mpirun")
    num_mpi: Cores | Literal[""] = Field(
        "",
        description="MPI ranks a socket, an instance each, sharing out its cores unless CORES_PER_INSTANCE says less; "
        "implies MPI=True",
    )
    hostfile: str = Field(
        "", description="hosts to launch on through MPI, a file as mpirun reads it, this host first; empty: this alone"
    )
    customer_env: Annotated[dict[str, str], BeforeValidator(_parse_environment)] = Field(
        default_factory=dict, description="more environment of the instances, as A=1 B='two words'"
    )

    @property
    def images_per_step(self) -> int:
        """How many images a step takes."""
        return self.batch_size * self.device_iterations


FIELDS: dict[str, FieldInfo] = {name.upper(): field for name, field in Parameters.model_fields.items()}
"""The table's rows by the name that users write."""


def parameters_of(harness: Harness) -> tuple[str, ...]:
    """Return the names of the parameters that a harness's workloads have."""
    return tuple(name for name, field in FIELDS.items() if field.json_schema_extra in (None, {"harness": harness}))


def precisions_of(harness: Harness) -> tuple[PrecisionName, ...]:
    """Return the precisions that a harness's workloads have: networks alone run on GPUs."""
    names: tuple[PrecisionName, ...] = get_args(PrecisionName)
    return tuple(name for name in names if harness == "cnn" or not name.startswith("cuda_"))


def accepted(name: str) -> str:
    """Say in words what a parameter accepts."""
    words = list(_describe_type(FIELDS[name].annotation, FIELDS[name].metadata))
    return " or ".join(words)


def _describe_type(annotation: Any, metadata: Iterable[Any]) -> Iterable[str]:
    if get_origin(annotation) is Literal:
        yield ", ".join(str(choice) if choice else "empty" for choice in get_args(annotation))
    elif get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from _describe_type(inner, more)
    elif annotation in (int, float):
        constraints = [c for m in metadata for c in (m.metadata if isinstance(m, FieldInfo) else [m])]
        low = next(c.ge for c in constraints if isinstance(c, annotated_types.Ge))
        high = next(c.le for c in constraints if isinstance(c, annotated_types.Le))
        yield f"{low} to {high}"
    elif annotation is bool:
        yield "True, False"
    elif annotation is str:
        yield "text"
    elif get_origin(annotation) is dict:
        yield "NAME=VALUE words, quoted as in a shell"
    else:
        for part in get_args(annotation):
            yield from _describe_type(part, metadata)


def default_text(name: str) -> str:
    """Return a parameter's default as a user would write it; empty when there is none."""
    default = FIELDS[name].get_default(call_default_factory=True)
    return "" if default in ("", {}) else f"{default:g}" if isinstance(default, float) else str(default)
