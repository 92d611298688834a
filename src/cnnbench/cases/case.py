"""Name test cases, and put the parameters of a case together.

A case's name fixes what is measured (FUNCTION, MODE, PRECISION, CASE_TYPE, maybe TOPOLOGY); the other parameters
come, the later winning, from the table's defaults, the workload's sections, those of run.sh's `quick.yaml`, a
`--config` file's sections, the environment (which is how `--set` and a container's `-e` arrive) and `--name=value`
arguments.
"""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import (
    FIELDS,
    MODES,
    TABLE,
    CaseType,
    Function,
    Mode,
    Parameters,
    PrecisionName,
    accepted,
)
from cnnbench.cases.precisions import PRECISIONS

Settings = Mapping[str, str]

FIXED_BY_NAME = ("FUNCTION", "MODE", "PRECISION", "CASE_TYPE", "TOPOLOGY")
"""The parameters that a case's name fixes; TOPOLOGY only where a workload has several networks."""

_SETUP_S, _STEP_S, _ACCURACY_S = 20.0, 0.1, 300.0
"""About how long a run takes besides its measuring, a step, and all images of a data set."""

DECIDED_BY_NUM_MPI = ("INSTANCES", "INSTANCE_MODE", "REPLICAS", "WEIGHT_SHARING", "CORES_PER_INSTANCE")
"""The parameters whose declared values give way to ranks a socket."""


@dataclass(frozen=True)
class TestCase:
    """One test case.

    `workload`: the lower-case name that case names carry. `topology`: the network, empty where the workload has one.
    """

    __test__ = False  # pytest: not a class of tests

    workload: str
    mode: Mode
    precision: PrecisionName
    case_type: CaseType = ""
    function: Function = "inference"
    sgx: bool = False
    topology: str = ""

    @property
    def name(self) -> str:
        """The case's name: test_<workload>_[sgx_]<function>_<mode>_<precision>[_<topology>][_gated|_pkm]."""
        words = ("test", self.workload, "sgx" if self.sgx else "", self.function, self.mode, self.precision)
        return "_".join(word for word in (*words, self.topology, self.case_type) if word)

    @classmethod
    def parse(
        cls,
        name: str,
        workload: str,
        topologies: Collection[str] = (),
        precisions: Collection[str] = tuple(PRECISIONS),
        function: Function = "inference",
    ) -> "TestCase":
        """Read a case's name; raise UsageError saying how one is made up.

        `topologies`: the networks that names tell apart; none where the workload has one. `precisions`: what it has.
        `function`: what its cases run.
        """
        alternatives = {
            "function": (function,),
            "mode": MODES[function],
            "precision": precisions,
            "topology": topologies,
            "case_type": [case_type for case_type in get_args(CaseType) if case_type],
        }
        group = {key: f"(?P<{key}>{'|'.join(words)})" for key, words in alternatives.items()}
        pattern = "test_{}_(?P<sgx>sgx_)?{function}_{mode}_{precision}{network}(?:_{case_type})?".format(
            re.escape(workload), network="_{topology}".format(**group) if topologies else "", **group
        )
        found = re.fullmatch(pattern, name)
        if not found:
            words = "; ".join(f"{key.upper()} {' '.join(values)}" for key, values in alternatives.items() if values)
            network = "_TOPOLOGY" if topologies else ""
            raise UsageError(
                f"{name}: not a test case of this workload, which are named "
                f"test_{workload}_[sgx_]FUNCTION_MODE_PRECISION{network}[_CASE_TYPE] with {words}"
            )
        fields: dict[str, Any] = found.groupdict()
        return cls(workload, **fields | {"sgx": bool(fields["sgx"]), "case_type": fields["case_type"] or ""})

    @property
    def fixed(self) -> dict[str, str]:
        """The parameters that the name fixes."""
        names = FIXED_BY_NAME if self.topology else FIXED_BY_NAME[:-1]
        return {name: getattr(self, name.lower()) for name in names}


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


def check_name(name: str, known: Collection[str] = FIELDS) -> None:
    """Raise UsageError for a name that is not among the known ones."""
    if name not in known:
        where = " of this workload" if name in FIELDS else ""
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}? --describe-params has all" if close else f"known are {' '.join(known)}"
        raise UsageError(f"{name}: no such parameter{where}; {hint}")


def from_environment(environ: Mapping[str, str], known: Iterable[str] = FIELDS) -> dict[str, str]:
    """Pick the known parameters out of an environment; an empty value means the default."""
    return {name: environ[name] for name in known if environ.get(name)}


def pick_sections(sections: Mapping[str, Settings], case_name: str) -> dict[str, str]:
    """Merge the sections whose glob matches a case's name, the later winning."""
    settings: dict[str, str] = {}
    for pattern, values in sections.items():
        if fnmatch.fnmatchcase(case_name, pattern):
            settings.update(values)
    return settings


def resolve(
    case: TestCase,
    asked: Mapping[str, Settings],
    declared: Mapping[str, Settings] = {},
    known: Collection[str] = FIELDS,
) -> Parameters:
    """Return a case's parameters.

    `asked`: settings by where they come from, the weakest first. `declared`: what holds unless something else is asked
    for, likewise; like the table's defaults, it gives way where it contradicts what is asked for. A layer may repeat
    what the case's name fixes but not change it. `known`: the parameters that the workload has. Raises UsageError
    naming the parameter, the value, where it comes from and what is accepted.
    """
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    ranks_asked = any(_plain("NUM_MPI", str(settings.get("NUM_MPI", ""))) for settings in asked.values())
    for origin, settings in (*declared.items(), *asked.items()):
        for name, text in settings.items():
            check_name(name, known)
            value = _plain(name, str(text))
            if not value or (origin in declared and ranks_asked and name in DECIDED_BY_NUM_MPI):
                continue
            if name in case.fixed and value != case.fixed[name]:
                fixed = case.fixed[name] or "empty"
                raise UsageError(f"{name}={value} ({origin}): the case {case.name} fixes it as {fixed}")
            values[name], origins[name] = value, origin
    requested = {name.lower(): value for name, value in (values | case.fixed).items()}
    try:
        parameters = TABLE(**requested)
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
    if parameters.micro_batch_size != "auto" and parameters.batch_size % parameters.micro_batch_size:
        raise UsageError(
            f"BATCH_SIZE={parameters.batch_size}: must be a multiple of MICRO_BATCH_SIZE={parameters.micro_batch_size} "
            f"({origins['MICRO_BATCH_SIZE']})"
        )
    if parameters.eight_bit_io and parameters.normalization_location == "host":
        raise UsageError(
            f"EIGHT_BIT_IO=True ({origins['EIGHT_BIT_IO']}): bytes cannot be normalised before they are handed over; "
            "give NORMALIZATION_LOCATION=device or none"
        )
    _refuse_on_device(parameters, origins)
    _refuse_mpi_combinations(parameters, origins, sgx)
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


def _refuse_mpi_combinations(parameters: Parameters, origins: Mapping[str, str], sgx: bool) -> None:
    """Raise UsageError for what contradicts a launch through MPI, or makes no sense without one."""
    if sgx and (parameters.mpi or parameters.num_mpi != ""):
        name = "MPI" if parameters.mpi else "NUM_MPI"
        raise UsageError(
            f"{name}={getattr(parameters, name.lower())} ({origins[name]}): SGX cases run in a container, where "
            "nothing is launched through MPI; leave it out"
        )
    if parameters.hostfile and not parameters.mpi and parameters.num_mpi == "":
        raise UsageError(
            f"HOSTFILE={parameters.hostfile} ({origins['HOSTFILE']}): only MPI launches on several "
            "hosts; give MPI=True or NUM_MPI"
        )
    alone = {"INSTANCES": "auto", "INSTANCE_MODE": "flex", "REPLICAS": 1, "WEIGHT_SHARING": False}
    for name, needed in alone.items():
        value = getattr(parameters, name.lower())
        if parameters.num_mpi != "" and value != needed:
            raise UsageError(
                f"NUM_MPI={parameters.num_mpi} ({origins['NUM_MPI']}): decides how many instances there are, each in a "
                f"process of its own, but {name}={value} ({origins[name]}); leave one of the two out"
            )


def _refuse_on_device(parameters: Parameters, origins: Mapping[str, str]) -> None:
    """Raise UsageError for what only a CPU has in a cuda_ case."""
    if PRECISIONS[parameters.precision].on_gpu and parameters.replicas > 1:
        raise UsageError(
            f"REPLICAS={parameters.replicas} ({origins['REPLICAS']}): copies in one process would only take turns on "
            "the GPU; leave it out, or have processes by INSTANCES"
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
    if parameters.num_mpi != "":
        parameters = parameters.model_copy(update={"mpi": True})
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


def estimate_run_s(parameters: Parameters) -> float:
    """Return about how long a run takes when its inputs are staged; an order of magnitude over all images."""
    if parameters.mode == "accuracy":
        return _SETUP_S + (_ACCURACY_S if parameters.accuracy_time == "all" else float(parameters.accuracy_time))
    return _SETUP_S + (parameters.max_time if parameters.steps == "auto" else _STEP_S * int(parameters.steps))
