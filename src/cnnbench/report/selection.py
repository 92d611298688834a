"""Say which runs of those that there are a command is to look at: since when, and of which machine."""

import re
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.text import printable

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
NEEDED = "needed is a day such as 2026-01-31, a time such as 2026-01-31T18:00, or a span such as 12h, 7d or 4w"


@dataclass(frozen=True)
class Selection:
    """The runs that were started at a time or later (None: whenever), on a machine of this name (empty: on any)."""

    since: datetime | None = None
    machine: str = ""


ALL = Selection()


@dataclass
class Sieve:
    """Lets the runs of a selection through, and knows of the others what there would have been."""

    selection: Selection
    machines: set[str] = field(default_factory=set)
    newest: datetime | None = None
    undated: int = 0

    def admits(self, started: datetime | None, machine: str) -> bool:
        """Say whether a run is of the selection."""
        since = self.selection.since
        self.machines.add(machine)
        if started and (self.newest is None or started > self.newest):
            self.newest = started
        if self.selection.machine not in ("", machine):
            return False
        self.undated += since is not None and started is None
        return since is None or (started is not None and started >= since)

    def explain(self) -> None:
        """Raise an error that says why nothing came through, where there was something."""
        if not self.machines:
            return
        if self.selection.machine and self.selection.machine not in self.machines:
            known = [printable(name) for name in sorted(self.machines) if name]
            told = ", ".join(known) or "none: the runs do not say on which machine they were made"
            raise UsageError(printable(f"--machine {self.selection.machine}: no run is of it; known are {told}"))
        if self.selection.since:
            newest = f"the newest is of {self.newest:%Y-%m-%d %H:%M} UTC" if self.newest else "none says when it was"
            raise CnnbenchError(f"no run since {self.selection.since:%Y-%m-%d %H:%M} UTC: {newest}; choose an earlier")


def parse_time(option: str, text: str, now: datetime | None = None) -> datetime:
    """Return the moment that a day, a time or a span before now stands for, in UTC unless it says otherwise.

    `option`: what it was given to. Raises UsageError for what is none of these, or has yet to come.
    """
    now = now or datetime.now(timezone.utc)
    if found := re.fullmatch("([0-9]{1,4})([hdw])", text):
        return now - int(found[1]) * _UNITS[found[2]]
    try:
        if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            day = date.fromisoformat(text)
            moment = datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
        else:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise UsageError(printable(f"{option} {text}: is no time; {NEEDED}")) from error
    if moment > now:
        raise UsageError(f"{option} {text}: has yet to come; now is {now:%Y-%m-%dT%H:%M} UTC; {NEEDED}")
    return moment
