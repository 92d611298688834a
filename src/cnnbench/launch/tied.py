"""Become another program that ends, by SIGTERM, when the process does that started it.

`python start.py cnnbench.launch.tied PARENT CPUS PROGRAM ARGUMENT...`, on some CPUs (`2,3`), or on all where that is
empty.
"""

import os
import signal
import sys

from cnnbench.base.signals import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
    if sys.argv[2]:
        os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - no shell
