"""Read the command line of the reference harness: networks, their options, and how many copies run.

`cnnbench run` and `cnnbench launch` are this, and so is `python -m cnnbench.harness.line`. Nothing is measured here: a
line becomes cases of workload/CNN-PyTorch-Public with their parameters, which run as all cases do. Every option has the
reference's name and, where it was made for another kind of device, its meaning on this one; the workload's README says
which.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import UsageError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import FIELDS, PrecisionName
from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.cases.workload import load_workload
from cnnbench.engines.registry import AUTO, engines, engines_that_take, find_engine
from cnnbench.inputs.networks import ARCHITECTURES

DIRECTORY = REPOSITORY / "workload" / "CNN-PyTorch-Public"
CONFIGS = DIRECTORY / "configs.yml"
WIDTHS: dict[str, tuple[PrecisionName, ...]] = {
    "32.32": ("avx_fp32",),
    "16.16": ("amx_bfloat16", "avx_bfloat16"),
    "8.8": ("amx_int8", "avx_int8"),
}
"""What a precision of the reference is here: the first that the CPU has, or else the last, which then says why not.

8.8 is ours: the reference has none of 8 bits.
"""
HALF_TYPES: dict[str, PrecisionName] = {"float16": "cuda_float16", "bfloat16": "cuda_bfloat16"}
"""What 16.16 is on a GPU, by --half-type."""
DATA = {"synthetic": "dummy", "generated": "generated", "real": "real"}
LAUNCHERS = ("local", "mpi")
LOCATIONS = {"host": "host", "device": "device", "ipu": "device", "none": "none"}

VALUES = {
    "micro-batch-size": "MICRO_BATCH_SIZE",
    "device-iterations": "DEVICE_ITERATIONS",
    "iterations": "STEPS",
    "min-time": "MIN_TIME",
    "max-time": "MAX_TIME",
    "weights": "WEIGHTS",
    "norm-type": "NORM_TYPE",
    "norm-num-groups": "NORM_NUM_GROUPS",
    "efficientnet-expand-ratio": "EFFICIENTNET_EXPAND_RATIO",
    "efficientnet-group-dim": "EFFICIENTNET_GROUP_DIM",
    "model-cache-path": "MODEL_CACHE_PATH",
    "num-instances": "INSTANCES",
    "replicas": "REPLICAS",
    "cores-per-instance": "CORES_PER_INSTANCE",
    "num-io-threads": "NUM_IO_THREADS",
    "dataset": "DATASET",
    "num-mpi": "NUM_MPI",
    "hostfile": "HOSTFILE",
}
"""The options that are a parameter of the cases under another name or the same, with any value that it takes."""
SWITCHES = {
    "enable-fast-groupnorm": "ENABLE_FAST_GROUPNORM",
    "eight-bit-io": "EIGHT_BIT_IO",
    "half-partial": "HALF_PARTIAL",
    "profile": "PROFILE",
    "cuda-graphs": "CUDA_GRAPHS",
}
"""The options without a value that are a parameter of the cases."""
MOST_TRIALS = 1000
RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True)
class Request:
    """One line: the workload's directory, its runs as case names with settings, in order, and where their logs go.

    `trials`: how often all of them are run, each time by processes of their own.
    """

    workload: Path
    runs: tuple[tuple[str, dict[str, str]], ...]
    logs_root: Path
    dry_run: bool
    timeout_s: float | None
    trials: int = 1


def make_parser(command: str = "run") -> argparse.ArgumentParser:
    """Return the parser of the command line; nothing has a default here, so that a configuration can give it."""
    parser = argparse.ArgumentParser(
        prog=f"cnnbench {command}",
        description="Measure one of the networks, or, with several batch sizes, one after the other.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="NAME", help=f"begin with a configuration of {CONFIGS.name}")
    parser.add_argument("--model", metavar="NAME", help=f"the network: {', '.join(ARCHITECTURES)}")
    parser.add_argument("--mode", choices=["throughput", "latency"], help="what to measure (default: throughput)")
    parser.add_argument(
        "--minimum-latency", dest="mode", action="store_const", const="latency", help="the same as --mode latency"
    )
    parser.add_argument(
        "--precision",
        choices=WIDTHS,
        help="32.32: float32; 16.16: 16 bits; 8.8: int8 (default: 16.16 where the device has it)",
    )
    parser.add_argument(
        "--batch-size", nargs="+", metavar="N", help="images of a batch; several, or a range as 1..80 or 1..80..8"
    )
    parser.add_argument(
        "--data", choices=DATA, help="real: JPEG files; synthetic: one batch kept; generated: copied in"
    )
    parser.add_argument(
        "--normalization-location", choices=LOCATIONS, help="where images are normalised; ipu is device"
    )
    described = [f"{name}: {find_engine(name).summary or name}" for name in engines_that_take("network")]
    others = engines_that_take("graph")
    parser.add_argument(
        "--engine",
        choices=[*engines_that_take("network"), AUTO, *others],
        help=f"{_help('ENGINE')}; {'; '.join(described)}; {', '.join(others)}: the case of the workload that has it",
    )
    parser.add_argument("--numa-aware", choices=["yes", "no"], help="bind instances' memory to their NUMA node")
    parser.add_argument("--launcher", choices=LAUNCHERS, help="start processes here by itself, or through MPI")
    parser.add_argument("--random-weights", action="store_true", help="as without --weights, which it contradicts")
    for option, name in VALUES.items():
        parser.add_argument(f"--{option}", metavar="VALUE", help=_help(name))
    for option, name in SWITCHES.items():
        parser.add_argument(f"--{option}", action=argparse.BooleanOptionalAction, help=_help(name))
    parser.add_argument("--pipeline-splits", nargs="+", metavar="LAYER", help=_help("PIPELINE_SPLITS"))
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where the network runs (default: cpu)")
    parser.add_argument(
        "--half-type", choices=HALF_TYPES, help="what 16 bits are on a GPU (default: float16); on CPUs bfloat16 alone"
    )
    parser.add_argument("--logs-root", type=Path, metavar="DIR", help="where logs-<case> goes (default: here)")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="run all that often, in turns, and tell the interval between the trials"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds until a run is ended as invalid")
    parser.add_argument("--dry-run", action="store_true", help="print the plans and stop")
    return parser


def read_request(words: Sequence[str], cpu_flags: frozenset[str], command: str = "run") -> Request:
    """Read a command line; raise UsageError for what contradicts itself or is not known.

    An option of the line is stronger than the same of its configuration.
    """
    parser = make_parser(command)
    options = vars(parser.parse_args(list(words)))
    if "config" in options:
        options = vars(parser.parse_args(read_config(options["config"]))) | options
    settings = {name: str(options[key]) for option, name in VALUES.items() if (key := _key(option)) in options}
    settings |= {name: str(options[key]) for option, name in SWITCHES.items() if (key := _key(option)) in options}
    if "engine" in options:
        settings["ENGINE"] = options["engine"]
    if "pipeline_splits" in options:
        settings["PIPELINE_SPLITS"] = " ".join(options["pipeline_splits"])
    if "data" in options:
        settings["DATA_TYPE"] = DATA[options["data"]]
    if "normalization_location" in options:
        settings["NORMALIZATION_LOCATION"] = LOCATIONS[options["normalization_location"]]
    if "numa_aware" in options:
        settings["NUMA_AWARE"] = str(options["numa_aware"] == "yes")
    if (launcher := options.get("launcher")) == "mpi":
        settings["MPI"] = "True"
    for option in ("num-mpi", "hostfile"):
        if launcher == "local" and _key(option) in options:
            raise UsageError(f"--launcher local with --{option} {options[_key(option)]}: give --launcher mpi")
    if (steps := options.get("iterations", "auto")) != "auto":
        for option in ("min-time", "max-time"):
            if seconds := options.get(_key(option)):
                raise UsageError(f"--{option} {seconds} with --iterations {steps}: leave one of the two out")
    if options.get("random_weights") and "weights" in options:
        raise UsageError(f"--random-weights with --weights {options['weights']}: leave one of the two out")
    mode, precision = options.get("mode", "throughput"), _choose_precision(options, cpu_flags)
    network, workload = _choose_network(options.get("model")), DIRECTORY
    case = TestCase(load_workload(workload).slug, mode, precision, topology=network)
    if settings.get("ENGINE") in engines_that_take("graph"):
        workload = _find_workload(settings.pop("ENGINE"), network)
        case = TestCase(load_workload(workload).slug, mode, precision)
    if not 1 <= (trials := options.get("trials", 1)) <= MOST_TRIALS:
        raise UsageError(f"--trials {trials}: must be 1 to {MOST_TRIALS}")
    sizes = read_sizes(options.get("batch_size", []))
    batches: list[dict[str, str]] = [{"BATCH_SIZE": str(size)} for size in sizes] or [{}]
    return Request(
        workload=workload,
        runs=tuple((case.name, settings | batch) for batch in batches),
        logs_root=options.get("logs_root", Path.cwd()),
        dry_run=options.get("dry_run", False),
        timeout_s=options.get("timeout"),
        trials=trials,
    )


def read_launch_line(words: Sequence[str], cpu_flags: frozenset[str]) -> Request:
    """Read `[OPTION...] -- run [OPTION...]`; what is said of instances in front is stronger than the line behind.

    `--num-replicas`: copies of the network over all processes, as poprun counts them. Raises UsageError where they
    cannot be shared out evenly, and without a line to launch.
    """
    parser = argparse.ArgumentParser(
        prog="cnnbench launch", usage="%(prog)s [OPTION...] -- run [OPTION...]", allow_abbrev=False
    )
    parser.add_argument("--num-instances", type=int, metavar="N", help="processes (default: as many as fit)")
    parser.add_argument("--num-replicas", type=int, metavar="N", help="copies of the network, over all processes")
    parser.add_argument("--numa-aware", choices=["yes", "no"], help="bind memory to NUMA nodes (default: yes)")
    parser.add_argument(
        "--minimum-latency",
        action="store_true",
        help="measure latency, in instances of 4 cores, at the cost of some throughput",
    )
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, help="start processes here by itself (default), or through MPI"
    )
    parser.add_argument("--num-mpi", metavar="N", help=_help("NUM_MPI"))
    parser.add_argument("--hostfile", metavar="FILE", help=_help("HOSTFILE"))
    at = words.index("--") if "--" in words else len(words)
    own = parser.parse_args(words[:at])
    if words[at + 1 : at + 2] != ["run"]:
        raise UsageError("launch: what is to be launched? give it after --, such as -- run --config resnet50")
    instances = 1 if own.num_instances is None else own.num_instances
    if instances < 1:
        raise UsageError(f"--num-instances {instances}: must be 1 or more")
    if own.num_replicas is not None and (own.num_replicas < 1 or own.num_replicas % instances):
        raise UsageError(f"--num-replicas {own.num_replicas}: must be a multiple of --num-instances {instances}")
    counted = own.num_instances is not None or own.num_replicas is not None
    more = ["--num-instances", str(instances)] if counted else []
    more += [] if own.num_replicas is None else ["--replicas", str(own.num_replicas // instances)]
    for option in ("numa-aware", "launcher", "num-mpi", "hostfile"):
        value = getattr(own, _key(option))
        more += [] if value is None else [f"--{option}", value]
    more += ["--minimum-latency"] if own.minimum_latency else []
    return read_request([*words[at + 2 :], *more], cpu_flags, "launch")


def read_config(name: str, path: Path = CONFIGS) -> list[str]:
    """Return a configuration's options as words of the command line; raise UsageError listing the known ones."""
    configs = yaml.safe_load(path.read_text(encoding="utf-8"))
    if name not in configs:
        raise UsageError(f"--config {name}: not in {path}; there are {', '.join(configs)}")
    words: list[str] = []
    for option, value in (configs[name] or {}).items():
        if isinstance(value, bool) and option in (*SWITCHES, "random-weights"):
            words += [f"--{option}"] if value else []
        elif isinstance(value, bool):  # yaml reads yes and no so
            words += [f"--{option}", "yes" if value else "no"]
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return words


def read_sizes(words: Sequence[str]) -> list[int]:
    """Return the batch sizes that words such as `1 8 16..64..16` name, in their order."""
    sizes: list[int] = []
    for word in words:
        found = RANGE.fullmatch(word)
        if found:
            first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
            if not 1 <= first <= last or step < 1:
                raise UsageError(f"--batch-size {word}: must go upwards from 1 or more, such as 1..80 or 1..80..8")
            sizes += range(first, last + 1, step)
        elif word.isdecimal() and int(word) >= 1:
            sizes.append(int(word))
        else:
            raise UsageError(f"--batch-size {word}: must be 1 or more, or a range such as 1..80")
    return sizes


def _help(name: str) -> str:
    """Return a parameter's description for argparse, which takes a percent sign for a placeholder."""
    return (FIELDS[name].description or "").replace("%", "%%")


def _key(option: str) -> str:
    return option.replace("-", "_")


def _choose_network(name: str | None) -> Any:
    network = (name or "").lower().replace("-", "_")
    if network not in ARCHITECTURES:
        found = f"--model {name}: no such network" if name else "which network? give --model or --config"
        raise UsageError(f"{found}; there are {', '.join(ARCHITECTURES)}")
    return network


def _find_workload(engine: str, network: str) -> Path:
    """Return the directory of the workload whose own engine this is; raise UsageError where it has another network."""
    found = {path.parent: load_workload(path.parent) for path in sorted(DIRECTORY.parent.glob("*/workload.yaml"))}
    own = {directory: workload.network for directory, workload in found.items() if workload.engine == engine}
    for directory, has in own.items():
        if has == network:
            return directory
    have = " and ".join(filter(None, own.values())) or "none of these networks"
    raise UsageError(f"--engine {engine} --model {network}: its workload has {have}")


def _choose_precision(options: Mapping[str, Any], cpu_flags: frozenset[str]) -> PrecisionName:
    """Return the precision that a width is on the device; without one, the narrowest that it and the engine have."""
    width, engine, half_type = options.get("precision"), options.get("engine", ""), options.get("half_type")
    if half_type and width in ("32.32", "8.8"):
        raise UsageError(f"--half-type {half_type} with --precision {width}: leave one of the two out")
    if options.get("device") == "cuda":
        if width == "8.8":
            raise UsageError("--precision 8.8 with --device cuda: networks run in int8 on CPUs only; leave one out")
        return "cuda_fp32" if width == "32.32" else HALF_TYPES[half_type or "float16"]
    if half_type == "float16":
        raise UsageError("--half-type float16: networks run in it on a GPU only; give --device cuda, or leave it out")
    if half_type:
        width = "16.16"
    names = WIDTHS[width] if width else (*WIDTHS["16.16"], *WIDTHS["32.32"])
    refused = engines()[engine].refused if engine in engines() and not width else {}
    able = [
        name
        for name in names
        if not missing_for_precision(PRECISIONS[name], cpu_flags) and name.partition("_")[2] not in refused
    ]
    return able[0] if able else names[-1]
