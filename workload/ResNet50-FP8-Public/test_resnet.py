#!/usr/bin/env -S python3 -I
"""Run `cnnbench test-resnet` from a checkout, as the specification's script is run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"

if not PYTHON.exists():
    sys.exit(f"{PYTHON}: not there; run {ROOT / 'script' / 'setup.sh'} once")
sys.exit(subprocess.run([PYTHON, "-I", "-m", "cnnbench", "test-resnet", *sys.argv[1:]], check=False).returncode)
