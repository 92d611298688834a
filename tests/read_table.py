"""Read a table that was laid out for a terminal back into its cells."""

import re


def read_tables(text: str) -> list[list[list[str]]]:
    """Return a text's tables, each as its header and its rows; a broken cell is put together again.

    Tables are the paragraphs of at least three columns. Each row begins with a line that has no empty cell, as `-`
    stands for those.
    """
    read = [_read(paragraph.strip("\n")) for paragraph in text.split("\n\n")]
    return [rows for rows in read if len(rows) > 1 and len(rows[0]) > 2]


def read_table(text: str, number: int = 0) -> list[list[str]]:
    """Return one of a text's tables, counted from 0."""
    return read_tables(text)[number]


def _read(paragraph: str) -> list[list[str]]:
    lines = paragraph.splitlines()
    width = max(map(len, lines), default=0)
    ink = "".join(" " if all(line[at : at + 1].strip() == "" for line in lines) else "x" for at in range(width))
    places = [match.span() for match in re.finditer("x( ?x)*", ink)]
    rows: list[list[str]] = [[""] * len(places)]
    begun = False
    for line in lines:
        cells = [line[begin:end].strip() for begin, end in places]
        if all(cells) and begun:
            rows.append(cells)
        else:
            pairs = zip(rows[-1], cells, strict=True)
            rows[-1] = [old + ("" if old.endswith("_") or not (old and new) else " ") + new for old, new in pairs]
        begun = begun or all(cells)
    return rows
