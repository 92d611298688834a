"""What `cnnbench run --trials` says of several trials of the same runs."""

from cnnbench.harness.runs import tabulate_trials
from cnnbench.results.record import Criterion, Kpi, RunResult
from read_table import read_table

KILLED = Criterion(name="instances", passed=False, found="an instance was killed", needed="")


def make_run(batch_size: int, value: float, *criteria: Criterion) -> RunResult:
    return RunResult(
        run_id="1",
        started="2025-01-01T00:00:00Z",
        workload="x",
        case="test_x_inference_throughput_avx_fp32",
        requested={},
        effective={"BATCH_SIZE": str(batch_size)},
        facts={},
        plan={},
        instances=[],
        kpis=[] if criteria else [Kpi(key="Throughput", unit="img/s", value=value, primary=True)],
        criteria=list(criteria),
        notes=[],
    )


def test_the_mean_of_each_runs_trials_has_the_interval_between_them():
    trials = [
        [make_run(1, 10), make_run(1, 11), make_run(1, 12)],
        [make_run(8, 40), make_run(8, 42)],
        [make_run(16, 50), make_run(16, 0, KILLED)],
        [make_run(32, 0, KILLED)],
    ]
    header, *rows = read_table(tabulate_trials(trials))
    assert header == ["BATCH_SIZE", "good trials", "KPI", "mean, 95 % interval between trials"]
    assert rows == [
        ["1", "3 of 3", "Throughput (img/s)", "11.00 ±2.484"],
        ["8", "2 of 2", "Throughput (img/s)", "41.00, no interval of fewer than 3"],
        ["16", "1 of 2", "Throughput (img/s)", "50.00, no interval of fewer than 3"],
        ["32", "0 of 1", "-", "INVALID"],
    ]
