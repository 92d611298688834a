"""Configure build directories with the real cmake, and a stub that stands for the Python that cases run with."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from checkout import ROOT

NAME = "ResNet50-TensorFlow-Xeon-Public"
PREFIX = "test_resnet50v1_5_tensorflow_xeon_public_"

_STUB = """\
#!{python}
import json, os, signal, sys, time
if sys.argv[1:5] not in (["-I", "-m", "cnnbench", "case"], ["-I", "-m", "cnnbench", "sweep"]):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
def interrupt(number, frame):
    record["signal"] = number
    raise KeyboardInterrupt
record = {{"arguments": sys.argv[5:], "environment": dict(os.environ), "directory": os.getcwd(), "pid": os.getpid()}}
signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGTERM, interrupt)
try:
    if os.environ.get("STUB_READY"):
        open(os.environ["STUB_READY"], "w").close()
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)  # putting things in order takes its time
finally:
    with open(os.environ["STUB_LOG"], "a") as log:
        print(json.dumps(record), file=log)
print("plan of", sys.argv[5:])
sys.exit(int(os.environ.get("STUB_EXIT", "0")) if os.environ.get("BATCH_SIZE") == os.environ.get("STUB_FAILS") else 0)
"""


def find_tool(name: str) -> str:
    """Return cmake or ctest, preferably the one beside this Python."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name}: not found; test.sh installs it"
    return found


def write_stub(path: Path) -> Path:
    """Write an executable that records `-I -m cnnbench case` and `sweep` to $STUB_LOG; this Python does the rest.

    With $STUB_READY the case makes that file and sleeps. It exits with $STUB_EXIT when BATCH_SIZE is $STUB_FAILS.
    """
    path.write_text(_STUB.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run_cmake(build: Path, python: Path, *options: str, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Configure a build directory; cmake's messages come with their lines joined."""
    command = [find_tool("cmake"), "-S", str(source), "-B", str(build), f"-DCNNBENCH_PYTHON={python}", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout, " ".join(done.stderr.split()))
