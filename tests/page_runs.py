"""Write runs as they lie on the disk, with raw files of known contents, for the page about them."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from checkout import ROOT
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.machine.contention import CpuSample
from cnnbench.results.record import Criterion, Kpi, RunResult
from cnnbench.run.measurement import new_logs_directory
from cnnbench.run.record import CapacitySeen, End, Look, Record, ServiceCount
from worker_spec import SPEC

UNSTEADY = Criterion(name="spread", passed=False, found="22 %", needed="at most 10 %", severity="unstable")
KILLED = Criterion(name="instances", passed=False, found="some were killed", needed="")
MS = 1_000_000


_NUMBERS = itertools.count()  # no two runs have one id


def write_run(
    root: Path,
    *,
    name: str = "",
    workload: str = "CNN-PyTorch-Public",
    mode: str = "throughput",
    precision: str = "avx_fp32",
    engine: str = "onnxruntime",
    network: str = "resnet18",
    batch: int = 4,
    instances: int = 2,
    rate: float = 100.0,
    steps: int = 40,
    started: str = "2025-01-01T00:00:00Z",
    criteria: tuple[Criterion, ...] = (),
    facts: dict[str, str] | None = None,
    kpis: tuple[Kpi, ...] | None = None,
    raw: bool = True,
    trace: str = "",
    trials: tuple[tuple[float, float | None, bool], ...] = (),
    **requested: str,
) -> Path:
    """Write a run whose instances have steps of 10 ms, the last one 11 ms; return its worker directory.

    `trace`: the name of a recorded one in tests/traces. `trials`: rates that were tried, of a case of capacity.
    """
    function = "serving" if trials or mode == "capacity" else "inference"
    case = f"test_{workload.lower().replace('-', '_')}_{function}_{mode}_{precision}_{network}"
    asked = {
        "FUNCTION": function, "MODE": mode, "PRECISION": precision, "TOPOLOGY": network, "ENGINE": engine,
        "BATCH_SIZE": str(batch), "INSTANCES": "auto", "CORES_PER_INSTANCE": "1", "WARMUP_STEPS": "5", **requested,
    }  # fmt: skip
    effective = asked | {"INSTANCES": str(instances)}
    plan = Plan(
        tuple(InstancePlan(at, at, (at,), (at // 2,), (at // 2,), at // 2, caches=(at,)) for at in range(instances)), 0
    )
    worker: Path = new_logs_directory(root, name or case)
    if kpis is None:
        kpis = _kpis(mode, rate)
    results = [
        {"index": at, "images_per_s": rate / instances * (0.5 if at == 3 else 1), "latency_mean_ms": 10.0}
        for at in range(instances)
    ]
    run = RunResult(
        run_id=f"{worker.parent.name}-{next(_NUMBERS)}",
        started=started, workload=workload, case=case, requested=asked, effective=effective,
        facts={"CPU": "A CPU", "memory": "8 GiB", "model SHA-256": "ab" * 32} | (facts or {}), plan=plan.to_dict(),
        instances=results, kpis=list(kpis), criteria=list(criteria), notes=["a note"],
    )  # fmt: skip
    (worker / "run.json").write_text(run.model_dump_json())
    if raw:
        clients = Plan(plan.instances[:1], 0) if function == "serving" else None
        record = Record(
            run_id=run.run_id, started=started, workload=workload, case=case, mode=mode, precision=precision,
            requested=asked, effective=effective, notes=(), plan=plan, mpi=False, weight_sharing=False,
            images_per_step=batch, traced_images=1, reads_images=False, max_time_s=None, macs_per_image=1,
            predicts=False, clients=clients, host={}, inputs={},
        )  # fmt: skip
        (worker / "record.json").write_text(record.model_dump_json())
        for at in range(instances if clients is None else 1):
            directory = worker / ("client" if clients else ".") / f"instance-{at}"
            directory.mkdir(parents=True)
            np.save(directory / "steps.npy", make_steps(steps, start_ns=at * MS))
        _write_seen(worker, trials, served=clients is not None)
    if trace:
        (worker / "trace").mkdir()
        replace(SPEC, precision=precision, batch_size=1).write(worker / "trace" / "spec.json")
        shutil.copyfile(ROOT / "tests" / "traces" / trace, worker / "trace" / "output.log")
    return worker


def make_steps(count: int, start_ns: int = 0) -> np.ndarray:
    """Return rows of steps that take 10 ms, one after another; the last one takes 11 ms."""
    lengths = np.full(count, 10 * MS, dtype=np.int64)
    if count:
        lengths[-1] += MS
    ends = start_ns + np.cumsum(lengths)
    return np.column_stack([ends - lengths, ends - lengths, ends])


def _kpis(mode: str, rate: float) -> tuple[Kpi, ...]:
    primary = {"throughput": "Throughput", "latency": "Latency mean", "accuracy": "Accuracy top-1"}
    found = {"Throughput": ("img/s", rate), "Latency mean": ("ms", 10.0), "Throughput drift": ("%", 1.0)}
    if mode == "accuracy":
        found = {"Accuracy top-1": ("%", rate)}
    if mode == "capacity":
        found = {"Capacity": ("requests/s", rate), "Latency p99": ("ms", 9.0), "Queue time": ("ms", 1.0)}
        primary = {"capacity": "Capacity"}
    return tuple(Kpi(key=k, unit=u, value=v, primary=k == primary[mode]) for k, (u, v) in found.items())


def energy_kpis(rate: float, power_w: float) -> tuple[Kpi, ...]:
    """Return the KPIs of a run of throughput whose energy was read."""
    found = {
        "Throughput": ("img/s", rate), "Latency mean": ("ms", 10.0), "Power": ("W", power_w), "Idle power": ("W", 41.5),
        "Energy per image": ("J/image", power_w / rate), "Efficiency": ("img/s/W", rate / power_w),
    }  # fmt: skip
    return tuple(Kpi(key=k, unit=u, value=v, primary=k == "Throughput") for k, (u, v) in found.items())


def _write_seen(worker: Path, trials: tuple, served: bool) -> None:
    def look(time_s: float, done: int) -> Look:
        count = ServiceCount(
            requests=done, failures=0, executions=done // 2, images=done, queue_ns=done, input_ns=0, compute_ns=done,
            output_ns=0, batches={1: done // 4, 4: done // 4},
        )  # fmt: skip
        sample = CpuSample(busy_s=time_s, steal_s=0.0, own_s=time_s)
        return Look(time_s=time_s, cpu_time=sample, quotas=(), frequency_mhz=None, served=count if served else None)

    events: list = [look(0.0, 0), look(1.0, 80)]
    if trials:
        events.append(CapacitySeen(rate_per_s=trials[0][0], trials=trials))
    (worker / "seen.jsonl").write_text("".join(f"{event.model_dump_json()}\n" for event in [*events, End()]))


def read_charts(page: str) -> dict:
    """Return the charts' specifications in a page."""
    _, _, rest = page.partition('<script type="application/json" id="charts">')
    charts: dict = json.loads(rest.partition("</script>")[0])
    return charts
