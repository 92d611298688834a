"""Run a case to its end, and keep what its status file tells meanwhile."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnbench.run.status import DIRECTORY, CaseStatus


def read_cases(root: Path) -> list[CaseStatus]:
    """Return the status of each case that has a file below a build directory, or where logs go."""
    found = []
    for path in (root / DIRECTORY).glob("case-*.json"):
        try:
            found.append(CaseStatus.model_validate_json(path.read_bytes()))
        except FileNotFoundError:  # it ended meanwhile
            continue
    return found


def follow(
    command: Sequence[str], root: Path, environment: Mapping[str, str] = os.environ
) -> tuple[subprocess.CompletedProcess[str], list[CaseStatus]]:
    """Run a command to its end; return how it ended, and each status that a case of it had meanwhile."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen: list[CaseStatus] = []
    while process.poll() is None:
        seen += [status for status in read_cases(root) if status not in seen[-1:]]
        time.sleep(0.05)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr), seen
