"""`cnnbench benchmark-compiled`: ResNet-50 eager and compiled, at each batch size of the specification's table."""

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import UsageError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.precisions import PRECISIONS
from cnnbench.cases.workload import load_workload
from cnnbench.engines.registry import engines, find_engine, find_part
from cnnbench.machine.host import read_cpuinfo
from cnnbench.machine.topology import read_topology
from cnnbench.report.text import align
from cnnbench.results.stats import median_interval
from cnnbench.tuning.turns import MIN_ROUNDS, Contender, take_turns

WORKLOAD = REPOSITORY / "workload" / "ResNet50-Compiled-Public"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KEY, LATENCY = "Throughput", "Latency mean"
HEADER = ("batch", "engine", "precision", "latency (ms)", "QPS (img/s)", "over eager", "low", "high", "rounds")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    able = [name for name, engine in engines().items() if engine.exports_networks]
    parser.add_argument(
        "--batches", nargs="+", type=int, metavar="N", help="(1 2 4 ... 256, if --devices can share it)"
    )
    parser.add_argument(
        "--engines",
        nargs="*",
        default=able,
        metavar="ENGINE[:NAME=VALUE]",
        help=f"what is compared with PyTorch's eager mode, each with a setting of its own if need be (default: "
        f"{' '.join(able)}); none: that alone",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=load_workload(WORKLOAD).precisions,
        default=["fp32"],
        metavar="NAME",
        help="of what is compared; eager mode is in float32 (%(default)s)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="share each batch out to N instances at once, each on its share of the cores (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="of each, in turns (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="of each round (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table there too")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print the table; fail where one failed that should have run."""
    end_by_exceptions()
    if arguments.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    cores = len(read_topology().cores)
    if not 1 <= arguments.devices <= cores:
        raise UsageError(f"--devices {arguments.devices}: must be 1 to {cores}, the usable cores of this machine")
    batches = arguments.batches or [batch for batch in BATCHES if batch % arguments.devices == 0]
    if odd := [batch for batch in batches if batch % arguments.devices]:
        raise UsageError(f"--devices {arguments.devices}: they cannot share a batch of {odd[0]} evenly; leave it out")
    if arguments.devices > 1 and (on_gpu := [one for one in arguments.precisions if PRECISIONS[one].on_gpu]):
        raise UsageError(f"--devices {arguments.devices}: instances of {on_gpu[0]} all run on the first GPU")
    if arguments.output and not arguments.output.parent.is_dir():
        raise UsageError(f"--output {arguments.output}: there is no directory {arguments.output.parent}; make it")
    rows: list[list[str]] = []
    told: list[str] = []
    failed, eager = False, find_part("builds_networks").name
    chosen = [(eager, "fp32"), *((engine, one) for one in arguments.precisions for engine in arguments.engines)]
    planned = {batch: [_contender(*one, batch, arguments) for one in chosen] for batch in batches}
    for batch, contenders in planned.items():
        take_turns(contenders, arguments.rounds, KEY, cache_root(os.environ))
        for one, words in zip(contenders, chosen, strict=True):
            rows.append([str(batch), *words, *_figures(one, contenders[0])])
            told += [f"batches of {batch}, {one.name}: {one.reason}"] if one.reason else []
            failed = failed or one.failed
        if arguments.output:
            _write(arguments.output, rows)
    shared = "one instance on all of them" if arguments.devices == 1 else f"shared by {arguments.devices} instances"
    print(f"ResNet-50, {read_cpuinfo().model_name}, {cores} cores, {shared}")
    print("\n".join([align(HEADER, rows), *told]))
    return 1 if failed else 0


def _contender(engine: str, precision: str, batch: int, arguments: argparse.Namespace) -> Contender:
    """Return a case of an engine made ready; refused where this machine cannot run it."""
    shown = f"{engine} {precision}"
    engine, _, setting = engine.partition(":")
    name, separator, value = setting.partition("=")
    if setting and not separator:
        raise UsageError(f"--engines {engine}:{setting}: needed ENGINE or ENGINE:NAME=VALUE")
    settings = {
        **({name: value} if setting else {}),
        "ENGINE": engine,
        "AHEAD_OF_TIME": str(bool(find_engine(engine).exports_networks)),
        "BATCH_SIZE": str(batch // arguments.devices),
        "CORES_PER_INSTANCE": str(len(read_topology().cores) // arguments.devices) if arguments.devices > 1 else "auto",
        "INSTANCES": str(arguments.devices),
        "MIN_TIME": str(arguments.seconds),
        "MAX_TIME": str(arguments.seconds),
        "WARMUP_STEPS": "2",
    }
    return Contender.of_case(shown, WORKLOAD, f"throughput_{precision}", settings)


def _figures(one: Contender, eager: Contender) -> list[str]:
    """Return what a line of the table says: medians over the rounds, and of the ratio its 95 % interval."""
    if one.reason:
        return ["", "", "", "", "", "NOT MEASURED"]
    latency, _, _ = median_interval(one.figures(LATENCY))
    rate, _, _ = median_interval(one.figures(KEY))
    ratio = [""] * 3 if eager.reason else [f"{value:.2f}" for value in median_interval(one.ratios(eager, KEY))]
    return [f"{latency:.2f}", f"{rate:.2f}", *ratio, one.verdict()]


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
