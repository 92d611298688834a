"""Say what each precision needs of a machine, what it has the engines do, and what their trace must then show.

A precision is a data type on an instruction set, or on a GPU (`cuda_*`), whose libraries choose the instructions; or a
type of number alone, in which a network is held, on the best instructions that multiply such numbers here.
`avx_*` precisions are capped below AMX with ONEDNN_MAX_CPU_ISA, so that on a machine that
has both, `avx_bfloat16` and `amx_bfloat16` are different measurements.
"""

from dataclasses import dataclass, replace

from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.machine.host import find_gpu_obstacle

REQUIRED_SHARE = 0.95
"""The share of a network's multiply-accumulates that must have run as the precision says, for a valid result."""


@dataclass(frozen=True)
class Precision:
    """What one precision means.

    `flags`: alternatives of /proc/cpuinfo flags, one alternative of which the CPU must have whole; none on a GPU.
    `max_isa`: the cap handed to oneDNN. `trace_isa`: what an implementation's name in the trace must match.
    `trace_type`: the data type its source and weights must have. `fpmath`: the type in which it computes with float32
    numbers, empty for float32 itself. `softmax_bound`: how far a probability may lie from the fp32 reference.
    `top1_agreement`: the share of the check batch whose best class must be the reference's. `peak`: the kind of
    native/peak.c that is its ceiling, empty on a GPU, which that cannot measure. `instructions`: what the class of a
    sample of its multiply-accumulates must begin as. `held_as`: the type of number that networks are converted to for
    it, as `engines.conversion` names them; empty where they are not. `computes`: the type that is computed with, empty
    for the one in its name.
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
    instructions: str = r"(?!)"
    held_as: str = ""
    computes: str = ""

    @property
    def is_int8(self) -> bool:
        """Whether its graphs are quantised."""
        return self.name.endswith("int8")

    @property
    def is_float32(self) -> bool:
        """Whether it answers as the model itself does, up to rounding in float32."""
        return self.name.endswith("fp32")

    @property
    def data_type(self) -> str:
        """The type of number that is computed with: what follows the device or instruction set, such as bfloat16."""
        return self.computes or self.name.partition("_")[2]

    @property
    def in_fp8(self) -> bool:
        """Whether weights, at least, are held in 8-bit floating point."""
        return self.held_as.startswith("fp8")

    @property
    def of_networks(self) -> bool:
        """Whether networks alone have it, and no frozen graphs."""
        return self.on_gpu or bool(self.computes)

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on an NVIDIA GPU, and not on the CPU."""
        return self.name.startswith("cuda_")


_AVX_CAP = "AVX512_CORE_BF16"
_AVX2_CAP = "AVX2_VNNI_2"
"""What no cap is, where there is no AVX-512: in oneDNN's order AVX512_CORE_BF16 does not include AVX-VNNI."""
_AMX = r"avx(512_core|10_\d_512)_amx"


def _in_fp32(
    name: str, softmax_bound: float, top1_agreement: float, held_as: str = "", computes: str = ""
) -> Precision:
    """Return a precision that computes in float32, on AVX2 or AVX-512."""
    return Precision(
        name,
        flags=(frozenset({"avx2", "fma"}),),
        max_isa=_AVX_CAP,
        trace_isa=r"avx512_core(?!_amx)|avx2",  # AMX takes f32 tensors too, but computes in bfloat16
        trace_type="f32",
        softmax_bound=softmax_bound,
        top1_agreement=top1_agreement,
        peak="fp32",
        instructions=r"(?:AVX-512 )?FMA f32 (?:256|512)",
        held_as=held_as,
        computes=computes,
    )


_BFLOAT16 = Precision(
    "bfloat16",
    flags=(frozenset({"avx512_bf16"}), frozenset({"amx_tile", "amx_bf16"})),
    max_isa="AVX512_CORE_AMX",
    trace_isa=rf"avx512_core_bf16|{_AMX}",
    trace_type="bf16",
    softmax_bound=0.15,
    top1_agreement=0.9,
    peak="avx512_bf16",
    instructions="AVX512-BF16|AMX-BF16",
    computes="bfloat16",
)
"""What computes in bfloat16, on AMX where there is any, or AVX-512."""


def _on_gpu(data_type: str, trace_type: str, softmax_bound: float, top1_agreement: float) -> Precision:
    """Return a precision of GPUs: its libraries tell no instructions, so the data type alone is proven."""
    return Precision(f"cuda_{data_type}", (), "ALL", r"(?!)", trace_type, softmax_bound, top1_agreement, peak="")


PRECISIONS = {
    precision.name: precision
    for precision in (
        _in_fp32("avx_fp32", softmax_bound=1e-3, top1_agreement=1.0),
        Precision(
            "avx_bfloat16",
            flags=(frozenset({"avx512_bf16"}),),
            max_isa=_AVX_CAP,
            trace_isa=r"avx512_core_bf16",
            trace_type="bf16",
            softmax_bound=0.15,
            top1_agreement=0.9,
            peak="avx512_bf16",
            instructions="AVX512-BF16",
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
            instructions=r"AVX(?:512)?-VNNI",
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
            instructions="AMX-BF16",
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
            instructions="AMX-BF16",
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
            instructions="AMX-INT8",
        ),
        _on_gpu("fp32", "f32", softmax_bound=1e-3, top1_agreement=1.0),
        _on_gpu("float16", "f16", softmax_bound=0.1, top1_agreement=0.9),
        _on_gpu("bfloat16", "bf16", softmax_bound=0.15, top1_agreement=0.9),
        _in_fp32("fp32", softmax_bound=1e-3, top1_agreement=1.0, computes="fp32"),
        _in_fp32("fp16", softmax_bound=0.1, top1_agreement=0.9, held_as="fp16", computes="fp32"),
        _BFLOAT16,
        _in_fp32("fp8", softmax_bound=0.3, top1_agreement=0.85, held_as="fp8", computes="fp32"),
        _in_fp32("fp8_weight", softmax_bound=0.3, top1_agreement=0.85, held_as="fp8_weight", computes="fp32"),
    )
}


def missing_for_precision(precision: Precision, cpu_flags: frozenset[str]) -> list[str]:
    """Return why this program or this machine cannot run the precision; empty when they can."""
    if precision.on_gpu:
        obstacle = find_gpu_obstacle()
        return [f"{precision.name}: needs an NVIDIA GPU, but {obstacle}"] if obstacle else []
    lacking = [sorted(needed - cpu_flags) for needed in precision.flags]
    if not all(lacking):
        return []
    return [f"{precision.name}: this CPU lacks {' or '.join(' and '.join(flags) for flags in lacking)}"]


def require(precision: Precision, cpu_flags: frozenset[str], *, force: bool = False) -> None:
    """Raise SkippedError, or with `force` CnnbenchError, unless this program and machine can run the precision."""
    if missing := missing_for_precision(precision, cpu_flags):
        if force:
            raise CnnbenchError(
                f"{missing[0]}; FORCE=True makes that an error: use a machine that has it, or leave FORCE out"
            )
        raise SkippedError(missing[0])


def chosen_precision(name: str, fp8_arithmetic: str = "fp32") -> Precision:
    """Return a precision by name; one of 8-bit numbers computes in float32, or in bfloat16: both have all of them."""
    precision = PRECISIONS[name]
    if fp8_arithmetic != "bfloat16" or not precision.in_fp8:
        return precision
    kept = {field: getattr(precision, field) for field in ("name", "softmax_bound", "top1_agreement", "held_as")}
    return replace(_BFLOAT16, **kept)


def fit_to_cpu(precision: Precision, cpu_flags: frozenset[str]) -> Precision:
    """Return the precision with a cap that hides nothing of this CPU that it needs, and with the peak of its best."""
    if precision.computes == "bfloat16" and "amx_bf16" in cpu_flags:
        return replace(precision, peak="amx_bf16")
    return precision if precision.on_gpu or "avx512f" in cpu_flags else replace(precision, max_isa=_AVX2_CAP)
