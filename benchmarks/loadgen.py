"""Compare what MLPerf's LoadGen says of an engine with what our own cases say of it, in turns.

    .venv/bin/python benchmarks/loadgen.py [--network mobilenet_v3_small] [--engines onnxruntime openvino]
        [--batch 8] [--rounds 6] [--seconds 6]

Offline's samples a second over the images a second of a case of throughput, and the 90th percentile of SingleStream
over that of a case of latency, each of one instance on one core. The ratio is within rounds, with the 95 % interval of
its median.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.report.text import align
from cnnbench.results.stats import median_interval
from cnnbench.tuning.turns import MIN_ROUNDS, Contender, interval_text, take_turns

WORKLOAD = REPOSITORY / "workload" / "CNN-PyTorch-Public"
PAIRS = {
    "throughput": ("Offline", "Throughput", "LoadGen samples"),
    "latency": ("SingleStream", "Latency p90", "LoadGen p90"),
}
"""Of each mode LoadGen's scenario, our figure and LoadGen's."""


def main() -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = load_workload(WORKLOAD).topologies
    parser.add_argument("--network", choices=networks, default="mobilenet_v3_small", metavar="NAME")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--batch", type=int, default=8, help="of throughput (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="six or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="length of a block (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    rows, told = [], []
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "user.conf"
        config.write_text(f"*.*.min_duration = {1000 * arguments.seconds:g}\n*.*.min_query_count = 1\n")
        for engine in arguments.engines:
            for mode, (scenario, key, theirs) in PAIRS.items():
                settings = {"ENGINE": engine, "INSTANCES": "1", "CORES_PER_INSTANCE": "1"}
                settings |= dict.fromkeys(("MIN_TIME", "MAX_TIME"), str(arguments.seconds))
                settings |= {"BATCH_SIZE": str(arguments.batch)} if mode == "throughput" else {}
                case = f"{mode}_fp32_{arguments.network}"
                ours = Contender.of_case(f"{engine}, {mode}", WORKLOAD, case, settings)
                settings |= {"SCENARIO": scenario, "USER_CONF": str(config)}
                loadgen = Contender.of_case(f"{engine}, {scenario}", WORKLOAD, case, settings)
                take_turns([ours, loadgen], arguments.rounds, key, cache_root(os.environ))
                told += [f"{one.name}: {one.reason}" for one in (ours, loadgen) if one.reason]
                if ours.reason or loadgen.reason:
                    continue
                found = ours.figures(key), loadgen.figures(theirs)
                ratios = [other / one for one, other in zip(*found, strict=True)]
                figures = [f"{median_interval(values)[0]:.3f}" for values in found]
                rows.append([engine, scenario, key, *figures, interval_text(ratios, 3), loadgen.verdict()])
    header = ["engine", "scenario", "figure", "ours", "LoadGen's", "LoadGen's over ours", "rounds"]
    print("\n".join([align(header, rows), *told]))
    return 1 if told else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
