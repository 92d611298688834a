"""Measure what reading many results takes: seconds and memory of list-kpi, report and compare.

.venv/bin/python benchmarks/results.py [--runs 100 1000 10000] [--rounds 3] [--history] [--keep DIR]

The runs are made up: cases x batch sizes x machines x days, in folders of logs as the product leaves them, each
run.json about as large as real ones (8 KB). Each command is a process of its own: the time that passes, that of the
processor (which others on a shared machine change less), and the most memory that it had resident. `--history`: reads
them from the file that `cnnbench export --sqlite` makes of them too.
"""

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from cnnbench.base.checkout import REPOSITORY
from cnnbench.cases.workload import Sources, load_workload
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.report.text import align
from cnnbench.results.record import RUN_FILE, WORKER, Criterion, Kpi, RunResult
from cnnbench.run.job import setting_text

BEGIN = datetime(2026, 1, 1, 2, tzinfo=timezone.utc)
MACHINES = ("icx01", "spr01")
NETWORKS = ("mobilenet_v3_small", "resnet18", "resnet50")
BATCHES = (1, 8, 32)
REPEATED = 3
"""The runs of a case, with the same parameters, that follow each other on one day."""
WORKLOAD = "CNN-PyTorch-Public"
FACTS, MORE_KPIS = 30, 26
"""How many more of each there are, so that a result has the size of a real one."""


@dataclass(frozen=True)
class Made:
    """A run that is made up, and where its logs are."""

    folder: str
    run: RunResult


def make_runs(count: int, seed: int = 1) -> Iterator[Made]:
    """Yield so many runs in the order of time: day by day on each machine, each case with each batch size."""
    chance, made, day = np.random.default_rng(seed), 0, 0
    while True:
        for machine, network, batch, number in (
            (machine, network, batch, number)
            for machine in MACHINES
            for network in NETWORKS
            for batch in BATCHES
            for number in range(REPEATED)
        ):
            if made == count:
                return
            level = 1000 / (1 + NETWORKS.index(network)) * (0.8 if machine == "icx01" else 1.0)
            place = (NETWORKS.index(network) * len(BATCHES) + BATCHES.index(batch)) * REPEATED + number
            started = BEGIN + timedelta(days=day, minutes=place)
            value = level * (1 + 0.02 * chance.normal())
            case = f"test_cnn_pytorch_public_inference_throughput_avx_fp32_{network}"
            run = _make_run(case, network, machine, batch, value, started, made)
            yield Made(f"{machine}/day-{day:03}/logs-{case}/itr-{BATCHES.index(batch) * REPEATED + number + 1}", run)
            made += 1
        day += 1


def _make_run(
    case: str, network: str, machine: str, batch: int, value: float, started: datetime, number: int
) -> RunResult:
    """Return a result with as many parameters, facts, KPIs, criteria and notes as a real one."""
    requested = _parameters(case) | {"BATCH_SIZE": str(batch)}
    effective = {name: text for name, text in requested.items() if text} | {"INSTANCES": "2", "CORES_PER_INSTANCE": "1"}
    facts = {"host name": machine, "CPU": f"CPU of {machine}", "kernel": "6.1.0", "microcode": "0x2b000461"}
    facts |= {"load average before": f"{number % 100 / 50:.2f}", "model SHA-256": f"{len(network):064}"}
    facts |= {f"fact {one}": f"what is known of it, number {one}" for one in range(FACTS)}
    kpis = [Kpi(key="Throughput", unit="img/s", value=value, primary=True)]
    kpis += [
        Kpi(key=f"Throughput 95 % {end}", unit="img/s", value=value * factor)
        for end, factor in (("low", 0.99), ("high", 1.01))
    ]
    kpis += [
        Kpi(key=key, unit="ms", value=1e3 * batch / value)
        for key in ("Latency mean", "Latency p50", "Latency p90", "Latency p99")
    ]
    kpis += [Kpi(key=f"Other figure {one}", unit="%", value=one + number / 1e4) for one in range(MORE_KPIS - 6)]
    criteria = [
        Criterion(
            name=f"criterion {one}",
            passed=True,
            found=f"{one + number / 7:.3f} %",
            needed="at most 99 % of what there was at all",
        )
        for one in range(9)
    ]
    if number % 10 == 3:
        found = f"{10 + number % 50 / 10:.1f} %"
        criteria.append(Criterion(name="spread", passed=False, found=found, needed="at most 10 %", severity="unstable"))
    plan = Plan(tuple(InstancePlan(at, at, (at,), (at,), (0,), 0, caches=(at,)) for at in range(2)), 0)
    return RunResult(
        run_id=f"{started:%Y%m%dT%H%M%S}-{machine}-{number}", started=started.isoformat(), workload=WORKLOAD, case=case,
        requested=requested, effective=effective, facts=facts, plan=plan.to_dict(),
        instances=[{"index": at, "images_per_s": value / 2, "latency_mean_ms": 1e3 * batch / value} for at in range(2)],
        kpis=kpis, criteria=criteria,
        notes=["A note of the length that notes have: the parameter was not set, so its default took effect."] * 3,
    )  # fmt: skip


@functools.cache
def _parameters(case: str) -> dict[str, str]:
    """Return what a case is asked for when nothing is given."""
    workload = load_workload(REPOSITORY / "workload" / WORKLOAD)
    parameters = Sources.read(workload, {}).resolve(workload.parse_case(case), {})
    return {name: setting_text(getattr(parameters, name.lower())) for name in workload.parameters}


def write_runs(root: Path, runs: Iterator[Made]) -> int:
    """Write runs below a folder; return how many bytes their results have."""
    size = 0
    for one in runs:
        worker = root / one.folder / WORKER
        worker.mkdir(parents=True)
        size += (worker / RUN_FILE).write_bytes(one.run.model_dump_json().encode())
    return size


def measure(command: Sequence[str]) -> tuple[float, float, float]:
    """Run a command that finds runs; return the seconds that passed, its CPU time, and the most memory it had (MB)."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.monotonic() - begin
    if os.waitstatus_to_exitcode(status) not in (0, 4):  # 4: a comparison has found something
        sys.exit(f"{command}: failed with exit code {os.waitstatus_to_exitcode(status)}; it says why above")
    return taken, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def commands(root: Path, scratch: Path, history: Path | None) -> dict[str, list[str]]:
    """Return what is measured, by the names of the table's rows."""
    cnnbench, machines = [sys.executable, "-m", "cnnbench"], [str(root / name) for name in MACHINES]
    page = ["-o", str(scratch / "report.html")]
    found = {
        "list-kpi": [*cnnbench, "list-kpi", *machines],
        "report": [*cnnbench, "report", *page, *machines],
        "compare": [*cnnbench, "compare", *machines],
    }
    if history:
        found |= {
            "export --sqlite": [*cnnbench, "export", "--sqlite", str(scratch / "made.db"), *machines],
            "list-kpi, history": [*cnnbench, "list-kpi", str(history)],
            "report, history": [*cnnbench, "report", *page, str(history)],
            "compare, history": [*cnnbench, "compare", "--by", "machine", str(history)],
            "trend, history": [*cnnbench, "trend", str(history)],
        }
    return found


def show(name: str, found: Sequence[tuple[float, float, float]]) -> list[str]:
    """Return a row's cells: medians, and in brackets the least and the most."""
    cells = []
    for values, digits in zip(zip(*found, strict=True), (1, 1, 0), strict=True):
        median, low, high = (f"{one:.{digits}f}" for one in (statistics.median(values), min(values), max(values)))
        cells.append(f"{median} ({low} to {high})")
    return [name, *cells]


def main() -> None:
    """Make the runs, measure each command in turn, and print the medians with their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10_000], help="(default: 100 1000 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each (default: 3)")
    parser.add_argument("--history", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the runs in DIR, and leave them there")
    arguments = parser.parse_args()
    for count in arguments.runs:
        place = Path(tempfile.mkdtemp(prefix="cnnbench-results-"))
        root = arguments.keep / str(count) if arguments.keep else place / "runs"
        size = write_runs(root, make_runs(count))
        history = place / "history.db" if arguments.history else None
        if history:
            measure([sys.executable, "-m", "cnnbench", "export", "--sqlite", str(history), str(root)])
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(arguments.rounds):
            for name, command in commands(root, place, history).items():
                (place / "made.db").unlink(missing_ok=True)
                found.setdefault(name, []).append(measure(command))
        made = f"{count} runs, {size / 1e6:.1f} MB of {RUN_FILE}"
        made += f", history of {history.stat().st_size / 1e6:.1f} MB" if history else ""
        print(
            f"{made}\n\n{align(['command', 's', 'CPU s', 'MB'], [show(*one) for one in found.items()])}\n", flush=True
        )
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
