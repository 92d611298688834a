"""Draw how far the cases of a call of ctest.sh are, at the bottom of a terminal, below the lines that ctest prints.

What is drawn is what the files of the build directory tell (run/status.py), which ctest and its cases know nothing of.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cnnbench.base.errors import CnnbenchError
from cnnbench.machine.contention import with_siblings
from cnnbench.report.status import call_lines, case_lines, last_lines, share_done
from cnnbench.report.text import printable
from cnnbench.run.status import BuildSeen, CallSeen, read_build

DRAW_S = 1.0
BAR_WIDTH = 24
ECHO = 3
"""How many columns are left free, which the terminal's echo of a Ctrl-C takes: it must not begin a line of its own."""


class LiveView:
    """The view of one call on a terminal, from its beginning to its end, when it is wiped away."""

    def __init__(self, build_dir: Path, call: str, terminal: TextIO) -> None:
        self._build_dir, self._call = build_dir, call
        self._console = Console(file=terminal, highlight=False, emoji=False, markup=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._gone = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - closed with the view
        self._over = threading.Event()
        self._drawer = threading.Thread(target=self._draw_until_over, daemon=True)
        self._told = ""

    def __enter__(self) -> "LiveView":
        """Begin to draw."""
        self._live.start()
        self._drawer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wipe it away, and show the cursor."""
        self._over.set()
        self._drawer.join()
        with self._unless_gone():
            self._live.stop()
        self._gone.close()

    @contextlib.contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Write to our terminal; once it cannot be written to any more it is gone, and gets nothing."""
        try:
            yield
        except OSError:
            self._console.file = self._gone

    def copy(self, lines: Iterable[str]) -> None:
        """Print lines that come from a terminal above the view, until nobody writes there any more (EIO).

        They are taken even when our own terminal is gone: who writes them would wait for ever.
        """
        with contextlib.suppress(OSError):
            for line in lines:
                with self._unless_gone():
                    self._console.print(Text.from_ansi(line.rstrip("\n")), soft_wrap=True)

    def tell(self, lines: Iterable[str]) -> None:
        """Show the last of these lines in the view: what a case's preparations say of how far they are."""
        for line in lines:
            self._told = printable(line.strip())

    def _draw_until_over(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        while not self._over.wait(DRAW_S):
            with self._unless_gone():
                self.draw()

    def draw(self) -> None:
        """Draw once, from what the files tell now."""
        try:
            build = read_build(self._build_dir)
        except CnnbenchError as error:  # the build directory went away: what runs there will say so
            self._live.update(Text(str(error)), refresh=True)
            return
        seen = next((one for one in build.calls if one.call.name == self._call), None)
        if seen is not None:
            _keep_off(self._allowed, seen)
            self._live.update(self._render(build, seen), refresh=True)

    def _render(self, build: BuildSeen, seen: CallSeen) -> RenderableType:
        now_s = time.time()
        parts: list[RenderableType] = [
            _line(text, "dim" if at else "bold") for at, text in enumerate(call_lines(seen, build.costs_s, now_s))
        ]
        for case in seen.running:
            title, *details = case_lines(case, build.costs_s.get(case.case), now_s)
            parts.append(_line(title, "cyan"))
            share = share_done(case.now.phase)
            parts += [_line(text, "green" if " ± " in text else "") for text in details]
            if share is not None:
                parts.append(_bar(share, min(BAR_WIDTH, max(1, self._console.width - 10))))
            if not case.now.instances and self._told:
                parts.append(_line(f"  {self._told}", "dim"))
        if seen.ended:
            parts += [_line(text, "dim") for text in last_lines(seen.ended[-1])]
        parts += [_line(text, "red") for text in build.complaints]
        return Constrain(Group(*parts), max(1, self._console.width - ECHO))


def _line(text: str, style: str) -> Text:
    """Return a text of one line, however narrow the terminal: a line that wrapped could not be drawn over."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _bar(share: float, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" ", ProgressBar(total=1.0, completed=share, width=width), f"{share:.0%}")
    return grid


def _keep_off(allowed: set[int], seen: CallSeen) -> None:
    """Have this thread draw on a core that is not measured, where there is one."""
    used = with_siblings(cpu for case in seen.running for cpu in case.now.cpus)
    os.sched_setaffinity(0, allowed - used or allowed)
