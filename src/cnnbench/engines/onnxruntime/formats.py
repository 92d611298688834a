"""Round to the 8-bit floating-point formats, by ml_dtypes, and as float32 operations of a graph that do the same.

E4M3 and E5M2 are those of Micikevicius et al. 2022 (arXiv:2209.05433), in ONNX FLOAT8E4M3FN and FLOAT8E5M2. Scales are
powers of two, so that nothing is rounded but to the format.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

FLOAT32_DIGITS = 24
"""Binary digits of a float32 number's significand, with the first one that is not stored."""


@dataclass(frozen=True)
class Format:
    """A format: its name in the specification, its NumPy and ONNX types, and what rounding to it needs.

    `digits`: of a normal number's significand, with the first. `largest`: its largest number, to which larger ones
    saturate. `least_exponent`: that of the smallest number there is, which all others are multiples of.
    """

    name: str
    dtype: Any
    tensor_type: int
    digits: int
    largest: float
    least_exponent: int

    def round(self, values: np.ndarray, exponent: int | np.ndarray) -> np.ndarray:
        """Return values over 2 ** exponent in this format: to the nearest, ties to even, saturating."""
        with np.errstate(over="ignore"):  # what is too large saturates
            scaled = np.ldexp(values, -np.asarray(exponent))
        return np.clip(scaled, -self.largest, self.largest).astype(self.dtype)

    def restore(self, rounded: np.ndarray, exponent: int | np.ndarray) -> np.ndarray:
        """Return the float32 numbers that numbers of this format stand for."""
        return np.ldexp(rounded.astype(np.float32), np.asarray(exponent))


FORMATS = {
    "F143": Format("F143", ml_dtypes.float8_e4m3fn, onnx.TensorProto.FLOAT8E4M3FN, 4, 448.0, -9),
    "F152": Format("F152", ml_dtypes.float8_e5m2, onnx.TensorProto.FLOAT8E5M2, 3, 57344.0, -16),
}


def rounding_nodes(
    source: str, result: str, form: Format, exponent: int, *, positive: bool
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return float32 operations that round a tensor to a format and back, and their constants.

    A number less so many times itself that only the digits to be kept are left of it, and that added again, is the
    number with these digits, to the nearest and ties to even (Dekker 1971, Numerische Mathematik 18, 224-242). Where
    the format's numbers get no closer to each other, what is taken away gets no smaller. `positive`: whether there are
    no numbers below 0; else it is done to sizes, and signs come after.
    """
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(what: str, value: float) -> str:
        name = f"{result}/{what}"
        constants.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
        return name

    def step(kind: str, *inputs: str, last: bool = False) -> str:
        name = result if last else f"{result}/{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], name=name))
        return name

    largest = form.largest * 2.0**exponent
    least = 1.5 * 2.0 ** (FLOAT32_DIGITS - 1 + form.least_exponent + exponent)
    clipped = step("Clip", source, constant("low", 0.0 if positive else -largest), constant("high", largest))
    size = clipped if positive else step("Abs", clipped)
    times = step("Mul", size, constant("factor", 2.0 ** (FLOAT32_DIGITS - form.digits) + 1))
    taken = step("Max", times, constant("least", least))
    rounded = step("Add", taken, step("Sub", size, taken), last=positive)
    if not positive:
        farther = step("Mul", clipped, constant("far", 2.0**100))  # past 1, unless it is rounded to 0
        sign = step("Clip", farther, constant("minus", -1.0), constant("plus", 1.0))
        step("Mul", rounded, sign, last=True)
    return nodes, constants
