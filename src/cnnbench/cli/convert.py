"""`cnnbench convert`: a network, an ONNX file, in smaller numbers."""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.engines.conversion import PATTERNS, Conversion, Metric, NumberType, WeightRounding, parse_fp8_params
from cnnbench.engines.exported import Asked
from cnnbench.engines.registry import engines, find_engine, find_part
from cnnbench.report.layers import show_layer_errors
from cnnbench.report.text import wrap
from cnnbench.staging.inputs import call_steps, stage_procedural
from cnnbench.staging.networks import export_network

WORKLOAD = REPOSITORY / "workload" / "ResNet50-FP8-Public"
"""Of which converted networks are cases."""
CALIBRATION_IMAGES = 100
SUFFIXES = (".jpg", ".jpeg")
PROCEDURAL = "procedural"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, which are those of the specification under their own names."""
    parser.add_argument("--input_model", required=True, type=Path, metavar="FILE", help="the network, in ONNX")
    parser.add_argument("--output_model", required=True, type=Path, metavar="FILE", help="what to write, in ONNX")
    parser.add_argument(
        "--input_shape",
        action="append",
        default=[],
        metavar="NAME=N,C,H,W",
        help="the shape of the images, where the graph leaves it open",
    )
    parser.add_argument(
        "--precision",
        required=True,
        choices=get_args(NumberType),
        help="fp8: weights and what they are multiplied by; fp8_weight: weights alone; fp16, bf16: weights",
    )
    parser.add_argument(
        "--fp8_skip_op_names", default="", metavar="NAMES", help="operations kept in fp16, such as Conv_5,Gemm_126"
    )
    parser.add_argument(
        "--fp8_params",
        default="F143,F143,auto,auto",
        metavar="A,W,SA,SW",
        help="formats of activations and weights, F143 (E4M3) or F152 (E5M2), and the exponents of their scales; auto "
        "(the default) finds those that lose least",
    )
    parser.add_argument(
        "--num_of_layers_keep_fp16", type=int, default=0, metavar="K", help="keep the K most sensitive layers in fp16"
    )
    parser.add_argument(
        "--calibration",
        default=PROCEDURAL,
        metavar="DIR",
        help=f"JPEG images to find scales and sensitive layers with; {PROCEDURAL} (the default): the drawn ones",
    )
    parser.add_argument(
        "--metric", choices=get_args(Metric), default="mse", help="what scales that are auto lose least of"
    )
    parser.add_argument(
        "--weight_rounding",
        choices=get_args(WeightRounding),
        default="nearest",
        help="compensated: the weights of an output make up for each other's rounding, over the calibration images",
    )
    parser.add_argument(
        "--precision_compare", action="store_true", help="print how far each layer's answers move, and draw it"
    )
    parser.add_argument(
        "--convert_version", type=int, metavar="N", help="the opset to write; at least 19 where there are fp8 numbers"
    )
    parser.add_argument(
        "--compiler_options",
        action="append",
        default=[],
        metavar="custom_patterns=NAME",
        help=f"rewrite the graph by a pattern; there is {', '.join(PATTERNS)}",
    )
    exporting = [name for name, engine in engines().items() if engine.exports_networks and engine.reads_onnx]
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write also what an engine loads without converting it again"
    )
    usual = load_workload(WORKLOAD).engine
    parser.add_argument("--engine", choices=exporting, default=usual, help="for which engine (%(default)s)")
    parser.add_argument(
        "--export_popef", action="store_true", help="the same, into a directory named as the input is, such as resnet50"
    )
    parser.add_argument("--ipu_version", metavar="NAME", help="accepted, and of no meaning here")
    parser.add_argument("--force", action="store_true", help="replace an output that is there")


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was made."""
    conversion = read_conversion(arguments)
    if arguments.convert_version and arguments.convert_version < 21 and arguments.precision.startswith("fp8"):
        print(
            f"--convert_version {arguments.convert_version}: fp8 numbers without zero points need opset 21, as written"
        )
    cache, output = cache_root(os.environ), arguments.output_model
    with tempfile.TemporaryDirectory() as scratch:
        facts_path = Path(scratch) / "facts.json"
        request = {
            "conversion": conversion.model_dump(),
            "input": str(arguments.input_model),
            "output": str(output),
            "input_shape": read_shapes(arguments.input_shape),
            "images": find_images(arguments.calibration, cache),
            "precision_compare": arguments.precision_compare,
            "force": arguments.force,
            "facts": str(facts_path),
        }
        path = Path(scratch) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        engine = find_part("converts_networks")
        code = call_steps(engine, engine.builds[0].name, "converts_networks", cache, "file", path)
        if code:
            return code
        facts = json.loads(facts_path.read_bytes())
    print("\n".join(wrap(line) for line in tell(facts, arguments.input_model, output)))
    if facts["errors"]:
        print("\n" + show_layer_errors(facts["errors"], facts["kept"], facts["numbers"]))
    if arguments.ipu_version:
        print(f"--ipu_version {arguments.ipu_version}: has no meaning here, where there is no such unit")
    if directory := arguments.export or (Path(arguments.input_model.stem) if arguments.export_popef else None):
        shapes = read_shapes(arguments.input_shape)
        batch = next(iter(shapes.values()))[0] if shapes else 1
        threads = len(os.sched_getaffinity(0))
        asked = Asked(batch=str(batch), number_type="fp32", held_as="fp32", threads=threads)
        file = export_network(output, directory, find_engine(arguments.engine), asked, cache)
        told = "--export_popef: " if arguments.export_popef else ""
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        print(wrap(f"{told}{file}: {size}, what {arguments.engine} loads for batches of {batch}"))
    if facts["wrong"]:
        raise CnnbenchError(f"{output}: {facts['wrong']} numbers are not rounded as ml_dtypes does: do not use it")
    return 0


def read_conversion(arguments: argparse.Namespace) -> Conversion:
    """Return what the options ask for; raise UsageError for what they cannot be."""
    if arguments.num_of_layers_keep_fp16 < 0:
        raise UsageError(f"--num_of_layers_keep_fp16 {arguments.num_of_layers_keep_fp16}: must be 0 or more")
    for option in arguments.compiler_options:
        name, _, pattern = option.partition("=")
        if name != "custom_patterns" or pattern not in PATTERNS:
            raise UsageError(f"--compiler_options {option}: there is custom_patterns={', '.join(PATTERNS)}")
    in_fp8 = arguments.precision.startswith("fp8")
    try:
        formats = parse_fp8_params(arguments.fp8_params) if in_fp8 else {}
    except UsageError as error:
        raise UsageError(f"--fp8_params {error}") from error
    names = tuple(filter(None, arguments.fp8_skip_op_names.split(",")))
    try:
        return Conversion(
            number_type=arguments.precision,
            kept=names,
            keep_most_sensitive=arguments.num_of_layers_keep_fp16,
            metric=arguments.metric,
            weight_rounding=arguments.weight_rounding,
            pad_channels=bool(arguments.compiler_options),
            opset=arguments.convert_version,
            **formats,
        )
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--fp8_skip_op_names, --num_of_layers_keep_fp16: {told}") from error


def read_shapes(words: Sequence[str]) -> dict[str, list[int]]:
    """Read `input=1,3,224,224`; raise UsageError for anything else."""
    shapes = {}
    for word in words:
        if not (found := re.fullmatch(r"([^=]+)=([1-9]\d*(?:,[1-9]\d*)*)", word)):
            raise UsageError(f"--input_shape {word}: needed a name and sizes, such as input=1,3,224,224")
        shapes[found[1]] = [int(size) for size in found[2].split(",")]
    return shapes


def find_images(calibration: str, cache: Path) -> list[str]:
    """Return the images to calibrate with; raise UsageError for a directory that has none."""
    if calibration == PROCEDURAL:
        return list(stage_procedural("calibration", cache).paths()[:CALIBRATION_IMAGES])
    directory = Path(calibration)
    if not directory.is_dir():
        raise UsageError(f"--calibration {calibration}: no such directory; give one with JPEG images, or {PROCEDURAL}")
    found = sorted(str(path) for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"--calibration {calibration}: has no image, needed {' or '.join(SUFFIXES)} files")
    return found[:CALIBRATION_IMAGES]


def tell(facts: dict[str, Any], source: Path, output: Path) -> list[str]:
    """Return what was made, in lines."""
    before, after = facts["bytes"]
    kept = f", {len(facts['kept'])} kept in fp16" if facts["kept"] else ""
    number_type, numbers = (
        facts["conversion"]["number_type"],
        {name: number for number, name in facts["numbers"].items()},
    )
    lines = [
        f"{output}: {number_type}, {facts['products'] - len(facts['kept'])} of {facts['products']} layers{kept}, opset "
        f"{facts['opset']}, {after / 1e6:.1f} MB, {after / before:.3f} of {source}"
    ]
    if facts["kept"]:
        lines.append(f"kept in fp16: {', '.join(numbers.get(name, name) for name in facts['kept'])}")
    if facts["padded"]:
        lines.append(f"channels padded: {', '.join(numbers.get(name, name) for name in facts['padded'])}")
    if facts["calibration"]:
        lines.append(
            f"calibrated with {facts['calibration']}, by {facts['conversion']['metric']} where scales are auto"
        )
    if facts["compared"]:
        lines.append(f"roundings: {facts['compared']} numbers compared with ml_dtypes, {facts['wrong']} differ")
    return lines
