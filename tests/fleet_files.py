"""Write a workload of the null engine and fleets that run it, call `cnnbench fleet`, and read what that left."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

from null_workload import PATIENCE_S, NullWorkload, clean_environment

COMMAND = [sys.executable, "-I", "-m", "cnnbench", "fleet"]
STEP = "CNNBENCH_NULL_STEP_MS"


class FleetFiles:
    """A fleet.yaml in a directory, with a throughput and a latency case of the null engine for it to run."""

    def __init__(self, directory: Path, **pool) -> None:
        self.directory, self.file, self.folder = directory, directory / "fleet.yaml", directory / "fleet-runs"
        workload = NullWorkload(directory).directory
        (workload / "CMakeLists.txt").write_text("add_workload(CASES throughput latency)\n")
        (workload / "cmake").mkdir()
        (workload / "cmake" / "GENERIC.cmake").write_text("set(PRECISIONS avx_fp32)\n")
        self.content = {
            "pools": [{"name": "here", "launcher": "local"} | pool],
            "run": {
                "workloads": ["./Harness"],
                "cases": ["*_throughput_*"],
                "parameters": {"STEPS": 10, "CUSTOMER_ENV": f"{STEP}=5", "INSTANCES": 1},
            },
        }
        self.write()

    @property
    def pool(self) -> dict:
        return self.content["pools"][0]

    @property
    def runs(self) -> dict:
        return self.content["run"]

    def write(self, **runs) -> None:
        """Write the file, with some more of what is to run."""
        self.runs.update(runs)
        self.file.write_text(yaml.safe_dump(self.content, sort_keys=False))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a call: with a folder of its own for temporary files, and so for the machine's lock."""
        if self.pool["launcher"] != "local":
            return clean_environment()
        (self.directory / "tmp").mkdir(exist_ok=True)
        return clean_environment(TMPDIR=str(self.directory / "tmp"))

    def command(self, *options: str) -> list[str]:
        return [*COMMAND, str(self.file), *options]

    def call(self, *options: str, timeout_s: float = 5 * PATIENCE_S, **environment) -> subprocess.CompletedProcess[str]:
        """Call the command to its end."""
        return subprocess.run(
            self.command(*options), env=self.environment | environment, capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start the command, to be disturbed."""
        return subprocess.Popen(
            self.command(*options), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def outcomes(self) -> list[dict]:
        """Return what runs have ended as."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("results/*/*/outcome.json"))]

    def verdicts(self) -> Counter:
        return Counter(one["verdict"] for one in self.outcomes())

    def run_files(self) -> list[dict]:
        """Return the results of the runs."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("results/*/*/logs-*/*/*/run.json"))]

    def read(self, name: str) -> list[dict]:
        """Return the files of that name of all batches."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"batches/*/{name}"))]


def is_alive(pid: int) -> bool:
    """Say whether a process is there and not a zombie."""
    try:
        return b"\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
