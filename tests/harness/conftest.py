"""Run the cases of networks on real engines."""

import subprocess
import sys

import pytest

from cnnbench.harness.line import DIRECTORY
from network_cases import CASE, QUICK
from null_workload import clean_environment


@pytest.fixture(scope="module")
def run_case(engine_cache, pytorch_python, tmp_path_factory):
    """Run a network's case to its end; return what it printed and its logs."""

    def run(network, *arguments, case=CASE, **environment):
        root = tmp_path_factory.mktemp("networks")
        command = ["--workload", str(DIRECTORY), "--case", case + network, "--logs-root", str(root)]
        done = subprocess.run(
            [sys.executable, "-m", "cnnbench", "case", *command, *QUICK, *arguments],
            env=clean_environment(**{"CNNBENCH_CACHE": str(engine_cache)} | environment),
            capture_output=True,
            text=True,
        )
        return done, root / f"logs-{case}{network}" / "itr-1" / "worker-0"

    return run
