"""Compare the engines on ResNet50, each as a case of the product, in turns, so that a drifting machine hits all alike.

    .venv/bin/python benchmarks/peers.py [--mode throughput] [--precision 32.32] [--engines tensorflow openvino ...]
        [--rounds 6] [--seconds 6] [--batch-size 8] [--set [ENGINE:]NAME=VALUE ...]

Every engine goes through the same planning, launcher, timed loop and proofs: what is compared is engines alone. Ratios
are taken within rounds, over the first engine. An engine that cannot be measured has its reason in place of figures;
exits with 1 where one failed that should have run.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.cases.case import check_name
from cnnbench.engines.registry import engines, engines_that_take
from cnnbench.harness.line import WIDTHS, read_request
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.text import align
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.tuning.turns import MIN_ROUNDS, Contender, interval_text, take_turns

NETWORK = "resnet50"
KEYS = {"throughput": "Throughput", "latency": "Latency p50"}
PROVEN = ("ISA share", "Data type share")


def read_settings(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read `NAME=VALUE` and `ENGINE:NAME=VALUE` into settings by engine, the empty one being all."""
    settings: dict[str, dict[str, str]] = {}
    for word in words:
        left, separator, value = word.partition("=")
        engine, _, name = left.rpartition(":")
        if not separator or (engine and engine not in engines()):
            raise UsageError(f"--set {word}: not understood; write NAME=VALUE or ENGINE:NAME=VALUE")
        check_name(name)
        settings.setdefault(engine, {})[name] = value
    return settings


def make_job(arguments: argparse.Namespace, engine: str, settings: Mapping[str, Mapping[str, str]]) -> Job:
    """Return an engine's case, measured for the seconds of a block."""
    line = ["--model", NETWORK, "--engine", engine, "--precision", arguments.precision, "--mode", arguments.mode]
    line += ["--batch-size", str(1 if arguments.mode == "latency" else arguments.batch_size)]
    line += ["--min-time", str(arguments.seconds), "--max-time", str(arguments.seconds)]
    request = read_request(line, read_cpuinfo().flags)
    ((case, asked),) = request.runs
    more = {**settings.get("", {}), **settings.get(engine, {})}
    return prepare_job(plan_case(request.workload, case, os.environ, asked | more), os.environ)


def table(rows: Sequence[Contender], key: str) -> str:
    """Return the rows as a table, those that were not measured with their reason below it."""
    base = next((row for row in rows if not row.reason), None)
    shown = []
    for row in rows:
        if row.reason or base is None:
            shown.append([row.name, "", "", "", "NOT MEASURED"])
            continue
        figures = row.figures(key)
        proven = next((kpi.value for kpi in row.runs[-1].kpis if kpi.key in PROVEN), None)
        shown.append(
            [
                row.name,
                interval_text(figures, 2),
                "1" if row is base else interval_text(row.ratios(base, key), 3),
                "" if proven is None else f"{proven:.1f}",
                row.verdict(),
            ]
        )
    over = f"over {base.name}" if base else "ratio"
    unit = "img/s" if key == KEYS["throughput"] else "ms"
    lines = [align(["engine", f"{key} ({unit})", over, "proven (%)", "rounds"], shown)]
    return "\n".join(lines + [f"{row.name}: {row.reason}" for row in rows if row.reason])


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*engines_that_take("graph"), *engines_that_take("network")]
    parser.add_argument("--mode", choices=KEYS, default="throughput")
    parser.add_argument("--precision", choices=WIDTHS, default="32.32")
    parser.add_argument("--engines", nargs="+", choices=names, default=names, metavar="ENGINE")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="six or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="length of a block (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of throughput (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="[ENGINE:]NAME=VALUE", help="more parameters")
    return parser


def main() -> int:
    """Compare; return the exit code."""
    arguments = make_parser().parse_args()
    if arguments.rounds < MIN_ROUNDS:
        raise UsageError(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    settings, key = read_settings(arguments.set), KEYS[arguments.mode]
    rows = [Contender(name) for name in dict.fromkeys(arguments.engines)]
    for row in rows:
        try:
            row.job = make_job(arguments, row.name, settings)
        except SkippedError as error:
            row.refuse(error)
    take_turns(rows, arguments.rounds, key, cache_root(os.environ))
    print(table(rows, key))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
