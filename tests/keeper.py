"""Run a command; when the standard input ends, end it and all that descends from it, and nothing else.

`python keeper.py COMMAND...`: the input is a pipe of the test's, so that it ends however the test ends, killed as well.
What a daemon starts and leaves to itself stays this process's to end, as the kernel has it reap orphans.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def reap(*_signal: object) -> None:
    """Collect the children that have ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # none is left, running or ended
            return
        if not pid:
            return


def children(pid: int) -> list[int]:
    """Return the children of a process, those that were orphaned among them where it is a keeper."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def main() -> None:
    """Run the command until the input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, reap)
    subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    sys.stdin.read()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reap()
    while running := children(os.getpid()):  # the children of one that ends become this process's
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
