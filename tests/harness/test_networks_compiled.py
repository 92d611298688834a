"""Networks compiled ahead of time: made by `cnnbench compile`, used with PyTorch and without it, and refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from checkout import NETWORKS_SLUG as SLUG
from checkout import ROOT
from cnnbench.engines.registry import find_engine
from cnnbench.harness.line import DIRECTORY
from cnnbench.inputs.image_set import load_image_set
from cnnbench.results.record import load_run
from cnnbench.staging.environments import engine_python
from cnnbench.staging.inputs import find_check_set
from null_workload import CORES, clean_environment

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("pytorch_python")]

WORKLOAD = ROOT / "workload" / "ResNet50-Compiled-Public"
NETWORK = "resnet18"
RANGE = "1-10"

EAGER = """
import json, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from cnnbench.engines.pytorch.classifier import Classifier
from cnnbench.engines.exported import Exported
from cnnbench.engines.pytorch.compiled import CompiledNetwork
from cnnbench.engines.pytorch.networks import build
from cnnbench.engines.pytorch.weights import seed_weights
from cnnbench.inputs.networks import Network
sys.path.insert(0, sys.argv[1])
from weight_utils import fold
compiled, other = Path(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(Exported.find(compiled).asked.threads)
images = torch.from_numpy(np.load(compiled / "check_images.npy")[:10])
network = build(Network("resnet18"))
classifier = Classifier(network, normalize_inside=False).eval()
seed_weights(network, classifier.take(images), seed=2)
save_file(network.state_dict(), other)
told, ahead = {}, CompiledNetwork(compiled / "executable.pt2")
with torch.no_grad():
    eager, before = classifier(images), ahead(images)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    weights = {key: torch.from_numpy(value) for key, value in fold(state).items()}
    inside = {key: torch.cat([one.ravel(), one.ravel()])[: one.numel()].view(one.shape) for key, one in weights.items()}
    ahead.replace_weights(inside)  # views into storage that is larger
    after = ahead(images)
    told["before"], told["after"] = float((before - eager).abs().max()), float((after - eager).abs().max())
    told["eager"] = eager.topk(5).indices.tolist()
    first = next(iter(weights))
    for name, call in {
        "layout": lambda: ahead(images.permute(0, 3, 1, 2)),
        "strides": lambda: ahead(images.transpose(1, 2)),
        "type": lambda: ahead(images.double()),
        "batch": lambda: ahead(torch.cat([images, images])),
        "missing": lambda: ahead.replace_weights({k: v for k, v in weights.items() if k != first}),
        "surplus": lambda: ahead.replace_weights(weights | {"more": weights[first]}),
        "misshapen": lambda: ahead.replace_weights(weights | {first: weights[first][:1]}),
    }.items():
        try:
            call()
            told[name] = "answered"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def environment(engine_cache):
    return clean_environment(CNNBENCH_CACHE=str(engine_cache))


def run_cnnbench(environment, *words, **changes):
    command = [sys.executable, "-m", "cnnbench", *map(str, words)]
    return subprocess.run(command, env=environment | changes, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compiled(environment, tmp_path_factory):
    """The network compiled for two engines, its weights replaceable: their directories by engine."""
    output, found = tmp_path_factory.mktemp("compiled"), {}
    for engine in ("aotinductor", "onnxruntime"):
        words = ("--network", NETWORK, "--batch", RANGE, "--engine", engine, "--replaceable-weights")
        done = run_cnnbench(environment, "compile", "--output", output, *words)
        assert done.returncode == 0, done.stderr
        found[engine] = output / f"{NETWORK}-fp32-{RANGE}-{engine}-replaceable"
        name = f"executable{'.pt2' if engine == 'aotinductor' else '.onnx'}"
        assert re.search(rf"/{name}: batches of 1-10, \d+ threads?, replaceable weights", " ".join(done.stdout.split()))
    return found


@pytest.fixture(scope="module")
def other(engine_cache, compiled, tmp_path_factory):
    """What became of the network's answers with other weights in it, which are in the file returned too."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    python = engine_python(find_engine("pytorch"), "cpu", engine_cache)
    done = subprocess.run(
        [python, "-c", textwrap.dedent(EAGER), WORKLOAD, compiled["aotinductor"], path],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), path


def run_script(environment, name, *words):
    """Run one of the workload's scripts as a user does; return it done, and the classes that it says of each image."""
    command = [sys.executable, str(WORKLOAD / name), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    answers = [line.partition(": ")[2].split(", ") for line in done.stdout.splitlines() if ".jpg: " in line]
    return done, [[int(word.split()[0]) for word in words] for words in answers]


def test_other_weights_are_computed_with_without_compiling_again(environment, engine_cache, compiled, other, tmp_path):
    told, weights = other
    assert told["after"] < 1e-5 < told["before"]
    images = load_image_set(find_check_set(engine_cache)).paths()[:10]
    folded = tmp_path / "folded.npz"
    script = (compiled["onnxruntime"], *images)
    done = run_cnnbench(environment, "python", "onnxruntime", WORKLOAD / "weight_utils.py", weights, folded)
    assert done.returncode != 0
    assert "safetensors" in done.stderr  # which only PyTorch's environment has
    done = run_cnnbench(environment, "python", "pytorch", WORKLOAD / "weight_utils.py", weights, folded)
    assert done.returncode == 0, done.stderr
    assert f"{folded}: 42 arrays" in done.stdout
    _, own = run_script(environment, "infer_with_numpy.py", *script)
    done, swapped = run_script(environment, "infer_with_numpy.py", *script, "--weights", folded)
    assert done.returncode == 0, done.stderr
    assert swapped == told["eager"]
    words = (compiled["aotinductor"], *images, "--weights", weights)
    done, in_torch = run_script(environment, "infer_with_torch.py", *words)
    assert done.returncode == 0, done.stderr
    assert "other.safetensors: within " in done.stdout
    assert [found[0] for found in in_torch] == [found[0] for found in told["eager"]]
    assert own != swapped


def test_without_pytorch_the_answers_are_those_with_it(environment, engine_cache, compiled):
    done = run_cnnbench(environment, "python", "onnxruntime", "-c", "import torch")
    assert "No module named 'torch'" in done.stderr
    images = load_image_set(find_check_set(engine_cache)).paths()[:10]
    done, with_torch = run_script(environment, "infer_with_torch.py", compiled["aotinductor"], *images, "--pointers")
    assert done.returncode == 0, done.stderr
    assert "; as large as the images: 0; as large as the answers: 2 (scores " in done.stdout
    assert "and the answers are one of them: True" in done.stdout
    done, without = run_script(environment, "infer_with_numpy.py", compiled["onnxruntime"], *images)
    assert done.returncode == 0, done.stderr
    assert [found[0] for found in without] == [found[0] for found in with_torch]
    assert len(without) == 10


def test_what_it_was_not_compiled_for_is_refused_with_the_reason(other, subtests):
    told, _ = other
    for name, reason in {
        "layout": "takes images N x 224 x 224 x 3 of torch.float32, contiguous, and got (10, 3, 224, 224)",
        "strides": "not contiguous",
        "type": "got (10, 224, 224, 3) of torch.float64",
        "batch": "executable.pt2: is for batches of 1-10, and is handed 20 images",
        "missing": "not the weights that executable.pt2 has: 1 missing: network.",
        "surplus": "1 surplus: more",
        "misshapen": "1 misshapen: network.",
    }.items():
        with subtests.test(name):
            assert told[name].startswith("CnnbenchError: ")
            assert reason in told[name]


def test_a_compiled_file_is_measured_and_refused_where_it_is_not_for_it(environment, compiled, tmp_path, subtests):
    file = compiled["aotinductor"] / "executable.pt2"
    case = f"test_{SLUG}_inference_throughput_fp32_{NETWORK}"
    command = ("case", "--workload", DIRECTORY, "--case", case, "--logs-root", tmp_path)
    quick = ("--engine=aotinductor", "--cores_per_instance=auto", "--min_time=2", "--max_time=4", "--warmup_steps=1")
    done = run_cnnbench(environment, *command, *quick, f"--network_file={file}", "--batch_size=4")
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / f"logs-{case}" / "itr-1" / "worker-0")
    assert re.fullmatch(r"batches of 1-10, \d+ threads, replaceable weights", run.facts["compiled for"])
    assert next(one for one in run.criteria if one.name == "precision").passed
    done = run_cnnbench(environment, *command, *quick, f"--network_file={file}", "--batch_size=16")
    assert done.returncode == 3
    assert "is for batches of 1-10, and is handed 16 images" in done.stdout
    given = ("--engine=onnxruntime", f"--network_file={compiled['onnxruntime'] / 'executable.onnx'}", "--batch_size=4")
    done = run_cnnbench(environment, *command, *given, "--pad_conv_channel")
    assert done.returncode == 2
    assert "PAD_CONV_CHANNEL=True: NETWORK_FILE=" in done.stderr
    half = [word.replace("fp32", "fp16") if word == case else word for word in command]
    done = run_cnnbench(environment, *half, *given)
    assert done.returncode == 2
    assert "was compiled for fp32, weights in fp32, and cannot be measured as fp16" in done.stderr
    facts, content = json.loads((file.parent / "executable.json").read_bytes()), file.read_bytes()
    for change, size, code, reason in (
        ({"cpu_flags_sha256": "0"}, None, 2, "was made on a CPU with other instructions"),
        ({"versions": {"PyTorch": "0.1"}}, None, 3, "was written by {'PyTorch': '0.1'}, and this is"),
        ({}, 1000, 2, "it was changed or cut off; export it again"),
    ):
        with subtests.test(reason):
            (file.parent / "executable.json").write_text(json.dumps(facts | change))
            file.write_bytes(content[:size])
            done = run_cnnbench(environment, *command, *quick, f"--network_file={file}", "--batch_size=4")
            assert done.returncode == code, done.stdout + done.stderr
            assert reason in " ".join((done.stdout + done.stderr).split())
    (file.parent / "executable.json").write_text(json.dumps(facts))
    file.write_bytes(content)


@pytest.fixture
def own_cache(engine_cache, tmp_path):
    """A cache with all that takes long to make, and nothing prepared or compiled yet."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("datasets", "environments", "models", "native"):
        if (engine_cache / name).exists():
            (cache / name).symlink_to(engine_cache / name)
    return cache


def facts_of(output):
    return {path.parent.name: json.loads(path.read_bytes()) for path in output.glob("*/executable.json")}


def test_processes_that_tune_share_what_they_find_and_go_on_where_one_was_killed(environment, own_cache, tmp_path):
    jobs = min(2, len(os.sched_getaffinity(0)))
    words = ("compile", "--network", NETWORK, "--engine", "aotinductor", "--max-autotune", "--batch", "1", "2")
    command = [sys.executable, "-m", "cnnbench", *words, "--tuning-jobs", str(jobs), "--output"]
    given = {"env": environment | {"CNNBENCH_CACHE": str(own_cache)}, "text": True, "stderr": subprocess.PIPE}
    killed = subprocess.Popen([*command, tmp_path / "killed"], start_new_session=True, **given)
    while not [path for path in own_cache.glob("compiled/cache/[!.]*") if not path.suffix]:  # what was found by trying
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    both = [subprocess.Popen([*command, tmp_path / name], **given) for name in ("one", "other")]
    for process in both:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    one, other = (facts_of(tmp_path / name) for name in ("one", "other"))
    assert one == other
    assert len(one) == 2
    assert all(facts["tuning"]["chosen"] >= 1 for facts in one.values())
    assert any(facts["tuning"]["tried"] < facts["tuning"]["chosen"] for facts in one.values())  # by the one killed
    for path in own_cache.glob(f"prepared/{NETWORK}-*-aotinductor-*"):
        shutil.rmtree(path)
    done = subprocess.run([*command, tmp_path / "again"], stdout=subprocess.PIPE, check=False, **given)
    assert done.returncode == 0, done.stderr
    for facts in facts_of(tmp_path / "again").values():
        assert facts["tuning"] == {"chosen": facts["tuning"]["chosen"], "tried": 0}
        assert facts["tuning"]["chosen"] >= 1
    assert " found in the cache" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "changes", "code", "reason"),
    [
        (("--batch", "0"), {}, 2, "--batch 0: needed a number of images, such as 8, or a range"),
        (("--batch", "9-1"), {}, 2, "--batch 9-1: needed a number of images"),
        (("--engine", "caffe"), {}, 2, "invalid choice: 'caffe'"),
        (("--precision", "fp4"), {}, 2, "invalid choice: 'fp4'"),
        (("--tuning-jobs", "9999"), {}, 2, "--tuning-jobs 9999: must be 1 to"),
        (("--weights", "missing.pt"), {}, 2, "missing.pt: no such file"),
        (
            ("--engine", "openvino", "--max-autotune"),
            {},
            2,
            "MAX_AUTOTUNE=True: ENGINE=openvino cannot; choose aotinductor",
        ),
        (("--engine", "openvino", "--replaceable-weights"), {}, 2, "REPLACEABLE_WEIGHTS=True: ENGINE=openvino cannot"),
        (("--threads", "0"), {}, 2, "CORES_PER_INSTANCE=0"),
        (("--engine", "aotinductor"), {"CXX": "/no/compiler"}, 77, "compiles with /no/compiler, which is not here"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(environment, tmp_path, words, changes, code, reason):
    given = ("--network", NETWORK, "--output", tmp_path / "output", *words)
    done = run_cnnbench(environment, "compile", *given, **changes)
    assert done.returncode == code, done.stdout + done.stderr
    assert reason in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--rounds", "3"), "--rounds 3: 6 or more are needed for the interval of a median"),
        (("--output", "no/such/table.csv"), "--output no/such/table.csv: there is no directory no/such"),
        (("--engines", "caffe"), "engine 'caffe': not known; there are"),
        (("--engines", "openvino:EVEN_FASTER"), "needed ENGINE or ENGINE:NAME=VALUE"),
        (("--devices", "0"), "--devices 0: must be 1 to "),
        pytest.param(
            ("--devices", str(CORES), "--batches", str(CORES + 1)),
            f"--devices {CORES}: they cannot share a batch of {CORES + 1} evenly",
            marks=pytest.mark.skipif(CORES < 2, reason="a batch is shared by two cores"),
        ),
        (("--devices", "1000"), "--devices 1000: must be 1 to "),
        (("--batches", "0"), "BATCH_SIZE=0 (argument): must be 1 to 4096"),
        (("--precisions", "fp4"), "invalid choice: 'fp4'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(environment, words, reason):
    done = run_cnnbench(environment, "benchmark-compiled", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert reason in done.stderr
    assert "round 1" not in done.stderr
