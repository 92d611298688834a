"""Start the fake cluster of kubernetes_server.py, and write fleets for it."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml

from null_workload import NullWorkload, clean_environment

SERVER = Path(__file__).with_name("kubernetes_server.py")
DIGEST = "sha256:" + "5" * 64
IMAGE = "harness-dummy:latest"
PINNED = f"harness-dummy@{DIGEST}"
NODES = [
    {"name": "spr-1", "labels": {"cnnbench.platform": "SPR"}},
    {"name": "spr-2", "labels": {"cnnbench.platform": "SPR"}},
    {"name": "genoa-1", "labels": {"cnnbench.platform": "GENOA"}},
]
CONSTRAINT = "cnnbench.platform=SPR"


class FakeCluster:
    """A running server, and a kubeconfig for it, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._server = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self._server.stdout.readline().strip()}"
        self.kubeconfig = directory / "kubeconfig"
        self.logs = directory / "container-logs"
        self.logs.mkdir()
        self.write_kubeconfig()
        workload = NullWorkload(directory / "workload")
        with (workload.directory / "workload.yaml").open("a") as text:
            text.write("images: {parts: harness, inference: harness}\n")
        (workload.directory / "CMakeLists.txt").write_text("add_workload(CASES throughput latency)\n")
        (workload.directory / "cmake").mkdir()
        (workload.directory / "cmake" / "GENERIC.cmake").write_text("set(PRECISIONS avx_fp32)\n")
        self.workload = workload.directory
        environment = {"CNNBENCH_WORKLOAD": str(self.workload), "CNNBENCH_CACHE": str(directory / "cache")}
        self.control(nodes=NODES, machine={"logs": str(self.logs), "environment": environment})
        self._machine = {"logs": str(self.logs), "environment": environment}

    def write_kubeconfig(self, token: str = "let-me-in", url: str = "") -> None:
        """Write how to reach the server."""
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "tester"}}],
            "clusters": [{"name": "fake", "cluster": {"server": url or self.url}}],
            "users": [{"name": "tester", "user": {"token": token}}],
        }  # fmt: skip
        self.kubeconfig.write_text(yaml.safe_dump(content))

    def control(self, **changes):
        """Change the cluster; return its objects and what it was asked."""
        request = urllib.request.Request(f"{self.url}/control", json.dumps(changes).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def machine(self, **changes):
        """Change how containers are run."""
        return self.control(machine=self._machine | changes)

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()


class KubernetesFleet:
    """A fleet.yaml for a cluster, and the commands on it."""

    def __init__(self, cluster: FakeCluster, directory: Path) -> None:
        self.cluster, self.file, self.folder = cluster, directory / "fleet.yaml", directory / "fleet-runs"

    def write(self, *, machines=1, pool=(), options=(), **run) -> None:
        """Write the file."""
        of_pool = {
            "name": "lab", "launcher": "kubernetes", "backend": "container", "machines": machines,
            "constraint": CONSTRAINT, "images": {IMAGE: DIGEST},
            "options": {"namespace": "lab", "cpus": 1, "memory": "2Gi", **dict(options)},
        } | dict(pool)  # fmt: skip
        of_pool = {name: value for name, value in of_pool.items() if value is not None}
        runs = {"workloads": [str(self.cluster.workload)], "cases": ["*throughput*"]} | run
        runs.setdefault("parameters", {"STEPS": 20, "CUSTOMER_ENV": "CNNBENCH_NULL_STEP_MS=5"})
        self.file.write_text(yaml.safe_dump({"pools": [of_pool], "run": runs}))

    def command(self, *options: str) -> list[str]:
        """Return the command."""
        return [sys.executable, "-m", "cnnbench", "fleet", str(self.file), *options]

    def environment(self) -> dict[str, str]:
        """Return what the command needs around it."""
        return clean_environment(KUBECONFIG=str(self.cluster.kubeconfig))

    def call(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            self.command(*options), env=self.environment(), capture_output=True, text=True, timeout=240
        )

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            self.command(), env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def outcomes(self) -> list[dict]:
        """Return how the runs ended so far."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("results/*/*/outcome.json"))]

    def results(self) -> list[dict]:
        """Return the results of the runs."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("results/*/*/logs-*/*/*/run.json"))]
