"""int8 on real engines: quantised while staging, or given as an int8 graph."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from test_engine import GATED, PREFIX, QUICK, criteria, digest, kpis, run_case

from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.engines.registry import find_engine
from cnnbench.engines.tensorflow import ITEX_PYTHONS
from cnnbench.machine.host import read_cpuinfo
from cnnbench.results.record import load_run
from cnnbench.staging.inputs import embedded_model_path, find_check_set, prepare_model, quantize_model

__all__ = ["run_case"]  # the fixture

MISSING = missing_for_precision(PRECISIONS["avx_int8"], read_cpuinfo().flags)
INT8 = f"{PREFIX}throughput_avx_int8_gated"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(MISSING), reason=" ".join(MISSING)),
    pytest.mark.skipif(sys.version_info[:2] not in ITEX_PYTHONS, reason="no model is quantised with this Python"),
]


def spec_of(logs):
    return json.loads((logs / "process-0" / "spec.json").read_text())


@pytest.fixture(scope="module")
def quantized(run_case):
    """The logs of a run of each build, with the graph that was measured."""
    found = {}
    for variant in ("itex", "stock"):
        done, logs = run_case(INT8, f"--variant={variant}", *QUICK)
        assert done.returncode == 0, done.stdout + done.stderr
        found[variant] = logs
    return found


@pytest.mark.parametrize("variant", ["itex", "stock"])
def test_every_convolution_and_the_classifier_run_in_int8(quantized, variant, engine_cache):
    run, model = load_run(quantized[variant]), Path(spec_of(quantized[variant])["model"])
    assert criteria(run)["precision"]
    assert criteria(run)["outputs"]
    assert kpis(run)["ISA share"] == pytest.approx(100, abs=0.1)
    assert run.facts["model SHA-256"] == digest(embedded_model_path(find_engine("tensorflow"), engine_cache))
    assert run.facts["int8 graph SHA-256"] == digest(model)
    assert run.facts["calibrated on"] == "100 images of cnnbench-procedural-1-calibration"
    facts = json.loads((model.parent / "int8.json").read_text())
    assert facts["multiplies"] == 54
    assert facts["made_with"]["neural-compressor"] == "2.6"


def test_quantising_again_gives_the_same_bytes(quantized, engine_cache, tmp_path):
    engine, images = find_engine("tensorflow"), find_check_set(engine_cache)
    model = prepare_model(embedded_model_path(engine, engine_cache), images, engine, "itex", engine_cache)
    (tmp_path / "environments").symlink_to(engine_cache / "environments")
    again = quantize_model(model, engine, "itex", tmp_path)
    assert again.graph.is_relative_to(tmp_path)
    assert digest(again.graph) == digest(Path(spec_of(quantized["itex"])["model"]))


@pytest.mark.skipif("amx_int8" not in read_cpuinfo().flags, reason="this CPU has no AMX")
def test_amx_runs_the_same_graph(quantized, run_case):
    done, logs = run_case(f"{PREFIX}throughput_amx_int8_gated", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert spec_of(logs)["model"] == spec_of(quantized["itex"])["model"]
    assert kpis(run)["ISA share"] == pytest.approx(100, abs=0.1)
    assert criteria(run)["outputs"]
    assert "amx" in run.facts["dominant implementation"]


def test_a_graph_that_is_int8_already_drops_in(quantized, run_case, tmp_path):
    given = tmp_path / "somebody's int8.pb"
    shutil.copyfile(spec_of(quantized["stock"])["model"], given)
    done, logs = run_case(INT8, "--variant=stock", f"--model={given}", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.facts["model SHA-256"] == digest(given) == digest(Path(spec_of(logs)["model"]))
    assert "calibrated on" not in run.facts
    assert kpis(run)["ISA share"] == pytest.approx(100, abs=0.1)
    assert criteria(run)["outputs"]

    done, logs = run_case(GATED, "--variant=stock", f"--model={given}", *QUICK)
    assert done.returncode == 2
    assert f"MODEL={given}: is quantised to int8 and cannot be measured as avx_fp32; give the float32" in done.stderr
    assert not logs.parents[1].exists()


def test_the_accuracy_case_says_what_int8_costs(run_case):
    done, logs = run_case(f"{PREFIX}accuracy_avx_int8", "--batch_size=50")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    found = kpis(run)
    assert criteria(run)["accuracy loss"]
    assert found["Top-1 loss 95 % low"] < found["Top-1 loss"] <= 0.5
    assert found["Top-1 loss"] < found["Top-1 loss 95 % high"]


def test_int8_on_another_instruction_set_is_invalid_and_names_what_ran(run_case, quantized):
    done, _ = run_case(INT8, "--customer_env=ONEDNN_MAX_CPU_ISA=AVX2", "--warmup_steps=1", "--steps=100")
    assert done.returncode == 3, done.stdout + done.stderr
    (reason,) = (line for line in done.stdout.splitlines() if line.startswith("#INVALID RESULT: "))
    assert re.search(r"0.0% \[0.0%, .*\] of \d+ samples .* were at avx_int8 \(AVX2 int8 256 ", reason)
