"""The workload of networks on real engines, as short as it can be."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cnnbench.base.checkout import SOURCES
from cnnbench.cases.parameters import Parameters
from cnnbench.cli.main import main
from cnnbench.engines.pytorch import OWN_PYTHON, PyTorchOptions
from cnnbench.engines.registry import find_engine
from cnnbench.machine.host import find_gpu_obstacle, read_cpuinfo
from cnnbench.results.record import load_run
from cnnbench.staging.environments import engine_python
from cnnbench.staging.inputs import find_check_set
from cnnbench.staging.networks import predict_network, prepare_network
from damaged_images import damage_image
from model_files import write_checkpoint
from network_cases import ACCURACY, CASE, kpis
from null_workload import CORES, clean_environment, run_kpi

pytestmark = pytest.mark.engine


def measured(done, logs):
    """Return the result of a run that must be good but for how steady it was."""
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert run.verdict in ("valid", "unstable"), run.reason
    assert next(one for one in run.criteria if one.name == "precision").passed
    assert kpis(run).get("ISA share", 100) > 50  # short runs of ONNX Runtime leave the instructions open
    assert kpis(run)["Outputs top-1 agreement"] == 100
    return run


@pytest.mark.parametrize(
    ("engine", "version", "proof"),
    [
        ("pytorch", "PyTorch", "ISA share"),
        ("inductor", "PyTorch", "ISA share"),
        ("onnxruntime", "ONNX Runtime", "Data type share"),
        ("openvino", "OpenVINO", "ISA share"),
    ],
)
def test_an_engine_measures_a_network_and_answers_as_pytorch_does(run_case, engine, version, proof):
    run = measured(*run_case("resnet18", f"--engine={engine}", "--batch_size=8", "--cores_per_instance=auto"))
    assert run.effective["ENGINE"] == engine
    assert run.facts[version]
    assert proof in kpis(run)
    assert any("the weights are random" in note for note in run.notes)


HELD_DOWN = {
    "pytorch": "ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default",
    "inductor": "ONEDNN_MAX_CPU_ISA=SSE41",
    "openvino": "ONEDNN_MAX_CPU_ISA=SSE41",
}


@pytest.mark.parametrize("engine", HELD_DOWN)
def test_a_precision_that_is_held_down_is_invalid(run_case, engine):
    done, logs = run_case(
        "resnet18", f"--engine={engine}", "--batch_size=8", "--steps=8", f"--customer_env={HELD_DOWN[engine]}"
    )
    assert done.returncode == 3, done.stdout + done.stderr
    reason = load_run(logs).reason
    assert re.match(r"precision: \d+\.\d% \[.*\] of \d+ samples .* avx_fp32 \(SSE multiply and add f32 128 ", reason)


def test_an_engine_that_takes_the_cpu_for_an_older_one_is_invalid_by_its_samples_alone(
    run_case, engine_cache, tmp_path
):
    """ONNX Runtime asks the CPU alone what it has: here, of a copy of it, the answer says no AVX2 and no AVX-512."""
    python = engine_python(find_engine("onnxruntime"), "cpu", engine_cache)
    cache, environment = tmp_path / "cache", python.parents[1]
    for path in engine_cache.iterdir():
        if path.name != "environments":
            (cache / path.name).parent.mkdir(exist_ok=True)
            (cache / path.name).symlink_to(path)
    (cache / "environments").mkdir()
    for path in (engine_cache / "environments").iterdir():
        if path != environment:
            (cache / "environments" / path.name).symlink_to(path)
    copy = cache / "environments" / environment.name
    shutil.copytree(environment, copy, symlinks=True, copy_function=os.link)
    (library,) = copy.glob("lib/python*/site-packages/onnxruntime/capi/onnxruntime_pybind11_state*.so")
    code = library.read_bytes()
    asks = bytes.fromhex("b8070000000fa2")  # mov eax, 7; cpuid
    assert asks in code
    library.unlink()
    library.write_bytes(code.replace(asks, bytes.fromhex("b80700000031db")))  # xor ebx, ebx
    done, logs = run_case("resnet18", "--engine=onnxruntime", "--batch_size=8", CNNBENCH_CACHE=str(cache))
    assert done.returncode == 3, done.stdout + done.stderr
    reason = load_run(logs).reason
    assert re.search(r" samples among .* avx_fp32 \((AVX|SSE) multiply and add f32 ", reason)
    assert "100.0% of the multiply-accumulates ran as avx_fp32's data type" in reason
    assert "; the two disagree" in reason


def test_bytes_generated_on_the_host_are_normalised_inside_and_answered_alike_and_profiled(run_case):
    options = ("--eight_bit_io", "--normalization_location=device", "--data_type=generated")
    done, logs = run_case("mobilenet_v3_small", *options, "--batch_size=16", "--micro_batch_size=16", "--profile")
    run = measured(done, logs)
    events = json.loads((logs / "trace" / "profile.json").read_text())["traceEvents"]
    assert any("convolution" in event.get("name", "") for event in events)
    spec = json.loads((logs / "process-0" / "spec.json").read_text())
    assert np.load(spec["check_images"]).dtype == np.uint8
    assert run.effective["DATA_TYPE"] == "generated"


def test_a_step_of_several_batches_of_real_images_in_parts(run_case):
    options = ("--data_type=real", "--batch_size=16", "--micro_batch_size=8", "--device_iterations=2", "--replicas=1")
    done, logs = run_case("resnet18", *options, "--cores_per_instance=auto")
    run = measured(done, logs)
    assert kpis(run)["Input wait"] >= 0
    spec = json.loads((logs / "process-0" / "spec.json").read_text())
    assert (spec["batch_size"], spec["micro_batch_size"]) == (32, 8)


@pytest.mark.skipif(CORES < 2, reason="replicas need a core each")
@pytest.mark.parametrize("engine", ["pytorch", "onnxruntime"])
def test_replicas_are_pinned_threads_of_one_process_and_kpi_sh_counts_them(run_case, engine):
    done, logs = run_case("resnet18", f"--engine={engine}", "--replicas=2", "--instances=1", "--batch_size=16")
    run = measured(done, logs)
    assert (run.effective["INSTANCES"], run.effective["REPLICAS"]) == ("2", "2")
    assert len({result["pid"] for result in run.instances}) == 1
    assert run_kpi(logs).returncode == 0


def test_layers_of_an_engine_that_tells_no_times_have_none(run_case, capsys):
    done, logs = run_case("resnet18", "--engine=onnxruntime", "--batch_size=8")
    measured(done, logs)
    assert main(["isa", str(logs)]) == 0
    shown = capsys.readouterr().out
    assert "one step of 8 images, times not told" in shown
    assert "time (ms)" not in shown
    assert main(["isa", str(logs), "--format", "json"]) == 0
    layers = [one for one in json.loads(capsys.readouterr().out) if one["record"] == "layer"]
    assert {one["time_ms"] for one in layers} == {None}
    assert sum(one["gmacs"] for one in layers) == pytest.approx(8 * 1.814073344)


TOTALS = """
import json, sys
from pathlib import Path
import numpy as np
from cnnbench.engines.interface import LoadSpec
from cnnbench.engines.openvino.backend import OpenVinoBackend
directory, backend = Path(sys.argv[1]), OpenVinoBackend()
backend.load(LoadSpec(model=directory, number_type=sys.argv[2], threads=1, callers=1, verbose=False))
backend.infer(np.load(directory / "check_images.npy")[:2])
print(json.dumps([(layer.implementation, layer.macs) for layer in backend.layers()]))
"""


def test_openvinos_layers_add_up_to_the_network(engine_cache, pytorch_python):
    python, images = engine_python(find_engine("openvino"), "cpu", engine_cache), find_check_set(engine_cache)
    number_types = ["fp32", *(["bfloat16"] if "avx512_bf16" in read_cpuinfo().flags else [])]
    for topology in ("resnet50", "mobilenet_v3_small"):
        asked, engine = Parameters(topology=topology, mode="throughput"), find_engine("openvino")
        model = prepare_network(asked, engine, engine.options(), images, "cpu", engine_cache)
        for number_type in number_types:
            done = subprocess.run(
                [python, "-c", TOTALS, str(model.graph), number_type],
                env=clean_environment(PYTHONPATH=str(SOURCES)),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            layers = json.loads(done.stdout)
            assert sum(macs for _, macs in layers) == pytest.approx(2 * model.macs_per_image, rel=0.001), number_type
            assert not [name for name, macs in layers if not macs]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_accuracy_in_parts_of_large_steps_is_proven_by_one_part(run_case, engine):
    options = (f"--engine={engine}", "--batch_size=300", "--micro_batch_size=20")
    done, logs = run_case("mobilenet_v3_small", *options, case=ACCURACY)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    precision = next(one for one in run.criteria if one.name == "precision")
    assert precision.passed
    assert re.search(r"; (9[7-9]|100)\.\d% of the multiply-accumulates ran as avx_fp32", precision.found), (
        precision.found
    )
    assert {one.name: one.passed for one in run.criteria}["measured outputs"]


def test_an_image_that_a_network_cannot_be_prepared_with_is_named(run_case, engine_cache, tmp_path):
    bad = damage_image(engine_cache, tmp_path / "cache", 3, prepared=False)
    done, logs = run_case("resnet18", "--data_type=real", CNNBENCH_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{bad}: cannot be decoded: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not logs.exists()


def test_weights_of_a_file_are_the_models(run_case, tmp_path):
    weights = tmp_path / "resnet18.safetensors"
    write_checkpoint(weights)
    done, _ = run_case("resnet18", f"--weights={weights}")
    assert done.returncode == 1
    assert f"WEIGHTS={weights}: not the weights of this network" in done.stderr


def test_accuracy_of_a_fitted_network_is_far_from_chance(run_case):
    done, logs = run_case("mobilenet_v3_small", "--engine=openvino", case=ACCURACY)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(logs)
    assert kpis(run)["Accuracy top-1"] >= 25  # of 100 classes
    assert kpis(run)["Accuracy top-5"] >= 50
    assert kpis(run)["Outputs top-1 agreement"] == 100
    assert "Top-1 loss" not in kpis(run)
    assert {one.name: one.found for one in run.criteria}["coverage"] == "1000 of 1000 images answered"
    assert any("a last layer was fitted to the drawn training images" in note for note in run.notes)


def test_what_a_network_without_weights_cannot_know_is_skipped(run_case):
    done, _ = run_case("resnet18", "--dataset=imagenet", case=ACCURACY)
    assert done.returncode == 77
    assert "accuracy on DATASET=imagenet needs a trained network: give WEIGHTS" in done.stderr


def test_a_case_names_its_network(run_case):
    done, _ = run_case("", case=CASE.removesuffix("_"))
    assert done.returncode == 2
    assert "not a test case of this workload" in done.stderr


@pytest.mark.skipif(CORES < 2, reason="stages need a core each")
def test_a_pipeline_tells_its_stages_times(run_case):
    options = ("--pipeline_splits=layer2", "--batch_size=16", "--micro_batch_size=4")
    done, logs = run_case("resnet18", *options, f"--cores_per_instance={CORES}")
    run = measured(done, logs)
    assert run.facts["stage 1"].startswith("the input to layer2, ")
    assert run.facts["stage 2"].startswith("layer2 to the end, ")


def test_the_fastest_engine_is_found_by_a_trial(run_case):
    run = measured(*run_case("mobilenet_v3_small", "--engine=auto", "--batch_size=16", CXX="no-such-compiler"))
    assert run.requested["ENGINE"] == "auto"
    (told,) = [note for note in run.notes if note.startswith("ENGINE=auto: ") and "trials of 5 s" in note]
    tried = {name: float(value) for name, value in re.findall(r"(\w+) ([0-9.]+) img/s", told)}
    assert set(tried) == {"pytorch", "onnxruntime", "openvino"}
    assert run.effective["ENGINE"] == max(tried, key=tried.get)
    assert told.startswith(f"ENGINE=auto: {run.effective['ENGINE']} is the fastest")
    assert any("not tried: inductor: ENGINE=inductor: compiles with no-such-compiler" in note for note in run.notes)


def test_engines_that_fail_are_not_chosen_and_without_any_the_run_is_invalid(run_case, tmp_path):
    write_checkpoint(weights := tmp_path / "other.safetensors")
    done, logs = run_case("resnet18", "--engine=auto", f"--weights={weights}", CXX="no-such-compiler")
    assert done.returncode == 3, done.stdout + done.stderr
    run = load_run(logs)
    assert run.effective["ENGINE"] == "auto"
    assert run.reason.startswith("ENGINE=auto: no engine's trial was good: pytorch failed (failed with exit code 1")
    assert "openvino failed (" in run.reason


def test_predictions_are_of_the_checkpoint_at_hand(engine_cache, pytorch_python, tmp_path):
    images, engine = find_check_set(engine_cache), find_engine("pytorch")
    asked = Parameters(topology="mobilenet_v3_small", mode="throughput")
    seeded = prepare_network(asked, engine, PyTorchOptions(), images, "cpu", engine_cache)
    for name in ("first", "second"):
        shutil.copy(seeded.graph / "weights.safetensors", tmp_path / name)
        given = asked.model_copy(update={"weights": str((tmp_path / name).rename(tmp_path / f"{name}.safetensors"))})
        model = prepare_network(given, engine, PyTorchOptions(), images, "cpu", engine_cache)
        (tmp_path / "first.safetensors").unlink(missing_ok=True)
    model = predict_network(model, images, "cpu", engine_cache)
    best = np.load(model.predictions)
    assert best.shape == (1000,)
    assert (best[:32] == np.load(model.reference).argmax(1)).mean() > 0.9


def test_inductor_without_a_compiler_is_skipped(run_case):
    done, _ = run_case("resnet18", "--engine=inductor", CXX="no-such-compiler")
    assert done.returncode == 77
    assert "ENGINE=inductor: compiles with no-such-compiler, which is not here" in done.stderr


def test_a_trial_ends_with_the_time_of_the_run(run_case):
    done, logs = run_case("resnet18", "--engine=auto", "--batch_size=16", "--timeout", "12", CXX="no-such-compiler")
    assert done.returncode == 3, done.stdout + done.stderr
    assert load_run(logs).reason == "not done within TIMEOUT=12 s"


@pytest.mark.skipif(bool(obstacle := find_gpu_obstacle()), reason=f"no NVIDIA GPU: {obstacle}")
@pytest.mark.parametrize(
    "words",
    [
        ("--precision", "32.32"),
        ("--precision", "16.16", "--data", "synthetic"),
        ("--precision", "16.16", "--data", "synthetic", "--cuda-graphs"),
        ("--precision", "16.16", "--data", "generated", "--cuda-graphs", "--micro-batch-size", "16", "--profile"),
        ("--precision", "16.16", "--data", "synthetic", "--num-instances", "2"),
        ("--precision", "16.16", "--data", "real", "--half-type", "bfloat16", "--half-partial"),
        ("--precision", "16.16", "--engine", "inductor"),
        ("--engine", "inductor", "--cuda-graphs", "--data", "generated"),
        ("--cuda-graphs", "--eight-bit-io", "--normalization-location", "device", "--profile"),
    ],
)
def test_a_network_runs_on_a_gpu(engine_cache, tmp_path, words):
    line = ["--model", "resnet18", "--device", "cuda", "--iterations", "50"]
    own = {name: value for name, value in os.environ.items() if name == OWN_PYTHON}
    done = subprocess.run(
        [sys.executable, "-m", "cnnbench", "run", *line, *words, "--batch-size", "32"],
        env=clean_environment(CNNBENCH_CACHE=str(engine_cache), **own),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (logs,) = tmp_path.glob("logs-*/itr-1/worker-0")
    run = load_run(logs)
    assert run.verdict in ("valid", "unstable"), run.reason
    assert {"GPU", "CUDA", "cuDNN", "PyTorch"} <= set(run.facts)
    assert kpis(run)["Data type share"] >= 95
    assert kpis(run)["Outputs top-1 agreement"] >= 90
    assert len(run.instances) == (2 if "--num-instances" in words else 1)


@pytest.mark.skipif(CORES < 2, reason="stages need a core each")
def test_a_wrong_layer_lists_the_right_ones(run_case):
    done, _ = run_case("resnet18", "--pipeline_splits=layer9", f"--cores_per_instance={CORES}")
    assert done.returncode == 2
    assert "PIPELINE_SPLITS=layer9: no such layer of resnet18; it has conv1, bn1, " in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--pipeline_splits=layer1 layer2", "--cores_per_instance=1"), "3 stages, but an instance has 1 core; raise"),
        (("--pipeline_splits=layer2", "--engine=openvino"), "ENGINE=openvino cannot; choose pytorch, inductor"),
        (("--pipeline_splits=layer2", "--profile"), "PROFILE=True sees one thread alone"),
        (("--profile", "--engine=onnxruntime"), "PROFILE=True: ENGINE=onnxruntime cannot; choose pytorch, inductor"),
        (("--precision=avx_bfloat16",), "the case .* fixes it as avx_fp32"),
    ],
)
def test_what_an_engine_or_an_instance_cannot_do_is_refused(run_case, options, reason):
    done, _ = run_case("resnet18", *options)
    assert done.returncode == 2
    assert re.search(reason, done.stderr)
