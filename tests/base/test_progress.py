import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios

import pytest

from cnnbench.base.progress import BYTES, SECONDS, Progress, bytes_text, listening


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_lines_come_now_and_then_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with Progress("drawing", 2456, "images", stream=stream, clock=clock) as progress:
        for _ in range(1600):
            clock.now_s += 1 / 128
            progress.advance()
        progress.note("1.5 ± 0.1 img/s")
        clock.now_s += 1
        progress.advance(24)
    assert stream.getvalue().splitlines() == [
        "drawing: 1280 of 2456 images, 128/s, 9 s left",
        "drawing: 1624 of 2456 images, 120/s, 1.5 ± 0.1 img/s, done in 14 s",
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


def test_no_more_than_the_total_is_ever_shown():
    clock, stream = Clock(), io.StringIO()
    with Progress("measuring", 30, "steps", stream=stream, clock=clock) as progress:
        for _ in range(3):
            clock.now_s += 10
            progress.advance(16)
    assert [line.partition(",")[0] for line in stream.getvalue().splitlines()] == [
        "measuring: 16 of 30 steps",
        "measuring: 30 of 30 steps",
        "measuring: 30 of 30 steps",
        "measuring: 30 of 30 steps",
    ]


def test_a_time_that_is_up_before_the_last_step_is_said_to_be():
    clock, stream = Clock(), io.StringIO()
    with Progress("measuring", 12.5, SECONDS, stream=stream, clock=clock) as progress:
        for _ in range(21):
            clock.now_s += 1
            progress.advance()
    assert stream.getvalue().splitlines() == [
        "measuring: 10 of 12.5 s, at most 2 s left",
        "measuring: 12.5 of 12.5 s, waiting for the steps under way",
        "measuring: 12.5 of 12.5 s, done in 21 s",
    ]


def test_a_step_that_stands_still_is_told_now_and_then():
    clock, stream = Clock(), io.StringIO()
    with Progress("loading", 2, "instances", stream=stream, clock=clock) as progress:
        for _ in range(25):
            clock.now_s += 1
            progress.remind()
    assert stream.getvalue().splitlines() == ["loading: 0 of 2 instances"] * 2 + [
        "loading: 0 of 2 instances, done in 25 s"
    ]


def test_a_failed_step_is_not_called_done():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress("drawing", 10, "images", stream=stream):
        raise ValueError("broken")
    assert "done" not in stream.getvalue()


def shown_on_a_terminal(total, unit, *advances):
    """Return all that a terminal gets of a step that advances so."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(writer, "w") as terminal, Progress("drawing", total, unit, stream=terminal) as progress:
        for n in advances:
            progress.note("1.5 ± 0.1 img/s")
            progress.advance(n)
        terminal.flush()
    shown = b""
    with os.fdopen(reader, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := screen.read(10_000):
            shown += part
    return shown.decode()


def test_a_terminal_gets_a_bar_that_goes_no_further_than_its_total():
    shown = shown_on_a_terminal(4, "images", 3, 3)
    assert "drawing:   0%|" in shown
    assert "| 0/4 " in shown
    assert "6/4" not in shown
    assert re.search(r"100%\|█+\| 4/4 ", shown)
    assert "1.5 ± 0.1 img/s" in shown


def test_a_terminal_is_told_that_the_time_is_up():
    shown = shown_on_a_terminal(1.5, SECONDS, 1, 1, 1)
    assert "| 0/1.5 s" in shown
    assert "2/1.5" not in shown
    assert re.search(r"100%\|█+\| 1\.5/1\.5 s, 1\.5 ± 0\.1 img/s, waiting for the steps under way", shown)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (6744924160, "6.7 GB"), (2e16, "20000.0 TB")]
)
def test_bytes_are_written_for_people(count, text):
    assert bytes_text(count) == text


def test_who_listens_is_told_of_each_step_until_it_is_over():
    clock, seen = Clock(), []
    progress = Progress("drawing", 40, "images", stream=io.StringIO(), clock=clock)
    with listening(lambda step: seen.append((step.label, step.done, step.left_s, step.is_over))), progress:
        clock.now_s += 2
        progress.advance(10)
    with Progress("measuring", 10, SECONDS, stream=io.StringIO(), clock=clock):
        pass
    assert seen == [("drawing", 0, None, False), ("drawing", 10, 6.0, False), ("drawing", 10, 6.0, True)]
