"""Name test cases, and read every parameter of a case from one table.

A case's name fixes what is measured (FUNCTION, MODE, PRECISION, CASE_TYPE); the other parameters come, the later
winning, from this table's defaults, the workload's sections, those of run.sh's `quick.yaml`, a `--config` file's
sections, the environment (which is how `--set` and a container's `-e` arrive) and `--name=value` arguments.
"""

import fnmatch
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from cnnbench.errors import UsageError

Settings = Mapping[str, str]
Function = Literal["inference"]
Mode = Literal["throughput", "latency", "accuracy"]
CaseType = Literal["", "gated", "pkm"]
InstanceMode = Literal["flex", "numa", "socket"]
PrecisionName = Literal["avx_int8", "avx_fp32", "avx_bfloat16", "amx_int8", "amx_bfloat16", "amx_bfloat32"]

FIXED_BY_NAME = ("FUNCTION", "MODE", "PRECISION", "CASE_TYPE")


@dataclass(frozen=True)
class TestCase:
    """One test case; `workload` is the lower-case name that case names carry."""

    __test__ = False  # pytest: not a class of tests

    workload: str
    mode: Mode
    precision: PrecisionName
    case_type: CaseType = ""
    function: Function = "inference"
    sgx: bool = False

    @property
    def name(self) -> str:
        """The case's name: test_<workload>_[sgx_]<function>_<mode>_<precision>[_gated|_pkm]."""
        sgx, case_type = "sgx_" if self.sgx else "", f"_{self.case_type}" if self.case_type else ""
        return f"test_{self.workload}_{sgx}{self.function}_{self.mode}_{self.precision}{case_type}"

    @classmethod
    def parse(cls, name: str, workload: str) -> "TestCase":
        """Read a case's name; raise UsageError saying how one is made up."""
        alternatives = {
            "function": get_args(Function),
            "mode": get_args(Mode),
            "precision": get_args(PrecisionName),
            "case_type": [case_type for case_type in get_args(CaseType) if case_type],
        }
        group = {key: f"(?P<{key}>{'|'.join(words)})" for key, words in alternatives.items()}
        pattern = "test_{}_(?P<sgx>sgx_)?{function}_{mode}_{precision}(?:_{case_type})?".format(
            re.escape(workload), **group
        )
        found = re.fullmatch(pattern, name)
        if not found:
            words = "; ".join(f"{key.upper()} {' '.join(values)}" for key, values in alternatives.items())
            raise UsageError(
                f"{name}: not a test case of this workload, which are named "
                f"test_{workload}_[sgx_]FUNCTION_MODE_PRECISION[_CASE_TYPE] with {words}"
            )
        fields: dict[str, Any] = found.groupdict()
        return cls(workload, **fields | {"sgx": bool(fields["sgx"]), "case_type": fields["case_type"] or ""})

    @property
    def fixed(self) -> dict[str, str]:
        """The parameters that the name fixes."""
        return {name: getattr(self, name.lower()) for name in FIXED_BY_NAME}


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
    precision: PrecisionName = Field("avx_fp32", description="data type and instruction set")
    data_type: Literal["dummy", "real"] = Field(
        "dummy",
        description="input: a batch kept in memory, or JPEG files decoded while measuring; accuracy always reads real",
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
    weight_sharing: bool = Field(
        False,
        description="one process a socket, whose pinned threads share the weights; not for avx_fp32 and amx_bfloat32",
    )
    variant: Literal["auto", "itex", "stock", "zentf"] = Field(
        "auto",
        description="TensorFlow build; auto: itex where this Python and CPU can run it, else stock; zentf is AMD's and "
        "not for avx_int8 and amx_int8",
    )
    topology: Literal["resnet50v1_5"] = Field("resnet50v1_5", description="the network")
    model: str = Field("", description="a frozen graph to measure instead, as a path or a staged artefact's name")
    wrap_key: str = Field(
        "", description="sgx_ cases only: a file with the key (16 bytes) to encrypt the model with; see doc/sgx.md"
    )
    dataset: Literal["procedural", "imagenet"] = Field("procedural", description="the images of DATA_TYPE=real")
    verbose: bool = Field(False, description="let the framework log to the instances' logs")
    onednn_verbose: bool = Field(
        False, description="have oneDNN trace into the instances' logs while measuring, which slows them"
    )
    force: bool = Field(False, description="make it an error, not a skip, when this CPU lacks what the precision needs")
    mpi: bool = Field(False, description="launch the instances through MPI (not available yet)")
    num_mpi: Cores | Literal[""] = Field("", description="MPI processes a socket (not available yet)")
    customer_env: Annotated[dict[str, str], BeforeValidator(_parse_environment)] = Field(
        default_factory=dict, description="more environment of the instances, as A=1 B='two words'"
    )


FIELDS: dict[str, FieldInfo] = {name.upper(): field for name, field in Parameters.model_fields.items()}
"""The table's rows by the name that users write."""


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


def _plain(name: str, value: str) -> str:
    """Return the value itself of `--batch_size=1` or `--weight_sharing`, which the environment may hold too."""
    flag = f"--{name.lower()}"
    if value == flag and FIELDS[name].annotation is bool:
        return "True"
    return value.removeprefix(f"{flag}=")


def parse_arguments(arguments: Iterable[str]) -> dict[str, str]:
    """Read `--batch_size=1`-style arguments; raise UsageError for one that is not a parameter."""
    settings = {}
    for argument in arguments:
        name, separator, value = argument.removeprefix("--").partition("=")
        name = name.upper().replace("-", "_")
        bare_flag = not separator and name in FIELDS and FIELDS[name].annotation is bool
        if not argument.startswith("--") or not (separator or bare_flag):
            raise UsageError(f"{argument}: not understood; a parameter is given as --batch_size=1")
        check_name(name)
        settings[name] = "True" if bare_flag else value
    return settings


def check_name(name: str) -> None:
    """Raise UsageError for a name that is not in the table."""
    if name not in FIELDS:
        raise UsageError(f"{name}: no such parameter; known are {' '.join(FIELDS)}")


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Pick the parameters out of an environment; an empty value means the default."""
    return {name: environ[name] for name in FIELDS if environ.get(name)}


def pick_sections(sections: Mapping[str, Settings], case_name: str) -> dict[str, str]:
    """Merge the sections whose glob matches a case's name, the later winning."""
    settings: dict[str, str] = {}
    for pattern, values in sections.items():
        if fnmatch.fnmatchcase(case_name, pattern):
            settings.update(values)
    return settings


def resolve(case: TestCase, asked: Mapping[str, Settings], declared: Mapping[str, Settings] = {}) -> Parameters:
    """Return a case's parameters.

    `asked`: settings by where they come from, the weakest first. `declared`: what holds unless something else is asked
    for, likewise; like the table's defaults, it gives way where it contradicts what is asked for. A layer may repeat
    what the case's name fixes but not change it. Raises UsageError naming the parameter, the value, where it comes from
    and what is accepted.
    """
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for origin, settings in (*declared.items(), *asked.items()):
        for name, text in settings.items():
            check_name(name)
            value = _plain(name, str(text))
            if not value:
                continue
            if name in FIXED_BY_NAME and value != case.fixed[name]:
                fixed = case.fixed[name] or "empty"
                raise UsageError(f"{name}={value} ({origin}): the case {case.name} fixes it as {fixed}")
            values[name], origins[name] = value, origin
    requested = {name.lower(): value for name, value in (values | case.fixed).items()}
    try:
        parameters = Parameters(**requested)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]).upper()
        cause = error.errors()[0].get("ctx", {}).get("error")
        because = f" ({cause})" if cause else ""
        raise UsageError(
            f"{name}={values[name]} ({origins[name]}): must be {accepted(name)}{because}; see the workload's README"
        ) from error
    _refuse_combinations(parameters, origins, case.sgx)
    return _reconcile_times(parameters, origins, asked)


def _refuse_combinations(parameters: Parameters, origins: Mapping[str, str], sgx: bool) -> None:
    """Raise UsageError for values that are fine alone but not together or not yet."""
    if parameters.mpi or parameters.num_mpi != "":
        name = "MPI" if parameters.mpi else "NUM_MPI"
        value = getattr(parameters, name.lower())
        raise UsageError(f"{name}={value} ({origins[name]}): launching through MPI is not available yet; leave it out")
    for name in ("CORES_PER_INSTANCE", "INSTANCES"):
        value = getattr(parameters, name.lower())
        if parameters.instance_mode != "flex" and value != "auto":
            raise UsageError(
                f"INSTANCE_MODE={parameters.instance_mode} ({origins['INSTANCE_MODE']}): decides how many instances "
                f"there are and of how many cores, but {name}={value} ({origins[name]}); leave one of the two out"
            )
    if parameters.wrap_key and not sgx:
        raise UsageError(
            f"WRAP_KEY={parameters.wrap_key} ({origins['WRAP_KEY']}): only sgx_ cases have a model to encrypt; leave "
            "it out, or give it to those alone in the section '*_sgx_*' of a settings file"
        )
    if parameters.weight_sharing and parameters.precision in ("avx_fp32", "amx_bfloat32"):
        raise UsageError(
            f"WEIGHT_SHARING=True ({origins['WEIGHT_SHARING']}): not supported for {parameters.precision}; "
            "choose a case of another precision or leave it out"
        )


def _reconcile_times(parameters: Parameters, origins: Mapping[str, str], asked: Mapping[str, Settings]) -> Parameters:
    """Let the one of MIN_TIME and MAX_TIME that nobody asked for give way to the other."""
    if parameters.min_time <= parameters.max_time:
        return parameters
    times = {name: getattr(parameters, name.lower()) for name in ("MIN_TIME", "MAX_TIME")}
    asked_for = [time for name, time in times.items() if origins.get(name) in asked]
    if len(asked_for) == 1:
        return parameters.model_copy(update={name.lower(): asked_for[0] for name in times})
    least, most = (f"{name}={time:g} ({origins.get(name, 'default')})" for name, time in times.items())
    raise UsageError(f"{least}: must be at most {most}")


def settle(parameters: Parameters) -> tuple[Parameters, list[str]]:
    """Return the parameters with what the mode leaves no choice of, and a note for each value not used for that.

    Nothing is refused here, so that a sweep over all modes may set what only some of them use.
    """
    if parameters.mode != "accuracy":
        return parameters, []
    always = {
        "steps": ("auto", "accuracy always goes over the whole set"),
        "data_type": ("real", "accuracy always reads real images"),
    }
    notes = [
        f"{name.upper()}={getattr(parameters, name)} not used: {because}"
        for name, (value, because) in always.items()
        if getattr(parameters, name) != value
    ]
    return parameters.model_copy(update={name: value for name, (value, _) in always.items()}), notes
