#!/usr/bin/env -S python3 -I
"""Run `cnnbench run-exported` from a checkout, as the specification's script is run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"

if not PYTHON.exists():
    sys.exit(f"{PYTHON}: not there; run {ROOT / 'script' / 'setup.sh'} once")
sys.exit(subprocess.run([PYTHON, "-I", "-m", "cnnbench", "run-exported", *sys.argv[1:]], check=False).returncode)
