"""Commands and workers under an environment that would have any Python find other packages, or none."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT
from cmake_build import run_cmake
from cnnbench.base.variables import OWN
from cnnbench.cli.main import main
from null_workload import THROUGHPUT, clean_environment, step_of, write_checkout

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PACKAGES = ("numpy", "pydantic", "yaml", "pandas", "tqdm")
IGNORED = re.compile("not passed on from the caller's environment: .*PYTHONHOME PYTHONPATH PYTHONUSERBASE")


def poison(directory: Path) -> Path:
    """Write packages into a directory that say so when they are imported, and fail."""
    for name in PACKAGES:
        (directory / name).mkdir(parents=True)
        (directory / name / "__init__.py").write_text("raise SystemExit(f'poisoned: {__file__}')\n")
    return directory


@pytest.fixture(scope="module")
def polluted(tmp_path_factory):
    """An environment in which any Python not told otherwise finds other packages or cannot start, and where to be."""
    directory = tmp_path_factory.mktemp("polluted")
    poison(directory / "user" / "lib" / PYTHON / "site-packages")
    return poison(directory / "here"), {
        "PYTHONPATH": str(poison(directory / "path")),
        "PYTHONUSERBASE": str(directory / "user"),
        "PYTHONHOME": str(directory / "nowhere"),
    }


def test_no_command_and_no_worker_sees_other_packages(polluted, tmp_path, monkeypatch):
    here, pollution = polluted
    checkout = write_checkout(tmp_path / "checkout", "GENERIC")
    build = tmp_path / "build" / "workload" / "Harness"
    by_hand = Path(sys.executable).with_name("cnnbench")
    reference = ROOT / "workload" / "CNN-PyTorch-Public" / "run_benchmark.py"
    with monkeypatch.context() as patch:
        for name, value in pollution.items():
            patch.setenv(name, value)
        configured = run_cmake(tmp_path / "build", Path(sys.executable), "-DPLATFORM=GENERIC", source=checkout)
    assert configured.returncode == 0, configured.stderr

    def run(*command, **changes):
        environment = clean_environment(**pollution) | changes
        kept = {name: value for name, value in environment.items() if value}
        return subprocess.run([str(word) for word in command], cwd=here, env=kept, capture_output=True, text=True)

    case = ("--steps=8", step_of(1))
    options = ("--workload", checkout / "workload" / "Harness", "--logs-root", tmp_path, "--case", THROUGHPUT)
    logs = tmp_path / f"logs-{THROUGHPUT}"
    table = [
        ("ctest.sh", [build / "ctest.sh", "--options", " ".join(case)], {}, "100% tests passed"),
        ("list-kpi.sh", [build / "list-kpi.sh", build / logs.name], {}, "Throughput (img/s)"),
        ("sweep.sh", [build / "sweep.sh", "--dry-run", "--case", THROUGHPUT], {}, THROUGHPUT),
        ("validate.sh", [ROOT / "validate.sh", *options, *case], {}, "*Throughput"),
        (".venv/bin/cnnbench", [by_hand, "list-kpi", logs], {}, "Throughput (img/s)"),
        ("python -m cnnbench", [sys.executable, "-m", "cnnbench", "platform", "ICX"], {"PYTHONHOME": ""}, "ICX"),
        ("run_benchmark.py", [reference, "--help"], {}, "--batch-size"),
    ]
    for name, command, changes, expected in table:
        done = run(*command, **changes)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        assert expected in done.stdout, f"{name}: {done.stdout}{done.stderr}"
        assert (name == "validate.sh") == bool(IGNORED.search(done.stderr)), f"{name}: {done.stderr}"
    for run_file in (*build.glob(f"{logs.name}/*/*/run.json"), *logs.glob("*/*/run.json")):
        assert IGNORED.search("\n".join(json.loads(run_file.read_text())["notes"]))


def test_variables_that_nearly_are_ours_are_refused_and_others_left_alone(monkeypatch, capsys):
    slips = {"CNNBENCH_CAHCE": "CACHE", "CNNBENCH_CACHE_DIR": "CACHE", "CNN_BENCH_PEAK": "PEAK"}
    for name, meant in slips.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, "/somewhere")
            assert main(["platform", "GENERIC"]) == 2
        said = capsys.readouterr().err
        assert f"cnnbench: {name}: no variable of cnnbench; did you mean CNNBENCH_{meant}?\n" in said
    for name in ("CNNBENCH_HOME", "CNNBENCH_ROOT", "CNNBENCH_VERSION", "CNN", *OWN):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert main(["platform", "GENERIC"]) == 0


def test_the_variables_of_our_own_are_all_known():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    read = ("src/", "cmake/", "script/", "tests/", "workload/", ".ci/")
    texts = [
        (ROOT / file).read_text(errors="replace")
        for file in files
        if (file.startswith(read) or "/" not in file) and file != str(Path(__file__).relative_to(ROOT))
    ]
    assert {name for text in texts for name in re.findall(r"\bCNNBENCH_[A-Z0-9_]*[A-Z0-9]\b", text)} == set(OWN)
