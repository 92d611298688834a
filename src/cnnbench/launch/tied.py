"""Become another program that ends, by SIGTERM, when the process does that started it.

`python start.py cnnbench.launch.tied PARENT CPUS PROGRAM ARGUMENT...`; CPUS, such as 0-3, pins it; empty: it is not.
"""

import os
import signal
import sys
from collections.abc import Sequence

from cnnbench.base.signals import end_with_parent
from cnnbench.base.start import START
from cnnbench.machine.topology import parse_cpu_list


def tied_command(command: Sequence[str], cpus: str = "") -> list[str]:
    """Return the command of a program that ends with this process, however that ends."""
    return [sys.executable, START, "cnnbench.launch.tied", str(os.getpid()), cpus, *command]


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
    if sys.argv[2]:
        os.sched_setaffinity(0, parse_cpu_list(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - no shell
