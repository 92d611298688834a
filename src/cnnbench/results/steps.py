"""Record when each step of an instance began and ended: rows in a mapped file, which a killed instance leaves too.

All times are CLOCK_MONOTONIC in ns, which every process of the machine reads alike.
"""

import bisect
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

MAX_STEPS = 1 << 20
"""Steps an instance can record; the file is sparse, so room that is not used costs nothing."""

COLUMNS = ("start_ns", "input_ready_ns", "end_ns")
WORD_BYTES = 8


def map_words(path: Path) -> memoryview:
    """Map a file of 64-bit words, to be read and written by several processes."""
    with path.open("r+b", buffering=0) as file:  # in an enclave it is a device: it cannot seek, and mmap wants its size
        return memoryview(mmap.mmap(file.fileno(), path.stat().st_size)).cast("q")


class StepTimes:
    """The raw times of one instance's measured steps: a row of three for each."""

    def __init__(self, directory: Path, index: int) -> None:
        self.words = map_words(self.path(directory, index))

    @staticmethod
    def path(directory: Path, index: int) -> Path:
        """Return the file of an instance."""
        return directory / f"steps-{index}"

    @staticmethod
    def read(directory: Path, index: int) -> np.ndarray:
        """Return the rows of the steps that have ended so far (int64, steps x 3, columns as in COLUMNS)."""
        path = StepTimes.path(directory, index)
        if not path.is_file():  # in an enclave it is a device, which can only be mapped
            rows = np.frombuffer(map_words(path), dtype=np.int64).reshape(-1, len(COLUMNS))
            return np.array(rows[: _count_filled(len(rows), lambda row: rows[row, 2])])
        # Mapped, what was not written would take memory when it is looked at, and kill this process where that is full.
        with path.open("rb", buffering=0) as file:

            def end_ns(row: int) -> int:
                return int.from_bytes(
                    os.pread(file.fileno(), WORD_BYTES, (row * len(COLUMNS) + 2) * WORD_BYTES), "little"
                )

            filled = _count_filled(path.stat().st_size // (len(COLUMNS) * WORD_BYTES), end_ns)
            return np.fromfile(file, dtype=np.int64, count=filled * len(COLUMNS)).reshape(-1, len(COLUMNS))


def _count_filled(rows: int, end_ns: Callable[[int], int]) -> int:
    """Return how many rows are filled: they fill in order, and a row's end comes last."""
    return bisect.bisect_left(range(rows), True, key=lambda row: not end_ns(row))
