"""Export models, serve them by the command line, ask them, and see that nothing is left; a stand-in for a backend."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from checkout import ROOT
from cnnbench.base.checkout import SOURCES
from cnnbench.base.errors import SkippedError
from cnnbench.serving.programs import REGIONS, find_libpython
from cnnbench.serving.server import PREFIX
from cnnbench.staging.environments import TRITON_CLIENT, TRITON_SERVER, locked_python
from null_workload import CORES, clean_environment, process_files, wait_until

try:
    find_libpython()
    OBSTACLE = "" if CORES > 1 else "a server and its client need a core each"
except SkippedError as error:
    OBSTACLE = str(error)

WORKLOAD = ROOT / "workload" / "CNN-Triton-Public"
NETWORK = "mobilenet_v3_small"
MODEL = NETWORK.replace("_", "-")


def assert_nothing_left(pid):
    """Wait until there is no process and no shared memory of a run, whose controller this was."""
    marked = f"{PREFIX}-{pid}-".encode()

    def gone():
        left = [one for one in process_files("cmdline").values() if marked in one]
        return not left and not list(REGIONS.glob(f"{PREFIX}-{pid}-*"))

    wait_until(gone, "server, models and their memory gone")


def export(directory, *options, code=0):
    """Have a model exported; return what was printed."""
    command = [sys.executable, "-m", "cnnbench", "triton", "export", "--output", str(directory), "--network", NETWORK]
    done = subprocess.run([*command, *options], env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def serving(directory, *options, **environment):
    """Serve a repository for the block."""
    command = [sys.executable, "-m", "cnnbench", "triton", "serve", str(directory), *options]
    with subprocess.Popen(
        command, env=clean_environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        try:
            yield one
        finally:
            one.kill()


def wait_until_ready(server):
    """Return the addresses of gRPC, HTTP and metrics that a server says it is ready at."""
    line = server.stdout.readline()
    found = re.fullmatch(r"ready: \S*: gRPC (\S+), HTTP (\S+), metrics (\S+)\n", line)
    assert found, line + server.stderr.read()
    return found.groups()


_ASK = """
import json, sys
import numpy as np
from pathlib import Path
from cnnbench.engines.interface import LoadSpec
from cnnbench.worker.client import RequestError, ServiceOptions, TritonClient
address, model, images, protocol = sys.argv[1:]
client = TritonClient()
options = ServiceOptions(address=address, model=model, protocol=protocol)
client.load(LoadSpec(Path(), "fp32", 1, 1, False, options=options))
told = []
for batch in (np.zeros((9, 224, 224, 3), np.float32), np.zeros((1, 8, 8, 3), np.float32)):
    try:
        told.append(str(client.infer(batch).shape))
    except RequestError as error:
        told.append(str(error))
outputs = [client.infer(np.load(images)[:size]).tolist() for size in (1, 4)]
print(json.dumps([told, outputs]))
client.close()
"""


def ask(cache, address, images, protocol="grpc"):
    """Return what a model says to 9 images and to small ones, and what it answers to one and to 4 of a file."""
    command = [locked_python(TRITON_CLIENT, cache), "-c", _ASK, address, MODEL, images, protocol]
    environment = clean_environment(PYTHONPATH=str(SOURCES))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


STAND_IN = '''"""Stands for a backend of Triton's own: computes by the engine of the same name, as configured."""

import ctypes
import json
import sys
from pathlib import Path

number = f"{sys.version_info[0]}.{sys.version_info[1]}"
sys.path.append(f"/opt/tritonserver/lib/python{number}/site-packages")  # of an image; Debian's Python has another

import numpy as np
import triton_python_backend_utils as triton


def by_onnxruntime(file, settings):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings["intra_op_thread_count"])
    session = onnxruntime.InferenceSession(file, options)
    return lambda given, name, output: session.run([output], {name: given})[0]


def by_openvino(file, settings):
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda given, name, output: compiled({name: given})[output]


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        settings = {key: one["string_value"] for key, one in config["parameters"].items()}
        file = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self._infer = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}[config["backend"]](file, settings)
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]

    def execute(self, requests):
        answers = []
        for one in requests:
            given = np.from_dlpack(triton.get_input_tensor_by_name(one, self._input))
            answer = np.array(self._infer(given, self._input, self._output)).__dlpack__()
            ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(answer), None)  # as worker/served.py does
            answers.append(triton.InferenceResponse([triton.Tensor.from_dlpack(self._output, answer)]))
        return answers
'''


def wheel(cache):
    """Return the directory of the server's wheel, as installed."""
    (root,) = locked_python(TRITON_SERVER, cache).parents[1].glob("lib/python*/site-packages/pytriton/tritonserver")
    return root


def write_installation(directory, cache, *stand_ins):
    """Write a server that has the wheel's program and stand-ins for backends; return the program."""
    root, number = wheel(cache), f"{sys.version_info[0]}.{sys.version_info[1]}"
    python = directory / "backends" / "python"
    python.mkdir(parents=True)
    (directory / "bin").mkdir()
    for link, target in {
        directory / "bin" / "tritonserver": root / "bin" / "tritonserver",
        python / "triton_python_backend_utils.py": root / "backends" / "python" / "triton_python_backend_utils.py",
        python / "triton_python_backend_stub": root / "python_backend_stubs" / number / "triton_python_backend_stub",
    }.items():
        link.symlink_to(target)
    shutil.copy(root / "backends" / "python" / "libtriton_python.so", python)  # of others' backends it takes no link
    for name in stand_ins:
        (directory / "backends" / name).mkdir()
        (directory / "backends" / name / "model.py").write_text(STAND_IN)
    return Path(directory / "bin" / "tritonserver")
