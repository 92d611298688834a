"""The tests that need PyTorch, run by the Python that has it; pytest comes from this one's environment."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from checkout import ROOT

PROGRAM = "import sys; sys.path.append(sys.argv[1]); import pytest; sys.exit(pytest.main(sys.argv[2:]))"


@pytest.mark.engine
def test_networks_in_pytorch(pytorch_python):
    tests = Path(__file__).with_name("test_torch_networks.py")
    words = [pytorch_python, "-c", PROGRAM, sysconfig.get_path("purelib"), "-q", "-p", "no:cacheprovider", str(tests)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        words, env=environment | {"PYTHONPATH": str(ROOT / "src")}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
