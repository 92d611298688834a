"""A history of results: what is added to it, what is read from it, and what else it is given."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from cnnbench.cli.main import main
from cnnbench.report import history
from cnnbench.report.history import APPLICATION_ID
from cnnbench.results.record import Kpi
from run_files import CASE, INVALID, UNSTEADY, make_run, save_run, save_set

VALUES = [100.0, 101.0, 99.0]
DAY = 1440
"""The minutes of one."""


@pytest.fixture
def call(capsys):
    """Call cnnbench; return its exit code, its output and its errors."""

    def run(*words):
        code = main(list(map(str, words)))
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def logs(tmp_path):
    return save_set(tmp_path / "logs", VALUES, facts={"host name": "one"})


@pytest.fixture
def kept(call, logs, tmp_path):
    """Return a history that has the runs of two machines, a day each."""
    save_set(tmp_path / "logs", [v / 2 for v in VALUES], begin=DAY, facts={"host name": "two", "kernel": "6.6"})
    path = tmp_path / "history.db"
    code, output, _ = call("export", "--sqlite", path, tmp_path / "logs")
    assert (code, output) == (0, f"{path}: added 6 runs; 0 were there already, 0 refused\n")
    return path


def ask(path, query):
    with sqlite3.connect(path) as database:
        return database.execute(query).fetchall()


def plain(text):
    return " ".join(text.split())


def test_what_is_there_is_not_added_twice_and_nothing_is_changed(call, kept, logs):
    before = kept.read_bytes()
    code, output, _ = call("export", "--sqlite", kept, logs)
    assert (code, "added 0 runs; 6 were there already, 0 refused" in output) == (0, True)
    assert kept.read_bytes() == before
    (worker,) = logs.glob(f"logs-{CASE}/itr-2/worker-0")
    judged = make_run(50.0, 1, run_id=json.loads((worker / "run.json").read_text())["run_id"])
    (worker / "run.json").write_text(judged.model_dump_json())
    save_run(logs, make_run(98.0, 2 * DAY))
    code, output, errors = call("export", "--sqlite", kept, logs)
    assert (code, "added 1 runs; 5 were there already, 1 refused" in output) == (1, True)
    assert f"itr-2: {kept} has the run {judged.run_id} of {CASE} with another result, which stays" in errors
    assert ask(kept, f"SELECT value FROM kpis JOIN runs ON run = id WHERE run_id = '{judged.run_id}'") == [(101.0,)]


def test_all_that_a_run_says_can_be_asked_with_sql(call, tmp_path):
    extra = [Kpi(key="Latency p99", unit="ms", value=5)]
    save_run(tmp_path / "a", make_run(1.5, criteria=(UNSTEADY,), extra=extra, facts={"host name": "one"}))
    save_run(tmp_path / "a", make_run(2.5, 1, criteria=(INVALID,)).model_copy(update={"started": "then"}))
    call("export", "--sqlite", tmp_path / "h.db", tmp_path / "a")
    runs = ask(tmp_path / "h.db", "SELECT workload, test_case, started, machine, verdict, reason <> '' FROM runs")
    assert runs == [
        ("CNN-PyTorch-Public", CASE, "2026-01-01T00:00:00Z", "one", "unstable", 1),
        ("CNN-PyTorch-Public", CASE, "then", "", "invalid", 1),
    ]
    kpis = ask(tmp_path / "h.db", "SELECT run, name, unit, value, is_primary FROM kpis")
    assert kpis == [(1, "Throughput", "img/s", 1.5, 1), (1, "Latency p99", "ms", 5.0, 0)]
    assert ("BATCH_SIZE", "8") in ask(tmp_path / "h.db", "SELECT name, value FROM parameters WHERE run = 1")
    assert ("kernel", "6.1") in ask(tmp_path / "h.db", "SELECT name, value FROM facts WHERE run = 1")
    assert ask(tmp_path / "h.db", "SELECT json_extract(result, '$.case') FROM runs WHERE id = 1") == [(CASE,)]
    assert ask(tmp_path / "h.db", "PRAGMA application_id") == [(APPLICATION_ID,)]


def test_tables_pages_and_comparisons_read_a_history_like_folders(call, kept, tmp_path):
    for words in (("list-kpi", "--all", "--format", "json"), ("list-kpi", "--format", "csv")):
        assert call(*words, kept)[:2] == call(*words, tmp_path / "logs")[:2]
    assert call("list-kpi", kept, tmp_path / "logs")[1] == call("list-kpi", kept)[1]  # each run once
    code, output, _ = call("report", "-o", tmp_path / "page.html", kept)
    assert (code, "6 runs" in output) == (0, True)
    code, output, _ = call("compare", kept, "--by", "machine")
    assert (code, "machine one (3 runs)" in plain(output), "slower" in output) == (4, True, True)
    assert "kernel" in output
    for number, engine in enumerate(("pytorch", "openvino")):
        save_run(tmp_path / "engines", make_run(90.0, number, ENGINE=engine))
    told = plain(call("compare", tmp_path / "engines", "--by", "ENGINE")[1])
    assert "ENGINE pytorch (1 run" in told
    assert "ENGINE openvino (1 run" in told
    copied = call("export", "--format", "json", kept)[1]
    assert len(json.loads(copied)["runs"]) == 6


def test_runs_are_selected_by_time_and_machine_from_whatever_source(call, kept, tmp_path):
    for source in (kept, tmp_path / "logs"):
        for words, count in (
            (("--machine", "two"), 3),
            (("--since", "2026-01-02"), 3),
            (("--since", "2026-01-01T00:01", "--machine", "one"), 2),
        ):
            code, output, errors = call("list-kpi", "--format", "json", source, *words)
            runs = [one for one in json.loads(output) if one["record"] == "run"]
            assert (code, len(runs), errors) == (0, count, ""), words
    code, output, _ = call("compare", kept, "--split-at", "2026-01-02")
    assert code == 4
    assert "before 2026-01-02 00:00 UTC (3 runs)" in plain(output)
    assert "since 2026-01-02 00:00 UTC (3 runs)" in plain(output)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("list-kpi", "--since", "soon"), 2, "--since soon: is no time; needed is a day such as 2026-01-31"),
        (("report", "--since", "2999-01-01"), 2, "has yet to come"),
        (("compare", "--split-at", "never"), 2, "--split-at never: is no time"),
        (("compare", "--split-at", "2025-01-01"), 2, "no run before 2025-01-01 00:00 UTC; choose a moment between"),
        (("compare", "--by", "colour"), 2, "--by colour: no fact and no parameter of a run; they differ by "),
        (("compare", "--by", "CPU"), 2, "all runs that say have EPYC; they differ by kernel, host name"),
        (("compare",), 2, "--by and --split-at make sets of one"),
        (("list-kpi", "--machine", "three"), 2, "--machine three: no run is of it; known are one, two"),
        (("compare", "--by", "machine", "--machine", "one"), 2, "all runs that say have one"),
        (("trend", "--metric", "speed"), 2, "no KPI that is better high or low"),
        (("trend", "--metric", "Latency p99"), 2, "--metric Latency p99: no run has it"),
        (("list-kpi", "--since", "2026-01-03"), 1, "no run since 2026-01-03 00:00 UTC: the newest is of 2026-01-02"),
        (("export", "--sqlite", "{}"), 1, "no run since"),
    ],
)
def test_selections_of_nothing_say_what_there_is(call, kept, words, code, told):
    if words[0] == "export":
        words = ("export", "--sqlite", kept.with_name("other.db"), "--since", "2026-01-03")
    found, output, errors = call(*words, kept)
    assert (found, output) == (code, "")
    assert told in plain(errors)


def other_program(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (id INTEGER)")


def newer(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (id INTEGER)")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 99")


def damaged(path):
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


@pytest.mark.parametrize(
    ("spoil", "added", "read"),
    [
        (other_program, "is the database of another program", "is the database of another program"),
        (newer, "is a history of schema 99, and this version of cnnbench knows 1", "is a history of schema 99"),
        (damaged, "is no SQLite database, or a damaged one", "is no SQLite database, or a damaged one"),
        (lambda path: path.write_text("text"), "is no SQLite database; name a new file", "not a complete result"),
        (lambda path: path.mkdir(), "is no file; name one, such as history.db", "no run.json there"),
        (lambda path: path.symlink_to(path), "cannot be written to or read", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_history_is_refused_and_left_as_it_is(call, logs, tmp_path, spoil, added, read):
    path = tmp_path / "x.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    code, output, errors = call("export", "--sqlite", path, logs)
    assert (code in (1, 2), output) == (True, "")
    assert added in plain(errors)
    assert str(path) in errors
    assert (path.read_bytes() if before is not None else None) == before
    for words in (("list-kpi",), ("report", "-o", tmp_path / "page.html"), ("trend",)):
        code, _, errors = call(*words, path)
        assert code == 1, words
        assert read in plain(errors)


def test_an_empty_file_is_a_new_history_and_none_to_read(call, logs, tmp_path):
    path = tmp_path / "empty.db"
    path.touch()
    code, _, errors = call("list-kpi", path)
    assert (code, "empty.db: not a complete result" in errors) == (1, True)
    assert call("export", "--sqlite", path, logs)[0] == 0
    assert call("list-kpi", path)[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sqlite", "{tmp}/not/there.db", "{logs}"), "its folder is not there"),
        (("--sqlite", "{tmp}/h.db"), "needs runs"),
        (("--sqlite", "{tmp}/h.db", "-o", "x.json", "{logs}"), "leave out -o and --format"),
        (("--sqlite", "{tmp}/h.db", "{tmp}/nothing"), "no run to add"),
        (("--sqlite", "{kept}", "{logs}", "{kept}"), "is among the runs that are to be added"),
        (("--sqlite", "/proc/h.db", "{logs}"), "/proc/h.db: cannot be written to or read"),
    ],
)
def test_what_cannot_be_kept_is_told(call, kept, logs, tmp_path, words, told):
    code, output, errors = call("export", *(word.format(tmp=tmp_path, logs=logs, kept=kept) for word in words))
    assert (code in (1, 2), output) == (True, "")
    assert told in errors


def test_who_holds_a_history_for_long_is_told_of(call, kept, logs, monkeypatch):
    monkeypatch.setattr(history, "WAIT_S", 0.1)
    holder = sqlite3.connect(kept, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    for words in (("export", "--sqlite", kept, logs), ("list-kpi", kept)):
        code, _, errors = call(*words)
        assert (code, f"{kept}: another process has held it for" in errors) == (1, True)
    holder.close()
    assert call("list-kpi", kept)[0] == 0


def test_two_processes_add_to_a_new_history_at_once(tmp_path):
    path = tmp_path / "h.db"
    for name in ("a", "b"):
        save_set(tmp_path / name, [float(n + 1) for n in range(30)], begin=0 if name == "a" else 100)
    command = [sys.executable, "-m", "cnnbench", "export", "--sqlite", str(path)]
    both = [subprocess.Popen([*command, str(tmp_path / name)]) for name in ("a", "b")]
    assert [one.wait() for one in both] == [0, 0]
    assert ask(path, "SELECT count(*), count(DISTINCT run_id) FROM runs") == [(60, 60)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


ADDS_SLOWLY = """
import os, sys, time
from pathlib import Path
from cnnbench.report.history import BATCH, add_runs
sys.path.insert(0, sys.argv[2])
from run_files import make_run
def runs():
    for number in range(BATCH + 5):
        yield "logs", make_run(1.0, number)
    Path(sys.argv[1] + ".begun").touch()
    while True:
        time.sleep(0.05)
add_runs(Path(sys.argv[1]), runs())
"""


def test_a_history_is_whole_after_a_kill_in_the_middle(call, tmp_path):
    path = tmp_path / "h.db"
    process = subprocess.Popen([sys.executable, "-c", ADDS_SLOWLY, str(path), str(Path(__file__).parents[1])])
    while not path.with_name("h.db.begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert ask(path, "SELECT count(*) FROM runs") == [(history.BATCH,)]
    save_set(tmp_path / "more", [1.0] * 3, begin=history.BATCH - 1)
    assert "added 2 runs; 1 were there already" in call("export", "--sqlite", path, tmp_path / "more")[1]


DIES_WRITING = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.executemany("UPDATE facts SET value = ? WHERE run = ?", [("x" * 3000, run) for run in range(1, 7)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_half_written_is_taken_back(call, kept):
    before, table = kept.read_bytes(), call("list-kpi", kept)
    subprocess.run([sys.executable, "-c", DIES_WRITING, str(kept)], check=False)
    assert kept.read_bytes() != before
    assert call("list-kpi", kept) == table
    assert ask(kept, "PRAGMA integrity_check") == [("ok",)]


def test_hostile_names_are_texts_in_a_history_and_do_nothing_to_a_terminal(call, tmp_path):
    case = "test_x'); DROP TABLE runs; --\x1b[2J"
    for number, value in enumerate(VALUES):
        run = make_run(value, number, case=case, facts={"host name": "m\x1b[31m", "'": '"'})
        folder = tmp_path / os.fsdecode(b"logs-\xff\x1b[0m") / f"itr-{number + 1}" / "worker-0"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(run.model_dump_json())
    path = tmp_path / "odd ?#%41 name.db"
    code, output, _ = call("export", "--sqlite", path, tmp_path)
    assert (code, "added 3 runs" in output) == (0, True)
    assert ask(path, "SELECT DISTINCT test_case, machine FROM runs") == [(case, "m\x1b[31m")]
    for words in (("list-kpi", "--machine", "x"), ("trend",), ("trend", "--format", "json")):
        _, output, errors = call(*words, path)
        assert "\x1b" not in output + errors
    assert call("trend", path)[0] == 0


def trend_set(root, *, step=0.9, days=24, at=12):
    for day in range(days):
        after = day >= at
        for number in range(2):
            value = 100 * (step if after else 1) * (1 + 0.002 * ((7 * day + 3 * number) % 5))
            facts = {"host name": "one", "microcode": "0x2" if after else "0x1"}
            save_run(root, make_run(value, minutes=DAY * day + number, facts=facts))
    return root


def test_a_trend_marks_a_step_and_says_what_changed_there(call, tmp_path):
    code, output, errors = call("trend", trend_set(tmp_path / "a"))
    assert (code, errors) == (0, "")
    assert "slower [1]" in output
    assert "[1] microcode: 0x1, then 0x2" in output
    assert max(map(len, output.splitlines())) <= 80
    records = json.loads(call("trend", tmp_path / "a", "--format", "json")[1])
    levels = [one for one in records if one["record"] == "level"]
    (step,) = [one for one in records if one["record"] == "step"]
    assert [one["sessions"] for one in levels] == [12, 12]
    assert step["end"] == (datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=12)).isoformat()
    assert step["low"] < 0.9 < step["high"]
    assert "step" in call("trend", tmp_path / "a", "--format", "csv")[1]
    assert json.loads(call("trend", tmp_path / "a", "--threshold", "20%", "--format", "json")[1])[0]["sessions"] == 24


def test_a_parameter_that_came_later_ends_no_series_and_parts_no_runs(call, tmp_path):
    for day in range(24):
        since = {"IDLE_TIME": "2", "ENERGY_METER": ""} if day >= 8 else {}
        save_run(
            tmp_path / f"night-{day:02}",
            make_run(100 * (0.9 if day >= 14 else 1) + day % 3, minutes=DAY * day, **since),
        )
    nights = sorted(tmp_path.glob("night-*"))
    (step,) = [one for one in json.loads(call("trend", *nights, "--format", "json")[1]) if one["record"] == "step"]
    assert step["finding"] == "slower"
    call("export", "--sqlite", tmp_path / "h.db", *nights)
    for source in (nights, [tmp_path / "h.db"]):  # nights are repetitions, although all of them are called itr-1
        records = json.loads(call("list-kpi", "--format", "json", *source)[1])
        assert [one["n"] for one in records if one["record"] == "repeated"] == [24]
        assert len({one["logs"] for one in records if one["record"] == "run"}) == 24
    output = call("compare", *nights[8:10], "--format", "json")[1]
    assert "IDLE_TIME" not in call("compare", nights[0], nights[10])[1]
    assert "IDLE_TIME" not in output


def test_hours_on_end_are_several_sessions(call, tmp_path):
    for hour in range(100):
        save_run(tmp_path / "a", make_run(100 * (0.85 if hour >= 50 else 1) + hour % 3, minutes=60 * hour))
    records = json.loads(call("trend", tmp_path / "a", "--format", "json")[1])
    assert [one["record"] for one in records].count("step") == 1


def test_a_kpi_that_is_not_known_keeps_no_other_from_being_followed(call, tmp_path):
    trend_set(tmp_path / "a")
    save_run(tmp_path / "b", make_run(5.0, key="Speed", unit="x/s", case=CASE.replace("resnet18", "resnet34")))
    code, output, _ = call("trend", tmp_path / "a", tmp_path / "b")
    assert (code, "slower [1]" in output) == (0, True)
    assert "Speed: no KPI of this version's, so that it is not followed" in plain(output)
    assert call("report", "-o", tmp_path / "page.html", tmp_path / "a", tmp_path / "b")[0] == 0


def test_of_nothing_no_history_is_made(call, tmp_path):
    (tmp_path / "empty").mkdir()
    assert call("export", "--sqlite", tmp_path / "h.db", tmp_path / "empty")[0] == 1
    assert not (tmp_path / "h.db").exists()


def test_what_a_split_leaves_out_is_told(call, kept, tmp_path):
    save_run(tmp_path / "logs", make_run(98.0, 9, facts={"host name": "one"}).model_copy(update={"started": "then"}))
    save_run(tmp_path / "logs", make_run(98.0, 8))
    errors = plain(call("compare", tmp_path / "logs", "--split-at", "2026-01-02")[2])
    assert "1 of 8 runs do not say when they were started, and are left out" in errors
    assert "1 of 8 runs say no machine, and are left out" in plain(
        call("compare", tmp_path / "logs", "--by", "machine")[2]
    )


def test_a_trend_says_what_it_leaves_out(call, tmp_path):
    root = save_set(tmp_path / "a", VALUES)
    save_run(root, make_run(98.0, minutes=0))
    save_run(root, make_run(98.0, 7).model_copy(update={"started": "yesterday"}))
    code, output, _ = call("trend", root)
    assert code == 0
    told = plain(output)
    assert "1 of 5 runs do not say when they were started, and are left out" in told
    assert "the clock went back: itr-4 was started before itr-3 by it" in told
    assert "1 of 1 series have fewer than 10 sessions: too few for a step" in told
