"""Find the process of a batch on this machine, by what it leaves and the lock that it holds, and end it."""

import fcntl
import os
import signal
import time
from pathlib import Path

from cnnbench.fleet.folder import BATCH, LOCK, FleetFolder
from cnnbench.fleet.launcher import JobState
from cnnbench.fleet.node import GRACE_S

_LOOK_S = 0.05


def find_state(folder: FleetFolder, batch: str, pid: int) -> JobState:
    """Return how far a batch is; `pid`: the process that was started for it, 0 where that is not known.

    The process may be another one than `pid`: where a controller died before it could note what it had started, the
    next one starts a second, which leaves the batch to the first.
    """
    node = folder.read_node(batch)
    at_work = is_locked(folder.batches / batch / LOCK) or _is_of_batch(pid, batch)
    ended = folder.read_ended(batch)  # after the look at the process, which writes this last
    name = node.host if node else ""
    if ended is not None:
        return JobState("failed" if ended.reason else "ended", name, ended.reason)
    if at_work:
        return JobState("running" if node else "queued", name)
    words = folder.last_words(batch)
    return JobState("lost", name, f"its process died: {words}" if words else "its process died without a word")


def stop(folder: FleetFolder, batch: str, pid: int) -> None:
    """End a batch's process, which ends the case that it runs; one that does not end in time is killed."""
    node = folder.read_node(batch)
    pids = [one for one in {pid, node.pid if node else 0} if _is_of_batch(one, batch)]
    _signal(pids, signal.SIGTERM)
    deadline_s = time.monotonic() + GRACE_S + 10
    while any(_is_of_batch(one, batch) for one in pids) and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    _signal([one for one in pids if _is_of_batch(one, batch)], signal.SIGKILL)


def is_locked(path: Path) -> bool:
    """Say whether a process holds a lock file."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def batch_argument(folder: FleetFolder, batch: str) -> str:
    """Return the word of a batch's command line that tells its process from others."""
    return str(folder.batches / batch / BATCH)


def _is_of_batch(pid: int, batch: str) -> bool:
    """Say whether a process is one of a batch's; its number may have come to another since."""
    try:
        return bool(pid) and f"/{batch}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has just ended
            continue
