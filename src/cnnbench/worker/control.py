"""Share the barrier, the stop sign and the raw step times between the controller and the instances.

Both map the same files, so that a step costs the instance a few stores to memory and no system call, the controller
can follow while it runs, and what a killed instance had measured is still there. All times are CLOCK_MONOTONIC in ns,
which every process of the machine reads alike.
"""

from enum import IntEnum
from pathlib import Path

from cnnbench.results.steps import COLUMNS, MAX_STEPS, WORD_BYTES, StepTimes, map_words

_ROW = 8  # words: a cache line, so that instances do not write into each other's
_START, _STOP = 0, 1
_STATE, _STEPS, _MEASURED = 0, 1, 2


class State(IntEnum):
    """How far an instance is."""

    LOADING = 0
    READY = 1
    MEASURING = 2
    DONE = 3


class ControlBlock:
    """The barrier and the stop sign, written by the controller, and each instance's state, written by the instance."""

    def __init__(self, directory: Path) -> None:
        self._words = map_words(directory / "control")

    @classmethod
    def create(cls, directory: Path, instances: int) -> "ControlBlock":
        """Make the files of a run: the control block and the step times of each instance."""
        (directory / "control").write_bytes(bytes((instances + 1) * _ROW * WORD_BYTES))
        for index in range(instances):
            with StepTimes.path(directory, index).open("wb") as file:
                file.truncate(MAX_STEPS * len(COLUMNS) * WORD_BYTES)
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
