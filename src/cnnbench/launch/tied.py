"""Become another program that ends, by SIGTERM, when the process does that started it.

`python start.py cnnbench.launch.tied PARENT CPUS PROGRAM ARGUMENT...`; CPUS, such as 0-3, pins it; empty: it is not.
"""

import os
import signal
import sys

from cnnbench.base.signals import end_with_parent
from cnnbench.machine.topology import parse_cpu_list

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
    if sys.argv[2]:
        os.sched_setaffinity(0, parse_cpu_list(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - no shell
