"""Compare a network behind Triton Server with the same engine called directly, at the same batches, in turns.

    .venv/bin/python benchmarks/serving.py [--network resnet50] [--engine onnxruntime] [--batches 1 8 16]
        [--ways grpc http shared_memory] [--rounds 6] [--seconds 6]

The engine has one core in both; the client another. A request is of one batch, so that the server puts none together,
and two are under way, so that one waits while the other is computed. The ratio is of throughput, within rounds, over
the engine itself; the stages are the server's own means of a request, and what is left of the latency the client saw:
serialising, the network, and the protocol.
"""

import argparse
import os
import sys

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.report.text import align
from cnnbench.results.stats import median_interval
from cnnbench.tuning.turns import MIN_ROUNDS, Contender, interval_text, take_turns

DIRECT, SERVED = REPOSITORY / "workload" / "CNN-PyTorch-Public", REPOSITORY / "workload" / "CNN-Triton-Public"
WAYS = {
    "grpc": {},
    "http": {"PROTOCOL": "http"},
    "shared_memory": {"SHARED_MEMORY": "True"},
}
KEY = "Throughput"
STAGES = ("Queue time", "Input time", "Compute time", "Output time")


def make_contender(way: str, batch: int, arguments: argparse.Namespace) -> Contender:
    """Return a case: of the engine itself, or of a way to the server."""
    served = way != "direct"
    settings = {
        "ENGINE": arguments.engine,
        "BATCH_SIZE": str(batch),
        "CORES_PER_INSTANCE": "1",
        "INSTANCES": "1",
        "MIN_TIME": str(arguments.seconds),
        "MAX_TIME": str(arguments.seconds),
    }
    if served:
        settings |= {"CONCURRENCY": "2", "DYNAMIC_BATCHING": "False"} | WAYS[way]
    workload, case = SERVED if served else DIRECT, f"throughput_fp32_{arguments.network}"
    return Contender.of_case(f"{way}, batches of {batch}", workload, case, settings)


def table_row(one: Contender, base: Contender) -> list[str]:
    """Return a line of the table."""
    if one.reason or base.reason:
        return [one.name, "", "", "", "", "", "", "NOT MEASURED"]
    stages = [median_interval(one.figures(stage))[0] if one.figures(stage) else 0.0 for stage in STAGES]
    latency = median_interval(one.figures("Latency mean"))[0]
    rest = [f"{latency - sum(stages):.2f}"] if any(stages) else [""]
    shown = [f"{value:.2f}" if any(stages) else "" for value in (stages[0], stages[1] + stages[3], stages[2])]
    ratio = "1" if one is base else interval_text(one.ratios(base, KEY), 3)
    return [one.name, f"{median_interval(one.figures(KEY))[0]:.2f}", ratio, *shown, *rest, one.verdict()]


def main() -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=load_workload(SERVED).topologies, default="resnet50", metavar="NAME")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="six or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="length of a block (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    header = ["way", "img/s", "over direct", "queue (ms)", "copies (ms)", "compute (ms)", "rest (ms)", "rounds"]
    rows, told = [], []
    for batch in arguments.batches:
        contenders = [make_contender(way, batch, arguments) for way in ("direct", *arguments.ways)]
        take_turns(contenders, arguments.rounds, KEY, cache_root(os.environ))
        rows += [table_row(one, contenders[0]) for one in contenders]
        told += [f"{one.name}: {one.reason}" for one in contenders if one.reason]
    print("\n".join([align(header, rows), *told]))
    return 1 if told else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
