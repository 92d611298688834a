"""`cnnbench run-exported`: measure what `cnnbench convert --export` wrote, run by run."""

import argparse
import os
from pathlib import Path

import numpy as np

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import UsageError
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.workload import load_workload
from cnnbench.cli.convert import WORKLOAD
from cnnbench.engines.exported import STEM, Exported
from cnnbench.report.text import WORDS, align, wrap
from cnnbench.run.job import plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S
from cnnbench.run.native import measure_job

HELD_AS = ("fp32", "fp16", "fp8", "fp8_weight")
"""What files are held in that can be measured; cases of these names compute in float32."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; the specification's names of them are accepted too."""
    parser.add_argument("file", nargs="?", type=Path, help="such as resnet50/executable.blob")
    parser.add_argument("--popef", type=Path, metavar="FILE", help="the same")
    parser.add_argument(
        "--batches-per-step", "--batches_per_step", type=int, default=100, metavar="N", help="batches of a run (100)"
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="how many runs (5)")
    parser.add_argument("--logs-root", type=Path, default=Path(), help="where logs go")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and tell the latency of each run."""
    end_by_exceptions()
    file = find_file(arguments)
    for option, value in (("--batches-per-step", arguments.batches_per_step), ("--runs", arguments.runs)):
        if not 1 <= value <= 10_000:
            raise UsageError(f"{option} {value}: must be 1 to 10000")
    exported = Exported.read(file)
    precision, arithmetic = find_precision(file, exported)
    batch_size = exported.asked.sizes[1]
    case = f"test_{load_workload(WORKLOAD).slug}_inference_latency_{precision}"
    settings = {
        "NETWORK_FILE": str(file.absolute()),
        "ENGINE": exported.engine,
        **arithmetic,
        "BATCH_SIZE": str(batch_size),
        "DEVICE_ITERATIONS": str(arguments.batches_per_step),
        "STEPS": str(arguments.runs),
        "WARMUP_STEPS": "1",
        "INSTANCES": "1",
        "CORES_PER_INSTANCE": "auto",
    }
    job = prepare_job(plan_case(WORKLOAD, case, os.environ, settings), os.environ)
    result, logs = measure_job(job, cache_root(os.environ), arguments.logs_root.absolute(), DEFAULT_HANG_S, None)
    path = logs / "instance-0" / "steps.npy"
    times = np.load(path) if path.is_file() else np.empty((0, 3), np.int64)
    latencies = (times[:, 2] - times[:, 1]) / 1e6 / arguments.batches_per_step
    rows = [[f"run#{number}", f"{latency:.3f}"] for number, latency in enumerate(latencies, start=1)]
    if rows and result.verdict != "invalid":
        print(align(["run", "latency (ms)"], rows))
        print(f"a run: {arguments.batches_per_step} batches of {batch_size}; latency: of a batch")
    emulated = any(" is emulated: " in note for note in result.notes)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {WORDS[result.verdict]}{' (emulated)' if emulated else ''}")
    if result.verdict != "valid":
        print(wrap(result.reason))
    print(f"logs: {logs}")
    return result.exit_code


def find_precision(file: Path, exported: Exported) -> tuple[str, dict[str, str]]:
    """Return the precision of the case that an export is measured by, and what else that takes."""
    held_as, number_type = exported.asked.held_as, exported.asked.number_type
    if held_as not in HELD_AS or number_type not in ("fp32", "bfloat16"):
        raise UsageError(
            f"{file}: is held in {held_as} and computed in {number_type}; measure it as the NETWORK_FILE of a case"
        )
    if number_type == "fp32":
        return held_as, {}
    return (held_as, {"FP8_ARITHMETIC": number_type}) if held_as.startswith("fp8") else (number_type, {})


def find_file(arguments: argparse.Namespace) -> Path:
    """Return the export that is meant; a popef of that directory is whatever was exported there."""
    given: Path | None = arguments.file or arguments.popef
    if given is None:
        raise UsageError("run-exported: which file? give one that `cnnbench convert --export DIR` has written")
    if given.suffix == ".popef" and not given.exists():
        there = [path for path in sorted(given.parent.glob(f"{STEM}.*")) if path.suffix != ".json"]
        if there:
            print(f"--popef {given}: is {there[0]} here")
            return there[0]
    return given
