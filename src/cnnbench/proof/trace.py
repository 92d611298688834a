"""Read what oneDNN says that it executed, and MKL: the lines that they write with ONEDNN_VERBOSE=1 and MKL_VERBOSE=1.

Lines are read in the formats of oneDNN 2.x and 3.x, with `dnnl_verbose` or `onednn_verbose` in front and with or
without the version, time stamp and `primitive` fields; https://uxlfoundation.github.io/oneDNN/dev_guide_verbose.html
describes the fields. Other lines are somebody else's output.

A partition of oneDNN Graph is a part of the network that was handed over whole. The `dnnl_backend` executes it by
primitives, which have lines of their own; its `graph,exec` line comes after them and repeats their work, so it is
never counted, but says by its time stamp which of them it held. Another backend compiles the partition into one piece
of code, for which there is that line alone, without an instruction set.

MKL's lines are matrix products, which PyTorch leaves to it. Its first line names the instruction set on Intel's
processors, and none on others.
"""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.engines.layers import COMPILED, LAYERS, MULTIPLYING, STEP_MARK, Primitive

TRACE_ENVIRONMENT = {"ONEDNN_VERBOSE": "1", "ONEDNN_VERBOSE_TIMESTAMP": "1", "MKL_VERBOSE": "1"}
"""The environment of a tracing worker."""

_PREFIXES = ("onednn_verbose", "dnnl_verbose")
_SPATIAL = r"(?:id\d+od\d+kd\d+sd\d+dd\d+pd\d+_)?ih\d+oh(?P<oh>\d+)kh(?P<kh>\d+)\S*?_iw\d+ow(?P<ow>\d+)kw(?P<kw>\d+)"
_CONVOLUTION = re.compile(rf"(?:g(?P<g>\d+))?mb(?P<mb>\d+)_ic(?P<ic>\d+)oc(?P<oc>\d+)_{_SPATIAL}")
_INNER_PRODUCT = re.compile(r"mb(\d+)ic(\d+)(?:ih(\d+))?(?:iw(\d+))?oc(\d+)")
_TYPE = {role: re.compile(rf"(?:^|\s){role}(?:_|:)([a-z]+\d+)") for role in ("src", "wei", "dst")}
_FPMATH = re.compile(r"attr-fpmath:(?!strict)(\w+)")
_TIME_STAMP = re.compile(r"\d+\.\d+")
_MKL_PRODUCT = re.compile(
    r"MKL_VERBOSE (?P<name>[SD]GEMM)\([NTC],[NTC],(?P<m>\d+),(?P<n>\d+),(?P<k>\d+),\S* "
    r"(?P<time>[\d.]+)(?P<unit>[num]?s)\b"
)
_MKL_BANNER = re.compile(r"MKL_VERBOSE .*\((?:Intel\(R\) )?(AVX2|AVX-512)\b.* enabled processors")
_MKL_TYPES = {"SGEMM": "f32", "DGEMM": "f64"}
_MKL_ISA = {"AVX2": "avx2", "AVX-512": "avx512_core"}
_MS_OF = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_MILLISECONDS = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


def parse_verbose(lines: Iterable[str]) -> list[Primitive]:
    """Return the primitives of a trace in the order in which they ended."""
    primitives: list[Primitive] = []
    starts_ms: list[float] = []
    for line in lines:
        if product := _MKL_PRODUCT.match(line):
            primitives.append(_read_product(product))
            starts_ms.append(0.0)
            continue
        fields = line.strip().split(",")
        if fields[0] not in _PREFIXES or "exec" not in fields:
            continue
        at = fields.index("exec")
        stamp = next((float(field) for field in fields[1:at] if _TIME_STAMP.fullmatch(field)), None)
        if fields[at - 1] != "graph":
            primitive = _parse_primitive(fields[at + 1 :])
        elif stamp is not None:
            primitive = _close_partition(fields[at + 1 :], stamp, primitives, starts_ms)
        else:
            continue
        if primitive is not None:
            primitives.append(primitive)
            starts_ms.append(0.0 if stamp is None else stamp)
    return primitives


def _read_product(found: re.Match[str]) -> Primitive:
    """Return a matrix product of MKL's as a primitive."""
    m, n, k = (int(found[name]) for name in ("m", "n", "k"))
    data_type = _MKL_TYPES[found["name"]]
    time_ms = float(found["time"]) * _MS_OF[found["unit"]]
    types = (data_type, data_type, data_type)
    return Primitive("matmul", f"mkl_{found['name'].lower()}", *types, "", f"{m}x{k}:{k}x{n}", m * n * k, time_ms)


def _parse_primitive(fields: Sequence[str]) -> Primitive | None:
    """Read engine, kind, implementation, direction, tensors, attributes, algorithm, shape, ms; None for a cut line."""
    if len(fields) < 8 or not _MILLISECONDS.fullmatch(fields[-1]):
        return None
    _, kind, implementation, _, tensors = fields[:5]
    types = {role: found.group(1) for role, pattern in _TYPE.items() if (found := pattern.search(tensors))}
    fpmath = _FPMATH.search(fields[5])
    shape = next((field for field in reversed(fields[5:-1]) if field), "")
    return Primitive(
        kind=kind,
        implementation=implementation,
        source_type=types.get("src", ""),
        weights_type=types.get("wei", ""),
        destination_type=types.get("dst", ""),
        fpmath=fpmath.group(1) if fpmath else "",
        shape=shape,
        macs=_count_macs(kind, shape) if kind in MULTIPLYING else 0,
        time_ms=float(fields[-1]),
    )


def _close_partition(
    fields: Sequence[str], start_ms: float, primitives: list[Primitive], starts_ms: Sequence[float]
) -> Primitive | None:
    """Mark the primitives that a partition held; return the partition itself when it held none, None for a cut line.

    `fields`: engine, number, kind, operations, formats, tensors, fpmath mode, ..., backend, ms.
    """
    if len(fields) < 9 or not _MILLISECONDS.fullmatch(fields[-1]):
        return None
    kind, operations, backend, time_ms = fields[2], fields[3].split(";"), fields[-2], float(fields[-1])
    inside = [index for index, start in enumerate(starts_ms) if start_ms <= start <= start_ms + time_ms]
    for index in inside:
        primitives[index] = replace(primitives[index], partition=kind)
    what = f"{len(operations)} operations from {operations[0]} to {operations[-1]}"
    return None if inside else Primitive(COMPILED, backend, "", "", "", "", what, 0, time_ms, kind)


def _count_macs(kind: str, shape: str) -> int:
    """Return the multiply-accumulates of one primitive from the shape field of its trace line; 0 if it is not read."""
    if kind == "convolution":
        found = _CONVOLUTION.match(shape)
        if not found:
            return 0
        size = {key: int(value) if value else 1 for key, value in found.groupdict().items()}
        per_output = size["ic"] // size["g"] * size["kh"] * size["kw"]
        return size["mb"] * size["oc"] * size["oh"] * size["ow"] * per_output
    if kind == "inner_product":
        numbers = _INNER_PRODUCT.fullmatch(shape.replace("_", ""))
        extents = [int(number) for number in numbers.groups() if number] if numbers else [0]
    else:
        operands = [
            [int(n) for n in operand.split("x")] for operand in shape.split(":") if re.fullmatch(r"[\dx]+", operand)
        ]
        extents = [operands[1][-1], *operands[0]] if len(operands) >= 2 else [0]
    macs = 1
    for extent in extents:
        macs *= extent
    return macs


@dataclass(frozen=True)
class OtherWork:
    """What a step runs besides its layers, by kind: how often, and for how long altogether."""

    kind: str
    count: float
    time_ms: float


@dataclass(frozen=True)
class TracedStep:
    """What one step runs: its layers, in order, with the median of their times over the steps traced; and the rest.

    `others`: means over the steps, as not every step need do the same of it. The longest comes first.
    """

    layers: tuple[Primitive, ...]
    others: tuple[OtherWork, ...]

    @property
    def time_ms(self) -> float:
        """The time of all that oneDNN executed in a step."""
        return sum(layer.time_ms for layer in self.layers) + sum(other.time_ms for other in self.others)


def read_steps(lines: Iterable[str]) -> TracedStep:
    """Return what a step of a tracing worker's output ran; raise InvalidMeasurementError when its steps differ.

    An output without steps has a step without layers.
    """
    steps: list[list[str]] = []
    mkl_isa = ""
    for line in lines:
        if line.startswith(STEP_MARK):
            steps.append([])
        elif banner := _MKL_BANNER.match(line):
            mkl_isa = f":{_MKL_ISA[banner[1]]}"
        elif steps:
            steps[-1].append(line)
    step = _merge_steps([parse_verbose(step) for step in steps])
    named = (
        replace(layer, implementation=layer.implementation + mkl_isa * layer.implementation.startswith("mkl_"))
        for layer in step.layers
    )
    return replace(step, layers=tuple(named))


def read_trace(directory: Path) -> TracedStep:
    """Return what a step ran: as its engine told, or else by the output of the tracing worker."""
    told = directory / LAYERS
    if told.is_file():
        return TracedStep(tuple(Primitive(**layer) for layer in json.loads(told.read_bytes())), ())
    with (directory / "output.log").open(errors="replace") as lines:
        return read_steps(lines)


def _merge_steps(steps: Sequence[Sequence[Primitive]]) -> TracedStep:
    each = [[primitive for primitive in step if primitive.is_layer] for step in steps]
    first = [replace(layer, time_ms=0.0) for layer in each[0]] if each else []
    for number, layers in enumerate(each[1:], start=2):
        if [replace(layer, time_ms=0.0) for layer in layers] != first:
            raise InvalidMeasurementError(
                f"oneDNN's trace: step {number} ran other layers than step 1 ({len(layers)} and {len(first)}), so "
                "neither tells what the measured steps run"
            )
    times = (statistics.median(layer.time_ms for layer in column) for column in zip(*each, strict=True))
    kinds: dict[str, list[float]] = {}
    for primitive in (primitive for step in steps for primitive in step if not primitive.is_layer):
        kinds.setdefault(primitive.kind, []).append(primitive.time_ms)
    others = [OtherWork(kind, len(spent) / len(steps), sum(spent) / len(steps)) for kind, spent in kinds.items()]
    return TracedStep(
        layers=tuple(replace(layer, time_ms=time) for layer, time in zip(first, times, strict=True)),
        others=tuple(sorted(others, key=lambda other: -other.time_ms)),
    )
