"""Draw how the 99th percentile of latency grows with the rate of requests, to a served network's capacity and beyond.

    script/setup.sh report
    .venv/bin/python benchmarks/capacity.py --networks mobilenet_v3_small resnet18 --bounds-ms 15 100 \
        [--engines onnxruntime openvino] [--shares 0.25 0.5 0.75 0.9 1 1.2] [--rounds 3] [--picture capacity.svg]

Of each network on each engine the capacity is found by a case of capacity, and then, in turns, requests come at shares
of it (cases of latency with REQUEST_RATE), each for as long as a 99th percentile needs. A core is the network's, and
one the client's, which hands images over in shared memory. A rate whose run is invalid, as it is when the server does
not keep up, has no percentile, and the reason stands below the table. What lies between the rounds is their range.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.report.text import align
from cnnbench.run.rates import trial_s
from cnnbench.tuning.turns import Contender, take_turns

WORKLOAD = REPOSITORY / "workload" / "CNN-Triton-Public"
KEY, CAPACITY = "Latency p99", "Capacity"


@dataclass
class Point:
    """A rate of requests to a network on an engine, as a share of its capacity."""

    network: str
    engine: str
    bound_ms: float
    share: float
    rate: float
    case: Contender

    @property
    def row(self) -> dict[str, object]:
        """Return what is drawn of it; None where it was not measured."""
        p99 = self.case.figures(KEY)
        return {
            "network": f"{self.network}, at most {self.bound_ms:g} ms",
            "engine": self.engine,
            "rate": self.rate,
            "p99": median(p99) if p99 else None,
            "low": min(p99, default=None),
            "high": max(p99, default=None),
            "bound": self.bound_ms,
        }


def find_points(network: str, engine: str, bound_ms: float, shares: list[float]) -> list[Point]:
    """Find the capacity, and return the rates to be measured; raise CnnbenchError where there is none."""
    same = {"ENGINE": engine, "INSTANCES": "1", "SHARED_MEMORY": "True"}  # which spares the client a millisecond
    settings = same | {"LATENCY_BOUND_MS": str(bound_ms), "MIN_TIME": "4", "MAX_TIME": "30"}
    name = f"{network}, {engine}"
    case = Contender.of_case(f"{name}, capacity", WORKLOAD, f"capacity_avx_fp32_{network}", settings)
    if not case.reason:
        take_turns([case], 1, CAPACITY, cache_root(os.environ))
    if case.reason:
        raise CnnbenchError(f"{case.name}: {case.reason}")
    (capacity,) = case.figures(CAPACITY)
    points = []
    for share in shares:
        rate = share * capacity
        times = dict.fromkeys(("MIN_TIME", "MAX_TIME"), str(trial_s(rate)))
        settings = same | {"REQUEST_RATE": f"{rate:.4g}"} | times
        measured = Contender.of_case(f"{name}, {rate:.4g}/s", WORKLOAD, f"latency_avx_fp32_{network}", settings)
        points.append(Point(network, engine, bound_ms, share, rate, measured))
    return points


def draw(points: list[Point], path: Path) -> None:
    """Draw the curves, a panel for each network."""
    try:
        import altair
    except ImportError as error:
        raise UsageError("--picture: needs Altair: run script/setup.sh report") from error

    values = [row for one in points if (row := one.row)["p99"] is not None]
    base = altair.Chart(altair.Data(values=values)).encode(
        x=altair.X("rate:Q", title="requests a second"), color=altair.Color("engine:N", title="engine")
    )
    p99 = altair.Y("p99:Q", title="99 % of latency within (ms)", scale=altair.Scale(type="log", nice=False))
    layers = (
        base.mark_line(point=True).encode(y=p99)
        + base.mark_rule().encode(y="low:Q", y2="high:Q")
        + base.mark_rule(strokeDash=[4, 3], color="gray").encode(x=altair.X(), y="bound:Q", color=altair.value("gray"))
    )
    panels = layers.properties(width=300, height=240).facet(column=altair.Column("network:N", title=None))
    panels.resolve_scale(x="independent", y="independent").save(path)


def main() -> int:
    """Measure, print the table and draw; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = load_workload(WORKLOAD).topologies
    parser.add_argument("--networks", nargs="+", choices=networks, default=["mobilenet_v3_small"], metavar="NAME")
    parser.add_argument("--bounds-ms", nargs="+", type=float, default=[15], help="one for each network")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75, 0.9, 1, 1.2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, metavar="FILE", help=".svg or .png")
    arguments = parser.parse_args()
    if len(arguments.bounds_ms) != len(arguments.networks):
        raise UsageError(f"--bounds-ms: {len(arguments.bounds_ms)} given, needed one for each of --networks")
    points = [
        point
        for network, bound_ms in zip(arguments.networks, arguments.bounds_ms, strict=True)
        for engine in arguments.engines
        for point in find_points(network, engine, bound_ms, arguments.shares)
    ]
    take_turns([one.case for one in points], arguments.rounds, KEY, cache_root(os.environ))
    rows, told = [], []
    for one in points:
        p99, row = one.case.figures(KEY), [one.network, one.engine, f"{one.share:.0%}", f"{one.rate:.1f}"]
        shown = f"{median(p99):.2f} [{min(p99):.2f}, {max(p99):.2f}]" if p99 else "NOT MEASURED"
        rows.append([*row, shown, one.case.verdict() if p99 else ""])
        told += [f"{one.case.name}: {one.case.reason}"] if one.case.reason else []
    header = ["network", "engine", "of capacity", "requests/s", "p99 (ms)", "rounds"]
    print("\n".join([align(header, rows), *told]))
    if arguments.picture:
        draw(points, arguments.picture)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
