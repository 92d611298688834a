"""One reader for all that runs are read from, and whatever else lies there."""

import shutil
from datetime import datetime, timezone

import pytest

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.reading import count_places, read_runs, strip
from cnnbench.report.selection import Selection, parse_time
from cnnbench.results.exchange import write_results
from run_files import CASE, make_run, save_run, save_set

VALUES = [100.0, 101.0, 99.0]
NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


@pytest.fixture
def logs(tmp_path):
    return save_set(tmp_path / "a", VALUES)


def values(found):
    return [run.kpis[0].value for _, run in found.named]


def export(path, runs):
    with path.open("wb") as stream:
        write_results([(f"logs-{CASE}/itr-{number}", run) for number, run in enumerate(runs, 1)], stream)
    return path


def test_each_kind_of_path_gives_its_runs(logs, tmp_path):
    save_run(tmp_path / "set-aside" / "run.0", make_run(9.0, 9))  # a fleet has made it again
    case = logs / f"logs-{CASE}"
    exported = export(tmp_path / "more.json", [make_run(50.0, 9)])
    for path, found in (
        (logs, VALUES),
        (tmp_path, VALUES),
        (case, VALUES),
        (case / "itr-2", VALUES[1:2]),
        (case / "itr-2" / "worker-0", VALUES[1:2]),
        (case / "itr-2" / "worker-0" / "run.json", VALUES[1:2]),
        (exported, [50.0]),
    ):
        runs = read_runs([path])
        assert (values(runs), runs.failures) == (found, []), path
        assert runs.runs[0].name.startswith(f"logs-{CASE}/itr-")


def test_a_run_that_is_there_twice_counts_once(logs, tmp_path):
    shutil.copytree(logs, tmp_path / "copy")
    exported = export(tmp_path / "all.json", [one.result for one in read_runs([logs]).runs])
    case = logs / f"logs-{CASE}"
    alike = read_runs([logs, case, *sorted(case.iterdir())])
    assert (values(alike), alike.repeated) == (VALUES, [])
    copied = read_runs([logs, tmp_path / "copy", exported])
    assert values(copied) == VALUES
    assert len(copied.repeated) == 6
    assert "is the run of" in copied.repeated[0]
    (path,) = (tmp_path / "copy").glob("logs-*/itr-1/worker-0/run.json")
    judged = read_runs([logs]).runs[0].result.model_copy(update={"notes": ["judged anew"]})
    path.write_text(judged.model_dump_json())
    copied = read_runs([logs, tmp_path / "copy"])
    assert values(copied) == VALUES
    assert "with another result, and counts once" in copied.repeated[0]


def test_links_that_lead_nowhere_are_failures_beside_the_others(logs, tmp_path):
    (tmp_path / "logs-loop").symlink_to("logs-loop")
    (tmp_path / "gone").symlink_to("nowhere")
    within = tmp_path / "within"
    within.mkdir()
    (within / "logs-x").symlink_to("logs-x")
    (within / "up").symlink_to(tmp_path)
    found = read_runs([tmp_path / "logs-loop", tmp_path / "gone", within, logs])
    assert values(found) == VALUES
    told = "\n".join(found.failures)
    assert "logs-loop: cannot be read: Too many levels of symbolic links" in told
    assert "gone: no run.json there; no such folder or file" in told
    assert "logs-x: leads to nothing, or to itself" in told
    assert len(found.failures) == 3


def test_only_the_newest_keep_what_figures_do_without(tmp_path):
    for number in (3, 1, 2):
        run = make_run(float(number), number).model_copy(update={"plan": {"instances": []}})
        save_run(tmp_path, run)
    kept = {one.result.kpis[0].value: bool(one.result.plan) for one in read_runs([tmp_path], whole=2).runs}
    assert kept == {3.0: True, 2.0: True, 1.0: False}


def test_what_is_stripped_keeps_how_many_places_it_was_on_and_a_foreign_plan_has_none():
    instances = [{"host": "", "cpus": [0, 1], "sockets": [0]}, {"host": "", "cpus": [2, 3], "sockets": [0]}]
    for planned, places in (
        (instances, (4, 1)),
        (None, (0, 0)),
        (3, (0, 0)),
        (["x"], (0, 0)),
        ([{"cpus": None}], (0, 0)),
    ):
        run = make_run(1.0).model_copy(update={"plan": {"instances": planned}})
        assert count_places(run) == count_places(strip(run)) == places


def test_a_selection_is_by_time_and_machine(tmp_path):
    for number, machine in enumerate(("one", "two", "one")):
        save_run(tmp_path, make_run(float(number), minutes=1440 * number, facts={"host name": machine}))
    assert values(read_runs([tmp_path], Selection(machine="one"))) == [0.0, 2.0]
    since = parse_time("--since", "2026-01-02", NOW)
    assert values(read_runs([tmp_path], Selection(since))) == [1.0, 2.0]
    assert values(read_runs([tmp_path], Selection(since, "one"))) == [2.0]
    with pytest.raises(UsageError, match="--machine three: no run is of it; known are one, two"):
        read_runs([tmp_path], Selection(machine="three"))
    with pytest.raises(CnnbenchError, match="no run since 2026-01-20 00:00 UTC: the newest is of 2026-01-03 00:00 UTC"):
        read_runs([tmp_path], Selection(parse_time("--since", "2026-01-20", NOW)))


def test_runs_that_do_not_say_when_they_were_made_are_told_of(tmp_path):
    save_run(tmp_path, make_run(1.0).model_copy(update={"started": "yesterday"}))
    save_run(tmp_path, make_run(2.0, 1))
    found = read_runs([tmp_path], Selection(parse_time("--since", "2026-01-01", NOW)))
    assert values(found) == [2.0]
    assert "1 runs do not say when they were started" in found.failures[0]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=timezone.utc)),
        ("2026-01-30T10:30", datetime(2026, 1, 30, 10, 30, tzinfo=timezone.utc)),
        ("2026-01-30T10:30:00+02:00", datetime(2026, 1, 30, 8, 30, tzinfo=timezone.utc)),
        ("12h", datetime(2026, 1, 31, tzinfo=timezone.utc)),
        ("7d", datetime(2026, 1, 24, 12, tzinfo=timezone.utc)),
        ("4w", datetime(2026, 1, 3, 12, tzinfo=timezone.utc)),
    ],
)
def test_times_are_days_moments_and_spans(text, moment):
    assert parse_time("--since", text, NOW) == moment


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("soon", "--since soon: is no time; needed is a day such as"),
        ("", "is no time"),
        ("2026-13-01", "is no time"),
        ("-7d", "is no time"),
        ("99999d", "is no time"),
        ("0001-01-01T00:00+23:00", "is no time"),
        ("\x1b[2J", r"\\x1b"),
        ("2026-02-01", "--since 2026-02-01: has yet to come; now is 2026-01-31T12:00 UTC"),
    ],
)
def test_what_is_no_time_or_has_yet_to_come_is_refused(text, told):
    with pytest.raises(UsageError, match=told):
        parse_time("--since", text, NOW)
