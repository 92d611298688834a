"""Go from nothing to a table of KPIs: stage, configure, run the cases that characterise this machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnbench.case import PrecisionName, TestCase
from cnnbench.environments import choose_variant, engine_python
from cnnbench.errors import CnnbenchError
from cnnbench.host import read_cpuinfo
from cnnbench.isa import best_precision
from cnnbench.platforms import detect_platform
from cnnbench.report.table import kpi_table
from cnnbench.result import RUN_FILE, load_run
from cnnbench.staging.inputs import find_image_set, prepare_model, stage_embedded_model
from cnnbench.workload import load_workload

ROOT = Path(__file__).parents[2]
WORKLOAD = "ResNet50-TensorFlow-Xeon-Public"

QUICK = {"DATA_TYPE": "real", "MIN_TIME": "5", "MAX_TIME": "15"}
"""How the quick start differs from the cases' defaults: real images, and less patience with a noisy machine."""

CHOOSING = ("-R", "--tests-regex", "-E", "--exclude-regex", "-L", "--label-regex", "-I", "--tests-information",
            "--testcase", "-N", "--show-only", "-h", "--help", "--describe-params")  # fmt: skip


def quickstart(cache: Path, arguments: Sequence[str]) -> int:
    """Run everything and print the table; return ctest's exit code. `arguments` go to ctest.sh."""
    workload, cpu = load_workload(ROOT / "workload" / WORKLOAD), read_cpuinfo()
    precision = best_precision(cpu)
    python = engine_python(workload.engine, choose_variant(workload.engine, "auto", cpu), cache)
    preparer = "cnnbench.models.prepare"
    prepare_model(
        stage_embedded_model(python, preparer, cache), find_image_set("procedural", cache), python, preparer, cache
    )
    build = ROOT / "build"
    platform = detect_platform(cpu)
    _say(f"configuring {build} for {platform}")
    configured = subprocess.run(
        [
            _tool("cmake"),
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DPLATFORM={platform}",
            f"-DCNNBENCH_PYTHON={sys.executable}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if configured.returncode != 0:
        raise CnnbenchError(f"cmake failed:\n{configured.stdout}{configured.stderr}")

    directory = build / "workload" / WORKLOAD
    before = _runs(directory)
    done = subprocess.run(
        [str(directory / "ctest.sh"), *_choose_cases(workload.slug, precision, arguments), *arguments],
        env=_quick_environment(arguments),
        check=False,
    )
    logs = sorted(_runs(directory) - before, key=lambda path: (path / RUN_FILE).stat().st_mtime)
    if logs:
        print("\n" + kpi_table([load_run(path) for path in logs]))
        print("\nlogs:")
        print("\n".join(f"  {path}" for path in logs))
    return done.returncode


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


def _quick_environment(arguments: Sequence[str]) -> dict[str, str]:
    """Return the environment with the quick settings, which the caller's own and `--set` override."""
    text = " ".join(arguments)
    quick = {name: value for name, value in QUICK.items() if f"{name}=" not in text and not os.environ.get(name)}
    return {**os.environ, **quick}


def _tool(name: str) -> str:
    """Return a tool of the system, or the one that setup put beside this Python."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}")
    if path is None:
        raise CnnbenchError(f"{name}: not found; script/setup.sh installs it")
    return path


def _runs(directory: Path) -> set[Path]:
    return {path.parent for path in directory.glob(f"logs-*/{RUN_FILE}")}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
