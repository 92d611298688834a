"""What is exported for backends of Triton's own: its configuration, its file, and a server that has such backends.

The backends themselves are not to be had here. The engines run the files by what the configurations say of them, alone
and, in their places, in a real server.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cnnbench.engines.registry import find_engine
from cnnbench.serving.programs import find_libpython
from cnnbench.staging.environments import TRITON_CLIENT, engine_python, locked_python
from null_workload import PATIENCE_S, clean_environment, process_files
from triton_server import (
    MODEL,
    OBSTACLE,
    ask,
    assert_nothing_left,
    export,
    serving,
    wait_until_ready,
    wheel,
    write_installation,
)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
    pytest.mark.usefixtures("pytorch_python"),
]

BACKENDS = ("onnxruntime", "openvino")
BOUND = 1e-3
"""How far a probability may lie from the reference's, in float32."""


@pytest.fixture(scope="module")
def checked(engine_cache, tmp_path_factory):
    """The network as the engine's own model has it: the fixed images and the answers to them are with that."""
    directory = tmp_path_factory.mktemp("checked") / "models"
    export(directory, "--engine=onnxruntime", "--instances=1")
    return directory / MODEL / "1" / "network"


@pytest.fixture(scope="module", params=BACKENDS)
def exported(request, engine_cache, tmp_path_factory):
    """A repository for a backend of Triton's own, and the backend's name."""
    directory = tmp_path_factory.mktemp(request.param) / "models"
    printed = export(directory, "--backend", request.param, "--instances=1")
    assert f"as {MODEL}, Triton's own backend {request.param}, CPUs " in printed
    return directory, request.param


def python_of(backend, cache):
    return engine_python(find_engine(backend), "cpu", cache)


def call(python, script, *arguments):
    done = subprocess.run(
        [python, "-c", script, *map(str, arguments)], env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_READ = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
config = text_format.Parse(open(sys.argv[1]).read(), ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
"""


def read_config(directory, cache):
    """Return a model's configuration as Triton's own protocol has it."""
    return call(locked_python(TRITON_CLIENT, cache), _READ, directory / MODEL / "config.pbtxt")


_LOOK_AND_RUN = {
    "onnxruntime": """
import json, sys
import numpy as np
import onnxruntime
file, images, given, asked = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
told = [[one.name, one.type, one.shape[1:]] for one in (*session.get_inputs(), *session.get_outputs())]
images = np.load(images)
print(json.dumps([told, [session.run([asked], {given: images[:size]})[0].tolist() for size in (1, 8)]]))
""",
    "openvino": """
import json, sys
import numpy as np
import openvino
file, images, given, asked = sys.argv[1:]
model = openvino.Core().read_model(file)
types = {"f32": "tensor(float)"}
told = [
    [one.any_name, types[one.element_type.get_type_name()], [d.get_length() for d in list(one.partial_shape)[1:]]]
    for one in (*model.inputs, *model.outputs)
]
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
images = np.load(images)
print(json.dumps([told, [compiled({given: images[:size]})[asked].tolist() for size in (1, 8)]]))
""",
}


def test_the_configuration_says_what_the_file_has_and_the_engine_answers_by_it(exported, checked, engine_cache):
    directory, backend = exported
    config = read_config(directory, engine_cache)
    assert (config["name"], config["backend"], config["default_model_filename"]) == (MODEL, backend, "model.onnx")
    (given,), (asked,), (group,) = config["input"], config["output"], config["instance_group"]
    assert (group["kind"], group["count"]) == ("KIND_CPU", 1)
    together = config.get("max_batch_size", 0)
    dims = {one["name"]: [int(dim) for dim in one["dims"]] for one in (given, asked)}
    if not together:  # any number of images, of each request
        assert {one.pop(0) for one in dims.values()} == {-1}
    assert (together, "dynamic_batching" in config) == ((8, True) if backend == "onnxruntime" else (0, False))
    file, images = directory / MODEL / "1" / "model.onnx", checked / "check_images.npy"
    told, answers = call(
        python_of(backend, engine_cache), _LOOK_AND_RUN[backend], file, images, given["name"], asked["name"]
    )
    types = {"TYPE_FP32": "tensor(float)"}
    assert told == [[one["name"], types[one["data_type"]], dims[one["name"]]] for one in (given, asked)]
    reference = np.load(checked / "reference.npy")
    for answer in answers:
        assert np.abs(np.array(answer) - reference[: len(answer)]).max() < BOUND
    assert json.loads((directory / MODEL / "1" / "network.json").read_text())["form"]["size"] == dims[given["name"]][0]


def test_a_server_that_has_the_backend_serves_it_on_the_models_cores(exported, checked, engine_cache, tmp_path):
    directory, backend = exported
    program = write_installation(tmp_path / "server", engine_cache, backend)
    places = {"PATH": f"{python_of(backend, engine_cache).parent}:{os.environ['PATH']}"}
    with serving(directory, "--server", str(program), LD_LIBRARY_PATH=str(find_libpython()), **places) as server:
        grpc, http, _ = wait_until_ready(server)
        for protocol, address in (("grpc", grpc), ("http", http)):
            told, answers = ask(engine_cache, address, checked / "check_images.npy", protocol)
            assert told[0] == "(9, 1000)" if backend == "openvino" else "batch-size must be <= 8" in told[0]
            assert "unexpected shape for input 'images'" in told[1]
            reference = np.load(checked / "reference.npy")
            assert [np.argmax(one, 1).tolist() for one in answers] == [
                reference[:size].argmax(1).tolist() for size in (1, 4)
            ]
        cpus = json.loads((directory / "cnnbench.json").read_text())["planned"][MODEL]
        running = [pid for pid, words in process_files("cmdline").items() if words.startswith(str(program).encode())]
        assert [sorted(os.sched_getaffinity(pid)) for pid in running] == [cpus]
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE_S) == 0
    assert_nothing_left(server.pid)


def served(directory, *options):
    """Return how serving ends, and what it says."""
    with serving(directory, *options) as server:
        _, errors = server.communicate(timeout=PATIENCE_S)
    assert_nothing_left(server.pid)
    return server.returncode, errors


def test_a_server_without_the_backend_is_refused(exported, engine_cache):
    directory, backend = exported
    code, errors = served(directory)
    assert code == 2
    assert f"{directory}: needs the backend {backend} of Triton's own, which the server that comes with this" in errors
    program = wheel(engine_cache) / "bin" / "tritonserver"
    code, errors = served(directory, "--server", str(program))
    assert code == 2
    missing = program.parents[1] / "backends" / backend
    assert f"--server {program}: has no {backend} backend in {missing}; install it with it" in errors
    code, errors = served(directory, "--server", "/no/such")
    assert code == 2
    assert "--server /no/such: no program" in errors


def test_a_repository_for_cores_that_are_not_here_is_not_served(exported, tmp_path):
    models = shutil.copytree(exported[0], tmp_path / "models")
    service = json.loads((models / "cnnbench.json").read_text())
    (models / "cnnbench.json").write_text(json.dumps(service | {"planned": {MODEL: [4000, 4001]}}))
    code, errors = served(models, "--server", "/no/such")
    assert code == 2
    assert "its models are for CPUs 4000-4001, of which 4000-4001 cannot be used here; export them again" in errors


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--backend=none",), "invalid choice: 'none' (choose from 'python', 'onnxruntime', 'openvino')"),
        (
            ("--backend=onnxruntime", "--engine=pytorch"),
            "ENGINE=pytorch: --backend onnxruntime takes what ENGINE=onnxruntime is handed; leave out ENGINE",
        ),
        (
            ("--backend=openvino", "--precision=fp8", "--weights=WEIGHTS"),
            "--precision fp8: --backend openvino takes no network in fp8; it takes bfloat16, fp16, fp32, int8; "
            "--backend python has what the engine itself can",
        ),
        (("--backend=onnxruntime", "--ahead_of_time"), "--backend onnxruntime compiles a network itself"),
        (
            ("--backend=openvino", "--max_batch_size=4"),
            "MAX_BATCH_SIZE: --backend openvino computes each request as it came, of any size; leave it out",
        ),
    ],
)
def test_what_a_backend_cannot_have_is_refused(tmp_path, checked, options, reason):
    options = [one.replace("WEIGHTS", str(tmp_path / "w.npz")) for one in options]
    np.savez(tmp_path / "w.npz", one=np.zeros(1))
    assert reason in export(tmp_path / "models", *options, code=2)
    assert not (tmp_path / "models").exists()


def test_a_repository_is_of_one_backend(exported):
    directory, backend = exported
    other = BACKENDS[1 - BACKENDS.index(backend)]
    told = export(directory, "--backend", other, code=2)
    assert f"has models of {backend}, --backend {backend}; give another for {other}, --backend {other}" in told


def test_an_export_again_leaves_nothing_of_the_one_before(exported, engine_cache):
    directory, backend = exported
    (directory / MODEL / "1" / "left").write_text("")
    export(directory, "--backend", backend, "--instances=1", "--customer_env=A=1")
    assert {path.name for path in Path(directory / MODEL / "1").iterdir()} == {"model.onnx", "network.json"}
    assert json.loads((directory / "cnnbench.json").read_text())["models"] == [MODEL]


def test_numbers_that_a_file_is_held_in(engine_cache, checked, tmp_path):
    """In float16: its weights are, and an engine that is told nothing of it answers nearly as in float32."""
    export(tmp_path / "models", "--backend=onnxruntime", "--precision=fp16", "--instances=1")
    file = tmp_path / "models" / MODEL / "1" / "model.onnx"
    assert file.stat().st_size < 0.6 * (checked / "network.onnx").stat().st_size
    images = checked / "check_images.npy"
    for backend in BACKENDS:
        python, script = python_of(backend, engine_cache), _LOOK_AND_RUN[backend]
        _, answers = call(python, script, file, images, "images", "probabilities")
        assert np.abs(np.array(answers[1]) - np.load(checked / "reference.npy")[:8]).max() < 0.1
