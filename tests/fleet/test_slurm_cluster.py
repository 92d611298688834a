"""The cluster that the slurm launcher is tested on: it leaves nothing, however the process that runs it ends."""

import os
import signal
import subprocess
import sys

import pytest

import slurm_cluster
from null_workload import clean_environment, process_files, wait_until

pytestmark = pytest.mark.skipif(bool(slurm_cluster.explain_absence()), reason=slurm_cluster.explain_absence())

_RUN = """
import sys
from pathlib import Path
from slurm_cluster import slurm_cluster
with slurm_cluster(Path(sys.argv[1]), {"spr01": "SPR"}) as cluster:
    cluster.tell("sbatch", "--output=/dev/null", "--wrap", f"setsid tail -f {cluster.configuration}")
    print("up", flush=True)
    sys.stdin.read()
"""


def find_processes(directory):
    """Return the processes of a cluster in a directory, and those of its jobs."""
    marked = str(directory).encode()
    return {pid for name in ("cmdline", "environ") for pid, text in process_files(name).items() if marked in text}


def test_nothing_is_left_of_a_cluster_whose_process_is_killed(tmp_path):
    """Nor of its jobs, which a slurmd that is killed leaves running."""
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(tmp_path)],
        env=clean_environment(PYTHONPATH=path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.readline() == "up\n"
        job = f"tail\0-f\0{tmp_path}/slurm.conf\0".encode()
        wait_until(lambda: job in process_files("cmdline").values(), "the job")
        running.send_signal(signal.SIGKILL)
    wait_until(lambda: not find_processes(tmp_path), "the cluster gone")
