"""Write runs as a workbook of Excel: a sheet per workload, a column per case, and one per run where it was repeated.

The layout is that of the spreadsheets that Intel's workload framework makes of its KPIs (`xls-list`).
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from cnnbench.report.export.formats import need
from cnnbench.report.table import repetition
from cnnbench.report.text import WORDS, printable
from cnnbench.results.record import WORKER, Kpi, RunResult

LONGEST_NAME = 31
"""The most characters of a sheet's name in Excel, in UTF-16."""
LONGEST_TEXT = 32_767
"""The most characters of a cell."""
MOST_COLUMNS = 16_384
WIDEST = 44
"""How wide a column is at the most, in characters: what is longer goes on in further lines."""
FROZEN_ROWS = 2
"""The rows of the head, which stay in sight: the case and its run."""

COLORS = {WORDS["invalid"]: "#b3261e", WORDS["unstable"]: "#7a5c00"}
"""How verdicts stand out, the worst first."""

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """A column: runs that are repetitions of each other, or one of these. `folded`: beside the column of them all."""

    case: str
    run: str
    members: Sequence[tuple[str, RunResult]]
    folded: bool = False

    @property
    def counting(self) -> list[RunResult]:
        """The runs that have numbers."""
        return [run for _, run in self.members if run.verdict != "invalid"]

    @property
    def verdict(self) -> str:
        """The verdict, of several runs with how many have it."""
        counts = {word: sum(WORDS[run.verdict] == word for _, run in self.members) for word in WORDS.values()}
        found = {word: count for word, count in counts.items() if count}
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{count} of {len(self.members)} {word}" for word, count in found.items())

    @property
    def reason(self) -> str:
        """Why not all runs are valid."""
        if len(self.members) == 1:
            return self.members[0][1].reason
        return "; ".join(f"{_short(name, run)}: {run.reason}" for name, run in self.members if run.reason)


def write_workbook(runs: Sequence[tuple[str, RunResult]], _: Sequence[str], stream: BinaryIO) -> None:
    """Write the runs; raise UsageError where what writes workbooks is not installed."""
    xlsxwriter = need("xlsxwriter", "xlsx")
    workloads: dict[str, list[tuple[str, RunResult]]] = {}
    for name, run in runs:
        workloads.setdefault(run.workload, []).append((name, run))
    sheets: list[tuple[str, Sequence[Column]]] = []
    for workload, members in workloads.items():
        columns, most = _columns(members), MOST_COLUMNS - 1
        sheets += [(workload, columns[start : start + most]) for start in range(0, len(columns), most)]
    whole = io.BytesIO()  # a ZIP file that cannot be written to its end would say so again when it is forgotten
    book = xlsxwriter.Workbook(whole, {"in_memory": True})
    draw = _Pen(book)
    for name, (_, part) in zip(sheet_names([workload for workload, _ in sheets]), sheets, strict=True):
        _fill(book.add_worksheet(name), part, draw)
    book.close()
    stream.write(whole.getbuffer())


def sheet_names(wanted: Iterable[str]) -> list[str]:
    """Return names that Excel takes for sheets: short enough, without what it forbids, and different in more than case.

    >>> sheet_names(["a/b", "A_B", "", "History"])
    ['a_b', 'A_B (2)', 'runs', 'History_']
    """
    names: list[str] = []
    for text in wanted:
        name = re.sub(r"[\[\]:*?/\\]", "_", printable(text).strip(" '")) or "runs"
        name = _cut(f"{name}_" if name.lower() == "history" else name, LONGEST_NAME)
        number, tried = 1, name
        while tried.lower() in (other.lower() for other in names):
            number += 1
            mark = f" ({number})"
            tried = _cut(name, LONGEST_NAME - len(mark)) + mark
        names.append(tried)
    return names


def _cut(text: str, most: int) -> str:
    """Return a name without what is beyond so many characters of UTF-16, and not cut at a quotation mark."""
    while len(text.encode("utf-16-le")) > 2 * most:
        text = text[:-1]
    return text.rstrip(" '")


def _columns(members: Sequence[tuple[str, RunResult]]) -> list[Column]:
    """Return the columns of a workload, in the order in which its cases were first met."""
    groups: dict[Hashable, list[tuple[str, RunResult]]] = {}
    for name, run in members:
        groups.setdefault(repetition(run), []).append((name, run))
    columns = []
    for group in groups.values():
        case = group[0][1].case
        if len(group) > 1:
            counting = sum(run.verdict != "invalid" for _, run in group)
            which = f"{counting} of {len(group)}" if counting < len(group) else str(counting)
            columns.append(Column(case, f"median of {which} runs", group))
        columns += [Column(case, _short(name, run), [(name, run)], len(group) > 1) for name, run in group]
    return columns


def _short(name: str, run: RunResult) -> str:
    """Return what runs of a case are told apart by: itr-N, where its logs are named for it."""
    return name.removeprefix(f"logs-{run.case}/").removesuffix(f"/{WORKER}")


def _label(kpi: Kpi) -> str:
    unit = f" ({kpi.unit})" if kpi.unit else ""
    return f"{'*' if kpi.primary else ''}{kpi.key}{unit}"


class _Pen:
    """Writes cells in the formats of a book, which has each of them once."""

    def __init__(self, book: Any) -> None:
        self._book = book
        self._formats: dict[tuple[tuple[str, Any], ...], Any] = {}

    def format(self, **properties: Any) -> Any:
        """Return a format of a cell."""
        key = tuple(sorted(properties.items()))
        if key not in self._formats:
            self._formats[key] = self._book.add_format({"valign": "top", **properties})
        return self._formats[key]

    def write(self, sheet: Any, at: tuple[int, int], value: Value, **properties: Any) -> None:
        """Write a number as one, and a text as nothing else: never as a formula, a link or a number."""
        if isinstance(value, str):
            text = printable(value)
            text = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
            quoted = {"quote_prefix": True} if text[:1] in ("=", "+", "-", "@") else {}
            sheet.write_string(*at, text, self.format(text_wrap=True, **quoted, **properties))
        elif value is not None:
            sheet.write_number(*at, value, self.format(num_format=_digits(value), **properties))


def _digits(value: float) -> str:
    """Return the format that shows a number with four significant digits, or all of those before the point."""
    if isinstance(value, int):
        return "0"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    decimals = min(max(3 - magnitude, 0), 9)
    return f"0.{'0' * decimals}" if decimals else "0"


def _fill(sheet: Any, columns: Sequence[Column], pen: _Pen) -> None:
    """Write a sheet, its columns as wide as their texts need, with the head in sight and single runs folded in."""
    widths = [0] * (len(columns) + 1)
    for row, (label, value_of) in enumerate(_rows(columns)):
        look: dict[str, Any] = {"bold": row < FROZEN_ROWS or value_of is None or label[:1] == "*"}
        if row == FROZEN_ROWS - 1:
            look["bottom"] = 1
        values = [label or None, *(value_of(column) if value_of else None for column in columns)]
        for at, value in enumerate(values):
            color = _color(value) if label == "verdict" else {}
            pen.write(sheet, (row, at), value, **look, **color)
            widths[at] = max(widths[at], _width(value))
    sheet.freeze_panes(FROZEN_ROWS, 1)
    sheet.outline_settings(True, True, False, False)  # the column of all runs stands left of theirs
    sheet.set_column(0, 0, widths[0] + 2)
    for at, column in enumerate(columns, start=1):
        more = columns[at : at + 1]
        outline = {"level": 1, "hidden": True} if column.folded else {"collapsed": bool(more) and more[0].folded}
        sheet.set_column(at, at, widths[at] + 2, None, outline)


Row = tuple[str, Callable[[Column], Value] | None]
"""What a row is called, and what a column has in it; nothing where the row is a title, or empty."""


def _rows(columns: Sequence[Column]) -> list[Row]:
    """Return a sheet's rows: the head, the verdicts, the parameters (##), the KPIs (the primary starred), the facts."""
    runs = [run for column in columns for _, run in column.members]
    labels = list(dict.fromkeys(_label(kpi) for run in runs if run.verdict != "invalid" for kpi in run.kpis))
    labels.sort(key=lambda label: not label.startswith("*"))
    parameters = dict.fromkeys(name for run in runs for name in run.effective)
    facts = dict.fromkeys(name for run in runs for name in run.facts)
    return [
        ("case", lambda column: column.case),
        ("run", lambda column: column.run),
        ("verdict", lambda column: column.verdict),
        ("reason", lambda column: column.reason or None),
        *[("", None), ("Workload parameters:", None)],
        *((f"## {name}", partial(_parameter, name)) for name in parameters),
        *[("", None), ("KPIs:", None)],
        *((label, partial(_kpi, label)) for label in labels),
        *[("", None), ("Machine and software:", None)],
        *((f"# {name}", partial(_fact, name)) for name in facts),
    ]


def _kpi(label: str, column: Column) -> Value:
    """Return a KPI, of several runs the median; nothing where no run has it to show.

    The ends of their intervals are each run's own: the median of these is no end of an interval.
    """
    if len(column.members) > 1 and re.search(r" 95 % (low|high)\b", label):
        return None
    values = [kpi.value for run in column.counting for kpi in run.kpis if _label(kpi) == label]
    return statistics.median(values) if values else None


def _parameter(name: str, column: Column) -> Value:
    """Return a parameter, as a number where it is a whole one that Excel does not round."""
    text = _join(run.effective.get(name) for _, run in column.members)
    return int(text) if text and re.fullmatch("0|[1-9][0-9]{0,14}", text) else text


def _fact(name: str, column: Column) -> Value:
    return _join(run.facts.get(name) for _, run in column.members)


def _join(texts: Iterable[str | None]) -> str | None:
    """Return the texts that runs have, each once."""
    return "; ".join(dict.fromkeys(text for text in texts if text)) or None


def _color(verdict: Value) -> dict[str, str]:
    """Return the colour of the worst verdict that a text names."""
    return next(({"font_color": color} for word, color in COLORS.items() if word in str(verdict)), {})


def _width(value: Value) -> int:
    return min(WIDEST, len(value) if isinstance(value, str) else 10)
