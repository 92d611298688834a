"""Tell from the code where a sample was taken which kind of multiply-accumulates it was among.

A processor that is in a loop of multiply-accumulates mostly waits at one of the loop's other instructions. So it is the
loop that counts: the sample's instruction and what follows, up to where it branches back. Code that multiplies and adds
to each number it stores, as BatchNorm and activations do, accumulates nothing, and is none of these. Nor are the fused
instructions that add something to a product in place of a factor (132, 213), of which polynomials are made: sums of
products stay where they are (231). The names of instructions are Intel's (Software Developer's Manual, volume 2).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from iced_x86 import Decoder, FlowControl, Formatter, FormatterSyntax, Instruction, Mnemonic, OpKind, RegisterExt
from iced_x86 import EncodingKind as Encoding

WINDOW = 48
"""How many instructions are looked at from a sample on, at the most."""

PRODUCTS_PER_STORE = 2
"""More products than so many for each store are accumulated; fewer are a part of what is computed of each number."""

TILE_ROWS = 16
"""As many products of rows is one of AMX tiles, whose rows are stored one by one."""

_NAMES = {value: name.lower() for name, value in vars(Mnemonic).items() if isinstance(value, int)}
_FUSED = re.compile(r"vfn?m(?:add|sub)231(?P<packed>[ps])(?P<type>[sdh])")
_WIDENING = {"pmaddubsw": "int8", "pmaddwd": "int16"}
_VNNI = re.compile(r"vpdp(?:bus|wss)ds?")
_VNNI_INT8 = re.compile(r"vpdp(?:bss|bsu|buu|wsu|wus|wuu)ds?")
_AMX = {"tdpbf16ps": "AMX-BF16", "tdpfp16ps": "AMX-FP16"} | dict.fromkeys(
    ("tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"), "AMX-INT8"
)
_UNFUSED = re.compile(r"v?(?P<what>mul|add)(?P<packed>[ps])(?P<type>[sd])")
_PAUSING = {"pause", "tpause", "umwait"}
_MOVES = ("mov", "movaps", "movups", "movdqa", "movdqu", "movntps", "movntdq", "movapd", "movupd", "movntpd", "movnti")
_MOVING = {
    *_MOVES,
    *(f"v{name}{size}" for name in _MOVES for size in ("", "8", "16", "32", "64")),
    *("add", "sub", "inc", "dec", "lea", "cmp", "test", "sfence", "prefetcht0", "prefetchnta", "vzeroupper", "ret"),
    *(f"j{condition}" for condition in ("mp", "a", "ae", "b", "be", "e", "ne", "g", "ge", "l", "le")),
}
"""The instructions that a loop has which only copies or sets."""
_SCALAR = re.compile("[sd][sd]$|^v?movq$|^v?movd$|si$")
_TO_MEMORY = {OpKind.MEMORY, OpKind.MEMORY_ESDI, OpKind.MEMORY_ESEDI, OpKind.MEMORY_ESRDI}
_ENDS = (FlowControl.RETURN, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.INTERRUPT)
_TYPES = {"s": "f32", "d": "f64", "h": "f16"}


def _width(instruction: Instruction) -> str:
    register = instruction.op0_register
    if RegisterExt.is_zmm(register):
        return "512"
    return "256" if RegisterExt.is_ymm(register) else "128"


def _is_evex(instruction: Instruction) -> bool:
    return int(instruction.encoding) == Encoding.EVEX


def _name_class(instruction: Instruction) -> str:
    """Return the class of a multiply-accumulate, empty for another instruction."""
    name = _NAMES[instruction.mnemonic]
    evex, width = _is_evex(instruction), _width(instruction)
    if found := _FUSED.fullmatch(name):
        isa = "AVX512-FP16" if found["type"] == "h" else "AVX-512 FMA" if evex else "FMA"
        return f"{isa} {_TYPES[found['type']]} {width if found['packed'] == 'p' else 'scalar'}"
    if _VNNI.fullmatch(name):
        return f"{'AVX512-VNNI' if evex else 'AVX-VNNI'} int8 {width}"
    if _VNNI_INT8.fullmatch(name):
        return f"{'AVX10.2' if evex else 'AVX-VNNI-INT8'} int8 {width}"
    if name == "vdpbf16ps":
        return f"AVX512-BF16 bf16 {width}"
    if name == "vdpphps":
        return f"AVX10.2 f16 {width}"
    if name in _AMX:
        return f"{_AMX[name]} tile"
    if data_type := _WIDENING.get(name.removeprefix("v")):
        isa = "AVX512BW" if evex else "AVX2" if name.startswith("v") and width == "256" else "SSE"
        return f"{isa} {data_type} {width}"
    return ""


MULTIPLYING = "multiply-accumulate kernels"
OTHER_KERNELS = "other kernels"
COPYING = "memory copies and zeroing"
WAITING = "waiting at barriers"
IN_KERNEL = "the operating system"
FRAMEWORK = "framework and Python"


@dataclass(frozen=True)
class Place:
    """What a sample was at.

    `kind`: of work. `instructions`: the class of its multiply-accumulates, empty for none.
    """

    kind: str
    instructions: str


@cache
def describe_place(code: bytes, address: int, in_kernel: bool) -> Place:
    """Return what a sample at this code was at; `in_kernel`: whether it was coming back from a system call."""
    if in_kernel:
        return Place(IN_KERNEL, "")
    window = _window(code, address)
    if instructions := _classify(window):
        return Place(MULTIPLYING, instructions)
    names = {_NAMES[instruction.mnemonic] for instruction in window}
    if names & _PAUSING:
        return Place(WAITING, "")
    moving = names <= _MOVING or (window and _NAMES[window[0].mnemonic].startswith(("movs", "stos")))
    if moving and any(instruction.op0_kind in _TO_MEMORY for instruction in window):
        return Place(COPYING, "")
    vectors = any(
        RegisterExt.is_vector_register(instruction.op0_register) and not _SCALAR.search(name)
        for instruction in window
        if (name := _NAMES[instruction.mnemonic])
    )
    return Place(OTHER_KERNELS if vectors else FRAMEWORK, "")


def disassemble(code: bytes, address: int, lines: int) -> list[str]:
    """Return the first instructions of some code in Intel's syntax."""
    formatter = Formatter(FormatterSyntax.INTEL)
    return [formatter.format(instruction) for instruction in islice(Decoder(64, code, ip=address), lines)]


def _count_unfused(window: Sequence[Instruction]) -> Counter[str]:
    """Count the products of a window that another instruction adds to a sum, by their class."""
    products: dict[int, str] = {}
    classes: Counter[str] = Counter()
    for instruction in window:
        found = _UNFUSED.fullmatch(name := _NAMES[instruction.mnemonic])
        if not found:
            continue
        isa = "AVX-512" if _is_evex(instruction) else "AVX" if name.startswith("v") else "SSE"
        width = _width(instruction) if found["packed"] == "p" else "scalar"
        addend = instruction.op_register(instruction.op_count - 1)
        if found["what"] == "mul":
            products[instruction.op0_register] = f"{isa} multiply and add {_TYPES[found['type']]} {width}"
        elif addend != instruction.op0_register and addend in products:
            classes[products[addend]] += 1
    return classes


def _stores(instruction: Instruction) -> bool:
    """Tell whether an instruction writes a vector register, or a part of one, to memory."""
    vector = instruction.op_count > 1 and RegisterExt.is_vector_register(instruction.op1_register)
    return vector and instruction.op0_kind == OpKind.MEMORY


def _window(code: bytes, address: int) -> list[Instruction]:
    """Return the instructions from an address on to where the flow goes elsewhere, that one included."""
    found = []
    for instruction in islice(Decoder(64, code, ip=address), WINDOW):
        if instruction.is_invalid:
            break
        found.append(instruction)
        flow = instruction.flow_control
        backwards = flow == FlowControl.CONDITIONAL_BRANCH and instruction.near_branch_target <= instruction.ip
        if backwards or flow in _ENDS:
            break
    return found


@cache
def classify(code: bytes, address: int) -> str:
    """Return the class of multiply-accumulates that a sample at this code was among; empty for none.

    A class says instruction set, data type and width: "FMA f32 256". Products and sums in two instructions are one
    class where both are in the window. Products of int16 count as int8's where they add up such.
    """
    return _classify(_window(code, address))


def _classify(window: Sequence[Instruction]) -> str:
    names = [_name_class(instruction) for instruction in window]
    if widened := next((name for name in names if " int8 " in name and name.startswith(_WITHOUT_VNNI)), ""):
        names = [widened if " int16 " in name else name for name in names]
    classes = Counter(filter(None, names)) or _count_unfused(window)
    products = sum(count * (TILE_ROWS if name.endswith(" tile") else 1) for name, count in classes.items())
    if products <= PRODUCTS_PER_STORE * sum(map(_stores, window)):
        return ""
    return names[0] or classes.most_common(1)[0][0]


_BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "int16": 16, "int8": 8}
_WITHOUT_VNNI = ("SSE", "AVX2", "AVX512BW")
_TILES = {"AMX-INT8": 512.0, "AMX-BF16": 256.0, "AMX-FP16": 256.0}


def rate(name: str) -> float:
    """Return how many multiply-accumulates a class does for each instruction, or of AMX in an instruction's time.

    Two instructions make one of those that are not fused, and three one of int8 without VNNI.
    """
    isa = name.split()[0]
    if isa in _TILES:
        return _TILES[isa]
    data_type, width = name.split()[-2:]
    lanes = 1 if width == "scalar" else int(width) / _BITS[data_type]
    instructions = 2 if "multiply and add" in name or data_type == "int16" else 3 if isa in _WITHOUT_VNNI else 1
    return lanes / instructions
