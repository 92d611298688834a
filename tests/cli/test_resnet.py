"""What `cnnbench test-resnet` refuses, before it makes anything. What it prints is seen where networks are."""

import subprocess
import sys

import pytest

from checkout import ROOT
from null_workload import clean_environment

DATA = ROOT / "workload" / "ResNet50-FP8-Public" / "data"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model_run_type", "int9"), "invalid choice: 'int9'"),
        (("--batch_size", "0"), "BATCH_SIZE=0 (argument): must be 1 to 4096"),
        (("--data", "nowhere"), "nowhere: no such directory"),
        (("--data", "."), "val_official_clean.csv"),
        (("--model_dir", "file/model"), "file/model"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, words, reason):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "cnnbench", "test-resnet", "--data", str(DATA), *words]
    environment = clean_environment(CNNBENCH_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
