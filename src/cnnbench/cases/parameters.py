"""Hold the one table of parameters: names (in upper case outside), types, bounds, defaults and help.

Command line, environment, settings files and documents are all made from it. A parameter belongs to all workloads, or
to those whose engines are handed frozen graphs, or networks. An engine's own parameters come from its declaration.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.precisions import PRECISIONS
from cnnbench.engines.conversion import Metric, WeightRounding, check_fp8_params
from cnnbench.engines.exported import check_batch
from cnnbench.engines.interface import EngineOptions
from cnnbench.engines.registry import AUTO, Engine, Takes, engines, engines_that_take
from cnnbench.inputs.networks import TOPOLOGIES

Function = Literal["inference", "serving"]
Mode = Literal["throughput", "latency", "accuracy", "capacity"]
CaseType = Literal["", "gated", "pkm"]
InstanceMode = Literal["flex", "numa", "socket"]


@dataclass(frozen=True)
class OneOf:
    """What a parameter's text must be one of, where another table has the names."""

    names: Callable[[], Sequence[str]]

    def check(self, text: str) -> str:
        """Return the text itself; raise ValueError when it is none of the names."""
        if text not in self.names():
            raise ValueError(f"there are {', '.join(self.names())}")
        return text


_PRECISION = OneOf(lambda: tuple(PRECISIONS))
PrecisionName = Annotated[str, AfterValidator(_PRECISION.check), _PRECISION]
_TOPOLOGY = OneOf(lambda: TOPOLOGIES)
TopologyName = Annotated[str, AfterValidator(_TOPOLOGY.check), _TOPOLOGY]
_ENGINE = OneOf(lambda: (*engines_that_take("network"), AUTO))
EngineName = Annotated[str, AfterValidator(_ENGINE.check), _ENGINE]

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


def _check_words(text: str) -> str:
    """Return a command's text itself; raise ValueError where its quotes do not close."""
    shlex.split(text)
    return text


def _of(takes: Takes, default: Any, description: str, *, path: bool = False) -> Any:
    """Return a field that only the workloads have whose engines take this; `path`: whether it names a file."""
    return Field(default, description=description, json_schema_extra={"takes": takes, "path": path})


def _served(default: Any, description: str, *, path: bool = False) -> Any:
    """Return a field that only cases of serving have."""
    extra: Any = {"takes": "network", "path": path, "function": SERVING}
    return Field(default, description=description, json_schema_extra=extra)


SERVING: Function = "serving"
MODES: dict[str, tuple[Mode, ...]] = {
    "inference": ("throughput", "latency", "accuracy"),
    SERVING: ("throughput", "latency", "capacity", "accuracy"),
}
"""What cases of each function measure."""

NOT_SERVED = (
    *("WEIGHT_SHARING", "WRAP_KEY", "MICRO_BATCH_SIZE", "DEVICE_ITERATIONS", "REPLICAS", "NUM_IO_THREADS", "MPI"),
    *("NUM_MPI", "HOSTFILE", "PIPELINE_SPLITS", "PROFILE", "ONEDNN_VERBOSE"),
)
"""The parameters of inference that make no sense for a server."""

PROCEDURAL, IMAGENET = "procedural", "imagenet"
"""The sets that DATASET names; anything else is a directory."""

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Cores = Annotated[int, Field(ge=1, le=4096)]


class Parameters(BaseModel):
    """The parameters that are no engine's own: names (in upper case outside), types, bounds, defaults and help."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    function: Function = Field("inference", description="what to run")
    mode: Mode = Field("throughput", description="what to measure")
    case_type: CaseType = Field(
        "", description="gated: a quick run with STEPS=50, BATCH_SIZE=1 and all cores of a socket; pkm: the common run"
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
    accuracy_time: Annotated[float, Field(ge=0.1, le=86_400)] | Literal["all"] = Field(
        "all", description="accuracy: seconds after which no more images are taken; all: when the set has no more"
    )
    weight_sharing: bool = _of(
        "graph",
        False,
        "one process a socket, whose pinned threads share the weights; not for avx_fp32 and amx_bfloat32",
    )
    topology: TopologyName = Field("resnet50v1_5", description="the network")
    model: str = _of("graph", "", "a frozen graph to measure instead, as a path or a staged artefact's name")
    wrap_key: str = _of(
        "graph",
        "",
        "sgx_ cases only: a file with the key (16 bytes) to encrypt the model with; see doc/sgx.md",
        path=True,
    )
    engine: EngineName = _of(
        "network",
        AUTO,
        "what runs the network; auto: the fastest of those that can, by a trial of a few seconds each before the run",
    )
    weights: str = _of(
        "network", "", "a checkpoint of the network, .safetensors, .npz or .pth, in place of random weights", path=True
    )
    network_file: str = _of(
        "network",
        "",
        "a network to measure instead, that classifies images as ImageNet does: an ONNX file, or one that was compiled",
        path=True,
    )
    ahead_of_time: bool = _of("network", False, "compile the network before, into a file that instances load")
    compiled_batch: Auto | Annotated[str, AfterValidator(check_batch)] = _of(
        "network", "auto", "ahead of time: the images of a call, or a range such as 1-64; auto: those that are measured"
    )
    replaceable_weights: bool = _of(
        "network", False, "ahead of time: keep the weights apart, to be replaced without compiling again"
    )
    max_autotune: bool = _of("network", False, "ahead of time: choose kernels by trying them, which takes longer")
    norm_type: Literal["batch", "group", "none"] = _of("network", "batch", "the network's normalisation layers")
    norm_num_groups: Annotated[int, Field(ge=1, le=4096)] | Auto = _of(
        "network", "auto", "groups of NORM_TYPE=group; auto: 32"
    )
    enable_fast_groupnorm: bool = _of("network", False, "group norm and its activation as one scale and shift")
    efficientnet_expand_ratio: Annotated[float, Field(ge=1, le=16)] | Auto = _of(
        "network", "auto", "expansion of EfficientNet's blocks; auto: 6, as published"
    )
    efficientnet_group_dim: Annotated[int, Field(ge=1, le=256)] | Auto = _of(
        "network", "auto", "channels in each group of EfficientNet's depthwise convolutions; auto: 1, as published"
    )
    eight_bit_io: bool = _of("network", False, "hand images over as bytes, to be normalised inside the network")
    normalization_location: Literal["host", "device", "none"] = _of(
        "network", "host", "where images are normalised: before they are handed over, inside the network, or nowhere"
    )
    fp8_arithmetic: Literal["fp32", "bfloat16"] = _of(
        "network", "fp32", "fp8 and fp8_weight: what the 8-bit numbers are multiplied in; both have all of them"
    )
    fp8_params: Annotated[str, AfterValidator(check_fp8_params)] = _of(
        "network",
        "F143,F143,auto,auto",
        "fp8 and fp8_weight: the formats of activations and weights, F143 (E4M3) or F152 (E5M2), and the exponents of "
        "their scales, powers of two; auto: those that lose least, for activations on the drawn calibration images",
    )
    fp8_skip_op_names: str = _of(
        "network", "", "fp8 and fp8_weight: operations kept in 16 bits, such as Conv_0,Gemm_126; none: none of them"
    )
    num_of_layers_keep_fp16: Annotated[int, Field(ge=0, le=10_000)] = _of(
        "network", 0, "fp8 and fp8_weight: so many more are kept, those that lose most by measurement"
    )
    fp8_metric: Metric = _of("network", "mse", "fp8 and fp8_weight: what scales that are auto lose least of")
    fp8_weight_rounding: WeightRounding = _of(
        "network",
        "nearest",
        "fp8 and fp8_weight: each weight to the nearest, or compensated: those of an output make up for each other",
    )
    pad_conv_channel: bool = _of("network", False, "pad what convolutions take to a multiple of 4 channels, with zeros")
    scenario: Literal["", "SingleStream", "MultiStream", "Server", "Offline"] = _of(
        "network",
        "",
        "have MLPerf's LoadGen send what is inferred, by its rules: for latency SingleStream or MultiStream, for "
        "throughput Server or Offline, for accuracy any",
    )
    target_qps: Annotated[float, Field(ge=0.001, le=10_000_000)] | Literal[""] = _of(
        "network",
        "",
        "SCENARIO=Server: queries a second; Offline: samples expected; empty: the highest rate of Server found to be "
        "VALID, and for Offline as it warms up",
    )
    user_conf: str = _of("network", "", "LoadGen's settings, as submissions have them: a user.conf", path=True)
    audit: Literal["", "TEST01", "TEST04", "TEST05"] = _of(
        "network",
        "",
        "have LoadGen run once more, as submissions are audited, and compare: TEST01 logs answers, TEST04 sends one "
        "sample again and again, TEST05 draws others",
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto = _of(
        "network", "auto", "images the network takes at once, of which BATCH_SIZE is a multiple; auto: BATCH_SIZE"
    )
    device_iterations: Annotated[int, Field(ge=1, le=10_000)] = _of("network", 1, "batches of a step")
    replicas: Annotated[int, Field(ge=1, le=4096)] = _of(
        "network", 1, "copies of the network in each instance's process, each with CORES_PER_INSTANCE of its own"
    )
    numa_aware: bool = _of("network", True, "bind the memory of an instance to its NUMA node, where it lies in one")
    num_io_threads: Cores | Auto = _of(
        "network", "auto", "threads that decode an instance's images; auto: one for each of its cores"
    )
    dataset: str = Field(
        PROCEDURAL,
        description="the images of DATA_TYPE=real: procedural, imagenet, or a directory of JPEG images with a "
        "val_official_clean.csv of their names and classes, counted from 0",
    )
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
        "",
        description="hosts to launch on through MPI, a file as mpirun reads it, this host first; empty: this alone",
        json_schema_extra={"path": True},
    )
    client_cores: Cores = _served(1, "physical cores of the client, which the server does without")
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | Auto = _served(
        "auto",
        "requests under way at any time, where REQUEST_RATE is empty; auto: for latency 1, else enough for two batches "
        "of each instance",
    )
    request_rate: Annotated[float, Field(ge=0.01, le=1_000_000)] | Literal[""] = _served(
        "", "requests a second to send at random moments, whether answered or not (Poisson arrivals)"
    )
    protocol: Literal["grpc", "http"] = _served("grpc", "how requests are sent")
    shared_memory: bool = _served(False, "hand images over in memory that client and server share")
    perf_analyzer: bool = _served(
        False, "have NVIDIA's perf_analyzer ask the same server after that, and hold its requests a second against ours"
    )
    dynamic_batching: bool = _served(True, "have the server put requests together that wait at the same time")
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto = _served(
        "auto", "images that the server hands the network at once; auto: 8, or BATCH_SIZE where that is more"
    )
    preferred_batch_size: str = _served(
        "", "images that the server waits for, several separated by spaces; empty: it takes what waits"
    )
    max_queue_delay_us: Annotated[int, Field(ge=0, le=10_000_000)] = _served(
        0, "microseconds that a request may wait for others to be put together with"
    )
    latency_bound_ms: Annotated[float, Field(ge=0.01, le=1_000_000)] = _served(
        15, "capacity: what the 99th percentile of latency may be, in milliseconds"
    )
    model_repository: str = _served(
        "", "a directory that the server's model is written into and kept in; empty: a passing one", path=True
    )
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | Literal[""] = _served(
        "", "the server's port for gRPC; empty: any that is free"
    )
    triton_server: str = _served(
        "", "the program `tritonserver` of another installation; empty: that of its wheel", path=True
    )
    energy_meter: Annotated[str, AfterValidator(_check_words)] = Field(
        "",
        description="a command that prints what a power meter of your own reads, for as long as it runs; empty: the "
        "counters of the processors, and of a GPU that is used, where they may be read",
    )
    idle_time: Annotated[float, Field(ge=0, le=3600)] = Field(
        2, description="seconds for which idle power is measured first, where energy is; 0: it is not"
    )
    customer_env: Annotated[dict[str, str], BeforeValidator(_parse_environment)] = Field(
        default_factory=dict, description="more environment of the instances, as A=1 B='two words'"
    )

    @property
    def images_per_execution(self) -> int:
        """How many images a server hands the network at once, at the most."""
        if not self.dynamic_batching:
            return self.batch_size
        return max(8, self.batch_size) if self.max_batch_size == "auto" else self.max_batch_size

    @property
    def images_per_part(self) -> int:
        """How many images the network takes at once."""
        return self.batch_size if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def images_per_step(self) -> int:
        """How many images a step takes."""
        return self.batch_size * self.device_iterations


def _with_options_of_engines() -> type[Parameters]:
    """Return the whole table; raise CnnbenchError where two engines mean different things by one name."""
    owners: dict[str, Engine] = {}
    fields: dict[str, Any] = {}
    for engine in engines().values():
        for name, option in engine.options.model_fields.items():
            if name in Parameters.model_fields or (name in owners and repr(fields[name][1]) != repr(option)):
                other = f"the engine {owners[name].name}" if name in owners else "all cases"
                raise CnnbenchError(
                    f"{engine.options.__module__}: {name.upper()} is an option of the engine {engine.name}, but a "
                    f"parameter of {other} already; give it another name"
                )
            owners[name], fields[name] = engine, (option.annotation, option)
    table = create_model("Table", __base__=Parameters, **fields)
    for name, owner in owners.items():
        field = table.model_fields[name]
        field.json_schema_extra = {**cast(dict[str, Any], field.json_schema_extra or {}), "takes": owner.takes}
    return table


TABLE = _with_options_of_engines()
"""The one table: the parameters of all cases, and those that are an engine's own."""

FIELDS: dict[str, FieldInfo] = {name.upper(): field for name, field in TABLE.model_fields.items()}
"""The table's rows by the name that users write."""


def told(name: str, key: str) -> Any:
    """Return what a row of the table says of itself beside type and description; None where it says nothing."""
    return cast(dict[str, Any], FIELDS[name].json_schema_extra or {}).get(key)


def parameters_of(takes: Takes, function: Function = "inference") -> tuple[str, ...]:
    """Return the names of the parameters that workloads have whose engines are handed graphs, or networks."""
    left_out = NOT_SERVED if function == SERVING else ()
    owned = (name for name in FIELDS if told(name, "takes") in (None, takes) and name not in left_out)
    return tuple(name for name in owned if told(name, "function") in (None, function))


def options_of(parameters: Parameters, engine: Engine) -> EngineOptions:
    """Return an engine's own options out of all parameters."""
    return engine.options(**{name: getattr(parameters, name) for name in engine.options.model_fields})


def precisions_of(takes: Takes) -> tuple[PrecisionName, ...]:
    """Return the precisions that workloads have whose engines are handed graphs, or networks: these run on GPUs too."""
    return tuple(name for name, one in PRECISIONS.items() if takes == "network" or not one.of_networks)


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
        choices = [one.names() for one in metadata if isinstance(one, OneOf)]
        yield ", ".join(choices[0]) if choices else "text"
    elif get_origin(annotation) is dict:
        yield "NAME=VALUE words, quoted as in a shell"
    else:
        for part in get_args(annotation):
            yield from _describe_type(part, metadata)


def default_text(name: str) -> str:
    """Return a parameter's default as a user would write it; empty when there is none."""
    default = FIELDS[name].get_default(call_default_factory=True)
    return "" if default in ("", {}) else f"{default:g}" if isinstance(default, float) else str(default)
