"""Ask a server once more by NVIDIA's perf_analyzer, a program of another maker, as our own clients have asked.

It measures three windows one after the other and tells what was in all of them. Where requests come at moments of
their own it is given those of our clients' run, as two draws of random moments need not have the same rate.
"""

import csv
import fcntl
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnbench.base.errors import SkippedError
from cnnbench.base.progress import SECONDS, Progress
from cnnbench.launch.local import KilledError, WorkerLaunch, WorkerProcess, run_program
from cnnbench.launch.tied import tied_command
from cnnbench.run.record import SecondClientSeen
from cnnbench.serving.programs import REGIONS
from cnnbench.staging.environments import PERF_ANALYZER, TRITON_SERVER, locked_python
from cnnbench.worker.client import INPUT, OUTPUT

NAME = "perf_analyzer"
"""Of the program, and of the directory of a run's logs that has what it says."""
REPORT, MOMENTS, LOG = "report.csv", "intervals.txt", "output.log"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d*", "libcudart.so.12": "libcudart-*.so.12*"}
"""What it needs that systems seldom have, and the names of the same in the server's wheel."""
WINDOWS = 3
"""How many windows its figures are of: it has no option for that."""
LONGER = 1.2
"""So many times longer than it is told to is a window."""
HELD_BYTES = 1e9
"""What it may hold in memory: it keeps what it sends until a window's end, unless that is in shared memory."""
ANY_SPREAD = "1000000"
"""How far its windows may differ (%): where they differ it would go on, and tell nothing at last."""
REGION_NAMES = (f"{INPUT}_0_0", OUTPUT)
"""Its shared memory, which it names by the tensors alone."""
VERSION_S = 60.0
"""How long it may take to tell its version."""


@dataclass(frozen=True)
class PerfAnalyzer:
    """The program, its version, and the libraries that it needs, by the names that it asks for."""

    program: Path
    version: str
    libraries: Mapping[str, Path]


@dataclass(frozen=True)
class Asked:
    """What it is to ask.

    `concurrency`: requests under way at any time. `due_ns`: when each request is to be sent instead, waiting for no
    answer; None for `concurrency`. `seconds`: how long our clients measured; `rate_per_s`: the requests a second that
    they had. `request_bytes`: how large a request is.
    """

    address: str
    model: str
    protocol: str
    batch_size: int
    request_bytes: int
    shared_memory: bool
    concurrency: int
    due_ns: np.ndarray | None
    seconds: float
    rate_per_s: float

    @property
    def window_s(self) -> float:
        """How long each of its windows is: all together as long as ours, but no longer than it can hold."""
        most_s = math.inf if self.shared_memory else HELD_BYTES / (self.request_bytes * self.rate_per_s)
        return min(self.seconds / WINDOWS, most_s)

    def options(self, directory: Path) -> list[str]:
        """Return its options; `directory`: where it reads the moments from, and writes its report to."""
        load = ["--concurrency-range", str(self.concurrency)]
        if self.due_ns is not None:
            load = ["--request-intervals", str(directory / MOMENTS)]
        return [
            *("-m", self.model, "-u", self.address, "-i", self.protocol, "-b", str(self.batch_size), "--async"),
            *load,
            *(("--shared-memory", "system") if self.shared_memory else ()),
            *("--measurement-interval", str(max(1, round(1e3 * self.window_s / LONGER)))),
            *("--stability-percentage", ANY_SPREAD, "--max-trials", str(WINDOWS)),
            *("-v", "--verbose-csv", "-f", str(directory / REPORT)),
        ]


def find_perf_analyzer(cache: Path) -> PerfAnalyzer:
    """Return the program, made ready on first use; raise SkippedError with the reason where it cannot run here."""
    program = locked_python(PERF_ANALYZER, cache).with_name(NAME)
    if not program.is_file():
        raise _cannot_run(f"its package has no program for {os.uname().machine}")
    server = locked_python(TRITON_SERVER, cache).parents[1]
    libraries = {}
    for name, pattern in LIBRARIES.items():
        found = sorted(server.glob(f"lib/python*/site-packages/nvidia_pytriton.libs/{pattern}"))
        if not found:
            raise _cannot_run(f"it needs {name}, and {server} has no {pattern}; remove that, and it is made anew")
        libraries[name] = found[0]
    with _linked(libraries) as path:
        try:
            told = subprocess.run(
                [program, "--version"],
                env=os.environ | {"LD_LIBRARY_PATH": _search_path(path, os.environ)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=VERSION_S,
            )
        except OSError as error:
            raise _cannot_run(str(error.strerror)) from error
        except subprocess.TimeoutExpired as error:
            raise _cannot_run(f"it does not tell its version within {VERSION_S:g} s") from error
    version = re.search(r"Version (\S+)", told.stdout)
    if told.returncode or not version:
        lines = told.stdout.strip().splitlines()
        raise _cannot_run(lines[-1] if lines else f"exit code {told.returncode}")
    return PerfAnalyzer(program, version[1], libraries)


def _cannot_run(reason: str) -> SkippedError:
    return SkippedError(f"PERF_ANALYZER=True: perf_analyzer cannot run here: {reason}; or leave PERF_ANALYZER out")


@contextmanager
def _linked(libraries: Mapping[str, Path]) -> Iterator[str]:
    """Make a passing directory with libraries by the names that are asked for."""
    with tempfile.TemporaryDirectory(prefix="cnnbench-libraries-") as directory:
        for name, path in libraries.items():
            (Path(directory) / name).symlink_to(path)
        yield directory


def _search_path(directory: str, environment: Mapping[str, str]) -> str:
    return ":".join(filter(None, [directory, environment.get("LD_LIBRARY_PATH", "")]))


@contextmanager
def _own_regions() -> Iterator[None]:
    """Have its shared memory for one run of ours at a time, and remove what it leaves when it is killed.

    What holds the lock is the directory itself, so that nothing is left of that either.
    """
    descriptor = os.open(REGIONS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _remove_regions()  # of one whose controller was killed with it
        try:
            yield
        finally:
            _remove_regions()
    finally:
        os.close(descriptor)


def _remove_regions() -> None:
    for name in REGION_NAMES:
        with suppress(FileNotFoundError):
            if (REGIONS / name).stat().st_uid == os.getuid():
                (REGIONS / name).unlink()


def ask(
    analyzer: PerfAnalyzer,
    asked: Asked,
    directory: Path,
    environment: Mapping[str, str],
    cpus: Sequence[int],
    patience_s: float,
    check: Callable[[], object],
) -> SecondClientSeen:
    """Run it on some CPUs to its end; return its figures, or why it has none.

    `directory`: a new one for its output. `patience_s`: how long it may take beyond its windows. `check`: raises when
    what it asks has gone.
    """
    directory.mkdir()
    if asked.due_ns is not None:
        gaps_us = np.maximum(np.diff(np.sort(asked.due_ns)) // 1000, 1)
        (directory / MOMENTS).write_text("".join(f"{gap}\n" for gap in gaps_us), encoding="utf-8")
    seconds = WINDOWS * asked.window_s
    with ExitStack() as stack:
        if asked.shared_memory:
            stack.enter_context(_own_regions())
        path = stack.enter_context(_linked(analyzer.libraries))
        command = tied_command([str(analyzer.program), *asked.options(directory)], ",".join(map(str, cpus)))
        own = {**environment, "LD_LIBRARY_PATH": _search_path(path, environment)}
        progress = stack.enter_context(Progress(f"asking again with {NAME}", seconds, SECONDS))
        began_s, shown = time.monotonic(), 0

        def watch(process: WorkerProcess) -> None:
            nonlocal shown
            check()
            passed_s = time.monotonic() - began_s
            progress.advance(int(passed_s) - shown)
            shown = int(passed_s)
            if passed_s > seconds + patience_s:
                raise KilledError(f"{NAME} {process.pid} hung: not done within {seconds + patience_s:.4g} s")

        try:
            run_program(WorkerLaunch(command, own, directory / LOG, ()), NAME, watch)
            report, log = ((directory / name).read_text(encoding="utf-8") for name in (REPORT, LOG))
            return read_figures(report, log, analyzer.version, asked.batch_size)
        except KilledError as error:
            return SecondClientSeen(version=analyzer.version, failure=error.detail)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return SecondClientSeen(version=analyzer.version, failure=f"its report, {directory / REPORT}: {reason}")


def read_figures(report: str, log: str, version: str, batch_size: int) -> SecondClientSeen:
    """Return the figures of a report and of what is printed; raise ValueError or KeyError for what are none."""
    rows = list(csv.DictReader(report.splitlines()))
    count = re.search(r"^\s*Request count: (\d+)$", log, re.MULTILINE)
    if len(rows) != 1 or not count:
        raise ValueError(f"{len(rows)} lines of figures, needed one, and how many requests they are of")
    rate, p50, p99 = (float(rows[0][name]) for name in ("Inferences/Second", "p50 latency", "p99 latency"))
    if not all(map(math.isfinite, (rate, p50, p99))) or rate <= 0:
        raise ValueError(f"{rate:g} images/s, 50 % within {p50:g} us, 99 % within {p99:g} us")
    delayed = re.search(r"([\d.]+)% of the requests were delayed", log)
    return SecondClientSeen(
        version=version,
        requests=int(count[1]),
        requests_per_s=rate / batch_size,
        windows_per_s=tuple(
            float(one) / batch_size for one in re.findall(r"^\s*Pass \[\d+\] throughput: ([\d.]+)", log, re.MULTILINE)
        ),
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        delayed_share=float(delayed[1]) / 100 if delayed else 0.0,
    )
