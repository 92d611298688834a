"""A container that a program stays attached to is stopped by its engine, whose client gets no signal."""

import os
import signal
import subprocess
import sys

from cnnbench.base.start import START
from null_workload import PATIENCE_S, wait_until

_ENGINE = """\
#!/bin/sh
case $1 in
start) echo "$@" $$ >"$0.client"; until [ -e "$0.stopped" ]; do sleep 0.05; done; exit 7 ;;
stop) echo "$@" >>"$0.stopped" ;;
esac
"""


def test_a_signal_has_the_engine_stop_the_container_once(tmp_path):
    engine, client, stopped = (tmp_path / name for name in ("engine", "engine.client", "engine.stopped"))
    engine.write_text(_ENGINE)
    engine.chmod(0o755)
    command = [sys.executable, START, "cnnbench.launch.attached", "30", "triton", str(engine)]
    with subprocess.Popen(command) as process:
        wait_until(lambda: client.exists() and client.read_text(), "the client")
        *words, pid = client.read_text().split()
        assert words == ["start", "--attach", "triton"]
        assert os.getpgid(int(pid)) != process.pid  # a Ctrl-C does not reach it
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 7
    assert stopped.read_text() == "stop -t 30 triton\n"
