"""Have this process sampled while it measures, by the library of native/sampler.c that was preloaded into it."""

import ctypes
import os
import time
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.results.samples import Samples, read_records

REMEDY = "CNNBENCH_SAMPLER=off goes without, and has a trace prove the precision"


class Sampler:
    """The sampler of this process: its timers are started before the warm-up, and samples kept while measuring.

    `path`: where its file is made. `capacity`: how many samples that has room for. `period_ns`: the CPU time of a
    thread from one to the next; the kernel looks once a tick, mostly each 4 ms.
    """

    def __init__(self, path: Path, capacity: int, period_ns: int) -> None:
        self._path = path
        self._library = ctypes.CDLL(None)
        if not hasattr(self._library, "cnnbench_sampler_open"):
            raise CnnbenchError(f"the sampler was to be preloaded into this process, and is not; {REMEDY}")
        self._library.cnnbench_sampler_open.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
        self._check("open", self._library.cnnbench_sampler_open(os.fsencode(path), capacity, period_ns))
        self._began_ns: int | None = None

    def _check(self, what: str, error: int) -> None:
        if error:
            raise CnnbenchError(f"the sampler could not {what}: {os.strerror(error)}; {REMEDY}")

    def arm(self) -> None:
        """Start the timers of all threads; called again, it does nothing."""
        self._check("arm", self._library.cnnbench_sampler_arm())

    def record(self) -> None:
        """Keep samples from now on; called again, it does nothing."""
        if self._began_ns is None:
            self._began_ns = time.process_time_ns()
        self._library.cnnbench_sampler_record(1)

    def pause(self) -> None:
        """Stop the timers, until they are armed again."""
        self._library.cnnbench_sampler_disarm()

    def finish(self, into: Path) -> None:
        """Stop, and write what there is."""
        self.pause()
        cpu_ns = 0 if self._began_ns is None else time.process_time_ns() - self._began_ns
        records, period_ns, seen = read_records(self._path)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        Samples(records, period_ns, seen, cpu_ns, maps).save(into)
