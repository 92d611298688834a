"""Compare the product with the engines that a user would pick instead, on the same network, cores and precision.

    .venv/bin/python benchmarks/peers.py [--mode throughput] [--precisions avx_fp32 amx_int8] [--rounds 6] [--seconds 6]
        [--engines cnnbench openvino] [--config FILE] [--set [PRECISION:]NAME=VALUE ...] [--output table.md]

All engines stay loaded and take turns in rounds, one at a time, so that a drifting machine hits all alike; ratios are
taken within rounds. For `avx_*` the kernel refuses AMX to the peers. An engine's batch size is the fastest of a short
pre-pass (`--choices FILE` keeps what it found). Exits with 1 when an engine failed that should have run.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from interleaved import MIN_ROUNDS
from peer_engines import BATCH_SIZES, PEERS, PRODUCT, PeerEngine, fairness_notes, stage_network, stage_peer
from peer_process import Peer, trace_step
from peer_product import DEFAULTS, Product, product_job
from peer_table import Row, contention_text, notes, speed_up_table, table, verdict_notes
from peer_worker import PeerSpec
from pydantic import PositiveInt, TypeAdapter, ValidationError

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, SkippedError, UsageError
from cnnbench.cases.case import check_name
from cnnbench.cases.precisions import PRECISIONS, require
from cnnbench.launch.plan import PlanRequest, plan_instances
from cnnbench.machine.host import read_cpuinfo, read_host
from cnnbench.machine.topology import format_cpu_list, read_topology
from cnnbench.proof.precision import judge_trace
from cnnbench.proof.verdict import compare_outputs, judge_outputs
from cnnbench.run.job import Job
from cnnbench.staging.inputs import PreparedModel

DATA_TYPES = {
    "avx_fp32": "fp32",
    "avx_bfloat16": "bfloat16",
    "avx_int8": "int8",
    "amx_bfloat16": "bfloat16",
    "amx_bfloat32": "bfloat32",
    "amx_int8": "int8",
}
MOST_SECONDS = 3600
BASE = "avx_fp32"
"""The precision that the product's other precisions are compared with."""

Contender = Product | Peer


@dataclass(frozen=True)
class Comparison:
    """What holds for the whole run."""

    mode: str
    rounds: int
    seconds: float
    pre_pass_s: float
    engines: Sequence[str]
    settings: Mapping[str, Mapping[str, str]]
    config: Path | None
    choices: dict[str, int]
    model: PreparedModel
    exported: Path
    cache: Path
    scratch: Path

    def job(self, precision: str) -> Job:
        """Return the product's case, planned."""
        settings = {**self.settings.get("", {}), **self.settings.get(precision, {})}
        return product_job(self.mode, precision, settings, self.config, self.seconds)

    def product(self, precision: str) -> Product:
        """Return the product's case with what it reads."""
        return Product(self.job(precision))

    def specs(self, engine: PeerEngine, precision: str, batch_size: int, cpus: Sequence[int]) -> list[PeerSpec]:
        """Return what the processes of an engine are told."""
        artefacts = stage_peer(engine, self.exported, self.cache)
        shares = [[cpu] for cpu in cpus] if engine.per_core and self.mode == "throughput" else [list(cpus)]
        return [
            PeerSpec(
                module=engine.module,
                artefacts=str(artefacts),
                data_type=DATA_TYPES[precision],
                amx=precision.startswith("amx_"),
                mode=self.mode,
                batch_size=batch_size,
                cpus=share,
                check_images=str(self.model.check_images),
                outputs=str(self.scratch / f"{engine.module}-{precision}-{batch_size}-{number}.npy"),
            )
            for number, share in enumerate(shares)
        ]


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def start_peer(run: Comparison, name: str, precision: str, batch_size: int, cpus: Sequence[int]) -> Peer:
    """Return an engine's processes, loaded, their answers checked against the fp32 reference."""
    engine = PEERS[name]
    specs = run.specs(engine, precision, batch_size, cpus)
    directory = Path(tempfile.mkdtemp(dir=run.scratch))
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(engine.python(run.cache), specs, directory / "processes"))
        checked = judge_outputs(PRECISIONS[precision], compare_outputs(peer.outputs, run.model.reference))
        if not checked.passed:
            raise InvalidMeasurementError(f"its answers: {checked.found}, needed {checked.needed}")
        stack.pop_all()  # they live on, for the caller to end
    return peer


def choose_batch_size(run: Comparison, name: str, precision: str, cpus: Sequence[int]) -> int:
    """Return the batch size with the most images/s in a short block of each, or the one that was chosen before."""
    key = f"{name} {precision}"
    if run.mode == "latency":
        return 1
    if key not in run.choices:
        rates = {}
        for batch_size in BATCH_SIZES:
            with start_peer(run, name, precision, batch_size, cpus) as peer:
                block = Row(precision, name, batch_size=batch_size, blocks=[peer.block(run.pre_pass_s)])
            rates[batch_size] = block.figures(run.mode)[0]
        run.choices[key] = max(rates, key=lambda size: rates[size])
        found = ", ".join(f"batch {size}: {rate:.2f}" for size, rate in rates.items())
        say(f"{precision} {name}: pre-pass images/s at {found}; batch {run.choices[key]} chosen")
    return run.choices[key]


def describe_peer(run: Comparison, name: str, precision: str, peer: Peer, cpus: Sequence[int]) -> str:
    """Say what an engine executes: its own account, or oneDNN's trace of one step."""
    amx = "the process asked for AMX and got it" if peer.amx_permitted else "the process has no AMX"
    found, share = peer.executed, ""
    if not found:
        spec = run.specs(PEERS[name], precision, peer.batch_size, cpus)[0]
        directory = Path(tempfile.mkdtemp(dir=run.scratch)) / "trace"
        step = trace_step(PEERS[name].python(run.cache), spec, directory)
        proof = judge_trace(PRECISIONS[precision], step, run.model.macs_per_image * peer.batch_size)
        found, share = proof.implementations, f"; {proof.share:.1%} of the multiply-accumulates as {precision}"
    names = ", ".join(f"{implementation} {part:.0%}" for implementation, part in found.items())
    return f"{names or 'no trace'}{share}; {amx}"


@contextmanager
def reported(row: Row) -> Iterator[None]:
    """Turn what keeps one engine from being measured into the reason that its row prints."""
    try:
        yield
    except (CnnbenchError, OSError) as error:
        row.reason, row.failed = str(error).replace("\n", " "), not isinstance(error, SkippedError)
        say(f"{row.precision} {row.engine}: NOT MEASURED: {row.reason}")


def start(run: Comparison, row: Row, cpus: Sequence[int], stack: ExitStack) -> Contender:
    """Return an engine ready to measure, and write into its row what it is."""
    if row.engine == PRODUCT:
        product = run.product(row.precision)
        row.instances, row.batch_size = product.instances, product.batch_size
        return product
    refusal = PEERS[row.engine].refused.get(DATA_TYPES[row.precision])
    if refusal:
        raise SkippedError(refusal)
    batch_size = choose_batch_size(run, row.engine, row.precision, cpus)
    peer = stack.enter_context(start_peer(run, row.engine, row.precision, batch_size, cpus))
    row.versions, row.instances, row.batch_size = peer.versions, peer.instances, batch_size
    row.ran = describe_peer(run, row.engine, row.precision, peer, cpus)
    return peer


def measured_cpus(run: Comparison, precision: str) -> list[int]:
    """Return the cores of the product's plan; where it cannot run the precision, those that it would plan."""
    try:
        return list(run.job(precision).plan.cpus)
    except SkippedError:
        cores, instances = (1, None) if run.mode == "throughput" else (None, 1)
        plan = plan_instances(read_topology(), PlanRequest(run.mode, cores, instances))
        return sorted(cpu for instance in plan.instances for cpu in instance.cpus)


def take_rounds(run: Comparison, rows: Sequence[Row], contenders: Mapping[int, Contender]) -> None:
    """Measure the contenders in turn, in each round one block of each; one that fails is left out from then on."""
    for number in range(1, run.rounds + 1):
        for index, contender in contenders.items():
            row = rows[index]
            if row.reason:
                continue
            with reported(row):
                row.blocks.append(contender.block(run.seconds))
                if isinstance(contender, Product):
                    row.versions, row.ran = contender.versions, contender.ran
                if complaint := row.blocks[-1].complaint:
                    say(f"round {number}: {row.precision} {row.engine}: {complaint}")
                unit = "ms" if run.mode == "latency" else "img/s"
                say(f"round {number}: {row.precision} {row.engine} {row.figures(run.mode)[-1]:.2f} {unit}")


def compare_precision(run: Comparison, precision: str) -> list[Row]:
    """Return the rows of one precision."""
    rows = [Row(precision, name) for name in run.engines]
    try:
        require(PRECISIONS[precision], read_cpuinfo().flags)
    except SkippedError as error:
        return [replace(row, reason=str(error)) for row in rows]
    cpus = measured_cpus(run, precision)
    with ExitStack() as stack:
        contenders: dict[int, Contender] = {}
        for index, row in enumerate(rows):
            with reported(row):
                contenders[index] = start(run, row, cpus, stack)
        take_rounds(run, rows, contenders)
    return rows


def compare_precisions(run: Comparison, precisions: Sequence[str]) -> list[Row]:
    """Return the product's rows of all precisions, measured in rounds of their own, so that they can be paired."""
    rows = [Row(precision, PRODUCT) for precision in precisions]
    contenders: dict[int, Contender] = {}
    for index, row in enumerate(rows):
        with reported(row):
            contenders[index] = run.product(row.precision)
            row.instances, row.batch_size = contenders[index].instances, contenders[index].batch_size
    take_rounds(run, rows, contenders)
    return rows


def read_settings(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read `NAME=VALUE` and `PRECISION:NAME=VALUE` into settings by precision, the empty one being all."""
    settings: dict[str, dict[str, str]] = {}
    for word in words:
        left, separator, value = word.partition("=")
        precision, _, name = left.rpartition(":")
        if not separator or (precision and precision not in DATA_TYPES):
            raise UsageError(f"--set {word}: not understood; write NAME=VALUE or {BASE}:NAME=VALUE")
        check_name(name)
        settings.setdefault(precision, {})[name] = value
    return settings


def read_choices(path: Path | None) -> dict[str, int]:
    """Return the batch sizes that an earlier run has left; none where there is no such file yet."""
    if path is None or not path.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, PositiveInt]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(
            f"--choices {path}: {error.errors()[0]['msg']}; needed is what an earlier run wrote"
        ) from error


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what would else be found out only after hours."""
    if arguments.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    for name, seconds in (("--seconds", arguments.seconds), ("--pre-pass-seconds", arguments.pre_pass_seconds)):
        if not 0 < seconds <= MOST_SECONDS:
            raise UsageError(f"{name} {seconds:g}: must be above 0, and {MOST_SECONDS} at most")
    for name, path in (("--choices", arguments.choices), ("--output", arguments.output)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{name} {path}: there is no directory {path.parent}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines = (PRODUCT, *PEERS)
    parser.add_argument("--mode", choices=("throughput", "latency"), default="throughput")
    parser.add_argument("--precisions", nargs="+", choices=DATA_TYPES, default=list(DATA_TYPES), metavar="PRECISION")
    parser.add_argument("--engines", nargs="+", choices=engines, default=list(engines), metavar="ENGINE")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="six or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="length of a block (default: %(default)s)")
    parser.add_argument(
        "--pre-pass-seconds", type=float, default=2, help="length of the pre-pass's (default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="the product's settings, PRECISION:NAME=VALUE for one (default: "
        f"{' '.join(f'{name}={value}' for name, value in DEFAULTS['throughput'].items())} for throughput, "
        f"{' '.join(f'{name}={value}' for name, value in DEFAULTS['latency'].items())} for latency); the environment's "
        "are not used, and input and length are as for all engines",
    )
    parser.add_argument("--config", type=Path, help="the product's settings file (bkm), weaker than --set")
    parser.add_argument("--choices", type=Path, help="JSON file with the peers' batch sizes, read and added to")
    parser.add_argument("--output", type=Path, help="Markdown file to write, beside printing")
    return parser


def header(arguments: argparse.Namespace) -> list[str]:
    """Say when, where and how this was measured."""
    command = " ".join(["benchmarks/peers.py", *(shlex.quote(word) for word in sys.argv[1:])])
    return [
        f"{time.strftime('%Y-%m-%d')}, {read_host().cpu_model}, CPUs {format_cpu_list(os.sched_getaffinity(0))}: "
        f"`{command}`",
        "",
        f"{arguments.mode.capitalize()}: medians of {arguments.rounds} interleaved rounds of {arguments.seconds:g} s "
        "blocks, with 95 % intervals; ratios are paired within rounds. For `avx_*` no peer can use AMX.",
        "",
    ]


def write_report(arguments: argparse.Namespace, rows: Sequence[Row], speed_ups: Sequence[Row]) -> None:
    """Print the tables, and write them to `--output`."""
    lines = [*header(arguments), *table(rows, arguments.mode), ""]
    if speed_ups:
        lines += [*speed_up_table(speed_ups, arguments.mode, BASE), "", *verdict_notes(speed_ups), ""]
    lines += [*notes(rows), "", contention_text([*rows, *speed_ups]), "", *fairness_notes(arguments.mode)]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Compare; return the exit code."""
    arguments = make_parser().parse_args()
    check_arguments(arguments)
    settings, choices = read_settings(arguments.set), read_choices(arguments.choices)
    cache = cache_root(os.environ)
    model, exported = stage_network(cache)
    engines = [PRODUCT, *(name for name in arguments.engines if name != PRODUCT)]
    with tempfile.TemporaryDirectory() as scratch:
        run = Comparison(
            mode=arguments.mode,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            pre_pass_s=arguments.pre_pass_seconds,
            engines=engines,
            settings=settings,
            config=arguments.config,
            choices=choices,
            model=model,
            exported=exported,
            cache=cache,
            scratch=Path(scratch),
        )
        for precision in arguments.precisions:
            measured_cpus(run, precision)  # a setting that is none ends it here, and not hours later
        rows: list[Row] = []
        for precision in arguments.precisions:
            rows += compare_precision(run, precision)
            say("\n".join(table(rows, run.mode)))  # a long run that is broken off has not been in vain
            if arguments.choices:
                arguments.choices.write_text(json.dumps(run.choices, indent=1))
        several = BASE in arguments.precisions and len(arguments.precisions) > 1
        speed_ups = compare_precisions(run, arguments.precisions) if several else []
    write_report(arguments, rows, speed_ups)
    return 1 if any(row.failed for row in [*rows, *speed_ups]) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
