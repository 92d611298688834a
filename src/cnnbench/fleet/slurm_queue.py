"""Speak to Slurm by its own commands: try a request, submit an array, read the queue, cancel.

What is read is asked for column by column, which every version prints alike: the JSON of `squeue` has changed between
them, and `sacct` answers only where there is an accounting database.
"""

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import IO

from cnnbench.base.errors import UsageError
from cnnbench.fleet.launcher import UnavailableError

_PASSING = (
    *("Resource temporarily unavailable", "Requested nodes are busy", "Socket timed out", "in standby mode"),
    *("Unable to contact slurm controller", "job submit limit", "temporarily unable", "MaxSubmitJob"),
)
"""What Slurm says where the same question may be answered, or the same job taken, later."""

_FIELDS = ("%F", "%K", "%j", "%T", "%r", "%N")
_SEPARATOR = "|"  # in no name of a job of ours, in no state, reason or node

_OUT_OF_SERVICE = ("down", "drain", "fail", "unknown")
_SOON_S = 60
"""How long a node may take to be free for what fetches what it has kept."""

_VARIABLES = ("SBATCH_", "SCANCEL_", "SCONTROL_", "SINFO_", "SLURM_", "SQUEUE_", "SRUN_")
_KEPT = ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_RESERVATION", "SLURM_CONF")
"""A user's own defaults of where to run; all others, as of a job that this runs in, would change what is asked."""


@dataclass(frozen=True)
class QueuedTask:
    """A task of an array as Slurm has it; `reason`: Slurm's for its state; `node`: empty while it has none.

    `index`: None for all that were cancelled while they waited, where the whole array was.
    """

    number: int
    index: int | None
    name: str
    state: str
    reason: str
    node: str

    @property
    def job(self) -> str:
        """What Slurm calls the task."""
        return str(self.number) if self.index is None else f"{self.number}_{self.index}"


def ask_slurm(*command: str, script: str = "", lock: int | None = None, output: IO[bytes] | None = None) -> str:
    """Run a command of Slurm's and return what it prints, or have it print to a file.

    Raises UsageError in its own words where it refuses, UnavailableError where it may not do so later. `lock`: a file
    descriptor that it is to hold open, and so the lock on it, for as long as it runs.
    """
    environ = {name: text for name, text in os.environ.items() if name in _KEPT or not name.startswith(_VARIABLES)}
    try:
        done = subprocess.run(
            command,
            input=script.encode(),
            stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            pass_fds=() if lock is None else (lock,),
            check=False,
        )
    except FileNotFoundError as error:
        raise UsageError(
            f"{command[0]}: not found; launcher slurm needs Slurm's client commands where `cnnbench fleet` runs"
        ) from error
    if done.returncode == 0:
        return (done.stdout or b"").decode(errors="replace")
    lines = done.stderr.decode(errors="replace").splitlines()
    said = "; ".join(line.removeprefix(f"{command[0]}: ") for line in lines if line.strip())
    passing = any(words in said for words in _PASSING)
    raise (UnavailableError if passing else UsageError)(f"{command[0]}: {said}")


def try_request(options: Sequence[str]) -> None:
    """Have Slurm try a request without submitting it; raise UsageError, in its words, where no such job could run."""
    ask_slurm("sbatch", "--test-only", *options, "--wrap=true")


def submit_script(script: str, options: Sequence[str], lock: int) -> int:
    """Submit a batch script and return the job's number."""
    said = ask_slurm("sbatch", "--parsable", *options, script=script, lock=lock)
    return int(said.split(";")[0])  # in a federation, the cluster comes after the number


def read_queue(names: Collection[str]) -> list[QueuedTask]:
    """Return the tasks of all arrays of these names that Slurm still knows: for some minutes, ended ones too."""
    if not names:
        return []
    options = ["--noheader", "--me", "--states=all", "--array", f"--format={_SEPARATOR.join(_FIELDS)}"]
    tasks = []
    for line in ask_slurm("squeue", *options, f"--name={','.join(names)}").splitlines():
        number, index, name, state, reason, node = line.split(_SEPARATOR)
        tasks.append(QueuedTask(int(number), int(index) if index.isdigit() else None, name, state, reason, node))
    return tasks


def read_exit_code(job: str) -> str:
    """Return a task's exit code and signal as Slurm has them, such as 1:0; empty where it has just forgotten them."""
    try:
        told = ask_slurm("scontrol", "show", "job", "--oneliner", job)
    except UsageError:
        return ""
    found = re.search("ExitCode=([0-9]+:[0-9]+)", told)
    return found[1] if found else ""


def read_longest_minutes(partition: str) -> int | None:
    """Return how long a job in a partition, or in all of several, may be; None where there is no limit."""
    chosen = (partition or os.environ.get("SBATCH_PARTITION", "")).split(",")
    limits = []
    for line in ask_slurm("sinfo", "--noheader", f"--format=%P{_SEPARATOR}%l").splitlines():
        name, limit = line.split(_SEPARATOR)
        if name.rstrip("*") in chosen or (chosen == [""] and name.endswith("*")):
            limits.append(limit)
    minutes = [found for found in map(parse_minutes, limits) if found is not None]
    return min(minutes, default=None)


def parse_minutes(text: str) -> int | None:
    """Return the whole minutes of a time as Slurm prints it, [days-][hours:]minutes:seconds; None where it is none."""
    if not (match := re.fullmatch("(?:([0-9]+)-)?(?:([0-9]+):)?([0-9]+):([0-9]+)", text)):
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return (24 * days + hours) * 60 + minutes


def read_largest_array() -> int:
    """Return how many tasks an array of this cluster may have."""
    found = re.search("MaxArraySize *= ([0-9]+)", ask_slurm("scontrol", "show", "config"))
    return max(1, int(found[1]) - 1) if found else 1


def is_in_service(node: str) -> bool:
    """Say whether a node answers and takes jobs; `srun` only says of one that does not that it is busy."""
    state = ask_slurm("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T").split()
    return bool(state) and not state[0].startswith(_OUT_OF_SERVICE) and not state[0].endswith("*")


def cancel_tasks(jobs: Iterable[str]) -> None:
    """Cancel tasks; those that have ended, and those that Slurm has forgotten, stay as they are."""
    if named := sorted(jobs):
        ask_slurm("scancel", "--quiet", *named)


def run_on_node(node: str, script: str, options: Sequence[str], output: IO[bytes]) -> None:
    """Run a shell script on a node, in a job of its own, and write what it prints to a file.

    Raises UnavailableError where the node is not free soon, UsageError, in Slurm's words, where it cannot be had.
    """
    asked = ["--quiet", "--nodes=1", "--ntasks=1", "--time=10", f"--immediate={_SOON_S}", f"--nodelist={node}"]
    words = [*asked, "--job-name=cnnbench-fetch", "--chdir=/", "--input=none", *options, "sh", "-c", script]
    ask_slurm("srun", *words, output=output)
