"""The real workload on real engines, as short as it can be: quick settings, few runs."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cnnbench.cases.parameters import parameters_of
from cnnbench.cli.main import main
from cnnbench.engines.registry import find_engine
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.differences import list_differences
from cnnbench.results.record import load_run
from cnnbench.run.judging import judge_run
from cnnbench.staging.inputs import embedded_model_path
from damaged_images import damage_image
from following import follow
from null_workload import ROOT, clean_environment, run_kpi

pytestmark = pytest.mark.engine

WORKLOAD = ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public"
PREFIX = "test_resnet50v1_5_tensorflow_xeon_public_inference_"
GATED = f"{PREFIX}throughput_avx_fp32_gated"
QUICK = ("--warmup_steps=1", "--steps=8")


@pytest.fixture(scope="session")
def run_case(engine_cache, tmp_path_factory):
    """Run a case to its end; return what it printed and its logs."""

    def run(case, *arguments, **environment):
        root = tmp_path_factory.mktemp("engine")
        command = ["--workload", str(WORKLOAD), "--case", case, "--logs-root", str(root), *arguments]
        variables = clean_environment(CNNBENCH_CACHE=str(engine_cache), **environment)
        done, run.told = follow([sys.executable, "-m", "cnnbench", "case", *command], root, variables)
        return done, root / f"logs-{case}" / "itr-1" / "worker-0"

    return run


@pytest.fixture(scope="module")
def real(run_case):
    """The gated fp32 case on JPEG files."""
    done, logs = run_case(GATED, "--data_type=real", "--batch_size=4", "--steps=100")  # for enough samples of it
    assert done.returncode == 0, done.stdout + done.stderr
    return logs


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kpis(run):
    return {kpi.key: kpi.value for kpi in run.kpis}


def criteria(run):
    return {criterion.name: criterion.passed for criterion in run.criteria}


@pytest.fixture
def embedded(engine_cache, real):
    """The embedded model, which the first run has made if it was not there."""
    return embedded_model_path(find_engine("tensorflow"), engine_cache)


def test_the_gated_case_measures_real_images(real):
    run = load_run(real)
    assert run.verdict in ("valid", "unstable"), run.reason
    assert all(criteria(run)[name] for name in ("instances", "pinning", "precision", "outputs"))
    assert kpis(run)["ISA share"] >= 95
    assert kpis(run)["Outputs top-1 agreement"] == 100
    assert 0 <= kpis(run)["Input wait"] <= 100
    assert run_kpi(real, WORKLOAD / "kpi.sh").returncode == 0


def precision_of(run):
    return next(one for one in run.criteria if one.name == "precision")


def test_what_was_measured_was_sampled_and_nothing_was_traced_for_it(real, capsys):
    assert "_verbose," not in (real / "process-0" / "output.log").read_text(errors="replace")
    assert not (real / "trace" / "output.log").exists()
    run = load_run(real)
    assert re.match(r"(9\d|100)\.\d% \[.*\] of \d+ samples among multiply-accumulates", precision_of(run).found)
    assert run.facts["dominant instructions"].split()[0] in ("FMA", "AVX-512")
    assert main(["hotspots", str(real), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = {one["kind"]: one["share"] for one in found if one["record"] == "kind"}
    assert sum(kinds.values()) == pytest.approx(1)
    del kinds["the operating system"]  # on a busy machine, most of so short a run
    assert kinds["multiply-accumulate kernels"] == max(kinds.values())
    assert any("fma" in one["code"] for one in found if one["record"] == "place")


def test_without_the_sampler_a_process_of_its_own_is_traced_and_the_run_says_so(run_case, capsys):
    done, logs = run_case(GATED, *QUICK, CNNBENCH_SAMPLER="off")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "_verbose," not in (logs / "process-0" / "output.log").read_text(errors="replace")
    traced = (logs / "trace" / "output.log").read_text(errors="replace")
    assert ",exec," in traced
    assert traced.count("cnnbench_trace,step,") == 3
    run = load_run(logs)
    assert kpis(run)["ISA share"] >= 95
    assert "of the multiply-accumulates ran as avx_fp32 (" in precision_of(run).found
    assert any("traced in a process of their own" in note and "CNNBENCH_SAMPLER=off" in note for note in run.notes)
    assert main(["hotspots", str(logs)]) == 1
    assert "has no samples" in capsys.readouterr().err


@pytest.fixture(scope="module")
def traced(run_case):
    """The gated fp32 case traced by oneDNN, before and while measuring."""
    done, logs = run_case(GATED, *QUICK, "--onednn_verbose")
    assert done.returncode == 0, done.stdout + done.stderr
    return logs


def test_a_run_that_is_to_be_traced_is_proven_by_both(traced):
    assert "_verbose," in (traced / "process-0" / "output.log").read_text(errors="replace")
    run = load_run(traced)
    assert "samples among multiply-accumulates" in precision_of(run).found
    assert "of the multiply-accumulates ran as avx_fp32 (" in precision_of(run).found
    assert run.facts["oneDNN"]


def test_the_layers_of_a_traced_run_are_all_of_the_network(real, traced, capsys):
    assert main(["isa", str(real)]) == 1
    assert "ONEDNN_VERBOSE=True" in capsys.readouterr().err
    assert main(["isa", str(traced), "--format", "json"]) == 0
    layers = [record for record in json.loads(capsys.readouterr().out) if record["record"] == "layer"]
    assert len(layers) == 54
    assert sum(layer["gmacs"] for layer in layers) == pytest.approx(4.089186304)
    assert all(layer["time_ms"] > 0 for layer in layers)
    unproven = {layer["implementation"] for layer in layers if not layer["as_required"]}
    # Without AVX-512 the classifier runs on oneDNN's older matrix product, whose name tells no instruction set.
    assert unproven <= (set() if "avx512f" in read_cpuinfo().flags else {"gemm:jit:f32"})


def test_a_run_names_what_it_ran(real, embedded, engine_cache):
    facts = load_run(real).facts
    assert facts["model SHA-256"] == digest(embedded)
    assert len(facts["dataset SHA-256"]) == 64
    for name in ("CPU", "kernel", "TensorFlow"):
        assert facts[name]


def test_the_embedded_model_folds_whole(real, embedded, engine_cache):
    (prepared,) = {
        path
        for path in (engine_cache / "prepared").glob(f"{digest(embedded)[:16]}-*/prepared.json")
        if str(path.parent) in (real / "process-0" / "spec.json").read_text()
    }
    facts = json.loads(prepared.read_text())
    assert (facts["batch_norms_folded"], facts["pads_folded"]) == (53, 4)
    assert facts["macs_per_image"] == 4_089_186_304


@pytest.mark.parametrize("variant", ["stock", "zentf"])
def test_another_build_and_a_model_by_its_path(run_case, embedded, variant):
    done, logs = run_case(GATED, f"--variant={variant}", f"--model={embedded}", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.effective["VARIANT"] == variant
    assert ("zentf" in run.facts) == (variant == "zentf")
    assert run.facts["model SHA-256"] == digest(embedded)
    assert criteria(run)["precision"]
    assert criteria(run)["outputs"]
    assert "Input wait" not in kpis(run)  # dummy data


@pytest.mark.parametrize(
    ("before", "after", "needed", "code"),
    [
        (None, None, "not a frozen TensorFlow graph", 2),
        (b"softmax_tensor", b"another_tensor", "has no node softmax_tensor", 1),
    ],
    ids=["garbage", "another interface"],
)
def test_a_model_that_does_not_fit_is_refused(run_case, embedded, engine_cache, tmp_path, before, after, needed, code):
    model = tmp_path / "my model.pb"
    model.write_bytes(embedded.read_bytes().replace(before, after) if before else b"this is no graph" * 1000)
    done, logs = run_case(GATED, f"--model={model}")
    assert done.returncode == code
    assert f"{model}: {needed}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not logs.parents[1].exists()
    left = (engine_cache / "prepared").glob(f"*{digest(model)[:16]}-*")
    assert not [path for path in left if path.is_dir()]


def test_a_real_run_is_judged_again_from_its_files_alone(real, tmp_path):
    def negate(logs):
        path = logs / "instance-0" / "check.npy"
        np.save(path, -np.load(path))

    def forget(logs):
        (logs / "trace" / "output.log").write_text("")

    changes = {"nothing": None, "outputs": negate, "precision": forget}
    for name, change in changes.items():
        logs = shutil.copytree(real, tmp_path / name)
        if change is None:
            assert not list_differences(load_run(real), judge_run(logs))
        else:
            change(logs)
            assert name in [failure.name for failure in judge_run(logs).failures if failure.severity == "invalid"]


@pytest.mark.parametrize(("value", "needed"), [("/no/such.pb", "no such file"), ("resnet50_v1", "not staged; run")])
def test_a_model_that_is_not_there_says_so(run_case, value, needed):
    done, logs = run_case(GATED, f"--model={value}")
    assert done.returncode == 2
    assert f"MODEL={value}: {needed}" in done.stderr
    assert not logs.parents[1].exists()


def test_the_accuracy_case_answers_every_image(run_case):
    case = f"{PREFIX}accuracy_avx_fp32"
    done, logs = run_case(case, "--batch_size=300")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert json.loads((logs / "process-0" / "spec.json").read_text())["batch_size"] == 300
    assert any("with 32 images at a time, not 300" in note for note in run.notes)
    assert criteria(run)["measured outputs"]
    answered = sum(len(np.load(path)) for path in logs.glob("instance-*/predictions.npy"))
    assert answered == 1000
    counts = [status.now.phase for status in run_case.told if status.now.phase.unit == "images"]
    assert {phase.total for phase in counts} == {1000}
    assert any(status.now.throughput for status in run_case.told)
    assert criteria(run)["coverage"]
    assert [kpi.key for kpi in run.kpis if kpi.primary] == ["Accuracy top-1"]
    found = kpis(run)
    assert 75 <= found["Accuracy top-1"] <= 97
    assert found["Accuracy top-1 95 % low"] < found["Accuracy top-1"] < found["Accuracy top-1 95 % high"]
    assert found["Accuracy top-1"] < found["Accuracy top-5"] <= 100
    assert not list_differences(run, judge_run(logs))
    np.save(logs / "instance-0" / "predictions.npy", np.load(logs / "instance-0" / "predictions.npy")[:-1])
    assert judge_run(logs).reason.startswith("coverage: 999 of 1000 images answered")


def test_accuracy_takes_images_for_as_long_as_it_is_told(run_case):
    done, logs = run_case(f"{PREFIX}accuracy_avx_fp32", "--accuracy_time=5")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    answered = sum(len(np.load(path)) for path in logs.glob("instance-*/predictions.npy"))
    assert 100 <= answered < 1000
    (coverage,) = (one for one in run.criteria if one.name == "coverage")
    assert (coverage.passed, coverage.found) == (True, f"{answered} of 1000 images answered in ACCURACY_TIME=5 s")
    found = kpis(run)
    assert found["Accuracy top-1 95 % low"] < found["Accuracy top-1"] < found["Accuracy top-1 95 % high"]
    assert not list_differences(run, judge_run(logs))
    for path in logs.glob("instance-*/predictions.npy"):
        np.save(path, np.load(path)[:10])
    assert judge_run(logs).reason.startswith("coverage: ")


def test_another_instruction_set_than_the_precisions_is_invalid(run_case):
    done, logs = run_case(GATED, "--customer_env=ONEDNN_MAX_CPU_ISA=SSE41", *QUICK)
    assert done.returncode == 3, done.stdout + done.stderr
    (reason,) = (line for line in done.stdout.splitlines() if line.startswith("#INVALID RESULT: "))
    assert re.search(
        r"precision: 0.0% \[0.0%, .*\] of \d+ samples .* were at avx_fp32 \(SSE multiply and add f32 128 ", reason
    )
    assert not any(line.startswith("*") for line in done.stdout.splitlines())
    kpi = run_kpi(logs)
    assert kpi.returncode == 3
    assert kpi.stdout.splitlines()[-1] == reason


BFLOAT16 = {"avx_bfloat16": "avx512_bf16", "amx_bfloat16": "amx_bf16", "amx_bfloat32": "amx_bf16"}


@pytest.mark.parametrize("variant", ["itex", "stock"])
@pytest.mark.parametrize("precision", BFLOAT16)
def test_bfloat16_runs_or_says_what_the_cpu_lacks(run_case, precision, variant):
    done, logs = run_case(f"{PREFIX}throughput_{precision}_gated", *QUICK, f"--variant={variant}")
    if BFLOAT16[precision] not in read_cpuinfo().flags:
        assert done.returncode == 77
        assert f"this CPU lacks {BFLOAT16[precision]}" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert kpis(run)["ISA share"] >= 95
    assert run.facts["dominant instructions"].startswith("AMX" if precision.startswith("amx") else "AVX512-BF16")
    assert criteria(run)["outputs"]


def test_amx_capped_away_is_invalid_and_names_what_ran(run_case):
    if not {"amx_bf16", "avx512_bf16"} <= read_cpuinfo().flags:
        pytest.skip("needs AMX")
    done, logs = run_case(
        f"{PREFIX}throughput_amx_bfloat16_gated",
        "--customer_env=ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",
        *QUICK,
        CNNBENCH_SAMPLER="off",
    )
    assert done.returncode == 3, done.stdout + done.stderr
    (reason,) = (line for line in done.stdout.splitlines() if line.startswith("#INVALID RESULT: "))
    assert "precision: 0.0% of the multiply-accumulates ran as amx_bfloat16 (brgconv_1x1:avx512_core_bf16 " in reason
    assert load_run(logs).facts["fell back 1"].endswith("%")
    assert "# fell back 1: " in run_kpi(logs).stdout


def test_an_instruction_set_without_bfloat16_is_invalid(run_case):
    if "avx512_bf16" not in read_cpuinfo().flags:
        pytest.skip("needs AVX512_BF16")
    case = f"{PREFIX}throughput_avx_bfloat16_gated"
    done, logs = run_case(case, "--customer_env=ONEDNN_MAX_CPU_ISA=AVX2", "--variant=stock", *QUICK)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "process-0/output.log" in load_run(logs).facts["what was seen"]


def test_fp32_on_avx2_is_valid_and_named(run_case):
    done, logs = run_case(GATED, "--customer_env=ONEDNN_MAX_CPU_ISA=AVX2", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_run(logs).facts["dominant instructions"].startswith("FMA f32 256")


def test_every_requested_parameter_is_in_the_result(real):
    assert list(load_run(real).requested) == list(parameters_of("graph"))


@pytest.mark.usefixtures("real")  # which prepares the model with the images as they should be
def test_an_image_that_cannot_be_decoded_makes_the_run_invalid_and_is_named(engine_cache, tmp_path):
    cache = tmp_path / "cache"
    bad = damage_image(engine_cache, cache, 0)
    command = ["--workload", str(WORKLOAD), "--case", GATED, "--logs-root", str(tmp_path), "--data_type=real", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "cnnbench", "case", *command],
        env=clean_environment(CNNBENCH_CACHE=str(cache)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    run = load_run(tmp_path / f"logs-{GATED}" / "itr-1" / "worker-0")
    assert run.reason.startswith(f"{bad}: cannot be decoded: ")
    assert f"#INVALID RESULT: {bad}: cannot be decoded: " in done.stdout
