"""Read the raw data of a run from its files, each when it is first asked for, and derive what KPIs and criteria share.

Nothing here looks at the machine, the environment or the cache: only at files below the run's directory. One that is
missing or damaged raises InvalidMeasurementError.
"""

import json
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
from cnnbench.results.loadgen import AUDITS, LoadGenAudit, LoadGenSummary, read_answers, read_summary
from cnnbench.results.samples import SAMPLES, Samples
from cnnbench.results.steps import COLUMNS
from cnnbench.run.record import (
    CHECK_REFERENCE,
    EXPECTED,
    LABELS,
    Look,
    Record,
    Seen,
    ServiceCount,
    read_array,
    read_results,
    reading,
)
from cnnbench.worker.loadgen import ANSWERS, LOADGEN, STEP_IMAGES, SUMMARY

CLIENT, SERVER = "client", "server"
"""The directories of a run's logs that a server's clients leave theirs in, and a server itself."""
AUDIT, AUDITED_ANSWERS = "audit", "audit/accuracy"
"""The directories of an audit's own run of LoadGen, and of one whose answers are held against it."""
METADATA = "metadata.json"
"""What a server says of itself, there."""
LATE_MS = 1.0
"""From when on a request counts as sent late."""


def images_of_steps(steps: Sequence[np.ndarray], images_per_step: int) -> list[np.ndarray]:
    """Return the images of each step: all the same, as no accuracy run with its smaller last batch is timed."""
    return [np.full(len(rows), images_per_step, dtype=np.int64) for rows in steps]


def in_sequence(rows: np.ndarray) -> np.ndarray:
    """Return steps that may overlap, in the order in which they ended, as if each began when the one before ended.

    What is completed by a moment, which is what rates are made of, is the same.
    """
    rows = rows[np.argsort(rows[:, 2], kind="stable")].copy()
    rows[1:, 0] = rows[:-1, 2]
    return rows


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
    def _cpus(self) -> tuple[int, ...]:
        """The CPUs in use on this host, a client's among them."""
        return self.plan.cpus + (self.record.clients.instances[0].cpus if self.record.clients else ())

    @property
    def cores(self) -> int:
        """How many cores were in use, on all hosts."""
        return self.plan.cores + (len(self.record.clients.instances[0].cpus) if self.record.clients else 0)

    @property
    def is_accuracy(self) -> bool:
        """Whether it ran for its answers: its times are no figures then."""
        return self.record.mode == "accuracy"

    @property
    def tells_latency(self) -> bool:
        """Whether the times of its steps are latency: not where queries of LoadGen's wait that no step has begun."""
        return not self.is_accuracy and self.record.scenario not in ("Server", "Offline")

    @property
    def precision(self) -> Precision:
        """The precision asked for."""
        return chosen_precision(
            self.record.precision, fp8_arithmetic=self.record.effective.get("FP8_ARITHMETIC", "fp32")
        )

    @property
    def measuring(self) -> Plan:
        """The plan of what timed steps: the instances, or a server's clients."""
        return self.record.clients or self.plan

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """What the instances, or a server's clients, that finished have reported."""
        return read_results(self._measured, self.measuring)

    @cached_property
    def served(self) -> list[dict[str, Any]]:
        """What the instances of a server have reported that ended well; none where nothing is served."""
        return read_results(self.directory, self.plan) if self.record.clients else []

    @property
    def _instances(self) -> list[Path]:
        return [self._measured / f"instance-{one.index}" for one in self.measuring.instances]

    @property
    def _measured(self) -> Path:
        """Where those that timed steps have left theirs."""
        return self.directory / CLIENT if self.record.clients else self.directory

    @cached_property
    def raw_steps(self) -> list[np.ndarray]:
        """The raw times of each instance's steps, as they were written."""
        return [read_array(instance / "steps.npy", len(COLUMNS)) for instance in self._instances]

    @cached_property
    def steps(self) -> list[np.ndarray]:
        """The times of each instance's steps, none of which overlap: what rates are made of."""
        return [in_sequence(rows) for rows in self.raw_steps] if self.record.arrivals else self.raw_steps

    @cached_property
    def images(self) -> list[np.ndarray]:
        """The images of each instance's steps."""
        if self.record.scenario:
            return [read_array(instance / STEP_IMAGES) for instance in self._instances]
        return images_of_steps(self.steps, self.record.images_per_step)

    @cached_property
    def window(self) -> stats.Window:
        """The span in which all instances were measuring; of a client that sends freely, in which requests were due."""
        if not self.record.arrivals:
            return stats.common_window(self.steps)
        (rows,) = self.raw_steps
        if len(rows) < 2:
            raise InvalidMeasurementError(f"{len(rows)} requests were answered, needed two or more")
        return stats.Window(int(rows[:, 0].min()), int(rows[:, 0].max()))

    @cached_property
    def times_ms(self) -> np.ndarray:
        """The inference times of the steps inside the window; of requests, from when they were due to their answers.

        Where LoadGen sends, a step waits for a query first, which is no part of its time.
        """
        if self.record.clients is None or self.record.scenario:
            return stats.inference_times_ms(self.steps, self.window)
        rows = np.concatenate(self.raw_steps)
        rows = rows[np.argsort(rows[:, 2], kind="stable")]
        ended = rows[:, 0] if self.record.arrivals else rows[:, 2]  # what is due last is answered after the window
        inside = (rows[:, 0] >= self.window.start_ns) & (ended <= self.window.end_ns)
        return (rows[inside, 2] - rows[inside, 0]) / 1e6

    @cached_property
    def throughput(self) -> stats.Estimate:
        """The images a second of all instances together."""
        return stats.estimate_throughput(self.steps, self.images, self.window)

    @property
    def requests_per_s(self) -> float:
        """The steps a second of all instances together; of a server's clients, the requests."""
        return self.throughput.mean * sum(map(len, self.steps)) / float(sum(images.sum() for images in self.images))

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
        return compare_samples(times[0], times[1], self.cores, times[2])

    @cached_property
    def throttling(self) -> Throttling | None:
        """What a CPU quota took; None without one."""
        first, last = self._looks
        return compare_quotas(first.quotas, last.quotas, len(self._cpus), last.time_s - first.time_s)

    @property
    def displaced_per_s(self) -> float:
        """How often a second the instances' threads lost a core that they wanted to keep, of each core."""
        of_process = {(one.get("host"), one["pid"]): one for one in self.results}
        rates = [one.get("involuntary_switches", 0) / one.get("loaded_s", math.inf) for one in of_process.values()]
        return sum(rates) / self.cores

    @property
    def server_facts(self) -> dict[str, str]:
        """What a server says that it is."""
        path = self.directory / SERVER / METADATA
        with reading(path):
            found = json.loads(path.read_bytes())
            return {"Triton Server": found["version"]}

    @cached_property
    def service(self) -> ServiceCount | None:
        """What a server did while it was measured; None where nothing is served."""
        if self.record.clients is None:
            return None
        first, last = (look.served for look in self._looks)
        if first is None or last is None:
            return None
        batches = {size: count - first.batches.get(size, 0) for size, count in last.batches.items()}
        totals = {
            name: getattr(last, name) - getattr(first, name) for name in ServiceCount.model_fields if name != "batches"
        }
        totals["own_bytes"] = last.own_bytes
        return ServiceCount(**totals, batches={size: count for size, count in sorted(batches.items()) if count})

    @property
    def server_growth(self) -> float | None:
        """What a server's memory has grown by while it was measured, as a share of what it was; None without one."""
        first, last = (look.served for look in self._looks)
        if not first or not last or not first.own_bytes:
            return None
        return last.own_bytes / first.own_bytes - 1

    @cached_property
    def p99_drift(self) -> float | None:
        """What the 99th percentile of latency has grown by from the first third of the requests to the last."""
        third = len(self.times_ms) // 3
        first, last = (
            stats.percentiles(times).get(99)
            for times in (self.times_ms[:third], self.times_ms[len(self.times_ms) - third :])
        )
        return last / first - 1 if first and last else None

    @cached_property
    def kept_up(self) -> tuple[int, int]:
        """How many requests were answered by the end of the window, and how many were due."""
        rows = np.concatenate(self.raw_steps)
        return int((rows[:, 2] <= self.window.end_ns).sum()), len(rows)

    @cached_property
    def loadgen(self) -> LoadGenSummary | None:
        """What LoadGen says of the run; None where it sent nothing."""
        if not self.record.scenario:
            return None
        path = self._measured / LOADGEN / SUMMARY
        with reading(path):
            return read_summary(path.read_text(encoding="utf-8"))

    @cached_property
    def loadgen_top1(self) -> float | None:
        """The share of images whose label LoadGen has logged as the answer; None where it did not ask for answers."""
        if self.loadgen is None or not self.is_accuracy:
            return None
        path = self._measured / LOADGEN / ANSWERS
        with reading(path):
            best = read_answers(path)
            classes = {sample: int.from_bytes(bytes.fromhex(answer), "little") for sample, answer in best.items()}
            return float(np.mean([classes[sample] == label for sample, label in enumerate(self._labels)]))

    @cached_property
    def audit(self) -> LoadGenAudit | None:
        """How the run that audits this one compares with it; None where there was none."""
        if self.loadgen is None or not self.record.audit:
            return None
        directory, other = self.directory / AUDIT / LOADGEN, self.directory / AUDITED_ANSWERS / LOADGEN
        with reading(directory):
            audited = read_summary((directory / SUMMARY).read_text(encoding="utf-8"))
            answers = None
            if AUDITS[self.record.audit].answers:
                answers = read_answers(directory / ANSWERS), read_answers(other / ANSWERS)
            return LoadGenAudit.compare(self.record.audit, self.loadgen, audited, answers)

    @cached_property
    def late_share(self) -> float | None:
        """The share of requests that were sent later than LATE_MS after they were due; None where none are due."""
        if not self.record.arrivals:
            return None
        rows = np.concatenate(self.raw_steps)
        return float(((rows[:, 1] - rows[:, 0]) / 1e6 > LATE_MS).mean())

    @property
    def client_share(self) -> float | None:
        """What the clients' process took of one core; None where nothing is served.

        It is one process of Python, so that its own part cannot take more, however many cores it has.
        """
        if self.record.clients is None:
            return None
        one = self.results[0]
        return float(one["cpu_s"]) / float(one["loaded_s"])

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
        checked = [self.directory / f"instance-{one.index}" for one in self.plan.instances]
        if self.record.clients:
            checked.append(self._instances[0])  # over the network, besides each instance by itself
        outputs, reference = [one / "check.npy" for one in checked], self.directory / CHECK_REFERENCE
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
