"""Engines register themselves: one of another installed package is one like ours, and none is named by the rest."""

import re
import subprocess
import sys

import pytest

from checkout import ROOT
from cnnbench.engines.registry import Steps, engines, find_engine, find_part, import_part
from cnnbench.results.record import load_run

TOY = """\
import numpy as np
from cnnbench.engines.interface import Backend
from cnnbench.engines.registry import Engine

class ToyBackend(Backend):
    def load(self, spec): pass
    def infer(self, batch): return np.full((len(batch), 1001), 1 / 1001, np.float32)
    def describe(self): return {"toy": "1.0"}

ENGINE = Engine(name="toy", backend="toy_engine:ToyBackend")
"""
WORKLOAD = "name: Toy\nslug: toy\ntitle: a toy\nengine: toy\ndefaults:\n  '*': {BATCH_SIZE: 2, STEPS: 20}\n"
CASE = "test_toy_inference_throughput_avx_fp32"


@pytest.fixture
def installed(tmp_path):
    """The directory into which pip has installed the scratch package of a toy engine."""
    package, site = tmp_path / "scratch", tmp_path / "site"
    package.mkdir()
    (package / "toy_engine.py").write_text(TOY)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "toy-engine"\nversion = "1.0"\n'
        '[project.entry-points."cnnbench.engines"]\ntoy = "toy_engine:ENGINE"\n'
        '[tool.setuptools]\npy-modules = ["toy_engine"]\n'
    )
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, *install, "--target", site, package], check=True, capture_output=True)
    return site


def test_an_engine_of_another_package_runs_a_case(installed, tmp_path):
    workload = tmp_path / "workload"
    workload.mkdir()
    (workload / "workload.yaml").write_text(WORKLOAD)
    program = f"import sys; sys.path.append({str(installed)!r}); from cnnbench.cli.main import main; sys.exit(main())"
    words = ["case", "--workload", workload, "--case", CASE, "--logs-root", tmp_path]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / f"logs-{CASE}" / "itr-1" / "worker-0")
    assert run.facts["toy"] == "1.0"
    assert run.verdict != "invalid"


def test_a_part_is_asked_for_and_leads_to_something_that_is_there():
    for part in ("embeds", "prepares_graphs", "quantizes_graphs", "reads_shards", "builds_networks"):
        steps = getattr(find_part(part), part)
        assert isinstance(steps, Steps)
        for source in (*steps.sources, steps.module.removeprefix("cnnbench.").replace(".", "/") + ".py"):
            assert (ROOT / "src" / "cnnbench" / source).is_file(), source
    null = find_engine("null")
    assert import_part(null.backend).__name__ == "NullBackend"


def test_no_engine_is_named_outside_its_folder():
    """Documents, lock files, declarations below workload/ and tests may; image names of the reference hold one too."""
    names = "|".join(name for name in engines() if name != "null")
    files = subprocess.run(["git", "ls-files", "src", "cmake", "script"], cwd=ROOT, capture_output=True, text=True)
    found = []
    for file in files.stdout.split():
        if file.count("/") > 3 and file.startswith("src/cnnbench/engines/"):
            continue
        for number, line in enumerate((ROOT / file).read_text().splitlines(), start=1):
            if re.search(rf"\b({names})\b|[\"']null[\"']", line) and "intel-optimized-tensorflow" not in line:
                found.append(f"{file}:{number}: {line.strip()}")
    assert found == []
