"""Compare two ways of running, A B A B in turn, so that a drifting machine hits both alike."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.results.record import RunResult
from cnnbench.results.stats import median_interval
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.run.measurement import Measurement
from cnnbench.tuning.turns import MIN_ROUNDS

WORKLOAD = Path(__file__).parents[1] / "workload" / "ResNet50-TensorFlow-Xeon-Public"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every comparison has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of runs, six or more (default: 10)")
    parser.add_argument("--precision", default="avx_fp32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cores-per-instance", type=int, default=1)
    return parser


def make_job(arguments: argparse.Namespace, **settings: str) -> Job:
    """Return a throughput case with dummy data and the parser's settings, and these on top."""
    case = f"test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_{arguments.precision}"
    parameters = {
        "BATCH_SIZE": str(arguments.batch_size),
        "STEPS": str(arguments.steps),
        "CORES_PER_INSTANCE": str(arguments.cores_per_instance),
    }
    return prepare_job(plan_case(WORKLOAD, case, os.environ, parameters | settings), os.environ)


def measure(job: Job, key: str = "Throughput") -> float:
    """Run a job and return one of its KPIs."""
    with tempfile.TemporaryDirectory() as logs:
        result = Measurement(job, stage_inputs(job, cache_root(os.environ)), Path(logs), hang_s=300).run()
    return kpi_of(result, key)


def kpi_of(result: RunResult, key: str = "Throughput") -> float:
    """Return one of a run's KPIs; an invalid run ends the comparison."""
    if result.verdict == "invalid":
        sys.exit(f"invalid run: {result.reason}")
    return next(kpi.value for kpi in result.kpis if kpi.key == key)


def compare(rounds: int, name_a: str, run_a: Callable[[], float], name_b: str, run_b: Callable[[], float]) -> float:
    """Run A and B in turn, print each pair and the median of A/B with its 95 % interval, and return that median."""
    if rounds < MIN_ROUNDS:
        sys.exit(f"--rounds {rounds}: six or more are needed for the interval of a median")
    ratios = []
    for number in range(1, rounds + 1):
        a, b = run_a(), run_b()
        ratios.append(a / b)
        print(f"{number:3d}  {name_a} {a:8.2f}  {name_b} {b:8.2f}  ratio {a / b:.4f}", flush=True)
    median, low, high = median_interval(ratios)
    print(f"{name_a} / {name_b}: median {median:.4f}, 95 % interval {low:.4f} to {high:.4f}, {rounds} pairs")
    return median
