"""Engines register themselves: one of another installed package is one like ours, and none is named by the rest."""

import re
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from checkout import ROOT
from cnnbench.engines.registry import Steps, engines, find_part
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
    """A virtual environment like this one, into which pip has installed the scratch package of a toy engine."""
    package, environment = tmp_path / "scratch", tmp_path / "environment"
    package.mkdir()
    (package / "toy_engine.py").write_text(TOY)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "toy-engine"\nversion = "1.0"\n'
        '[project.entry-points."cnnbench.engines"]\ntoy = "toy_engine:ENGINE"\n'
        '[tool.setuptools]\npy-modules = ["toy_engine"]\n'
    )
    venv.create(environment)
    (site,) = environment.glob("lib/python*/site-packages")
    here = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site / "here.pth").write_text(here)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, *install, "--target", site, package], check=True, capture_output=True)
    return site


def call(site, *words):
    command = [site.parents[2] / "bin" / "python", "-m", "cnnbench", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_an_engine_of_another_package_runs_a_case(installed, tmp_path):
    workload = tmp_path / "workload"
    workload.mkdir()
    (workload / "workload.yaml").write_text(WORKLOAD)
    done = call(installed, "case", "--workload", workload, "--case", CASE, "--logs-root", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / f"logs-{CASE}" / "itr-1" / "worker-0")
    assert run.facts["toy"] == "1.0"
    assert run.verdict != "invalid"


BUILT = TOY.replace("import Engine", "import Build, Engine").replace(
    'Backend")', 'Backend", builds=(Build("cpu", "toy"),))'
)
BAD = {
    "import no_such_module": "toy_engine:ENGINE: ModuleNotFoundError: .*no_such_module.*uninstall it",
    "ENGINE = 1": "toy_engine:ENGINE: is a int; needed is an Engine",
    TOY.replace('name="toy"', 'name="null"'): "engine 'null': declared by .* and by toy_engine",
    BUILT: "the engine toy has builds or steps",
}


@pytest.mark.parametrize(("toy", "told"), BAD.items(), ids=["import", "type", "name", "builds"])
def test_a_bad_engine_of_another_package_is_told_in_a_line(installed, toy, told):
    (installed / "toy_engine.py").write_text(toy)
    done = call(installed, "run", "--help")
    assert done.returncode == 1, done.stderr
    assert re.search(told, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_part_is_asked_for_and_leads_to_something_that_is_there():
    for part in (
        "embeds",
        "prepares_graphs",
        "quantizes_graphs",
        "reads_shards",
        "builds_networks",
        "quantizes_networks",
    ):
        steps = getattr(find_part(part), part)
        assert isinstance(steps, Steps)
        for source in (*steps.sources, steps.module.removeprefix("cnnbench.").replace(".", "/") + ".py"):
            assert (ROOT / "src" / "cnnbench" / source).is_file(), source
    for engine in engines().values():
        for target in filter(None, (engine.backend, engine.reader)):
            module, _, name = target.partition(":")
            source = Path(str(find_spec(module).origin)).read_text()
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), target


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
