#!/usr/bin/env -S python3
"""Run pytest on the serving tests, with options of their own: --model-repository, --grpc-port, --benchmark_only.

    python3 run_benchmark_with_triton_server.py -s -k "test_single_model[resnet50-resnet50" --benchmark_only=true \
        ../tests_serial/tritonserver/
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"

if __name__ == "__main__":
    if not PYTHON.exists():
        sys.exit(f"{PYTHON}: not there; run `{ROOT}/script/setup.sh test` once")
    if subprocess.run([PYTHON, "-c", "import pytest"], capture_output=True, check=False).returncode:
        sys.exit(f"{PYTHON}: has no pytest; run `{ROOT}/script/setup.sh test` once")
    command = [str(PYTHON), "-m", "pytest", *sys.argv[1:]]
    os.execv(command[0], command)  # noqa: S606 - no shell
