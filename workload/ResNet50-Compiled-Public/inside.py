"""Have a script run by the Python of an engine's environment, which `cnnbench` makes on first use."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "BEGUN_AGAIN_INSIDE"
"""Set where a script was begun again, to the engine."""
PYTHON = ROOT / ".venv" / "bin" / "python"


def call(*words: str) -> int:
    """Run a command of `cnnbench`; return its exit code."""
    return subprocess.run([*_cnnbench(), *words], check=False).returncode


def require(engine: str, *modules: str) -> None:
    """Go on where `cnnbench` and these modules can be imported; else begin again with the Python that has them."""
    sys.path.insert(0, str(ROOT / "src"))
    if all(importlib.util.find_spec(name) for name in (*modules, "pydantic")):
        return
    if os.environ.get(AGAIN) == engine:
        sys.exit(f"{sys.executable}: has not all of {', '.join(modules)}")
    os.environ[AGAIN] = engine
    command = [*_cnnbench(), "python", engine, sys.argv[0], *sys.argv[1:]]
    os.execv(command[0], command)  # noqa: S606 - no shell


def _cnnbench() -> list[str]:
    if not PYTHON.exists():
        sys.exit(f"{PYTHON}: not there; run {ROOT / 'script' / 'setup.sh'} once")
    return [str(PYTHON), "-I", "-m", "cnnbench"]
