"""Write results of made-up runs as files, with the logs directories that they would be in."""

from datetime import datetime, timedelta, timezone

from cnnbench.results.record import KILLED, Criterion, Kpi, RunResult
from cnnbench.run.measurement import new_logs_directory

CASE = "test_cnn_pytorch_public_inference_throughput_avx_fp32_resnet18"
WORKLOAD = "CNN-PyTorch-Public"
INVALID = Criterion(name="instances", passed=False, found=KILLED, needed="")
UNSTEADY = Criterion(name="spread", passed=False, found="12 %", needed="at most 10 %", severity="unstable")
BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)
FACTS = {"CPU": "EPYC", "kernel": "6.1", "microcode": "0x1", "governor": "performance", "load average before": "0.5"}


def make_run(
    value,
    number=0,
    *,
    case=CASE,
    workload=WORKLOAD,
    key="Throughput",
    unit="img/s",
    criteria=(),
    extra=(),
    facts=None,
    minutes=None,
    notes=(),
    run_id=None,
    **requested,
):
    """Return a run of a case, which began so many minutes after the first one of all."""
    requested = {"MODE": "throughput", "BATCH_SIZE": "8", "CORES_PER_INSTANCE": "auto", "CUSTOMER_ENV": ""} | requested
    invalid = any(one.severity == "invalid" for one in criteria)
    return RunResult(
        run_id=run_id or f"{case}-{value}-{number}-{minutes}",
        started=(BEGIN + timedelta(minutes=number if minutes is None else minutes)).isoformat(),
        workload=workload,
        case=case,
        requested=requested,
        effective={name: text for name, text in (requested | {"CORES_PER_INSTANCE": "2"}).items() if text},
        facts=FACTS | (facts or {}),
        plan={},
        instances=[],
        kpis=[] if invalid else [Kpi(key=key, unit=unit, value=value, primary=True), *extra],
        criteria=list(criteria),
        notes=list(notes),
    )


def save_run(root, run):
    """Write a run's result below a folder, as the next one of its case; return its worker directory."""
    worker = new_logs_directory(root, run.case)
    (worker / "run.json").write_text(run.model_dump_json())
    return worker


def save_set(root, values, **same):
    """Write a set of runs of one case, a minute after each other."""
    begin = same.pop("begin", 0)
    for number, value in enumerate(values, start=begin):
        save_run(root, make_run(value, number, **same))
    return root
