"""The options of the serving tests."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare them, under the names of the reference harness."""
    group = parser.getgroup("tritonserver")
    group.addoption(
        "--model-repository",
        type=Path,
        default=HERE / "models",
        help="the directory of the models and their configuration, which they are written into",
    )
    group.addoption("--grpc-port", type=int, help="the server's port (any that is free)")
    group.addoption(
        "--benchmark_only",
        choices=("true", "false"),
        default="false",
        help="true: send requests of the model's batch size, and print throughput and latency alone",
    )
    group.addoption("--engine", default="onnxruntime", help="what runs the network in the server")
    group.addoption("--seconds", type=float, default=10, help="to measure for")
