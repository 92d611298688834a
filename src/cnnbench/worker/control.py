"""Share the barrier, the stop sign and the raw step times between the controller and the instances.

Both map the same files, so that a step costs the instance a few stores to memory and no system call, the controller
can follow while it runs, and what a killed instance had measured is still there. All times are CLOCK_MONOTONIC in ns,
which every process of the machine reads alike.
"""

import mmap
from enum import IntEnum
from pathlib import Path

import numpy as np

MAX_STEPS = 1 << 20
"""Steps an instance can record; the file is sparse, so room that is not used costs nothing."""

COLUMNS = ("start_ns", "input_ready_ns", "end_ns")
_WORD = 8
_ROW = 8  # words: a cache line, so that instances do not write into each other's
_START, _STOP = 0, 1
_STATE, _STEPS, _MEASURED = 0, 1, 2


class State(IntEnum):
    """How far an instance is."""

    LOADING = 0
    READY = 1
    MEASURING = 2
    DONE = 3


def _map_words(path: Path) -> memoryview:
    with path.open("r+b", buffering=0) as file:  # in an enclave it is a device: it cannot seek, and mmap wants its size
        return memoryview(mmap.mmap(file.fileno(), path.stat().st_size)).cast("q")


class ControlBlock:
    """The barrier and the stop sign, written by the controller, and each instance's state, written by the instance."""

    def __init__(self, directory: Path) -> None:
        self._words = _map_words(directory / "control")

    @classmethod
    def create(cls, directory: Path, instances: int) -> "ControlBlock":
        """Make the files of a run: the control block and the step times of each instance."""
        (directory / "control").write_bytes(bytes((instances + 1) * _ROW * _WORD))
        for index in range(instances):
            with StepTimes.path(directory, index).open("wb") as file:
                file.truncate(MAX_STEPS * len(COLUMNS) * _WORD)
        return cls(directory)

    @property
    def start_ns(self) -> int:
        """When measuring begins; 0 until the controller has decided."""
        return self._words[_START]

    @start_ns.setter
    def start_ns(self, value: int) -> None:
        self._words[_START] = value

    @property
    def stopped(self) -> bool:
        """Whether the instances are to end after the step they are in."""
        return self._words[_STOP] != 0

    def stop(self) -> None:
        """Tell the instances to end."""
        self._words[_STOP] = 1

    def state(self, index: int) -> State:
        """Return how far an instance is."""
        return State(self._words[(index + 1) * _ROW + _STATE])

    def set_state(self, index: int, state: State) -> None:
        """Say how far an instance is."""
        self._words[(index + 1) * _ROW + _STATE] = state

    def steps(self, index: int) -> int:
        """Return how many steps an instance has ended, the warm-up's included: a sign of life."""
        return self._words[(index + 1) * _ROW + _STEPS]

    def set_steps(self, index: int, steps: int) -> None:
        """Say how many steps an instance has ended: for one that writes into a control block elsewhere."""
        self._words[(index + 1) * _ROW + _STEPS] = steps

    def measured(self, index: int) -> int:
        """Return how many steps an instance has recorded."""
        return self._words[(index + 1) * _ROW + _MEASURED]

    def set_measured(self, index: int, steps: int) -> None:
        """Say how many steps an instance has recorded."""
        self._words[(index + 1) * _ROW + _MEASURED] = steps

    def count_step(self, index: int) -> None:
        """Count one more step of an instance."""
        self._words[(index + 1) * _ROW + _STEPS] += 1


class StepTimes:
    """The raw times of one instance's measured steps: a row of three for each."""

    def __init__(self, directory: Path, index: int) -> None:
        self.words = _map_words(self.path(directory, index))

    @staticmethod
    def path(directory: Path, index: int) -> Path:
        """Return the file of an instance."""
        return directory / f"steps-{index}"

    @staticmethod
    def read(directory: Path, index: int) -> np.ndarray:
        """Return the rows of the steps that have ended so far (int64, steps x 3, columns as in COLUMNS)."""
        rows = np.frombuffer(_map_words(StepTimes.path(directory, index)), dtype=np.int64).reshape(-1, len(COLUMNS))
        ends = rows[:, 2]
        low, high = 0, len(ends)  # rows fill in order and a row's end comes last: search the first unfilled one
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if ends[middle] else (low, middle)
        return np.array(rows[:low])
