"""Go from nothing to a table of KPIs: stage, configure, run the cases that characterise this machine."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnbench import ctest
from cnnbench.case import PrecisionName, TestCase
from cnnbench.errors import CnnbenchError
from cnnbench.host import read_cpuinfo
from cnnbench.isa import PRECISIONS, best_precision, missing_for_precision
from cnnbench.job import stage_engine
from cnnbench.platforms import detect_platform
from cnnbench.report.table import kpi_table
from cnnbench.result import RUN_FILE, WORKER, load_run
from cnnbench.workload import load_workload

ROOT = Path(__file__).parents[2]
WORKLOAD = "ResNet50-TensorFlow-Xeon-Public"

DEFAULTS = "quick.yaml"
"""A workload's settings file of how the quick start differs from the cases' own defaults."""

CHOOSING = ("-R", "--tests-regex", "-E", "--exclude-regex", "-L", "--label-regex", "-I", "--tests-information",
            "--testcase", "-N", "--show-only", "-h", "--help", "--describe-params")  # fmt: skip


def quickstart(cache: Path, arguments: Sequence[str], root: Path = ROOT, name: str = WORKLOAD) -> int:
    """Run a workload's quick cases and print the table; return ctest's exit code. `arguments` are those of ctest.sh."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what stages or configures is ended with us
    source, build = root / "workload" / name, root / "build"
    workload, cpu = load_workload(source), read_cpuinfo()
    int8 = not missing_for_precision(PRECISIONS["avx_int8"], cpu.flags)
    stage_engine(workload.engine, cpu, cache, int8=int8)  # before the first of the quick cases is timed by ctest
    _configure(root, build, detect_platform(cpu))

    directory = build / "workload" / name
    before = _runs(directory)
    words = [*_choose_cases(workload.slug, best_precision(cpu), arguments), *arguments]
    code = ctest.main(directory, _tool("ctest"), source, words, source / DEFAULTS)
    logs = sorted(_runs(directory) - before, key=lambda path: (path / RUN_FILE).stat().st_mtime)
    if logs:
        print("\n" + kpi_table([load_run(path) for path in logs]))
        print("\nlogs:")
        print("\n".join(f"  {path}" for path in logs))
    return code


def _configure(root: Path, build: Path, platform: str) -> None:
    _say(f"configuring {build} for {platform}")
    # The directory may have been configured for containers, which cmake remembers.
    options = ["-DBACKEND=native", f"-DPLATFORM={platform}", f"-DCNNBENCH_PYTHON={sys.executable}"]
    command = [_tool("cmake"), "-S", str(root), "-B", str(build), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CnnbenchError(f"cmake failed:\n{done.stdout}{done.stderr}")


def _choose_cases(slug: str, precision: PrecisionName, arguments: Sequence[str]) -> list[str]:
    """Return ctest's choice of the three quick cases, unless the caller chooses."""
    if any(word.split("=")[0] in CHOOSING for word in arguments):
        return []
    cases = (
        TestCase(slug, "throughput", precision, "gated"),
        TestCase(slug, "latency", precision),
        TestCase(slug, "accuracy", precision),
    )
    return ["-R", "|".join(f"^{case.name}$" for case in cases)]


def _tool(name: str) -> str:
    """Return the tool that setup put beside this Python because the system's will not do, or else the system's."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        raise CnnbenchError(f"{name}: not found; script/setup.sh installs it")
    return path


def _runs(directory: Path) -> set[Path]:
    return {path.parent for path in directory.glob(f"logs-*/itr-*/{WORKER}/{RUN_FILE}")}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
