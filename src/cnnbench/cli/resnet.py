"""`cnnbench test-resnet`: ResNet50 in a type of number, converted, its accuracy on a folder of images and its speed."""

import argparse
import os
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.disk import make_directory
from cnnbench.base.signals import end_by_exceptions
from cnnbench.cases.precisions import chosen_precision, missing_for_precision
from cnnbench.cases.workload import load_workload
from cnnbench.cli import convert
from cnnbench.cli.convert import WORKLOAD
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.text import WORDS, wrap
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S
from cnnbench.run.native import measure_job
from cnnbench.staging.folder import read_folder
from cnnbench.staging.networks import give_network

TYPES = ("fp32", "fp16", "fp8", "fp8_weight")
KEPT = "Conv_0,Gemm_126"
"""The first convolution and the last product stay in fp16, as the specification has it."""
SHAPE = "input=1,3,224,224"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, which are those of the specification."""
    parser.add_argument("--model_dir", type=Path, default=Path("model"), help="where resnet50.onnx is, or is made")
    parser.add_argument("--model_run_type", choices=TYPES, default="fp32", help="the type of number")
    parser.add_argument(
        "--half_partial", action="store_true", help="fp8, fp8_weight: compute in bfloat16, where this CPU can"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="images, with a val_official_clean.csv")
    parser.add_argument("--batch_size", type=int, default=1, help="of the speed that is measured")
    parser.add_argument("--logs-root", type=Path, default=Path(), help="where logs go")


def run(arguments: argparse.Namespace) -> int:
    """Make the model, convert it, measure both, and say what was found."""
    end_by_exceptions()
    cache, number_type = cache_root(os.environ), arguments.model_run_type
    speed_settings = {"BATCH_SIZE": str(arguments.batch_size)}
    _plan("throughput", number_type, speed_settings)  # which refuses what cannot be, before anything is made
    read_folder(arguments.data)
    source = arguments.model_dir / "resnet50.onnx"
    make_directory(arguments.model_dir, "give another --model_dir")
    if not source.is_file():
        job = _plan("accuracy", "fp32", {})
        network = stage_inputs(job, cache).model
        assert network is not None
        give_network(network, source, cache)
        print(f"{source}: made, {source.stat().st_size / 1e6:.1f} MB")
    file = source
    if number_type != "fp32":
        file = arguments.model_dir / f"resnet50_{number_type}.onnx"
        words = ["--input_model", source, "--output_model", file, "--input_shape", SHAPE, "--precision", number_type]
        words += ["--fp8_skip_op_names", KEPT] if number_type.startswith("fp8") else []
        parser = argparse.ArgumentParser()
        convert.add_options(parser)
        if code := convert.run(parser.parse_args([*map(str, words), "--force"])):
            return code
    settings = {"NETWORK_FILE": str(file.absolute()), **_arithmetic(number_type, half=arguments.half_partial)}
    accuracy = _plan("accuracy", number_type, settings | {"DATASET": str(arguments.data.absolute())})
    speed = _plan("throughput", number_type, settings | speed_settings)
    codes = []
    for job in (accuracy, speed):
        result, logs = measure_job(job, cache, arguments.logs_root.absolute(), DEFAULT_HANG_S, None)
        print("\n".join(wrap(line) for line in tell(result, logs)), flush=True)
        codes.append(result.exit_code)
    return max(codes)


def _plan(mode: str, number_type: str, settings: dict[str, str]) -> Job:
    case = f"test_{load_workload(WORKLOAD).slug}_inference_{mode}_{number_type}"
    return prepare_job(plan_case(WORKLOAD, case, os.environ, settings), os.environ)


def _arithmetic(number_type: str, *, half: bool) -> dict[str, str]:
    """Return what `--half_partial` sets, and say where it sets nothing."""
    if not half:
        return {}
    obstacles = [f"{number_type} is computed in float32"]
    if number_type.startswith("fp8"):
        obstacles = missing_for_precision(chosen_precision(number_type, "bfloat16"), read_cpuinfo().flags)
    if obstacles:
        print(f"--half_partial: has no effect: {obstacles[0]}")
    return {} if obstacles else {"FP8_ARITHMETIC": "bfloat16"}


def tell(result: RunResult, logs: Path) -> list[str]:
    """Return what a run found, in lines."""
    found = next((kpi for kpi in result.kpis if kpi.primary), None)
    emulated = [note for note in result.notes if " is emulated: " in note]
    value = (
        result.case
        if result.verdict == "invalid" or not found
        else f"{found.key}: {format_number(found.value)} {found.unit}"
    )
    lines = [f"{value}, {WORDS[result.verdict]}{' (emulated)' if emulated else ''}"]
    if result.verdict != "valid":
        lines.append(result.reason)
    answered = next((one.found for one in result.criteria if one.name == "coverage"), "")
    return [*lines, *([answered] if answered else []), f"logs: {logs}"]
