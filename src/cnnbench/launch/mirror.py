"""Show the controller what the ranks of MPI do, and pass on what it says: rank 0's part while all measure."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.launch.local import POLL_S, is_abandoned
from cnnbench.results.steps import COLUMNS, StepTimes
from cnnbench.worker.control import ControlBlock, State

COMMAND, PROGRESS, CLOCK = 1, 2, 3
"""Tags of messages: rank 0's word, a rank's progress, a question of the time."""
START, STOP = "start", "stop"

Communicator = Any  # mpi4py's, which is imported last, as importing it starts MPI


def map_rows(shared: Path, index: int) -> np.ndarray:
    """Return the step times of an instance as they are shared (int64, steps x 3)."""
    return np.frombuffer(StepTimes(shared, index).words, dtype=np.int64).reshape(-1, len(COLUMNS))


class Mirror:
    """Rank 0's part while measuring: shows the controller what all ranks do, and passes on what it says."""

    def __init__(self, comm: Communicator, shared: Path) -> None:
        self._comm, self._shared, self._control = comm, shared, ControlBlock(shared)
        self._rows: dict[int, np.ndarray] = {}
        self._ended, self._said = 0, [False, False]
        self._coming: deque[Any] = deque()

    def relay(self) -> None:
        """Show what has come from the ranks since, and tell them when the controller starts or stops the run.

        Raises InvalidMeasurementError when the controller is dead: then all end. mpirun cannot be told by the kernel to
        end with its parent: such a signal comes once for each thread of the parent, and at the second one mpirun leaves
        everything as it is.
        """
        if is_abandoned(self._shared):
            raise InvalidMeasurementError("the controller is gone")
        self._take()
        for number, (word, given) in enumerate(((START, self._control.start_ns != 0), (STOP, self._control.stopped))):
            if given and not self._said[number]:
                self._said[number] = True
                for request in [self._comm.isend(word, dest=rank, tag=COMMAND) for rank in range(self._comm.size)]:
                    request.wait()

    def drain(self) -> None:
        """Show what is still on its way, until every rank has said that it was the last; raise as `relay` does."""
        while self._ended < self._comm.size:
            self.relay()
            time.sleep(POLL_S)

    def _take(self) -> None:
        """Show what has arrived, without waiting for the rest of a long message: its sender may be asleep."""
        while (message := self._comm.improbe(tag=PROGRESS)) is not None:
            self._coming.append(message.irecv())
        while self._coming:
            arrived, progress = self._coming[0].test()
            if not arrived:
                break
            self._coming.popleft()
            self._show(progress)

    def _show(self, progress: Any) -> None:
        self._ended += progress is None
        for index, state, steps, first, rows in progress or ():
            if index not in self._rows:
                self._rows[index] = map_rows(self._shared, index)
            shown = self._rows[index][first : first + len(rows)]
            shown[:, :2] = rows[:, :2]
            shown[:, 2] = rows[:, 2]  # last: by its end readers know that a row is there
            self._control.set_steps(index, steps)
            self._control.set_measured(index, first + len(rows))
            self._control.set_state(index, State(state))
