"""What Slurm says, whatever it is, comes to a state of a batch; here its commands are files that say it."""

import hashlib
import re

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.launcher import UnavailableError
from cnnbench.fleet.slurm import SlurmLauncher
from cnnbench.fleet.slurm_queue import parse_minutes
from cnnbench.fleet.spec import Pool, Runs

BATCH = hashlib.sha256(b"batch").hexdigest()[:20]


class Said:
    """A pool on a Slurm whose commands say what a test has them say; a batch of it is task 7_0."""

    def __init__(self, directory):
        self._programs = directory / "bin"
        self._programs.mkdir()
        folder = directory / "fleet-runs"
        (folder / "slurm" / "one").mkdir(parents=True)
        (folder / "slurm" / "one" / "cnnbench-a").write_text(BATCH)
        (folder / "batches" / BATCH).mkdir(parents=True)
        self.launcher = SlurmLauncher(Pool(name="one", launcher="slurm"), FleetFolder(folder))
        self.batch = folder / "batches" / BATCH

    def say(self, program, text="", error="", code=0):
        path = self._programs / program
        path.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\necho '{error}' >&2\nexit {code}\n")
        path.chmod(0o755)

    def poll(self):
        return self.launcher.poll({BATCH: "7_0"})[BATCH]


@pytest.fixture
def said(tmp_path, monkeypatch):
    found = Said(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    return found


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT", "queued"),
        ("RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED", "running"),
        ("A_STATE_OF_A_LATER_VERSION", "running"),
        ("CANCELLED PREEMPTED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE REVOKED FAILED", "failed"),
        ("COMPLETED", "failed"),  # it has left no end
    ],
)
def test_every_state_has_its_meaning(said, states, expected):
    said.say("scontrol", "JobId=7 ExitCode=9:0")
    (said.batch / "log").write_text("cnnbench: a last word\n")
    for state in states.split():
        said.say("squeue", f"7|0|cnnbench-a|{state}|A reason|n1")
        found = said.poll()
        assert (found.state, found.node) == (expected, "n1"), state
        if expected == "failed":
            code = "; exit code 9" if state == "FAILED" else ""
            assert found.reason == f"Slurm: {state} (A reason){code}; cnnbench: a last word"
        else:
            assert found.reason == "A reason"


def test_an_array_that_was_cancelled_while_it_waited_is_one_line(said):
    said.say("squeue", "7|N/A|cnnbench-a|CANCELLED|Resources|")
    assert (said.poll().state, said.poll().reason) == ("failed", "Slurm: CANCELLED (Resources)")


def test_what_slurm_has_forgotten_is_told_by_what_the_node_left(said):
    said.say("squeue", "")
    assert (said.poll().state, said.poll().reason) == ("lost", "Slurm knows nothing more of task 7_0")
    (said.batch / "ended.json").write_text('{"reason": "ended from outside", "ended_s": 1}')
    assert (said.poll().state, said.poll().reason) == ("failed", "ended from outside")
    (said.batch / "ended.json").write_text('{"reason": "", "ended_s": 1}')
    assert said.poll().state == "ended"


def test_a_slurm_that_does_not_answer_is_asked_again(said):
    said.say("squeue", error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)", code=1)
    with pytest.raises(UnavailableError, match="squeue: slurm_load_jobs error: Unable to contact slurm controller"):
        said.poll()


def test_a_machine_without_slurms_commands_is_told(said):
    (said.batch.parents[1] / "slurm" / "one" / "cnnbench-a").unlink()
    with pytest.raises(UsageError, match="sbatch: not found; launcher slurm needs Slurm's client commands"):
        said.launcher.check(Runs(workloads=["x"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partion": "main"}, "partion: no such key; there are partition, account, qos, extra"),
        ({"extra": ["--array=0-9"]}, "--array is set by the fleet; leave it out"),
        ({"extra": ["-N2"]}, "must be an option of sbatch in one word, such as --mem=0"),
    ],
)
def test_options_that_a_pool_cannot_have_are_told(tmp_path, options, words):
    pool = Pool.model_validate({"name": "one", "launcher": "slurm", "options": options})
    with pytest.raises(UsageError, match=re.escape(words)):
        SlurmLauncher(pool, FleetFolder(tmp_path))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("5:00", 5), ("30:00", 30), ("1:30:00", 90), ("1-00:00:00", 1440), ("2-01:10:59", 2950), ("infinite", None)],
)
def test_a_limit_is_read_as_slurm_prints_it(text, minutes):
    assert parse_minutes(text) == minutes
