"""Lay tables out as text: the one writer of columns, and footnotes for what a cell has no room for."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Protocol

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


class Style(Protocol):
    """How tables and what stands between them are written."""

    def footnotes(self) -> Footnotes:
        """Return what keeps the texts that cells have no room for."""

    def table(self, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
        """Return a table."""

    def paragraph(self, text: str) -> str:
        """Return a text between tables."""

    def items(self, title: str, texts: Sequence[str]) -> str:
        """Return a list of texts below a title; without one, the list alone."""


class Terminal:
    """Text for a terminal of 80 columns."""

    def footnotes(self) -> Footnotes:
        """Return notes with numbers, below their table."""
        return Footnotes()

    def table(self, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
        """Return aligned columns."""
        return align(header, cells)

    def paragraph(self, text: str) -> str:
        """Return lines that fit."""
        return wrap(text, more="")

    def items(self, title: str, texts: Sequence[str]) -> str:
        """Return one after the other, each with its further lines indented."""
        return "\n".join([*([title] if title else []), *map(wrap, texts)])


class Markdown:
    """Markdown with the tables of GitHub and GitLab, in which no text of a run is markup."""

    def footnotes(self) -> Footnotes:
        """Return notes that are a list below their table."""
        return _ListBelow()

    def table(self, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
        """Return a table with numbers to the right, whose columns are as wide as what is in them."""
        rows = [[escape_markdown(cell or EMPTY) for cell in row] for row in (header, *cells)]
        numeric = [
            bool(cells) and all(_is_number(cell or EMPTY) for cell in column) for column in zip(*cells, strict=True)
        ]
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        justify = [str.rjust if number else str.ljust for number in numeric]
        lines = [[put(cell, most) for put, cell, most in zip(justify, row, widths, strict=True)] for row in rows]
        rule = [f"{'-' * (most - 1)}{':' if number else '-'}" for most, number in zip(widths, numeric, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))

    def paragraph(self, text: str) -> str:
        """Return a paragraph."""
        return _escape_line(text)

    def items(self, title: str, texts: Sequence[str]) -> str:
        """Return a list."""
        return "\n".join(
            [*([_escape_line(title), ""] if title else []), *(f"- {_escape_line(text)}" for text in texts)]
        )


TERMINAL, MARKDOWN = Terminal(), Markdown()


class _ListBelow(Footnotes):
    """The texts below a table as a list of Markdown, by their numbers."""

    def below(self, table: str) -> str:
        """Return a table with the list below it."""
        notes = [f"{number}. {_escape_line(text)}" for text, number in self._numbers.items()]
        return "\n".join([table, "", *notes]) if notes else table


def escape_markdown(text: str) -> str:
    """Return a text of whatever origin as Markdown in which it stands as it is: no markup, no HTML, one line.

    Behind `@` comes what nobody sees, a word joiner: else some readers tell whoever has the name that follows.

    >>> escape_markdown("a|b <i> avx_fp32 _x_ [1](y) @z")
    'a\\\\|b &lt;i&gt; avx_fp32 \\\\_x\\\\_ \\\\[1\\\\](y) \\\\@&#8288;z'
    """
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"[\\`*\[\]|~$#@]|:(?=//)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return re.sub(r"(?<=@)(?=\w)", "&#8288;", text)


def _escape_line(text: str) -> str:
    """Return a text that begins a line as Markdown: not as a list, a rule, or code."""
    return re.sub(r"^([-+=]|[0-9]+(?=[.)]))", _escape_mark, escape_markdown(text).lstrip())


def _escape_mark(match: re.Match[str]) -> str:
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"


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
        printable(re.sub(r"\s", " ", text)),
        WIDTH,
        initial_indent=first,
        subsequent_indent=more,
        break_long_words=False,
        break_on_hyphens=False,
    )


def align(header: Sequence[str], cells: Sequence[Sequence[str]], width: int | None = WIDTH) -> str:
    """Return aligned text: numbers to the right, `-` for an empty cell, headings broken where their words allow.

    What is wider than `width` has its cells broken too, at `_` and spaces and nowhere else: the widest texts first, and
    numbers from their `±` last.
    """
    header = [printable(head) for head in header]
    columns = [[printable(cell) or EMPTY for cell in column] for column in zip(*cells, strict=True)]
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
