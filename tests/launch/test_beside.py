"""A program that runs beside who has asked for it: its id, its output, how it ends, and that nothing is left."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.start import START
from cnnbench.launch import beside
from cnnbench.launch.beside import Neighbour
from fleet_files import is_alive
from null_workload import wait_until


@pytest.fixture
def agent(tmp_path):
    """What the container beside this one would run, and where it is asked."""
    path = tmp_path / "neighbour"
    with subprocess.Popen([sys.executable, START, "cnnbench.launch.beside", str(path)]) as process:
        yield process, path
        process.kill()


def launch(path, directory, *words, environment=None):
    return Neighbour.find(path).launch([*words], environment or dict(os.environ), directory / "output.log")


def ended(process):
    wait_until(lambda: process.exit_code is not None, "the end of the program")
    return process.exit_code


def test_a_program_has_the_environment_the_output_and_the_end_that_it_was_given(agent, tmp_path):
    script = 'echo "$WORD"; echo of $PPID >&2; exit 7'
    with launch(
        agent[1], tmp_path, "sh", "-c", script, environment={"WORD": "a b", "PATH": os.environ["PATH"]}
    ).process() as one:
        assert ended(one) == 7
        assert "ended with exit code 7; last in" in one.describe_end()
    assert (tmp_path / "output.log").read_text() == f"a b\nof {agent[0].pid}\n"  # a child of the agent's, not of ours


def test_it_can_be_told_to_end_as_a_child_can(agent, tmp_path):
    with launch(agent[1], tmp_path, "sleep", "600").process() as one:
        assert one.exit_code is None
        os.kill(one.pid, signal.SIGTERM)
        assert ended(one) == -signal.SIGTERM
        assert "killed by SIGTERM" in one.describe_end()


def test_it_and_what_it_has_started_end_with_the_block(agent, tmp_path):
    with launch(agent[1], tmp_path, "sh", "-c", "sleep 600 & echo $!; wait").process() as one:
        log = tmp_path / "output.log"
        wait_until(lambda: log.read_text().strip(), "its child")
        child = int(log.read_text())
    assert one.exit_code == -signal.SIGKILL
    wait_until(lambda: not is_alive(one.pid), "the end of the program")
    wait_until(lambda: not is_alive(child), "the end of its child")


def test_one_after_the_other_runs_there(agent, tmp_path):
    for word in ("first", "second"):
        with launch(agent[1], tmp_path, "echo", word).process() as one:
            assert ended(one) == 0
        assert (tmp_path / "output.log").read_text() == f"{word}\n"


def test_where_the_neighbour_is_killed_so_is_the_program(agent, tmp_path):
    with launch(agent[1], tmp_path, "sleep", "600").process() as one:
        agent[0].kill()
        assert ended(one) == -signal.SIGKILL
        wait_until(lambda: not is_alive(one.pid), "the end of the program")


def test_where_who_has_asked_is_killed_so_is_the_program(agent, tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
from cnnbench.launch.beside import Neighbour
neighbour, log = Neighbour.find(Path({str(agent[1])!r})), Path({str(tmp_path / "output.log")!r})
with neighbour.launch(["sleep", "600"], dict(os.environ), log).process() as one:
    print(one.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asking:
        pid = int(asking.stdout.readline())
        assert is_alive(pid)
        asking.kill()
    wait_until(lambda: not is_alive(pid), "the end of the program")
    with launch(agent[1], tmp_path, "true").process() as one:  # the neighbour is there for the next
        assert ended(one) == 0


def test_a_neighbour_that_does_not_come_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "COME_S", 0.2)
    began_s = time.monotonic()
    with pytest.raises(CnnbenchError, match=r"none: no container beside this one within 0\.2 s"):
        Neighbour.find(tmp_path / "none")
    assert time.monotonic() - began_s >= 0.2


def test_a_program_that_is_not_there_says_so_in_its_output(agent, tmp_path):
    with launch(agent[1], tmp_path, "/no/such/program").process() as one:
        assert ended(one) == 1
        assert "FileNotFoundError" in one.describe_end()


def test_a_neighbour_that_has_gone_is_told_at_once_and_not_waited_for(agent, tmp_path):
    asked = launch(agent[1], tmp_path, "true")
    agent[0].kill()
    agent[0].wait()
    with (
        pytest.raises(CnnbenchError, match="true: not started: the container beside this one has ended: "),
        asked.process(),
    ):
        pass


def test_a_neighbour_that_ends_before_it_has_answered_is_told(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "neighbour"))
        listening.listen()
        ending = threading.Thread(target=lambda: listening.accept()[0].close())
        ending.start()
        with pytest.raises(CnnbenchError, match="the container beside this one has ended"):
            Neighbour.find(tmp_path / "neighbour")
        ending.join()


def test_a_neighbour_without_an_address_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "no.such.name.invalid")
    path = tmp_path / "neighbour"
    threading.Thread(target=beside.run_for_others, args=(path,), daemon=True).start()
    with pytest.raises(CnnbenchError, match=r"no\.such\.name\.invalid: .*: it has no address by its name"):
        Neighbour.find(path)
