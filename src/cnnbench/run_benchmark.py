"""Read the command line of the reference harness: networks, their options, and how many copies run.

`cnnbench run` and `cnnbench launch` are this, and so is `python -m cnnbench.run_benchmark`. Nothing is measured here: a
line becomes cases of workload/CNN-PyTorch-Public with their parameters, which run as all cases do. Every option has the
reference's name and, where it was made for another kind of device, its meaning on this one; the workload's README says
which.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cnnbench.case import TestCase
from cnnbench.errors import UsageError
from cnnbench.isa import PRECISIONS, missing_for_precision
from cnnbench.models.networks import ARCHITECTURES
from cnnbench.parameters import FIELDS, PrecisionName

DIRECTORY = Path(__file__).parents[2] / "workload" / "CNN-PyTorch-Public"
CONFIGS = DIRECTORY / "configs.yml"
SLUG = "cnn_pytorch_public"

WIDTHS: dict[str, tuple[PrecisionName, ...]] = {"32.32": ("avx_fp32",), "16.16": ("amx_bfloat16", "avx_bfloat16")}
"""What a precision of the reference is here: the first that the CPU has, or else the last, which then says why not."""
DATA = {"synthetic": "dummy", "generated": "generated", "real": "real"}
LOCATIONS = {"host": "host", "device": "device", "ipu": "device", "none": "none"}

VALUES = {
    "micro-batch-size": "MICRO_BATCH_SIZE",
    "device-iterations": "DEVICE_ITERATIONS",
    "iterations": "STEPS",
    "engine": "ENGINE",
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
}
"""The options that are a parameter of the cases under another name or the same, with any value that it takes."""
SWITCHES = {
    "enable-fast-groupnorm": "ENABLE_FAST_GROUPNORM",
    "eight-bit-io": "EIGHT_BIT_IO",
    "half-partial": "HALF_PARTIAL",
}
"""The options without a value that are a parameter of the cases."""
RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True)
class Request:
    """One line: its runs as case names with their settings, in order, and where their logs go."""

    runs: tuple[tuple[str, dict[str, str]], ...]
    logs_root: Path
    dry_run: bool
    timeout_s: float | None


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
        "--precision", choices=WIDTHS, help="32.32: float32; 16.16: bfloat16 (default: 16.16 where the CPU has it)"
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
    parser.add_argument("--numa-aware", choices=["yes", "no"], help="bind instances' memory to their NUMA node")
    parser.add_argument("--random-weights", action="store_true", help="as without --weights, which it contradicts")
    for option, name in VALUES.items():
        parser.add_argument(f"--{option}", metavar="VALUE", help=FIELDS[name].description)
    for option, name in SWITCHES.items():
        parser.add_argument(f"--{option}", action="store_true", help=FIELDS[name].description)
    parser.add_argument("--device", choices=["cpu"], help="cuda is not built yet")
    parser.add_argument("--logs-root", type=Path, metavar="DIR", help="where logs-<case> goes (default: here)")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds until a run is ended as invalid")
    parser.add_argument("--dry-run", action="store_true", help="print the plans and stop")
    return parser


def read_request(words: Sequence[str], cpu_flags: frozenset[str], command: str = "run") -> Request:
    """Read a command line; raise UsageError for what contradicts itself or is not known.

    An option of the line is stronger than the same of its configuration.
    """
    given = vars(make_parser(command).parse_args(list(words)))
    options = (read_config(given["config"]) if "config" in given else {}) | given
    settings = {name: str(options[key]) for option, name in VALUES.items() if (key := _key(option)) in options}
    settings |= {name: "True" for option, name in SWITCHES.items() if options.get(_key(option))}
    if "data" in options:
        settings["DATA_TYPE"] = _choose("--data", options["data"], DATA)
    if "normalization_location" in options:
        location = _choose("--normalization-location", options["normalization_location"], LOCATIONS)
        settings["NORMALIZATION_LOCATION"] = location
    if "numa_aware" in options:
        settings["NUMA_AWARE"] = str(options["numa_aware"] == "yes")
    if options.get("random_weights") and "weights" in options:
        raise UsageError(f"--random-weights with --weights {options['weights']}: leave one of the two out")
    case = TestCase(
        SLUG,
        options.get("mode", "throughput"),
        _choose_precision(options.get("precision"), cpu_flags),
        topology=_choose_network(options.get("model")),
    )
    sizes = read_sizes([str(word) for word in _as_list(options.get("batch_size", []))])
    batches: list[dict[str, str]] = [{"BATCH_SIZE": str(size)} for size in sizes] or [{}]
    return Request(
        runs=tuple((case.name, settings | batch) for batch in batches),
        logs_root=options.get("logs_root", Path.cwd()),
        dry_run=options.get("dry_run", False),
        timeout_s=options.get("timeout"),
    )


def read_launch(
    words: Sequence[str],
    cpu_flags: frozenset[str],
    num_instances: int | None,
    num_replicas: int | None,
    numa_aware: str | None,
) -> Request:
    """Read what `launch` is to start; what it says itself about instances is stronger than the line that it starts.

    `num_replicas`: copies of the network over all processes, as poprun counts them. Raises UsageError where they cannot
    be shared out evenly.
    """
    instances = num_instances or 1
    if num_instances is not None and num_instances < 1:
        raise UsageError(f"--num-instances {num_instances}: must be 1 or more")
    if num_replicas is not None and (num_replicas < 1 or num_replicas % instances):
        raise UsageError(f"--num-replicas {num_replicas}: must be a multiple of --num-instances {instances}")
    more = [] if num_instances is None else ["--num-instances", str(num_instances)]
    more += [] if num_replicas is None else ["--replicas", str(num_replicas // instances)]
    more += [] if numa_aware is None else ["--numa-aware", numa_aware]
    return read_request([*words, *more], cpu_flags, "launch")


def read_config(name: str, path: Path = CONFIGS) -> dict[str, Any]:
    """Return a configuration's options by argparse's names; raise UsageError listing the known configurations."""
    configs = yaml.safe_load(path.read_text(encoding="utf-8"))
    if name not in configs:
        raise UsageError(f"--config {name}: not in {path}; there are {', '.join(configs)}")
    options = {_key(option): value for option, value in configs[name].items()}
    known = {action.dest for action in make_parser()._actions} - {"config", "help"}
    if unknown := options.keys() - known:
        raise UsageError(f"{path}, {name}: no such options: {', '.join(sorted(unknown))}")
    return options


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


def _key(option: str) -> str:
    return option.replace("-", "_")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _choose(option: str, value: object, known: dict[str, str]) -> str:
    if str(value) not in known:  # argparse has seen those of the line, but not those of a configuration
        raise UsageError(f"{option} {value}: must be one of {', '.join(known)}")
    return known[str(value)]


def _choose_network(name: str | None) -> Any:
    network = (name or "").lower().replace("-", "_")
    if network not in ARCHITECTURES:
        found = f"--model {name}: no such network" if name else "which network? give --model or --config"
        raise UsageError(f"{found}; there are {', '.join(ARCHITECTURES)}")
    return network


def _choose_precision(width: str | None, cpu_flags: frozenset[str]) -> PrecisionName:
    """Return the precision that a width is on this CPU; without one, the narrowest that it has."""
    if width is not None and width not in WIDTHS:
        raise UsageError(f"--precision {width}: must be one of {', '.join(WIDTHS)}")
    names = WIDTHS[width] if width else (*WIDTHS["16.16"], *WIDTHS["32.32"])
    able = [name for name in names if not missing_for_precision(PRECISIONS[name], cpu_flags)]
    return able[0] if able else names[-1]


if __name__ == "__main__":
    from cnnbench.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
