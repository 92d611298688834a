"""Write a workload of the null engine, start `cnnbench case` on it, and find the processes and logs of that run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checkout import ROOT
from cnnbench.cases.parameters import FIELDS
from cnnbench.machine.topology import read_topology
from cnnbench.worker.control import ControlBlock, State

SLUG = "harness"
THROUGHPUT = f"test_{SLUG}_inference_throughput_avx_fp32"
LATENCY = f"test_{SLUG}_inference_latency_avx_fp32"
CORES = len(read_topology().cores)
PATIENCE_S = 60
"""How long to wait for what must come: far longer than it takes, so that only a hang fails."""


def step_of(milliseconds: float) -> str:
    """Return the argument that makes each step of the null engine last so long."""
    return f"--customer_env=CNNBENCH_NULL_STEP_MS={milliseconds:g}"


def clean_environment(**more: str) -> dict[str, str]:
    """Return this environment without what would set parameters, and with some more."""
    kept = {name: value for name, value in os.environ.items() if name not in FIELDS and not name.startswith("CNNBENCH")}
    return kept | more


def wait_until(reached: Callable[[], object], what: str) -> None:
    """Wait for something that happens in another process."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline_s, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.005)


def process_files(name: str) -> dict[int, bytes]:
    """Return one file of /proc of every process that has not ended."""
    found = {}
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            found[int(path.parent.name)] = path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
    return found


def find_specs(directory: Path) -> dict[int, Path]:
    """Return the specs below a directory by the processes of the workers that run them."""
    specs = {}
    for pid, command in process_files("cmdline").items():
        words = command.decode(errors="replace").split("\0")
        if "cnnbench.worker" in words and words[3].startswith(f"{directory}/"):
            specs[pid] = Path(words[3])
    return specs


def find_workers(directory: Path) -> list[int]:
    """Return the processes of workers whose spec lies below a directory, in the order of their specs."""
    specs = find_specs(directory)
    return sorted(specs, key=lambda pid: specs[pid])


def run_kpi(directory: Path, script: Path = ROOT / "kpi.sh") -> subprocess.CompletedProcess[str]:
    """Run kpi.sh on a logs directory."""
    return subprocess.run([script, directory], capture_output=True, text=True)


def write_checkout(directory: Path, platform: str, precisions: str = "set(PRECISIONS avx_fp32)") -> Path:
    """Write what cmake reads of this repository, with a throughput case of the null engine as its one workload."""
    parts = ("CMakeLists.txt", "cmake", "native", "validate.sh", "src", "workload/CMakeLists.txt", "workload/platforms")
    for name in parts:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).symlink_to(ROOT / name)
    workload = NullWorkload(directory / "workload").directory
    (workload / "CMakeLists.txt").write_text("add_workload(CASES throughput)\n")
    (workload / "cmake").mkdir()
    (workload / "cmake" / f"{platform}.cmake").write_text(f"{precisions}\n")
    return directory


class NullWorkload:
    """A workload of the null engine in a directory, with the logs of its runs in `logs_root`."""

    def __init__(self, directory: Path, defaults: str = "BATCH_SIZE: 1, WARMUP_STEPS: 2") -> None:
        self.directory, self.logs_root = directory / "Harness", directory / "runs"
        self.directory.mkdir(parents=True)
        (self.directory / "workload.yaml").write_text(
            f"name: Harness\nslug: {SLUG}\ntitle: the harness itself\nengine: 'null'\n"
            f"defaults:\n  '*': {{{defaults}}}\n"
        )

    def command(self, *arguments: str, case: str = THROUGHPUT) -> list[str]:
        """Return the command that runs a case."""
        options = ["--workload", str(self.directory), "--logs-root", str(self.logs_root), "--case", case]
        return [sys.executable, "-m", "cnnbench", "case", *options, *arguments]

    def run(self, *arguments: str, case: str = THROUGHPUT, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a case to its end."""
        return subprocess.run(
            self.command(*arguments, case=case),
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def start(self, *arguments: str, case: str = THROUGHPUT, **environment: str) -> subprocess.Popen[str]:
        """Start a case, to be looked at or disturbed while it runs."""
        return subprocess.Popen(
            self.command(*arguments, case=case),
            env=clean_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def logs(self, number: int = 0, case: str = THROUGHPUT) -> Path:
        """Return where the logs of the case's run with this number, from 0 on, are."""
        return self.logs_root / f"logs-{case}" / f"itr-{number + 1}" / "worker-0"

    def shared(self) -> Path:
        """Return the shared directory of the first run."""
        return Path(json.loads((self.logs() / "process-0" / "spec.json").read_text())["shared"])

    def wait_for_workers(self, count: int) -> list[int]:
        """Wait until the first run has started so many workers; return their processes."""
        wait_until(lambda: len(find_workers(self.logs())) == count, f"{count} workers")
        return find_workers(self.logs())

    def wait_for_state(self, state: State, *instances: int) -> None:
        """Wait until these instances of the first run have come so far."""
        wait_until((self.logs() / "process-0" / "output.log").exists, "the first worker")
        control = ControlBlock(self.shared())
        for index in instances:
            wait_until(lambda index=index: control.state(index) >= state, f"instance {index} {state.name}")
