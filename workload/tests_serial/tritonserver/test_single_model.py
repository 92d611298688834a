"""Serve each network by itself, ask it, and measure."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
WORKLOAD = ROOT / "workload" / "CNN-Triton-Public"
NETWORKS = yaml.safe_load((WORKLOAD / "workload.yaml").read_text())["topologies"]


@pytest.mark.parametrize(
    ("model", "network"),
    [pytest.param(name := one.replace("_", "-"), one, id=f"{name}-{name}") for one in NETWORKS],
)
def test_single_model(request: pytest.FixtureRequest, tmp_path: Path, model: str, network: str) -> None:
    """Measure as fast as the server answers; unless only that is asked for, its answers must be the network's too."""
    option = request.config.getoption
    seconds, port = option("--seconds"), option("--grpc-port")
    settings = [
        *(f"--model_repository={option('--model-repository')}", f"--engine={option('--engine')}"),
        *(f"--min_time={seconds}", f"--max_time={seconds}", *([f"--grpc_port={port}"] if port else [])),
        "--dynamic_batching=False",
    ]
    case = f"test_cnn_triton_public_serving_throughput_fp32_{network}"
    command = [sys.executable, "-I", "-m", "cnnbench", "case", "--workload", WORKLOAD, "--case", case]
    done = subprocess.run([*command, "--logs-root", tmp_path, *settings], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    print(f"\n{model}, requests of one image:")
    print("\n".join(line for line in lines if line.lstrip("*").startswith(("Throughput (", "Requests", "Latency"))))
    assert done.returncode == 0, [line for line in lines if line.startswith("#INVALID")] or done.stderr
    if option("--benchmark_only") == "true":
        return
    assert any(line.startswith("# ok outputs: ") for line in lines), done.stdout
    assert any(line.startswith("# ok requests: ") for line in lines), done.stdout
