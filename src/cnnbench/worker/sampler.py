"""Have this process sampled while it measures, by the library of native/sampler.c that was preloaded into it."""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from cnnbench.results.samples import RECORD, Samples, read_records


class Sampler:
    """The sampler of this process: its timers are started before the warm-up, and samples kept while measuring.

    Where it cannot, the process measures all the same, and what it leaves says why there are no samples.

    `path`: where its file is made. `capacity`: how many samples that has room for. `period_ns`: the CPU time of a
    thread from one to the next; the kernel looks once a tick, mostly each 4 ms.
    """

    def __init__(self, path: Path, capacity: int, period_ns: int) -> None:
        self._path, self._period_ns = path, period_ns
        self._began_ns: int | None = None
        self._failure = ""
        self._library = ctypes.CDLL(None)
        if not hasattr(self._library, "cnnbench_sampler_open"):
            self._fail("it was not preloaded into this process")
            return
        self._library.cnnbench_sampler_open.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
        self._check("make its file", self._library.cnnbench_sampler_open(os.fsencode(path), capacity, period_ns))

    def _check(self, what: str, error: int) -> None:
        if error:
            self._fail(f"it could not {what}: {os.strerror(error)}")

    def _fail(self, failure: str) -> None:
        self._failure = failure
        self.pause()
        print(f"not sampled: {failure}", flush=True)

    def arm(self) -> None:
        """Start the timers of all threads; called again, it does nothing."""
        if not self._failure:
            self._check("start its timers", self._library.cnnbench_sampler_arm())

    def record(self) -> None:
        """Keep samples from now on; called again, it does nothing."""
        if self._began_ns is None:
            self._began_ns = time.process_time_ns()
        if not self._failure:
            self._library.cnnbench_sampler_record(1)

    def pause(self) -> None:
        """Stop the timers, until they are armed again."""
        if hasattr(self._library, "cnnbench_sampler_disarm"):
            self._library.cnnbench_sampler_disarm()

    def finish(self, into: Path) -> None:
        """Stop, and write what there is."""
        self.pause()
        cpu_ns = 0 if self._began_ns is None else time.process_time_ns() - self._began_ns
        if self._failure:
            Samples(np.empty(0, RECORD), self._period_ns, 0, cpu_ns, "", self._failure).save(into)
            return
        records, period_ns, seen = read_records(self._path)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        Samples(records, period_ns, seen, cpu_ns, maps).save(into)
