"""Judge from samples of the measured instances' instructions whether a precision is what ran."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cnnbench.cases.precisions import REQUIRED_SHARE, Precision
from cnnbench.proof.instructions import classify, rate
from cnnbench.results.samples import Samples
from cnnbench.results.stats import Window, binomial_interval

REQUIRED_COVER = 0.9
"""The share of the processes' CPU time that must have been sampled: of what threads ran besides, nothing is known."""

CLASSES_SHOWN = 6
"""How many classes a result tells of, the largest first."""


@dataclass(frozen=True)
class SampledProof:
    """What the processor was at while measuring.

    `precision`: what is to be proven. `classes`: samples by the class of multiply-accumulates that they were among,
    the largest first; `total`: all samples in the window, those among other instructions too. `covered`: the share of
    the CPU time of the processes that was sampled at all. `failure`: why not, where a process could not be.
    """

    precision: Precision
    classes: dict[str, int]
    total: int
    covered: float
    failure: str = ""

    @property
    def multiplying(self) -> int:
        """How many samples were among multiply-accumulates."""
        return sum(self.classes.values())

    @property
    def proven(self) -> int:
        """How many of these were among the precision's own."""
        return sum(count for name, count in self.classes.items() if self._is_own(name))

    @property
    def share(self) -> float:
        """The share of the multiply-accumulate samples that are the precision's own; 0 of none."""
        return self.proven / self.multiplying if self.multiplying else 0.0

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of that share."""
        return binomial_interval(self.proven, self.multiplying)

    @cached_property
    def needed(self) -> float:
        """The share of the samples with which REQUIRED_SHARE of the multiply-accumulates were the precision's own.

        Samples tell time, and in the same time wide instructions compute more than narrow ones: both are taken to run
        at the same part of what they can.
        """
        own = {name for name in self.classes if self._is_own(name)}
        if not own or len(own) == len(self.classes):
            return REQUIRED_SHARE
        ratio = self._mean_rate(own) / self._mean_rate(set(self.classes) - own)
        return REQUIRED_SHARE / (REQUIRED_SHARE + (1 - REQUIRED_SHARE) * ratio)

    def _is_own(self, name: str) -> bool:
        return re.match(self.precision.instructions, name) is not None

    def _mean_rate(self, names: Collection[str]) -> float:
        return sum(rate(name) * self.classes[name] for name in names) / sum(self.classes[name] for name in names)

    @property
    def passed(self) -> bool:
        """Whether they prove the precision."""
        return self.interval[0] >= self.needed and self.covered >= REQUIRED_COVER

    @property
    def decided(self) -> bool:
        """Whether they prove or refute it: too few samples do neither, nor do those of a part of what ran."""
        return self.passed or (self.covered >= REQUIRED_COVER and self.interval[1] < self.needed)

    @property
    def others(self) -> float:
        """The share of all samples that was outside of multiply-accumulates."""
        return 1 - self.multiplying / self.total if self.total else 0.0

    @property
    def facts(self) -> dict[str, str]:
        """What a result says of it."""
        facts = {"not sampled": self.failure} if self.failure else {}
        if not self.total:
            return facts
        facts |= {"outside multiply-accumulates": f"{self.others:.1%} of {self.total} samples"}
        for number, (name, count) in enumerate(list(self.classes.items())[:CLASSES_SHOWN]):
            low, high = binomial_interval(count, self.multiplying)
            what = f"other instructions {number}" if number else "dominant instructions"
            facts[what] = f"{name}, {count / self.multiplying:.1%} [{low:.1%}, {high:.1%}] of the samples"
        return facts


def count_samples(precision: Precision, processes: Iterable[Samples], window: Window) -> SampledProof:
    """Classify the samples of some processes that lie in the window.

    Products of int16 are a slower way to int8's, so they tell against that; else, they are those of JPEG decoders.
    """
    classes: Counter[str] = Counter()
    total, sampled_ns, cpu_ns, failure = 0, 0, 0, ""
    for process in processes:
        records = process.records
        for code, address, _ in process.within(window.start_ns, window.end_ns):
            classes[classify(code, address)] += 1
            total += 1
        kept = len(records) / process.seen if process.seen else 1.0
        sampled_ns += int((records["missed"].astype(np.int64) + 1).sum() / kept) * process.period_ns if kept else 0
        cpu_ns += process.cpu_ns
        failure = failure or process.failure
    told = {name: count for name, count in classes.most_common() if name and (precision.is_int8 or "int16" not in name)}
    return SampledProof(precision, told, total, sampled_ns / cpu_ns if cpu_ns else 0.0, failure)
