"""Lay tables out as text: the one writer of columns, and footnotes for what a cell has no room for."""

import re
import textwrap
from collections.abc import Sequence

from cnnbench.results.record import Verdict

WIDTH = 80
"""The columns of a terminal that nobody has widened."""

WORDS: dict[Verdict, str] = {"valid": "valid", "unstable": "unstable", "invalid": "INVALID"}
"""The verdicts as they are shown, from good to bad."""

_NARROWEST_TEXT = 24


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
            notes.append(textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark)))
        return "\n".join([table, "", *notes]) if notes else table


def align(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return aligned text: numbers to the right, names broken at `_` and spaces, the last column wrapped."""
    columns = list(zip(*cells, strict=True))
    heads = [_break_name(head, column) for head, column in zip(header, columns, strict=True)]
    widths = [max(map(len, [*head, *column])) for head, column in zip(heads, columns, strict=True)]
    justify = [str.rjust if all(map(_is_number, column)) else str.ljust for column in columns]
    room = max(WIDTH - sum(width + 2 for width in widths[:-1]), _NARROWEST_TEXT)
    height = max(map(len, heads))
    lines = [[head[level - height] if height - level <= len(head) else "" for head in heads] for level in range(height)]
    for row in cells:
        first, *more = textwrap.wrap(row[-1], room) or [""]
        lines.append([*row[:-1], first])
        lines += [[*("" for _ in row[:-1]), text] for text in more]
    widths[-1] = min(widths[-1], room)
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(justify, line, widths, strict=True)).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    return not text or re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) is not None


def _break_name(head: str, column: Sequence[str]) -> list[str]:
    """Break a column's name into lines that are no wider than its values, or than its longest word, need."""
    words = re.findall(r"[^_ ]+[_ ]?", head)
    width = max(map(len, [*words, *column]))
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]
