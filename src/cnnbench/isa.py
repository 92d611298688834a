"""Say what each precision needs of a CPU, and judge from oneDNN's own trace what really ran.

A precision is a data type on an instruction set. `avx_*` precisions are capped below AMX with ONEDNN_MAX_CPU_ISA, so
that on a machine that has both, `avx_bfloat16` and `amx_bfloat16` are different measurements.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cnnbench.case import PrecisionName
from cnnbench.errors import SkippedError
from cnnbench.host import CpuInfo


@dataclass(frozen=True)
class Precision:
    """What one precision means.

    `flags`: alternatives of /proc/cpuinfo flags, one alternative of which the CPU must have whole. `max_isa`: the
    cap handed to oneDNN. `trace_isa`: what an implementation's name in the trace must match. `trace_type`: the data
    type its source and weights must have. `softmax_bound`: how far a probability may lie from the fp32 reference.
    `top1_agreement`: the share of the check batch whose best class must be the reference's. `missing`: why the
    precision cannot run yet, empty when it can.
    """

    name: str
    flags: tuple[frozenset[str], ...]
    max_isa: str
    trace_isa: str
    trace_type: str
    softmax_bound: float
    top1_agreement: float
    missing: str = ""

    @property
    def is_int8(self) -> bool:
        """Whether its graphs are quantised."""
        return self.name.endswith("int8")

    @property
    def is_float32(self) -> bool:
        """Whether it answers as the model itself does, up to rounding in float32."""
        return self.name.endswith("fp32")


_NOT_YET = "cnnbench cannot run this precision yet"
_AVX_CAP = "AVX512_CORE_BF16"

PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(
            "avx_fp32",
            flags=(frozenset({"avx2", "fma"}),),
            max_isa=_AVX_CAP,
            trace_isa=r"avx512_core(?!_amx)|avx2",  # AMX takes f32 tensors too, but computes in bfloat16
            trace_type="f32",
            softmax_bound=1e-3,
            top1_agreement=1.0,
        ),
        Precision(
            "avx_bfloat16",
            flags=(frozenset({"avx512_bf16"}),),
            max_isa=_AVX_CAP,
            trace_isa=r"avx512_core_bf16",
            trace_type="bf16",
            softmax_bound=0.15,
            top1_agreement=0.9,
        ),
        Precision(
            "avx_int8",
            flags=(frozenset({"avx512_vnni"}), frozenset({"avx_vnni"})),
            max_isa=_AVX_CAP,
            trace_isa=r"avx512_core_vnni|avx512_core_bf16|avx2_vnni",
            trace_type="[us]8",
            softmax_bound=0.3,
            top1_agreement=0.85,
        ),
        Precision(
            "amx_bfloat16",
            flags=(frozenset({"amx_tile", "amx_bf16"}),),
            max_isa="AVX512_CORE_AMX",
            trace_isa=r"avx512_core_amx|avx10_1_512_amx",
            trace_type="bf16",
            softmax_bound=0.15,
            top1_agreement=0.9,
            missing=_NOT_YET,
        ),
        Precision(
            "amx_bfloat32",
            flags=(frozenset({"amx_tile", "amx_bf16"}),),
            max_isa="AVX512_CORE_AMX",
            trace_isa=r"avx512_core_amx|avx10_1_512_amx",
            trace_type="f32",
            softmax_bound=0.15,
            top1_agreement=0.9,
            missing=_NOT_YET,
        ),
        Precision(
            "amx_int8",
            flags=(frozenset({"amx_tile", "amx_int8"}),),
            max_isa="AVX512_CORE_AMX",
            trace_isa=r"avx512_core_amx|avx10_1_512_amx",
            trace_type="[us]8",
            softmax_bound=0.3,
            top1_agreement=0.85,
        ),
    )
}

REQUIRED_SHARE = 0.95
MOST_SHARE = 1.01
"""Between these shares of the graph's multiply-accumulates must have run as the precision says, for a valid result.

More than all of them means that the trace or the graph was not read right, and then nothing is proven.
"""


def missing_for_precision(precision: Precision, cpu_flags: frozenset[str]) -> list[str]:
    """Return why this program or this CPU cannot run the precision; empty when they can."""
    if precision.missing:
        return [f"{precision.name}: {precision.missing}"]
    lacking = [sorted(needed - cpu_flags) for needed in precision.flags]
    if not all(lacking):
        return []
    return [f"{precision.name}: this CPU lacks {' or '.join(' and '.join(flags) for flags in lacking)}"]


def require(precision: Precision, cpu_flags: frozenset[str]) -> None:
    """Raise SkippedError unless this program and this CPU can run the precision."""
    if missing := missing_for_precision(precision, cpu_flags):
        raise SkippedError(missing[0])


def best_precision(cpu: CpuInfo) -> PrecisionName:
    """Return the fastest precision that this program and this CPU can run.

    bfloat16 comes first where its dot products have the double rate of fp32, as on AMD's Zen 4 and 5 (measured: 1.6
    to 1.7 times the images/s). On Intel's server cores AVX512_BF16 is the slower (measured: 0.6 to 0.7 times): there
    bfloat16 is AMX's job.
    """
    double_rate: tuple[PrecisionName, ...] = ("avx_bfloat16",) if cpu.vendor == "AuthenticAMD" else ()
    order: tuple[PrecisionName, ...] = (*double_rate, "avx_fp32")
    for name in order:
        precision = PRECISIONS[name]
        if not precision.missing and any(flags <= cpu.flags for flags in precision.flags):
            return name
    raise SkippedError("no precision can run here: at least AVX2 and FMA are needed")


@dataclass(frozen=True)
class Primitive:
    """One convolution or matrix product of oneDNN's trace: its implementation, data types and size."""

    implementation: str
    source_type: str
    weights_type: str
    macs: int


_CONVOLUTION = re.compile(
    r"(?:g(?P<g>\d+))?mb(?P<mb>\d+)_ic(?P<ic>\d+)oc(?P<oc>\d+)_"
    r"(?:id\d+od\d+kd\d+sd\d+dd\d+pd\d+_)?ih\d+oh(?P<oh>\d+)kh(?P<kh>\d+)\S*?_iw\d+ow(?P<ow>\d+)kw(?P<kw>\d+)"
)
_TYPE = {role: re.compile(rf"(?:^|\s){role}(?:_|:)([a-z]+\d+)") for role in ("src", "wei")}


def parse_verbose(lines: Iterable[str]) -> list[Primitive]:
    """Return the convolutions and matrix products that a oneDNN trace (ONEDNN_VERBOSE=1) shows as executed.

    Reads the formats of oneDNN 2.x and 3.x, with `dnnl_verbose` or `onednn_verbose` in front and with or without the
    `primitive` and version fields; other lines are somebody else's output. The fields are described at
    https://uxlfoundation.github.io/oneDNN/dev_guide_verbose.html.
    """
    primitives = []
    for line in lines:
        fields = line.strip().split(",")
        if fields[0] not in ("onednn_verbose", "dnnl_verbose") or "exec" not in fields:
            continue
        after = fields[fields.index("exec") + 1 :]  # engine, kind, implementation, direction, tensors, ..., shape, ms
        if len(after) < 8 or after[1] not in ("convolution", "matmul", "inner_product"):
            continue
        kind, implementation, tensors = after[1], after[2], after[4]
        types = {role: found.group(1) for role, pattern in _TYPE.items() if (found := pattern.search(tensors))}
        shape = next((field for field in reversed(after[5:-1]) if field), "")
        primitives.append(
            Primitive(implementation, types.get("src", ""), types.get("wei", ""), _count_macs(kind, shape))
        )
    return primitives


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
        numbers = re.fullmatch(r"mb(\d+)ic(\d+)oc(\d+)", shape.replace("_", ""))
        return 0 if not numbers else int(numbers[1]) * int(numbers[2]) * int(numbers[3])
    operands = [
        [int(n) for n in operand.split("x")] for operand in shape.split(":") if re.fullmatch(r"[\dx]+", operand)
    ]
    if len(operands) < 2:
        return 0
    macs = operands[1][-1]
    for extent in operands[0]:
        macs *= extent
    return macs


@dataclass(frozen=True)
class PrecisionProof:
    """How much of the network ran at the precision, as a share of its multiply-accumulates, and what ran at all."""

    share: float
    implementations: dict[str, float]


def judge_trace(precision: Precision, primitives: Iterable[Primitive], macs_needed: int) -> PrecisionProof:
    """Compare a trace with a precision.

    `macs_needed`: what the traced steps had to compute, from the graph and not from the trace: work that oneDNN never
    saw (because another library did it) then counts against the share. `implementations` gives each implementation's
    share of the traced work, the largest first.
    """
    by_implementation: Counter[str] = Counter()
    proven = 0
    for primitive in primitives:
        by_implementation[f"{primitive.implementation} {primitive.weights_type}"] += primitive.macs
        runs_it = re.search(precision.trace_isa, primitive.implementation) is not None
        types = (primitive.source_type, primitive.weights_type)
        if runs_it and all(re.fullmatch(precision.trace_type, found) for found in types):
            proven += primitive.macs
    total = sum(by_implementation.values()) or 1
    return PrecisionProof(
        share=proven / macs_needed,
        implementations={name: macs / total for name, macs in by_implementation.most_common()},
    )
