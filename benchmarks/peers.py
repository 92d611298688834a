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
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from interleaved import MIN_ROUNDS, interval_text

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, SkippedError, UsageError
from cnnbench.cases.case import check_name
from cnnbench.engines.registry import engines, engines_that_take
from cnnbench.harness.line import WIDTHS, read_request
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.text import align
from cnnbench.results.record import RunResult
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S, Measurement

NETWORK = "resnet50"
KEYS = {"throughput": "Throughput", "latency": "Latency p50"}
PROVEN = ("ISA share", "Data type share")


@dataclass
class Row:
    """One engine: its case made ready, the run of each round, and why it was not measured, if so."""

    engine: str
    job: Job | None = None
    runs: list[RunResult] = field(default_factory=list)
    reason: str = ""
    failed: bool = False

    def refuse(self, error: CnnbenchError) -> None:
        """Leave the engine out from now on."""
        self.reason, self.failed, self.runs = str(error), not isinstance(error, SkippedError), []
        print(f"{self.engine}: NOT MEASURED: {self.reason}", file=sys.stderr, flush=True)

    def figures(self, key: str) -> list[float]:
        """Return a KPI of each round."""
        return [kpi.value for run in self.runs for kpi in run.kpis if kpi.key == key]


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


def measure(row: Row, number: int, key: str) -> None:
    """Run an engine's case once more; one that is invalid is left out from then on."""
    assert row.job is not None
    try:
        with tempfile.TemporaryDirectory() as logs:
            inputs = stage_inputs(row.job, cache_root(os.environ))
            run = Measurement(row.job, inputs, Path(logs), DEFAULT_HANG_S).run()
        if run.interrupted:
            raise KeyboardInterrupt
        if run.verdict == "invalid":
            raise InvalidMeasurementError(run.reason)
    except CnnbenchError as error:
        row.refuse(error)
        return
    row.runs.append(run)
    found = row.figures(key)
    if len(found) < len(row.runs):
        row.refuse(InvalidMeasurementError(f"a block has too few samples for {key}: raise --seconds"))
        return
    print(f"round {number}: {row.engine} {found[-1]:.2f}, {run.verdict}", file=sys.stderr, flush=True)


def table(rows: Sequence[Row], key: str) -> str:
    """Return the rows as a table, those that were not measured with their reason below it."""
    base = next((row for row in rows if not row.reason), None)
    shown = []
    for row in rows:
        if row.reason or base is None:
            shown.append([row.engine, "", "", "", "NOT MEASURED"])
            continue
        figures = row.figures(key)
        ratios = [one / first for one, first in zip(figures, base.figures(key), strict=True)]
        proven = next((kpi.value for kpi in row.runs[-1].kpis if kpi.key in PROVEN), None)
        unstable = sum(run.verdict == "unstable" for run in row.runs)
        shown.append(
            [
                row.engine,
                interval_text(figures, 2),
                "1" if row is base else interval_text(ratios, 3),
                "" if proven is None else f"{proven:.1f}",
                f"{unstable} of {len(figures)} unstable" if unstable else "valid",
            ]
        )
    over = f"over {base.engine}" if base else "ratio"
    unit = "img/s" if key == KEYS["throughput"] else "ms"
    lines = [align(["engine", f"{key} ({unit})", over, "proven (%)", "rounds"], shown)]
    return "\n".join(lines + [f"{row.engine}: {row.reason}" for row in rows if row.reason])


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
    rows = [Row(name) for name in dict.fromkeys(arguments.engines)]
    for row in rows:
        try:
            row.job = make_job(arguments, row.engine, settings)
        except SkippedError as error:
            row.refuse(error)
    for number in range(1, arguments.rounds + 1):
        for row in rows:
            if not row.reason:
                measure(row, number, key)
    print(table(rows, key))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
