"""A container that a program stays attached to is stopped by its engine, whose client gets no signal."""

import os
import signal
import subprocess
import sys

import pytest

from cnnbench.base.start import START
from keeper import children
from null_workload import PATIENCE_S, wait_until

_ENGINE = """\
#!/bin/sh
case $1 in
start)
    until [ -z "$LATE" ] || [ -e "$0.asked" ]; do sleep 0.05; done
    echo "$@" >"$0.client"
    until [ -e "$0.stopped" ]; do sleep 0.05; done
    exit 7 ;;
stop)
    [ -e "$0.client" ] && done=1
    echo "$@" >>"$0.asked"
    [ -z "$done" ] || touch "$0.stopped" ;;
esac
"""


@pytest.mark.parametrize("late", ["", "yes"])
def test_a_signal_has_the_engine_stop_the_container(tmp_path, late):
    engine, client, asked = (tmp_path / name for name in ("engine", "engine.client", "engine.asked"))
    engine.write_text(_ENGINE)
    engine.chmod(0o755)
    command = [sys.executable, START, "cnnbench.launch.attached", "30", "triton", str(engine)]
    with subprocess.Popen(command, env=os.environ | {"LATE": late}) as process:
        wait_until(lambda: children(process.pid), "the client")
        if not late:  # else the engine starts the container when it has been told to stop it
            wait_until(lambda: client.exists() and client.read_text(), "the container")
        (client_pid,) = children(process.pid)
        wait_until(lambda: os.getpgid(client_pid) != process.pid, "its own group")  # a Ctrl-C does not reach it
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 7
    assert client.read_text() == "start --attach triton\n"
    told = asked.read_text().splitlines()
    assert set(told) == {"stop -t 30 triton"}
    assert len(told) > 1 if late else len(told) == 1
