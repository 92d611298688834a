"""The tests that need PyTorch, run by the Python that has it; pytest comes from this one's environment."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from checkout import ROOT
from cnnbench.engines.registry import find_engine
from cnnbench.machine.host import find_gpu_obstacle
from cnnbench.staging.environments import engine_python

PROGRAM = "import sys; sys.path.append(sys.argv[1]); import pytest; sys.exit(pytest.main(sys.argv[2:]))"
TESTS = Path(__file__).parent
TESTED = ["test_torch_networks.py", "test_torch_operations.py", "test_torch_compiler.py", "test_on_cpu_tensors.py"]


def run_tests(python, path):
    words = [python, "-c", PROGRAM, sysconfig.get_path("purelib"), "-q", "-p", "no:cacheprovider", str(TESTS / path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        words, env=environment | {"PYTHONPATH": str(ROOT / "src")}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.engine
@pytest.mark.parametrize("path", TESTED)
def test_in_pytorch(pytorch_python, path):
    run_tests(pytorch_python, path)


@pytest.mark.engine
@pytest.mark.skipif(bool(obstacle := find_gpu_obstacle()), reason=f"no NVIDIA GPU: {obstacle}")
def test_on_a_gpu(engine_cache):
    run_tests(engine_python(find_engine("pytorch"), "cuda", engine_cache), "test_on_gpu.py")
