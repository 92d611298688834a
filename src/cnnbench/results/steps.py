"""Record when each step of an instance began and ended: rows in a mapped file, which a killed instance leaves too.

All times are CLOCK_MONOTONIC in ns, which every process of the machine reads alike.
"""

import mmap
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
        rows = np.frombuffer(map_words(StepTimes.path(directory, index)), dtype=np.int64).reshape(-1, len(COLUMNS))
        ends = rows[:, 2]
        low, high = 0, len(ends)  # rows fill in order and a row's end comes last: search the first unfilled one
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if ends[middle] else (low, middle)
        return np.array(rows[:low])
