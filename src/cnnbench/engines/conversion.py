"""Say how a network is to be converted to a smaller type of number: what both sides of the wall read and check."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cnnbench.base.errors import UsageError

NumberType = Literal["fp32", "fp16", "bf16", "fp8", "fp8_weight"]
FormatName = Literal["F143", "F152"]
WeightRounding = Literal["nearest", "compensated"]
Metric = Literal["mse", "mae", "snr", "kld", "cos_dist"]
Exponent = Annotated[int, Field(ge=-32, le=32)]

PATTERNS = ("PadConvChannel",)
"""What `--compiler_options custom_patterns=` may name."""


NETWORK, EMULATED = "network.onnx", "emulated.onnx"
"""A prepared network in standard ONNX; and what answers the same bits, with float32 operations for what the engines do
number by number."""


def network_file(prepared: Path) -> Path:
    """Return the file of a prepared network that engines are to load."""
    emulated = prepared / EMULATED
    return emulated if emulated.is_file() else prepared / NETWORK


class Conversion(BaseModel):
    """How to convert a network.

    `number_type`: fp8 has weights and what they are multiplied by in it, fp8_weight the weights alone. `kept`: names of
    operations that stay in 16 bits; `keep_most_sensitive`: so many more, found by measurement. Formats and exponents
    (of scales, powers of two) are of fp8 alone; an exponent that is None is searched by `metric`, of a weight for each
    output channel. `weight_rounding`: compensated has the weights of an output make up for each other's rounding, over
    the calibration images. `opset`: None for the graph's own, or the least that the types need.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number_type: NumberType = "fp8"
    kept: tuple[str, ...] = ()
    keep_most_sensitive: Annotated[int, Field(ge=0)] = 0
    activation_format: FormatName = "F143"
    weight_format: FormatName = "F143"
    activation_exponent: Exponent | None = None
    weight_exponent: Exponent | None = None
    metric: Metric = "mse"
    weight_rounding: WeightRounding = "nearest"
    pad_channels: bool = False
    opset: int | None = None

    @model_validator(mode="after")
    def _only_of_fp8(self) -> "Conversion":
        if not self.number_type.startswith("fp8") and (self.kept or self.keep_most_sensitive):
            raise ValueError(f"keeps operations out of {self.number_type}; only fp8 and fp8_weight leave any")
        return self


def check_fp8_params(text: str) -> str:
    """Return `--fp8_params` as it is; raise ValueError for what it cannot be."""
    try:
        parse_fp8_params(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


def parse_fp8_params(text: str) -> dict[str, object]:
    """Read `F143,F143,-3,-3`: the formats of activations and weights, and the exponents of their scales.

    An exponent may be `auto`, for the one that is found best. Raise UsageError for anything else.
    """
    words = text.split(",")
    if len(words) != 4:
        raise UsageError(f"{text}: needed four words, such as F143,F143,-3,-3")
    found: dict[str, object] = {}
    for key, word in zip(("activation_format", "weight_format"), words[:2], strict=True):
        if word not in ("F143", "F152"):
            raise UsageError(f"{word}: no such format; there are F143 (E4M3) and F152 (E5M2)")
        found[key] = word
    for key, word in zip(("activation_exponent", "weight_exponent"), words[2:], strict=True):
        if word == "auto":
            found[key] = None
        elif not re.fullmatch(r"[+-]?\d{1,4}", word) or not -32 <= int(word) <= 32:
            raise UsageError(f"{word}: a scale is a power of two, its exponent -32 to 32 or auto")
        else:
            found[key] = int(word)
    return found
