"""Read the raw data of a run from its files, each when it is first asked for, and derive what KPIs and criteria share.

Nothing here looks at the machine, the environment or the cache: only at files below the run's directory. One that is
missing or damaged raises InvalidMeasurementError.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.cases.precisions import Precision, chosen_precision
from cnnbench.engines.layers import LAYERS, TRACE_DIRECTORY, TRACED
from cnnbench.launch.instances import Plan
from cnnbench.launch.mpi import REPORT, RankReport
from cnnbench.machine.ceiling import Ceiling, Utilization, utilize
from cnnbench.machine.contention import Contention, Throttling, compare_quotas, compare_samples
from cnnbench.proof import verdict as validity
from cnnbench.proof.precision import PrecisionProof, judge_trace
from cnnbench.proof.samples import SampledProof, count_samples
from cnnbench.proof.trace import read_trace
from cnnbench.proof.verdict import Agreement, compare_outputs
from cnnbench.results import stats
from cnnbench.results.samples import SAMPLES, Samples
from cnnbench.results.steps import COLUMNS
from cnnbench.run.record import (
    CHECK_REFERENCE,
    EXPECTED,
    LABELS,
    Look,
    Record,
    Seen,
    read_array,
    read_results,
    reading,
)


def images_of_steps(steps: Sequence[np.ndarray], images_per_step: int) -> list[np.ndarray]:
    """Return the images of each step: all the same, as no accuracy run with its smaller last batch is timed."""
    return [np.full(len(rows), images_per_step, dtype=np.int64) for rows in steps]


class Measured:
    """What the instances of a run measured, and what was seen meanwhile; `directory`: the run's."""

    def __init__(self, directory: Path, record: Record, seen: Seen) -> None:
        self.directory, self.record, self.seen = directory, record, seen

    @cached_property
    def ranks(self) -> RankReport | None:
        """What the ranks report, where MPI started the instances."""
        if not self.record.mpi:
            return None
        path = self.directory / "mpi" / REPORT
        with reading(path):
            return RankReport.read(path)

    @cached_property
    def plan(self) -> Plan:
        """Where the instances were: as planned, or where MPI bound them."""
        return self.ranks.bound(self.record.plan) if self.ranks else self.record.plan

    @property
    def is_accuracy(self) -> bool:
        """Whether it ran for its answers: its times are no figures then."""
        return self.record.mode == "accuracy"

    @property
    def precision(self) -> Precision:
        """The precision asked for."""
        return chosen_precision(
            self.record.precision, fp8_arithmetic=self.record.effective.get("FP8_ARITHMETIC", "fp32")
        )

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """What the instances that finished have reported."""
        return read_results(self.directory, self.plan)

    @property
    def _instances(self) -> list[Path]:
        return [self.directory / f"instance-{one.index}" for one in self.plan.instances]

    @cached_property
    def steps(self) -> list[np.ndarray]:
        """The raw times of each instance's steps."""
        return [read_array(instance / "steps.npy", len(COLUMNS)) for instance in self._instances]

    @cached_property
    def images(self) -> list[np.ndarray]:
        """The images of each instance's steps."""
        return images_of_steps(self.steps, self.record.images_per_step)

    @cached_property
    def window(self) -> stats.Window:
        """The span in which all instances were measuring."""
        return stats.common_window(self.steps)

    @cached_property
    def times_ms(self) -> np.ndarray:
        """The inference times of the steps inside the window."""
        return stats.inference_times_ms(self.steps, self.window)

    @cached_property
    def throughput(self) -> stats.Estimate:
        """The images a second of all instances together."""
        return stats.estimate_throughput(self.steps, self.images, self.window)

    @cached_property
    def percentiles(self) -> dict[float, float]:
        """The percentiles of the inference times (ms) for which there are samples enough."""
        return stats.percentiles(self.times_ms)

    @cached_property
    def steadiness(self) -> stats.Steadiness | None:
        """How steady throughput was; None from too few steps."""
        return stats.steadiness(stats.slice_rates(self.steps, self.images, self.window))

    @property
    def _looks(self) -> tuple[Look, Look]:
        if len(self.seen.looks) < 2:
            raise InvalidMeasurementError(
                f"{len(self.seen.looks)} looks at the machine were recorded, needed two: as measuring began and ended"
            )
        return self.seen.looks[0], self.seen.looks[-1]

    @cached_property
    def contention(self) -> Contention | None:
        """What others took of the cores; None when that was too short to tell."""
        first, last = self._looks
        looked_s = last.time_s - first.time_s
        times = self.ranks.cpu_times() if self.ranks else (first.cpu_time, last.cpu_time, looked_s)
        return compare_samples(times[0], times[1], self.plan.cores, times[2])

    @cached_property
    def throttling(self) -> Throttling | None:
        """What a CPU quota took; None without one."""
        first, last = self._looks
        return compare_quotas(first.quotas, last.quotas, len(self.plan.cpus), last.time_s - first.time_s)

    @property
    def displaced_per_s(self) -> float:
        """How often a second the instances' threads lost a core that they wanted to keep, of each core."""
        of_process = {(one.get("host"), one["pid"]): one for one in self.results}
        rates = [one.get("involuntary_switches", 0) / one.get("loaded_s", math.inf) for one in of_process.values()]
        return sum(rates) / self.plan.cores

    @property
    def frequencies_mhz(self) -> list[float]:
        """The clock under load, where it could be told."""
        return [look.frequency_mhz for look in self.seen.looks if look.frequency_mhz is not None]

    @property
    def ceiling_failure(self) -> str:
        """Why the peak could not be measured again after the run; empty when it could, or was not to be."""
        return next((one.failure for one in self.seen.ceilings if one.failure), "")

    @cached_property
    def utilization(self) -> Utilization | None:
        """What the throughput is of the peak, of several the largest, as other work can only lower it; None without."""
        found: Ceiling | None = None
        for one in self.seen.ceilings:
            if one.ceiling is not None:
                found = found.raise_to(one.ceiling) if found else one.ceiling
        if found is None or self.record.macs_per_image is None or self.ceiling_failure:
            return None
        return utilize(found, self.throughput.mean, self.record.macs_per_image)

    @cached_property
    def proof(self) -> PrecisionProof | None:
        """How much of the network ran at the precision, as told by a trace or the engine; None where neither tells."""
        directory = self.directory / TRACE_DIRECTORY
        told = (directory / LAYERS).is_file() or (directory / TRACED).is_file()
        if self.record.macs_per_image is None or (self.record.sampled and not told):
            return None
        with reading(directory):
            step = read_trace(directory)
        return judge_trace(self.precision, step, self.record.macs_per_image * self.record.traced_images)

    @cached_property
    def sampled(self) -> SampledProof | None:
        """What the processor was at while measuring, by samples; None without any, or without a model."""
        if self.record.macs_per_image is None or not self.record.sampled:
            return None
        firsts = {one.process: one.index for one in reversed(self.plan.instances)}
        processes = []
        for index in firsts.values():
            path = self.directory / f"instance-{index}" / SAMPLES
            with reading(path):
                processes.append(Samples.load(path))
        return count_samples(self.precision, processes, self.window)

    @cached_property
    def agreement(self) -> Agreement | None:
        """How far the outputs for the fixed batch lie from the reference; None without a model."""
        if self.record.macs_per_image is None:
            return None
        outputs, reference = [one / "check.npy" for one in self._instances], self.directory / CHECK_REFERENCE
        for path in (*outputs, reference):
            read_array(path)
        return compare_outputs(outputs, reference)

    @cached_property
    def _predictions(self) -> list[np.ndarray]:
        return [read_array(instance / "predictions.npy") for instance in self._instances]

    @cached_property
    def _labels(self) -> np.ndarray:
        return read_array(self.directory / LABELS)

    def _in_shares(self, values: np.ndarray) -> np.ndarray:
        """Return what belongs to the images answered, in the order in which the instances' shares follow each other."""
        shares = len(self._instances)
        parts = (values[share::shares][: len(rows)] for share, rows in enumerate(self._predictions))
        return np.concatenate(list(parts))

    @cached_property
    def measured_top1(self) -> float | None:
        """The share of the fixed batch's images, the set's first, that the measured steps answer as the reference does.

        None where no accuracy is measured, or none of them is answered.
        """
        if self.hits is None:
            return None
        wanted = read_array(self.directory / CHECK_REFERENCE).argmax(axis=1)
        best = np.full(self.images_given, -1, dtype=np.int64)
        for share, rows in enumerate(self._predictions):
            best[share :: len(self._predictions)][: len(rows)] = rows[:, 0]
        found = best[: len(wanted)]
        return float((found == wanted)[found >= 0].mean()) if (found >= 0).any() else None

    @property
    def answered(self) -> int:
        """How many images an accuracy run has answered for."""
        return sum(len(rows) for rows in self._predictions)

    @property
    def images_given(self) -> int:
        """How many images an accuracy run had."""
        return len(self._labels)

    @cached_property
    def hits(self) -> np.ndarray | None:
        """Whether each of an image's best classes is its label (bool, images x 5); None unless enough are answered."""
        if not self.is_accuracy or not validity.is_covered(
            self.answered, self.images_given, self.record.accuracy_time_s
        ):
            return None
        hits: np.ndarray = np.concatenate(self._predictions) == self._in_shares(self._labels)[:, None]
        return hits

    @cached_property
    def loss(self) -> tuple[float, float, float] | None:
        """What of top-1 accuracy is lost against the float32 model, with its interval; None where not compared."""
        if self.hits is None or not self.record.predicts:
            return None
        expected = self._in_shares(read_array(self.directory / EXPECTED)) == self._in_shares(self._labels)
        return stats.paired_difference(expected, self.hits[:, 0])
