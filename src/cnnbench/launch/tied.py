"""Become another program that ends, by SIGTERM, when the process does that started it.

`python start.py cnnbench.launch.tied PARENT PROGRAM ARGUMENT...`
"""

import os
import signal
import sys

from cnnbench.base.signals import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell
