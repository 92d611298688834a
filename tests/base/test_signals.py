"""What asks a run to end waits for a process that is being started, and is not lost."""

import os
import signal

import pytest

from cnnbench.base.signals import end_by_exceptions, uninterrupted


def test_a_signal_is_held_back_until_the_block_is_done():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    done = []

    def start():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("started")

    try:
        end_by_exceptions()
        with pytest.raises(KeyboardInterrupt):
            start()
        assert done == ["started"]
        end_by_exceptions()
        with uninterrupted():
            done.append("again")
        assert done == ["started", "again"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
