"""Lay tables out as text: the one writer of columns, and footnotes for what a cell has no room for."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence

from cnnbench.results.record import Verdict

WIDTH = 80
"""The columns of a terminal that nobody has widened."""

WORDS: dict[Verdict, str] = {"valid": "valid", "unstable": "unstable", "invalid": "INVALID"}
"""The verdicts as they are shown, from good to bad."""

EMPTY = "-"
"""A cell that has nothing to show."""

_GAP = "  "
_WORD = re.compile("[^_ ]+(?: %[^_ ]*)?[_ ]*|[_ ]+")
"""A part of a text that a line may end after."""


class Footnotes:
    """The texts below a table, each once, by the numbers that its cells cite."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cite(self, word: str, text: str) -> str:
        """Return a cell's word with the number of the text that explains it; the word alone without a text."""
        if not text:
            return word
        return f"{word} [{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def below(self, table: str) -> str:
        """Return a table with the texts below it."""
        notes = []
        for text, number in self._numbers.items():
            mark = f"[{number}] "
            notes.append(wrap(text, mark, " " * len(mark)))
        return "\n".join([table, "", *notes]) if notes else table


def printable(text: str) -> str:
    """Return a text of whatever origin without what a terminal would obey or could not show: that is escaped.

    >>> printable("logs-\\x1b[2J\\udcff")
    'logs-\\\\x1b[2J\\\\udcff'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def wrap(text: str, first: str = "", more: str = "    ") -> str:
    """Break a text into lines for a terminal, `first` before the first one and `more` before the rest.

    Paths, options and names stay whole.
    """
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=more, break_long_words=False, break_on_hyphens=False
    )


def align(header: Sequence[str], cells: Sequence[Sequence[str]], width: int | None = WIDTH) -> str:
    """Return aligned text: numbers to the right, `-` for an empty cell, headings broken where their words allow.

    What is wider than `width` has its cells broken too, at `_` and spaces and nowhere else: the widest texts first, and
    numbers from their `±` last.
    """
    columns = [[cell or EMPTY for cell in column] for column in zip(*cells, strict=True)]
    numeric = [all(map(_is_number, column)) for column in columns]
    heads = [_widest(_words(head)) for head in header]
    widths = [max(head, _widest(column)) for head, column in zip(heads, columns, strict=True)]
    least = [
        max(head, *(_widest(_words(cell)) for cell in column)) for head, column in zip(heads, columns, strict=True)
    ]
    while width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        able = [number for number, most in enumerate(widths) if most > least[number]]
        if not able:
            break
        widths[max(able, key=lambda number: (not numeric[number], widths[number]))] -= 1
    rows = [[_break(cell, most) for cell, most in zip(row, widths, strict=True)] for row in zip(*columns, strict=True)]
    titles = [_break(head, most) for head, most in zip(header, widths, strict=True)]
    height = max(map(len, titles))
    lines = _level([[""] * (height - len(title)) + title for title in titles])  # so that they end above their values
    lines += [line for row in rows for line in _level(row)]
    widths = [_widest(column) for column in zip(*lines, strict=True)]
    justify = [str.rjust if number else str.ljust for number in numeric]
    return "\n".join(
        _GAP.join(put(cell, most) for put, cell, most in zip(justify, line, widths, strict=True)).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    """Say whether a cell is a number, or what stands in place of one."""
    return (
        text in (EMPTY, WORDS["invalid"])
        or re.fullmatch(r"-?[0-9]+(\.[0-9]+)?( ±[0-9]+(\.[0-9]+)?)?", text) is not None
    )


def _widest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _words(text: str) -> list[str]:
    """Return the parts of a text that no line may end in."""
    return [word.rstrip() for word in _WORD.findall(text)]


def _break(text: str, width: int) -> list[str]:
    """Break a text into lines that are no wider than this, or than its longest word."""
    lines = [""]
    for word in _WORD.findall(text):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def _level(row: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lines of a row whose cells have lines of their own."""
    return [list(line) for line in itertools.zip_longest(*row, fillvalue="")]
