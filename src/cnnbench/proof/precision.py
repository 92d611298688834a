"""Judge from a trace whether a precision is what ran: how much of the network, and which layers fell back."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cnnbench.cases.precisions import Precision
from cnnbench.engines.layers import UNTOLD, Primitive
from cnnbench.proof.trace import TracedStep

MOST_SHARE = 1.01
"""No more than this share of the graph's multiply-accumulates may have run as the precision says.

More than all of them means that the trace or the graph was not read right, and then nothing is proven.
"""
FALLBACKS_SHOWN = 10


@dataclass(frozen=True)
class PrecisionProof:
    """How much of the network ran at the precision, and what ran at all.

    `share`: of the multiply-accumulates that the graph needs. `implementations`: each one's share of the traced
    multiply-accumulates, the largest first. `fallbacks`: lines about the layers that ran otherwise, the largest first.
    """

    share: float
    implementations: dict[str, float]
    fallbacks: list[str]

    @property
    def instructions_told(self) -> bool:
        """Whether the instructions of all layers are known, and not of some only the data type."""
        return not any(name.startswith(UNTOLD) for name in self.implementations)

    @property
    def unnamed(self) -> float:
        """The share of the traced multiply-accumulates that MKL did without naming its instructions."""
        return sum(share for name, share in self.implementations.items() if name.startswith("mkl_") and ":" not in name)

    @property
    def facts(self) -> dict[str, str]:
        """What a result says of it: the implementation of the largest share, and the layers that fell back."""
        facts = {f"fell back {number}": line for number, line in enumerate(self.fallbacks, start=1)}
        if not self.implementations:
            return facts
        name, share = next(iter(self.implementations.items()))
        return {"dominant implementation": f"{name}, {share:.1%} of the multiply-accumulates"} | facts


def ran_as(precision: Precision, layer: Primitive) -> bool:
    """Tell whether a layer ran on the precision's instructions, types and arithmetic."""
    runs_it = layer.implementation == UNTOLD or re.search(precision.trace_isa, layer.implementation) is not None
    types = (layer.source_type, layer.weights_type)
    computed_so = layer.weights_type != "f32" or layer.fpmath == precision.fpmath
    return runs_it and computed_so and all(re.fullmatch(precision.trace_type, found) for found in types)


def judge_trace(precision: Precision, step: TracedStep, macs_needed: int) -> PrecisionProof:
    """Compare what a step ran with a precision.

    `macs_needed`: what the step had to compute, from the graph and not from the trace: work that oneDNN never saw
    (because another library did it) then counts against the share.
    """
    proven = sum(layer.macs for layer in step.layers if ran_as(precision, layer))
    return PrecisionProof(
        share=proven / macs_needed,
        implementations=share_out(step.layers),
        fallbacks=_describe_fallbacks([layer for layer in step.layers if not ran_as(precision, layer)], macs_needed),
    )


def share_out(layers: Sequence[Primitive]) -> dict[str, float]:
    """Return each implementation's share of the layers' multiply-accumulates, the largest first."""
    macs: Counter[str] = Counter()
    for layer in layers:
        macs[layer.name] += layer.macs
    total = sum(macs.values()) or 1
    return {name: count / total for name, count in macs.most_common()}


def _describe_fallbacks(layers: Sequence[Primitive], macs_needed: int) -> list[str]:
    """Return a line for each kind of layer, the largest share first, and one for all that are too many to show."""
    alike: dict[str, list[int]] = {}
    for layer in layers:
        alike.setdefault(f"{layer.kind} {layer.shape} on {layer.name}", []).append(layer.macs)
    shares = sorted(((sum(macs) / macs_needed, len(macs), what) for what, macs in alike.items()), reverse=True)
    lines = [f"{count} x {what}, {share:.2%}" for share, count, what in shares[:FALLBACKS_SHOWN]]
    if rest := shares[FALLBACKS_SHOWN:]:
        lines.append(f"and {len(rest)} more, {sum(share for share, _, _ in rest):.2%} together")
    return lines
