#!/usr/bin/env python3
"""Run `cnnbench run` from a checkout, as the reference harness is run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"

if not PYTHON.exists():
    sys.exit(f"{PYTHON}: not there; run {ROOT / 'script' / 'setup.sh'} once")
environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
sys.exit(subprocess.run([PYTHON, "-m", "cnnbench", "run", *sys.argv[1:]], env=environment, check=False).returncode)
