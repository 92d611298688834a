"""Say what each precision needs of a CPU, what it has the engines do, and what their trace must then show.

A precision is a data type on an instruction set. `avx_*` precisions are capped below AMX with ONEDNN_MAX_CPU_ISA, so
that on a machine that has both, `avx_bfloat16` and `amx_bfloat16` are different measurements.
"""

from dataclasses import dataclass, replace

from cnnbench.errors import CnnbenchError, SkippedError


@dataclass(frozen=True)
class Precision:
    """What one precision means.

    `flags`: alternatives of /proc/cpuinfo flags, one alternative of which the CPU must have whole. `max_isa`: the
    cap handed to oneDNN. `trace_isa`: what an implementation's name in the trace must match. `trace_type`: the data
    type its source and weights must have. `fpmath`: the type in which it computes with float32 numbers, empty for
    float32 itself. `softmax_bound`: how far a probability may lie from the fp32 reference. `top1_agreement`: the share
    of the check batch whose best class must be the reference's. `peak`: the kind of native/peak.c that is its ceiling.
    """

    name: str
    flags: tuple[frozenset[str], ...]
    max_isa: str
    trace_isa: str
    trace_type: str
    softmax_bound: float
    top1_agreement: float
    peak: str
    fpmath: str = ""

    @property
    def is_int8(self) -> bool:
        """Whether its graphs are quantised."""
        return self.name.endswith("int8")

    @property
    def is_float32(self) -> bool:
        """Whether it answers as the model itself does, up to rounding in float32."""
        return self.name.endswith("fp32")


_AVX_CAP = "AVX512_CORE_BF16"
_AVX2_CAP = "AVX2_VNNI_2"
"""What no cap is, where there is no AVX-512: in oneDNN's order AVX512_CORE_BF16 does not include AVX-VNNI."""
_AMX = r"avx(512_core|10_\d_512)_amx"

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
            peak="fp32",
        ),
        Precision(
            "avx_bfloat16",
            flags=(frozenset({"avx512_bf16"}),),
            max_isa=_AVX_CAP,
            trace_isa=r"avx512_core_bf16",
            trace_type="bf16",
            softmax_bound=0.15,
            top1_agreement=0.9,
            peak="avx512_bf16",
        ),
        Precision(
            "avx_int8",
            flags=(frozenset({"avx512_vnni"}), frozenset({"avx_vnni"})),
            max_isa=_AVX_CAP,
            trace_isa=r"avx512_core_vnni|avx512_core_bf16|avx2_vnni",
            trace_type="[us]8",
            softmax_bound=0.3,
            top1_agreement=0.85,
            peak="vnni",
        ),
        Precision(
            "amx_bfloat16",
            flags=(frozenset({"amx_tile", "amx_bf16"}),),
            max_isa="AVX512_CORE_AMX",
            trace_isa=_AMX,
            trace_type="bf16",
            softmax_bound=0.15,
            top1_agreement=0.9,
            peak="amx_bf16",
        ),
        Precision(
            "amx_bfloat32",
            flags=(frozenset({"amx_tile", "amx_bf16"}),),
            max_isa="AVX512_CORE_AMX",
            trace_isa=_AMX,
            trace_type="f32",
            softmax_bound=0.15,
            top1_agreement=0.9,
            peak="amx_bf16",
            fpmath="bf16",
        ),
        Precision(
            "amx_int8",
            flags=(frozenset({"amx_tile", "amx_int8"}),),
            max_isa="AVX512_CORE_AMX",
            trace_isa=_AMX,
            trace_type="[us]8",
            softmax_bound=0.3,
            top1_agreement=0.85,
            peak="amx_int8",
        ),
    )
}


def missing_for_precision(precision: Precision, cpu_flags: frozenset[str]) -> list[str]:
    """Return why this program or this CPU cannot run the precision; empty when they can."""
    lacking = [sorted(needed - cpu_flags) for needed in precision.flags]
    if not all(lacking):
        return []
    return [f"{precision.name}: this CPU lacks {' or '.join(' and '.join(flags) for flags in lacking)}"]


def require(precision: Precision, cpu_flags: frozenset[str], *, force: bool = False) -> None:
    """Raise SkippedError, or with `force` CnnbenchError, unless this program and this CPU can run the precision."""
    if missing := missing_for_precision(precision, cpu_flags):
        if force:
            raise CnnbenchError(f"{missing[0]}; FORCE=True makes that an error: use such a CPU, or leave FORCE out")
        raise SkippedError(missing[0])


def fit_to_cpu(precision: Precision, cpu_flags: frozenset[str]) -> Precision:
    """Return the precision with a cap that hides nothing of this CPU that it needs."""
    return precision if "avx512f" in cpu_flags else replace(precision, max_isa=_AVX2_CAP)
