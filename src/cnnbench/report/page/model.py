"""Hold what a page shows, before any HTML: sections of figures and tables. All of it is plain text and numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbench.results.kpi_text import format_number

Value = dict[str, Any]
"""A row of a chart's data: names to texts and finite numbers."""


@dataclass(frozen=True)
class Cell:
    """A table's cell. `run`: the number of the run that its number is of, so that it has that run's badge; 0 for none.

    `strong`: whether it is the number that the run was made for.
    """

    text: str
    run: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `caption`: what it is of."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Figure:
    """A chart, with the table that says the same.

    `name`: of its file, and in the page. `text`: what there is to see, for those who cannot. `draw`: makes an Altair
    chart of Altair's module and `values`, which are kept apart so that a page without charts needs no Altair.
    """

    name: str
    title: str
    text: str
    draw: Callable[[Any, list[Value]], Any]
    values: list[Value]
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page. `lead`: how to read it. `notes`: what was left out, and why."""

    name: str
    title: str
    lead: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def number_text(value: float | None) -> str:
    """Return a number as all our tables show it; nothing for none."""
    return "" if value is None else format_number(value)
