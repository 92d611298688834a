"""Compute the KPIs of a run: each is one small function of its raw data, and a line of the table at the end.

A function returns None where the run has not measured its KPI: it is left out then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from cnnbench.base.errors import CnnbenchError
from cnnbench.results import stats
from cnnbench.results.record import Kpi
from cnnbench.run.energy_seen import use_energy
from cnnbench.run.measured import Measured

LOW, HIGH = " 95 % low", " 95 % high"
"""What follows a KPI's name in those of its interval's ends."""

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class KpiKind:
    """One KPI that runs can have: `better` says which way, `primary_in` the mode whose figure of merit it is."""

    name: str
    unit: str
    better: Better
    compute: Callable[[Measured], float | Interval | None]
    primary_in: str = ""

    def best(self, figures: Mapping[str, float]) -> str:
        """Return the name of the best of some figures."""
        return (min if self.better == "lower" else max)(figures, key=figures.__getitem__)

    def kpis(self, run: Measured) -> list[Kpi]:
        """Return the KPI of a run, with the ends of its interval if it has one; none where it was not measured."""
        figure = self.compute(run)
        if figure is None:
            return []
        primary = run.record.mode == self.primary_in
        if not isinstance(figure, Interval):
            return [Kpi(key=self.name, unit=self.unit, value=figure, primary=primary)]
        return [
            Kpi(key=self.name, unit=self.unit, value=figure.value, primary=primary),
            Kpi(key=self.name + LOW, unit=self.unit, value=figure.low),
            Kpi(key=self.name + HIGH, unit=self.unit, value=figure.high),
        ]


def compute_kpis(run: Measured) -> list[Kpi]:
    """Return all KPIs of a run: the primary one in front, followed by those of its kind, then the table's order."""
    kpis = [kpi for kind in TABLE for kpi in kind.kpis(run)]
    primary = next((kpi.key.split()[0] for kpi in kpis if kpi.primary), "")
    return sorted(kpis, key=lambda kpi: (not kpi.primary, kpi.key.split()[0] != primary))


def primary_kind(mode: str) -> KpiKind:
    """Return the KPI that runs of a mode are for."""
    return next(kind for kind in TABLE if kind.primary_in == mode)


def find_kind(key: str) -> KpiKind:
    """Return what a KPI of a result is by its key; raise CnnbenchError listing the known ones."""
    name = key.removesuffix(LOW).removesuffix(HIGH)
    for kind in TABLE:
        if kind.name == name:
            return kind
    raise CnnbenchError(f"{key}: no such KPI; there are {', '.join(dict.fromkeys(kind.name for kind in TABLE))}")


def _interval(estimate: stats.Estimate) -> float | Interval:
    width = estimate.half_width
    return estimate.mean if width is None else Interval(estimate.mean, estimate.mean - width, estimate.mean + width)


def _throughput(run: Measured) -> float | Interval | None:
    return None if run.is_accuracy else _interval(run.throughput)


def _latency_mean(run: Measured) -> float | Interval | None:
    return _interval(stats.estimate_latency(run.times_ms)) if run.tells_latency and len(run.times_ms) else None


def _latency_percentile(percentile: float, run: Measured) -> float | None:
    return run.percentiles.get(percentile) if run.tells_latency else None


def _drift(run: Measured) -> float | None:
    return 100 * run.steadiness.drift if not run.is_accuracy and run.steadiness else None


def _spread(run: Measured) -> float | None:
    return 100 * run.steadiness.spread if not run.is_accuracy and run.steadiness else None


def _input_wait(run: Measured) -> float | None:
    waits = run.record.reads_images and not run.record.scenario  # what waits for LoadGen's queries waits for no input
    return 100 * stats.input_wait_share(run.steps, run.window) if waits else None


def _other_load(run: Measured) -> float | None:
    return 100 * run.contention.others if run.contention else None


def _stolen_time(run: Measured) -> float | None:
    return 100 * run.contention.steal if run.contention else None


def _throttled_time(run: Measured) -> float | None:
    return 100 * run.throttling.share if run.throttling else None


def _isa_share(run: Measured) -> float | None:
    if run.sampled and run.sampled.decided:
        return 100 * run.sampled.share
    return 100 * run.proof.share if run.proof and run.proof.instructions_told else None


def _data_type_share(run: Measured) -> float | None:
    return 100 * run.proof.share if run.proof and not run.proof.instructions_told else None


def _agreement(run: Measured) -> float | None:
    return 100 * run.agreement.top1 if run.agreement else None


def _utilization(run: Measured) -> float | None:
    return 100 * run.utilization.share if run.utilization else None


def _achieved(unit: str, run: Measured) -> float | None:
    return run.utilization.achieved if run.utilization and run.utilization.ceiling.compute.unit == unit else None


def _peak(unit: str, run: Measured) -> float | None:
    compute = run.utilization.ceiling.compute if run.utilization else None
    return compute.all_cores if compute and compute.unit == unit else None


def _memory_bandwidth(run: Measured) -> float | None:
    return run.utilization.ceiling.memory.all_cores if run.utilization else None


def _top1(run: Measured) -> Interval | None:
    if run.hits is None:
        return None
    correct, images = int(run.hits[:, 0].sum()), len(run.hits)
    low, high = stats.accuracy_interval(correct, images)
    return Interval(100 * correct / images, 100 * low, 100 * high)


def _top5(run: Measured) -> float | None:
    return 100 * float(run.hits.any(axis=1).mean()) if run.hits is not None else None


def _top1_loss(run: Measured) -> Interval | None:
    return Interval(*(100 * share for share in run.loss)) if run.loss else None


def _resident_memory(run: Measured) -> float | None:
    """Count each process once; in an enclave its memory cannot be seen."""
    of_processes = run.served or run.results
    resident = {(result.get("host"), result["pid"]): result["resident_bytes"] for result in of_processes}
    return None if None in resident.values() else sum(resident.values()) / 2**20


def _cpu_frequency(run: Measured) -> float | None:
    return float(np.mean(run.frequencies_mhz)) if run.frequencies_mhz else None


def _power(run: Measured) -> float | None:
    use = use_energy(run)
    return use.power_w if use else None


def _idle_power(run: Measured) -> float | None:
    use = use_energy(run)
    return use.idle_w if use else None


def _power_above_idle(run: Measured) -> float | None:
    """Tell it where the run drew more, by a hundredth at the least: else nothing was idle before, or has run since."""
    power, idle = _power(run), _idle_power(run)
    return power - idle if power and idle and power > 1.01 * idle else None


def _energy_per_image(run: Measured) -> float | None:
    power = _power(run)
    return power / run.throughput.mean if power else None


def _efficiency(run: Measured) -> float | None:
    power = _power(run)
    return run.throughput.mean / power if power else None


def _capacity(run: Measured) -> float | None:
    """Count what was answered at the rate that holds the bound: what was sent may have been a little more or less."""
    return _requests(run) if run.record.mode == "capacity" and run.seen.capacity else None


def _requests(run: Measured) -> float | None:
    return None if run.record.clients is None or run.is_accuracy else run.requests_per_s


def _per_request(name: str, run: Measured) -> float | None:
    service = run.service
    return getattr(service, name) / 1e6 / service.requests if service and service.requests else None


def _executed_batch(run: Measured) -> float | None:
    service = run.service
    return service.images / service.executions if service and service.executions else None


def _client_load(run: Measured) -> float | None:
    return None if run.client_share is None else 100 * run.client_share


def _server_memory(run: Measured) -> float | None:
    return run.service.own_bytes / 2**20 if run.service and run.service.own_bytes else None


def _server_growth(run: Measured) -> float | None:
    return None if run.server_growth is None else 100 * run.server_growth


def _p99_drift(run: Measured) -> float | None:
    if run.record.clients is None or not run.tells_latency or run.p99_drift is None:
        return None
    return 100 * run.p99_drift


def _loadgen(name: str, run: Measured) -> float | None:
    return run.loadgen.figures.get(name) if run.loadgen else None


def _loadgen_top1(run: Measured) -> float | None:
    return None if run.loadgen_top1 is None else 100 * run.loadgen_top1


def _second_requests(run: Measured) -> float | None:
    second = run.seen.second_client
    return second.requests_per_s if second and not second.failure else None


def _second_percentile(percentile: float, run: Measured) -> float | None:
    second = run.seen.second_client
    enough = second is not None and second.requests >= stats.PERCENTILE_FLOORS[percentile]
    return getattr(second, f"p{percentile:g}_ms") if enough else None


def _late_requests(run: Measured) -> float | None:
    return None if run.late_share is None else 100 * run.late_share


TABLE: tuple[KpiKind, ...] = (
    KpiKind("Capacity", "requests/s", "higher", _capacity, primary_in="capacity"),
    KpiKind("Throughput", "img/s", "higher", _throughput, primary_in="throughput"),
    KpiKind("Latency mean", "ms", "lower", _latency_mean, primary_in="latency"),
    *(
        KpiKind(f"Latency p{one:g}", "ms", "lower", partial(_latency_percentile, one))
        for one in stats.PERCENTILE_FLOORS
    ),
    KpiKind("Requests", "requests/s", "higher", _requests),
    KpiKind("Queue time", "ms", "lower", partial(_per_request, "queue_ns")),
    KpiKind("Input time", "ms", "lower", partial(_per_request, "input_ns")),
    KpiKind("Compute time", "ms", "lower", partial(_per_request, "compute_ns")),
    KpiKind("Output time", "ms", "lower", partial(_per_request, "output_ns")),
    KpiKind("Executed batch", "images", "neither", _executed_batch),
    KpiKind("Client load", "%", "lower", _client_load),
    KpiKind("Late requests", "%", "lower", _late_requests),
    KpiKind("Latency p99 drift", "%", "neither", _p99_drift),
    KpiKind("Server memory", "MiB", "lower", _server_memory),
    KpiKind("Server memory growth", "%", "neither", _server_growth),
    KpiKind("LoadGen samples", "samples/s", "higher", partial(_loadgen, "samples_per_s")),
    KpiKind("LoadGen p90", "ms", "lower", partial(_loadgen, "p90_ms")),
    KpiKind("LoadGen p99", "ms", "lower", partial(_loadgen, "p99_ms")),
    KpiKind("LoadGen top-1", "%", "higher", _loadgen_top1),
    KpiKind("perf_analyzer requests", "requests/s", "higher", _second_requests),
    *(KpiKind(f"perf_analyzer p{one}", "ms", "lower", partial(_second_percentile, one)) for one in (50, 99)),
    KpiKind("Throughput drift", "%", "neither", _drift),
    KpiKind("Throughput spread", "%", "lower", _spread),
    KpiKind("Input wait", "%", "lower", _input_wait),
    KpiKind("Other load", "%", "lower", _other_load),
    KpiKind("Stolen time", "%", "lower", _stolen_time),
    KpiKind("Throttled time", "%", "lower", _throttled_time),
    KpiKind("ISA share", "%", "neither", _isa_share),
    KpiKind("Data type share", "%", "neither", _data_type_share),
    KpiKind("Outputs top-1 agreement", "%", "higher", _agreement),
    KpiKind("Compute utilization", "%", "higher", _utilization),
    *(KpiKind("Achieved", unit, "higher", partial(_achieved, unit)) for unit in ("GFLOP/s", "GOP/s")),
    *(KpiKind("Peak", unit, "higher", partial(_peak, unit)) for unit in ("GFLOP/s", "GOP/s")),
    KpiKind("Memory bandwidth", "GB/s", "higher", _memory_bandwidth),
    KpiKind("Power", "W", "lower", _power),
    KpiKind("Idle power", "W", "lower", _idle_power),
    KpiKind("Power above idle", "W", "lower", _power_above_idle),
    KpiKind("Energy per image", "J/image", "lower", _energy_per_image),
    KpiKind("Efficiency", "img/s/W", "higher", _efficiency),
    KpiKind("Accuracy top-1", "%", "higher", _top1, primary_in="accuracy"),
    KpiKind("Accuracy top-5", "%", "higher", _top5),
    KpiKind("Top-1 loss", "%", "lower", _top1_loss),
    KpiKind("Resident memory", "MiB", "lower", _resident_memory),
    KpiKind("CPU frequency", "MHz", "neither", _cpu_frequency),
)
"""All KPIs, in the order in which results have them."""
