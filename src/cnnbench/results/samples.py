"""Keep what the sampler of native/sampler.c recorded of a process: raw, and readable long after the process is gone."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

SAMPLES = "samples.npz"
"""The file, in the logs of a worker's first instance, of what was recorded of the worker."""

CODE_BYTES = 231
RECORD = np.dtype(
    [
        ("time_ns", "<u8"),
        ("address", "<u8"),
        ("thread", "<u4"),
        ("missed", "<u2"),
        ("length", "<u2"),
        ("in_kernel", "u1"),
        ("code", "V", CODE_BYTES),
    ]
)
"""A sample: when (CLOCK_MONOTONIC), where, in which thread, how many the kernel merged into it, and the code there.

`in_kernel`: whether it was coming back from a system call, whose time it stands for."""
HEADER = np.dtype([("magic", "S8"), ("capacity", "<u8"), ("period_ns", "<u8"), ("seen", "<u8")])
HEADER_BYTES = 4096
MAGIC = b"CSAMPL01"


@dataclass(frozen=True)
class Samples:
    """The samples of one process.

    `records`: of the type RECORD, in the order in which they were taken. `period_ns`: the CPU time of a thread between
    two. `seen`: how many there would have been with room for all. `cpu_ns`: the CPU time that the process took while
    they were recorded. `maps`: /proc/self/maps at the end, by which an address is one of a file. `failure`: why there
    are none, where the sampler could not.
    """

    records: np.ndarray
    period_ns: int
    seen: int
    cpu_ns: int
    maps: str
    failure: str = ""

    def within(self, start_ns: int, end_ns: int) -> Iterator[tuple[bytes, int, bool]]:
        """Yield code, address and `in_kernel` of each sample of a span of time."""
        times = self.records["time_ns"]
        for record in self.records[(times >= start_ns) & (times <= end_ns)]:
            yield bytes(record["code"])[: record["length"]], int(record["address"]), bool(record["in_kernel"])

    def save(self, file: Path | BinaryIO, offset_ns: int = 0) -> None:
        """Write them, compressed; `offset_ns`: what to add to this host's clock."""
        moved = self.records.copy()
        moved["time_ns"] = (moved["time_ns"].astype(np.int64) + offset_ns).astype(np.uint64)
        counts = np.array([self.period_ns, self.seen, self.cpu_ns], dtype=np.int64)
        maps, failure = np.array(self.maps), np.array(self.failure)
        np.savez_compressed(file, records=moved, counts=counts, maps=maps, failure=failure)

    @classmethod
    def load(cls, path: Path) -> "Samples":
        """Read what `save` wrote; raise ValueError, KeyError or OSError for anything else."""
        try:
            archive = np.load(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"cut off or damaged: {error}") from error
        with archive as kept:
            records = kept["records"]
            if records.dtype != RECORD or records.ndim != 1:
                raise ValueError(f"records of {records.dtype}, needed those of the sampler")
            period_ns, seen, cpu_ns = (int(count) for count in kept["counts"])
            return cls(records, period_ns, seen, cpu_ns, str(kept["maps"]), str(kept["failure"]))


def read_records(path: Path) -> tuple[np.ndarray, int, int]:
    """Return the records of the sampler's own file, the period (ns), and how many samples there would have been."""
    header = np.fromfile(path, HEADER, count=1)[0]
    if header["magic"] != MAGIC:
        raise ValueError(f"{path}: no file of the sampler's")
    count = min(int(header["seen"]), int(header["capacity"]))
    records = np.fromfile(path, RECORD, count=count, offset=HEADER_BYTES)
    records = records[records["length"] > 0]  # a sample that was being taken when the process was stopped has none yet
    return records, int(header["period_ns"]), int(header["seen"])
