"""Keep results in a database file that can be asked with SQL: a row per run, KPI, parameter and fact.

A run is added whole or not at all, and never changed. Several processes may add at once: SQLite has them wait.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.facts import HOST_NAME
from cnnbench.results.record import RunResult, parse_result

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x434E4E42
"""What tells our files from those of other programs (`CNNB`)."""
VERSION = 1
WAIT_S = 30.0
"""How long others may hold the file before a call gives up."""
BATCH = 200
"""The runs of a transaction: what a call that is killed has added, it has added whole, and the next call goes on."""

TABLES = (
    """CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    workload TEXT NOT NULL,
    test_case TEXT NOT NULL,
    run_id TEXT NOT NULL,
    logs TEXT NOT NULL,           -- the name of its logs
    started TEXT NOT NULL,        -- UTC, 2026-01-31T18:00:00Z; as the run says it where that is no time
    machine TEXT NOT NULL,        -- the fact "host name"; empty where it is not known
    verdict TEXT NOT NULL,        -- valid, unstable or invalid
    reason TEXT NOT NULL,
    added TEXT NOT NULL,          -- when it came into this file, UTC
    result TEXT NOT NULL,         -- the whole run.json
    UNIQUE (workload, test_case, run_id)
)""",
    """CREATE TABLE kpis (
    run INTEGER NOT NULL REFERENCES runs,
    name TEXT NOT NULL,
    unit TEXT NOT NULL,
    value REAL NOT NULL,
    is_primary INTEGER NOT NULL   -- 1: what the run was made for
)""",
    """CREATE TABLE parameters (     -- as they took effect
    run INTEGER NOT NULL REFERENCES runs,
    name TEXT NOT NULL,
    value TEXT NOT NULL
)""",
    """CREATE TABLE facts (          -- machine, software and conditions
    run INTEGER NOT NULL REFERENCES runs,
    name TEXT NOT NULL,
    value TEXT NOT NULL
)""",
    "CREATE INDEX runs_by_time ON runs (started)",
    *(f"CREATE INDEX {table}_by_run ON {table} (run, name)" for table in ("kpis", "parameters", "facts")),
)


@dataclass
class Added:
    """What came of adding runs; `there`: how many were in the file already, `refused`: which are not those there."""

    added: int = 0
    there: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A run of a history. `text`: its whole result, as JSON."""

    logs: str
    started: datetime | None
    machine: str
    text: bytes


def is_history(path: Path) -> bool:
    """Say whether a file is a database, ours or another's."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the runs of a history in the order in which they were made; raise CnnbenchError where it is none."""
    with _open(path, "rw") as database:  # what a killed process has left half written is taken back
        _check(database, path)
        rows = database.execute("SELECT logs, started, machine, CAST(result AS BLOB) FROM runs ORDER BY started, id")
        for logs, started, machine, text in rows:
            yield Entry(logs, _parse(started), machine, text)


def add_runs(path: Path, runs: Iterable[tuple[str, RunResult]]) -> Added:
    """Add runs by the names of their logs to a history, which is made where there is none."""
    done, each = Added(), iter(runs)
    if (first := next(each, None)) is None:  # of nothing no history is made
        return done
    with _open(path, "rwc") as database:
        with _transaction(database):
            _prepare(database, path)
        batch: list[tuple[str, RunResult]] = []
        for one in chain([first], each):
            batch.append(one)
            if len(batch) == BATCH:
                _add_batch(database, path, batch, done)
                batch = []
        _add_batch(database, path, batch, done)
    return done


def check_path(path: Path) -> None:
    """Raise UsageError where a history is to be added to and something else is there, or its folder is not."""
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise UsageError(f"--sqlite {path}: is no file; name one, such as history.db")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--sqlite {path}: its folder is not there; make it, or name another file")
    if path.exists() and path.stat().st_size and not is_history(path):
        raise UsageError(f"--sqlite {path}: is no SQLite database; name a new file, or one that --sqlite has made")


def _add_batch(database: sqlite3.Connection, path: Path, batch: list[tuple[str, RunResult]], done: Added) -> None:
    new = Added()
    with _transaction(database):
        for logs, run in batch:
            _add(database, path, logs, run, new)
    done.added, done.there = done.added + new.added, done.there + new.there
    done.refused += new.refused


def _add(database: sqlite3.Connection, path: Path, logs: str, run: RunResult, done: Added) -> None:
    text = run.model_dump_json()
    known = database.execute(
        "SELECT result FROM runs WHERE workload = ? AND test_case = ? AND run_id = ?",
        _storable(run.workload, run.case, run.run_id),
    ).fetchone()
    if known:
        if known[0] == text or parse_result(known[0], str(path)) == run:
            done.there += 1
        else:
            done.refused.append(
                f"{logs}: {path} has the run {run.run_id} of {run.case} with another result, which stays; "
                "add it to another file, if it was judged anew"
            )
        return
    at = run.started_at
    row = database.execute(
        "INSERT INTO runs (workload, test_case, run_id, logs, started, machine, verdict, reason, added, result)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        _storable(
            run.workload, run.case, run.run_id, logs, _format(at) if at else run.started,
            run.facts.get(HOST_NAME, ""), run.verdict, run.reason, _format(datetime.now(timezone.utc)), text,
        ),
    ).lastrowid  # fmt: skip
    database.executemany(
        "INSERT INTO kpis VALUES (?, ?, ?, ?, ?)",
        [(row, *_storable(one.key, one.unit), one.value, int(one.primary)) for one in run.kpis],
    )
    for table, values in (("parameters", run.requested | run.effective), ("facts", run.facts)):
        database.executemany(
            f"INSERT INTO {table} VALUES (?, ?, ?)",  # noqa: S608 - one of these two names
            [(row, *_storable(name, value)) for name, value in values.items()],
        )
    done.added += 1


def _storable(*texts: str) -> tuple[str, ...]:
    """Return texts as SQLite takes them: as UTF-8, so names of files that are no text are escaped."""
    return tuple(text.encode("utf-8", "backslashreplace").decode() for text in texts)


def _format(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    """Make the tables in a file that has none, and check any other."""
    if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] or _pragma(database, "application_id"):
        _check(database, path)
        return
    for statement in TABLES:
        database.execute(statement)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {VERSION}")


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Raise CnnbenchError where a database is another program's, or one of ours that this version does not know."""
    if _pragma(database, "application_id") != APPLICATION_ID:
        raise CnnbenchError(f"{path}: is the database of another program; needed is one of cnnbench export --sqlite")
    if (version := _pragma(database, "user_version")) != VERSION:
        raise CnnbenchError(
            f"{path}: is a history of schema {version}, and this version of cnnbench knows {VERSION}; use the version "
            "that wrote it, or a later one"
        )


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


@contextlib.contextmanager
def _open(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open a database; whatever SQLite has to say of it is an error that names the file."""
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    begin = time.monotonic()
    try:
        with contextlib.closing(sqlite3.connect(address, timeout=WAIT_S, isolation_level=None, uri=True)) as database:
            yield database
    except sqlite3.Error as error:
        raise CnnbenchError(f"{path}: {_explain(error, time.monotonic() - begin)}") from error


def _explain(error: sqlite3.Error, waited_s: float) -> str:
    text = str(error)
    if "locked" in text:
        return f"another process has held it for {waited_s:.0f} s; try again when that has ended"
    if "not a database" in text:
        return "is no SQLite database, or a damaged one"
    if "malformed" in text:
        return f"is damaged ({text}); put its last good copy in its place"
    if "readonly" in text or "unable to open" in text:
        return f"cannot be written to or read ({text}); give a file in a folder that is yours"
    if "full" in text:
        return "the disk is full: make room; what was there before is whole"
    return f"SQLite: {text}"


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Have all of it happen, or nothing; others that add wait."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
