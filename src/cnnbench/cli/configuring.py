"""Configure a build directory of this repository, with the cmake that setup has chosen."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnbench.base.disk import check_directory
from cnnbench.base.errors import CnnbenchError

ELSEWHERE = "copy this checkout to a disk that you may write to, or configure elsewhere (cmake -B)"


def configure(root: Path, build: Path, platform: str, options: Sequence[str], remedy: str = ELSEWHERE) -> None:
    """Configure `build` for a platform, so that cases run with this Python; raise CnnbenchError as cmake words it."""
    check_directory(str(build), build, remedy)
    print(f"configuring {build} for {platform}", file=sys.stderr, flush=True)
    fixed = [f"-DPLATFORM={platform}", f"-DCNNBENCH_PYTHON={sys.executable}"]
    command = [find_tool("cmake"), "-S", str(root), "-B", str(build), *options, *fixed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CnnbenchError(f"cmake failed:\n{done.stdout}{done.stderr}")


def find_tool(name: str) -> str:
    """Return the tool that setup put beside this Python because the system's will not do, or else the system's."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        raise CnnbenchError(f"{name}: not found; script/setup.sh installs it")
    return path
