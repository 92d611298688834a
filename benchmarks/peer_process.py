"""Hold a peer's processes: started once, asked for one block of steps at a time, and stopped (SIGSTOP) in between.

A process that is stopped takes no time of the cores, whatever its thread pools do while they wait for work.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from peer_engines import HERE, peer_environment
from peer_worker import TRACE_MARK, PeerSpec

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.layers import STEP_MARK
from cnnbench.machine.contention import compare_samples, sample_cpu_time, with_siblings
from cnnbench.proof.trace import TracedStep, read_steps

LOAD_S = 1800
"""How long loading may take: Inductor compiles."""
WARM_UP_S = 1.0
HANG_S = 60
"""How long a process may take to answer, beyond ten times the length of its block."""


@dataclass(frozen=True)
class Block:
    """What one block measured: each instance's step times, and the share of the cores' time that others took.

    Of the product alone: `utilization`, the share of the cores' ceiling; `complaint`, its verdict where not valid.
    """

    steps: list[np.ndarray]
    others: float | None
    utilization: float | None = None
    complaint: str = ""


class PeerProcess:
    """One process of an engine."""

    def __init__(self, python: Path, spec: PeerSpec, directory: Path) -> None:
        directory.mkdir(parents=True)
        spec.write(directory / "spec.json")
        self._log = directory / "output.log"
        threads = {"OMP_NUM_THREADS": str(len(spec.cpus)), "ONEDNN_VERBOSE": "1" if spec.trace else "0"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(HERE / "peer_worker.py"), str(directory / "spec.json")],
                env=peer_environment(spec.data_type) | threads,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answers = cast(IO[str], self._process.stdout)  # it has one: stdout=PIPE

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, begin_ns: int, end_ns: int) -> None:
        """Ask for the steps between two times."""
        print(json.dumps([begin_ns, end_ns]), file=self._process.stdin, flush=True)

    def answer(self, limit_s: float) -> Any:
        """Wait for the next answer; raise CnnbenchError with the end of the log when none comes."""
        ready, _, _ = select.select([self._answers], [], [], limit_s)
        line = self._answers.readline() if ready else ""
        if not line:
            found = f"did not answer within {limit_s:g} s" if not ready else f"ended with {self._process.wait()}"
            last = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-3:]
            raise CnnbenchError(f"its process {found}: {' | '.join(last)}")
        return json.loads(line)

    def traced(self) -> TracedStep:
        """Return what the traced step ran."""
        _, _, step = self._log.read_text(errors="replace").partition(TRACE_MARK)
        return read_steps([STEP_MARK, *step.splitlines()])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


class Peer:
    """An engine's processes at one precision and batch size; they end with the `with` block."""

    def __init__(self, python: Path, specs: Sequence[PeerSpec], directory: Path) -> None:
        self.batch_size, self.instances = specs[0].batch_size, len(specs)
        self.outputs = [Path(spec.outputs) for spec in specs]
        self._cpus = [cpu for spec in specs for cpu in spec.cpus]
        with ExitStack() as stack:
            self._processes: list[PeerProcess] = []
            for number, spec in enumerate(specs):
                self._processes.append(PeerProcess(python, spec, directory / str(number)))
                stack.callback(self._processes[-1].close)
            ready = [process.answer(LOAD_S) for process in self._processes]
            self._signal(signal.SIGSTOP)
            self._stack = stack.pop_all()
        self.versions: str = ready[0]["versions"]
        self.executed: dict[str, float] = ready[0]["executed"]
        self.amx_permitted: bool = ready[0]["amx_permitted"]

    def __enter__(self) -> "Peer":
        """Do nothing more: the processes run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self._stack.close()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.signal(number)

    def block(self, seconds: float) -> Block:
        """Measure for so long, after a warm-up, with all processes at once."""
        pids = [process.pid for process in self._processes]
        self._signal(signal.SIGCONT)
        try:
            began_s, first = time.monotonic(), sample_cpu_time(with_siblings(self._cpus), [os.getpid(), *pids])
            begin_ns = time.monotonic_ns() + int(WARM_UP_S * 1e9)
            for process in self._processes:
                process.ask(begin_ns, begin_ns + int(seconds * 1e9))
            answers = [process.answer(10 * (WARM_UP_S + seconds) + HANG_S) for process in self._processes]
            last = sample_cpu_time(with_siblings(self._cpus), [os.getpid(), *pids])
            contention = compare_samples(first, last, len(self._cpus), time.monotonic() - began_s)
        finally:  # those that are left must not take the cores from the next contender
            self._signal(signal.SIGSTOP)
        steps = [np.array(rows, dtype=np.int64).reshape(-1, 3) for answer in answers for rows in answer]
        return Block(steps, contention.others if contention else None)


def trace_step(python: Path, spec: PeerSpec, directory: Path) -> TracedStep:
    """Run one step in a process of its own with oneDNN's trace on; return what it shows."""
    process = PeerProcess(python, replace(spec, trace=True), directory)
    try:
        process.answer(LOAD_S)
        return process.traced()
    finally:
        process.close()
