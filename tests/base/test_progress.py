import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from cnnbench.base.progress import BYTES, Progress, bytes_text


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_lines_come_now_and_then_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with Progress("drawing", 2456, "images", stream=stream, clock=clock) as progress:
        for _ in range(1000):
            clock.now_s += 1 / 128
            progress.advance()
        clock.now_s += 1
        progress.advance(24)
    assert stream.getvalue().splitlines() == [
        "drawing: 640 of 2456 images, 128/s, 14 s left",
        "drawing: 1024 of 2456 images, 116/s, done in 9 s",
    ]


def test_bytes_are_scaled_and_what_was_there_does_not_count_as_speed():
    clock, stream = Clock(), io.StringIO()
    with Progress("model.pb", 10_000_000, BYTES, done=4_000_000, stream=stream, clock=clock) as progress:
        clock.now_s += 10
        progress.advance(1_000_000)
    assert stream.getvalue().splitlines()[0] == "model.pb: 5.0 MB of 10.0 MB, 100.0 kB/s, 50 s left"


def test_an_unknown_total_shows_no_time_left():
    clock, stream = Clock(), io.StringIO()
    with Progress("measuring", None, "steps", stream=stream, clock=clock) as progress:
        clock.now_s += 10
        progress.advance(20)
    assert stream.getvalue().splitlines()[0] == "measuring: 20 steps, 2/s"


def test_a_failed_step_is_not_called_done():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress("drawing", 10, "images", stream=stream):
        raise ValueError("broken")
    assert "done" not in stream.getvalue()


def test_a_terminal_gets_a_bar():
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(writer, "w") as terminal, Progress("drawing", 4, "images", stream=terminal) as progress:
        progress.advance(4)
        terminal.flush()
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    assert "drawing" in shown
    assert "0/4" in shown


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (6744924160, "6.7 GB"), (2e16, "20000.0 TB")]
)
def test_bytes_are_written_for_people(count, text):
    assert bytes_text(count) == text
