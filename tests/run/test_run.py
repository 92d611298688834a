"""`cnnbench case` on the null engine: real processes, real files, no network computed."""

import json
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cnnbench.base.start import START
from cnnbench.cases.parameters import FIELDS
from cnnbench.cli.main import main
from cnnbench.machine.topology import parse_cpu_list
from cnnbench.results.record import load_run
from cnnbench.run.measurement import new_logs_directory
from cnnbench.worker.control import State
from null_workload import (
    CORES,
    LATENCY,
    PATIENCE_S,
    ROOT,
    SLUG,
    THROUGHPUT,
    NullWorkload,
    find_workers,
    process_files,
    run_kpi,
    step_of,
)

INSTANCES = min(CORES, 2)
EACH_ONE_CORE = (f"--instances={INSTANCES}", "--cores_per_instance=1")


@pytest.fixture
def workload(tmp_path):
    return NullWorkload(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One good run that several tests look at."""
    workload = NullWorkload(tmp_path_factory.mktemp("good"))
    workload.done = workload.run("--steps=100", "--batch_size=4", "--timeout=50", step_of(5), *EACH_ONE_CORE)
    assert workload.done.returncode == 0, workload.done.stderr
    return workload


@pytest.fixture
def refused(workload, monkeypatch, capsys):
    """Run a case inside this process, which is quicker, where it must end before it has started anything."""
    for name in FIELDS:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments, case=THROUGHPUT):
        code = main(workload.command(*arguments, case=case)[3:])
        assert not workload.logs_root.exists()
        return code, capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def primary(text):
    return [line for line in text.splitlines() if line.startswith("*")]


def steps_of(logs, instances=INSTANCES):
    return [np.load(logs / f"instance-{index}" / "steps.npy") for index in range(instances)]


def kpi_of(run, key):
    return next(kpi.value for kpi in run.kpis if kpi.key == key)


def test_a_good_run_leaves_whole_logs_and_one_primary_kpi(good):
    assert (good.logs() / "status").read_text() == "0\n"
    run = load_run(good.logs())
    assert run.verdict in ("valid", "unstable")
    assert [kpi.key for kpi in run.kpis if kpi.primary] == ["Throughput"]
    assert "timeout" not in [criterion.name for criterion in run.criteria]  # it was done in time
    done = run_kpi(good.logs())
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"\*Throughput \(img/s\): \d+(\.\d+)?", *primary(done.stdout))
    assert primary(good.done.stdout) == primary(done.stdout)
    assert [len(instance["cpus"]) for instance in run.plan["instances"]] == [1] * INSTANCES
    assert [instance["cpus"] for instance in run.instances] == [one["cpus"] for one in run.plan["instances"]]
    assert not find_workers(good.logs_root)
    assert not good.shared().exists()


def test_raw_times_are_kept_for_each_instance(good):
    for rows in steps_of(good.logs()):
        assert rows.dtype == np.int64
        assert rows.shape == (100, 3)
        assert (np.diff(rows.ravel()) >= 0).all()
        assert (rows[:, 2] - rows[:, 1] >= 5_000_000).all()


def test_throughput_follows_from_the_raw_times(good):
    steps, run = steps_of(good.logs()), load_run(good.logs())
    start, end = max(rows[0, 0] for rows in steps), min(rows[-1, 2] for rows in steps)
    completed = sum(int((rows[:, 2] <= end).sum() - (rows[:, 2] <= start).sum()) for rows in steps)
    # Whole steps here, parts of steps at the window's edges there: a step for each instance may be between them.
    assert kpi_of(run, "Throughput") == pytest.approx(4 * completed / ((end - start) / 1e9), rel=0.02)
    assert kpi_of(run, "Throughput") <= 4 * INSTANCES / 0.005
    assert sum(one["images_per_s"] for one in run.instances) == pytest.approx(kpi_of(run, "Throughput"))
    if INSTANCES > 1:
        assert re.fullmatch(r"[0-9.]+ img/s, [0-9.]+ ms in the mean, CPUs [0-9]+", run.facts["instance 1"])


def test_each_run_has_logs_of_its_own_and_a_later_one_leaves_them_alone(workload):
    with workload.start("--steps=3", step_of(1)) as one, workload.start("--steps=3", step_of(1)) as other:
        assert [one.wait(PATIENCE_S), other.wait(PATIENCE_S)] == [0, 0]
    run = load_run(workload.logs(0))
    assert run.run_id != load_run(workload.logs(1)).run_id
    assert run.requested["CORES_PER_INSTANCE"] == "auto"
    assert run.effective["CORES_PER_INSTANCE"] == str(len(run.plan["instances"][0]["cpus"]))
    assert run.effective["INSTANCES"] == str(len(run.plan["instances"]))
    assert run.requested["STEPS"] == run.effective["STEPS"] == "3"

    def contents():
        return {path: path.read_bytes() for at in (0, 1) for path in workload.logs(at).rglob("*") if path.is_file()}

    before = contents()
    assert workload.run("--steps=4", step_of(1)).returncode == 0
    assert contents() == before
    assert len(steps_of(workload.logs(2), 1)[0]) == 4
    assert run_kpi(workload.logs(2)).returncode == 0


def test_the_latency_case_stars_the_latency(workload):
    done = workload.run("--steps=20", step_of(2), case=LATENCY)
    assert done.returncode == 0, done.stderr
    (line,) = primary(run_kpi(workload.logs(case=LATENCY)).stdout)
    assert line.startswith("*Latency mean (ms): ")
    assert float(line.split()[-1]) >= 2


def test_runs_are_numbered_upwards_and_no_number_comes_back(tmp_path):
    made = [new_logs_directory(tmp_path, "x") for _ in range(11)]
    assert made == [tmp_path / "logs-x" / f"itr-{number}" / "worker-0" for number in range(1, 12)]
    shutil.rmtree(made[0].parent)
    assert new_logs_directory(tmp_path, "x").parent.name == "itr-12"  # or it would not be the last one
    assert new_logs_directory(tmp_path, "y").parent.name == "itr-1"


def test_every_one_of_many_beginnings_has_a_number_of_its_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: new_logs_directory(tmp_path, "x"), range(200)))
    assert {path.parent.name for path in made} == {f"itr-{number}" for number in range(1, 201)}


def test_progress_stays_within_max_time_when_the_last_step_does_not(workload):
    limits = ("--steps=auto", "--min_time=1", "--max_time=1", "--warmup_steps=1")
    done = workload.run(*limits, "--instances=1", step_of(2500))
    lines = re.findall(r"^measuring .*: (.*) s, done in (\d+) s$", done.stderr, re.MULTILINE)
    assert [count for count, _ in lines] == ["1 of 1"], done.stderr
    assert int(lines[0][1]) >= 2


def test_steps_auto_measures_between_the_two_times(workload):
    done = workload.run("--steps=auto", "--min_time=1", "--max_time=3", step_of(5))
    assert done.returncode == 0, done.stderr
    run = load_run(workload.logs())
    (rows,) = steps_of(workload.logs(), 1)
    window_s = (rows[-1, 2] - rows[0, 0]) / 1e9
    assert 1 <= window_s < 10  # judged twice a second, on a machine that may be busy
    assert next(criterion for criterion in run.criteria if criterion.name == "interval").severity == "unstable"


@pytest.mark.skipif(CORES < 2, reason="needs two physical cores")
@pytest.mark.parametrize(
    ("arguments", "planned"),
    [
        (["--instances=1", "--cores_per_instance=2"], [2]),
        (["--instances=1", "--cores_per_instance=1"], [1]),
    ],
)
def test_instances_and_cores_are_as_asked(workload, arguments, planned):
    assert workload.run("--steps=400", step_of(3), *arguments).returncode == 0
    run = load_run(workload.logs())
    assert [len(instance["cpus"]) for instance in run.plan["instances"]] == planned
    assert [instance["cpus"] for instance in run.instances] == [one["cpus"] for one in run.plan["instances"]]


@pytest.mark.skipif(CORES < 2, reason="needs two physical cores")
def test_weight_sharing_holds_the_instances_of_a_socket_in_one_process(workload):
    # Of the precisions that may share weights, only avx_bfloat16 can run yet.
    case = f"test_{SLUG}_inference_throughput_avx_bfloat16"
    done = workload.run(
        "--steps=300", step_of(3), "--weight_sharing", "--instances=2", "--cores_per_instance=1", case=case
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    run = load_run(workload.logs(case=case))
    assert {instance["index"] for instance in run.instances} == {0, 1}
    assert len({instance["pid"] for instance in run.instances}) == len(
        {tuple(one["sockets"]) for one in run.plan["instances"]}
    )
    assert [len(rows) for rows in steps_of(workload.logs(case=case), 2)] == [300, 300]


@pytest.mark.parametrize(
    ("argument", "needed"),
    [
        ("--batch_size=0", "BATCH_SIZE=0 (argument): must be 1 to 4096"),
        ("--batch_size=eight", "BATCH_SIZE=eight (argument): must be 1 to 4096"),
        ("--steps=0", "STEPS=0 (argument): must be 1 to 1000000 or auto"),
        ("--steps=many", "STEPS=many (argument)"),
        ("--warmup_steps=0", "WARMUP_STEPS=0 (argument): must be 1 to 10000"),
        ("--min_time=0", "MIN_TIME=0 (argument)"),
        ("--model=/no/such.pb", "MODEL=/no/such.pb: no such file"),
        ("--instances=0", "INSTANCES=0 (argument)"),
        ("--instances=4096", "INSTANCES=4096: must be 1 to"),
        ("--cores_per_instance=4096", "CORES_PER_INSTANCE=4096: must be 1 to"),
        ("--weight_sharing=perhaps", "WEIGHT_SHARING=perhaps (argument): must be True, False"),
        ("--weight_sharing", "WEIGHT_SHARING=True (argument): not supported for avx_fp32"),
        ("--data_type=fake", "DATA_TYPE=fake (argument): must be dummy, generated, real"),
        ("--variant=fast", "VARIANT=fast (argument): must be auto, itex, stock, zentf"),
        ("--idle_time=-1", "IDLE_TIME=-1 (argument): must be 0 to 3600"),
        ("--energy_meter=/no/such --watts", "ENERGY_METER=/no/such --watts: there is no program /no/such"),
        (f"--energy_meter={__file__}", f"there is no program {__file__} that may be executed"),
        ("--energy_meter=' '", "ENERGY_METER=' ': there is no program"),
        ("--num_mpi=4096", "NUM_MPI=4096: must be 1 to"),
        ("--hostfile=/no/such", "HOSTFILE=/no/such (argument): only MPI launches on several hosts"),
        ("--mode=latency", "MODE=latency (argument): the case"),
        ("--precision=avx_int8", "PRECISION=avx_int8 (argument): the case"),
        ("--customer_env=A='1", "CUSTOMER_ENV=A='1 (argument)"),
        ("--customer_env=1A=2", "'1A=2' is not NAME=VALUE"),
        ("--batchsize=1", "BATCHSIZE: no such parameter; did you mean BATCH_SIZE?"),
        ("batch_size=1", "batch_size=1: not understood"),
        ("--config=/no/such.yaml", "/no/such.yaml: no such settings file"),
        ("--hang-after=0", "--hang-after 0: must be more than 0 and at most 1e+09 seconds"),
        ("--hang-after=inf", "--hang-after inf: must be more than 0 and at most 1e+09 seconds"),
        ("--timeout=0", "--timeout 0: must be more than 0 and at most 1e+09 seconds"),
        ("--timeout=-1", "--timeout -1: must be more than 0"),
        ("--timeout=nan", "--timeout nan: must be more than 0"),
        ("--timeout=inf", "--timeout inf: must be more than 0 and at most 1e+09 seconds"),
    ],
)
def test_a_bad_parameter_runs_nothing(refused, argument, needed):
    code, errors = refused("--steps=1", argument)
    assert code == 2
    assert needed in errors


def test_a_bad_parameter_of_the_environment_says_where_it_is_from(refused, monkeypatch):
    monkeypatch.setenv("BATCH_SIZE", "-1")
    code, errors = refused("--steps=1")
    assert code == 2
    assert "BATCH_SIZE=-1 (environment): must be 1 to 4096" in errors


@pytest.mark.parametrize(
    ("case", "code", "needed"),
    [
        (f"test_{SLUG}_inference_throughput_avx_int4", 2, "not a test case of this workload"),
        ("test_other_inference_throughput_avx_fp32", 2, f"test_{SLUG}_[sgx_]FUNCTION_MODE_PRECISION"),
        (f"test_{SLUG}_inference_accuracy_avx_fp32", 2, "the engine null has no model"),
        (f"test_{SLUG}_sgx_inference_throughput_avx_fp32", 77, "SGX"),
    ],
)
def test_a_case_that_cannot_run_says_why(refused, case, code, needed):
    found, errors = refused(case=case)
    assert found == code
    assert needed in errors


@pytest.mark.parametrize(
    ("precision", "flags", "lacking"),
    [
        ("avx_fp32", "avx fma", "avx2"),
        ("avx_bfloat16", "avx2 fma avx512f avx512_vnni", "avx512_bf16"),
        ("amx_bfloat16", "avx2 fma avx512f avx512_bf16", "amx_bf16 and amx_tile"),
        ("amx_bfloat32", "avx2 fma avx512f avx512_bf16 amx_tile", "amx_bf16"),
    ],
)
def test_a_cpu_that_lacks_what_the_precision_needs_skips_the_case_or_fails_it_by_force(
    refused, cpu_flags, precision, flags, lacking
):
    cpu_flags(flags)
    case, reason = f"test_{SLUG}_inference_throughput_{precision}", f"{precision}: this CPU lacks {lacking}"
    assert refused(case=case) == (77, f"cnnbench: {reason}\n")
    assert refused("--force", case=case) == (
        1,
        f"cnnbench: {reason}; FORCE=True makes that an error: use a machine that has it, or leave FORCE out\n",
    )


def test_the_reason_for_skipping_is_on_standard_error(workload):
    done = workload.run(case=f"test_{SLUG}_sgx_inference_throughput_avx_fp32")
    assert done.returncode == 77
    assert "SGX" in done.stderr
    assert not done.stdout


def test_an_unknown_workload_says_so(refused, workload):
    (workload.directory / "workload.yaml").unlink()
    code, errors = refused()
    assert code == 2
    assert f"{workload.directory}: no workload.yaml there" in errors


def test_a_dry_run_prints_the_plan_and_leaves_nothing(workload):
    done = workload.run("--dry-run", "--customer_env=A='two words' OMP_X=1", *EACH_ONE_CORE)
    assert done.returncode == 0, done.stderr
    for index in range(INSTANCES):
        assert re.search(rf"^  {index}: process {index}, 1 threads, CPUs \d+, .*NUMA nodes \d+", done.stdout, re.M)
        assert f"{START} cnnbench.worker LOGS/process-{index}/spec.json" in done.stdout
    for line in ("CORES_PER_INSTANCE=1", f"INSTANCES={INSTANCES}", "OMP_NUM_THREADS=1", "A=two words", "OMP_X=1"):
        assert f"\n  {line}\n" in done.stdout
    assert not workload.logs_root.exists()


def test_the_workers_environment_and_affinity_are_the_planned_ones(workload):
    text = "A=$(id) B='two words' OMP_C=\"x;y\" CNNBENCH_NULL_STEP_MS=5"
    arguments = ["--steps=1000000", f"--customer_env={text}", *EACH_ONE_CORE]
    with workload.start(*arguments, OMP_NUM_THREADS="99", TF_DROPPED="1", KEPT="1") as controller:
        workload.wait_for_state(State.MEASURING, *range(INSTANCES))
        workers = workload.wait_for_workers(INSTANCES)
        environments = process_files("environ")
        affinities = [
            {
                tuple(parse_cpu_list(found))
                for status in Path(f"/proc/{pid}/task").glob("*/status")
                for found in re.findall(r"^Cpus_allowed_list:\s*(\S+)$", status.read_text(), re.M)
            }
            for pid in workers
        ]
        controller.send_signal(signal.SIGINT)
        output, _ = controller.communicate()
    for pid in workers:
        words = environments[pid].decode().split("\0")
        assert {"A=$(id)", "B=two words", "OMP_C=x;y", "KEPT=1", "OMP_NUM_THREADS=1"} <= set(words)
        assert not any(word.startswith("TF_DROPPED=") for word in words)
    note = next(line for line in output.splitlines() if "not passed on from the caller's environment" in line)
    assert {"OMP_NUM_THREADS", "TF_DROPPED"} <= set(note.replace(";", "").split())
    plan = load_run(workload.logs()).plan["instances"]
    assert affinities == [{tuple(instance["cpus"])} for instance in plan]
    assert len({cpu for instance in plan for cpu in instance["cpus"]}) == INSTANCES


def test_instances_measure_in_one_common_window(good):
    steps = steps_of(good.logs())
    starts = [int(rows[0, 0]) for rows in steps]
    assert max(starts) - min(starts) < 1e9  # not one after the other; milliseconds apart unless the machine is busy
    assert max(starts) < min(int(rows[-1, 2]) for rows in steps)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_logs_that_cannot_be_written_are_a_clear_error(workload, below):
    workload.logs_root = workload.directory / "workload.yaml" / below
    for options in (["--steps=1"], ["--dry-run"]):
        done = workload.run(*options)
        assert done.returncode == 2
        assert f"cnnbench: --logs-root {workload.logs_root}: cannot be written to (Not a directory); " in done.stderr
        assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_written_is_a_clear_error(workload, tmp_path):
    (tmp_path / "file").touch()
    workload.directory = ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public"
    case = "test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_avx_fp32"
    done = workload.run("--steps=1", case=case, CNNBENCH_CACHE=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "a file is where a directory is needed" in done.stderr
    assert "CNNBENCH_CACHE" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_come_in_their_order(workload, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("'*_throughput_*': {BATCH_SIZE: 2, STEPS: 6, WARMUP_STEPS: 3}\n")
    done = workload.run("--config", str(config), "--steps=4", step_of(1), BATCH_SIZE="3")
    assert done.returncode == 0, done.stderr
    requested = load_run(workload.logs()).requested
    assert [requested[name] for name in ("WARMUP_STEPS", "BATCH_SIZE", "STEPS")] == ["3", "3", "4"]


def test_every_instance_reports_memory_and_versions(good):
    for index in range(INSTANCES):
        result = json.loads((good.logs() / f"instance-{index}" / "result.json").read_text())
        assert result["steps"] == 100
        assert result["resident_bytes"] > 1 << 20
        assert result["versions"] == {"null step (ms)": "5"}
        assert re.match(r"bound to node \d+$|not bound: ", result["memory"])
