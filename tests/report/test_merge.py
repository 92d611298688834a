"""`cnnbench merge`: runs of several machines in one folder, each whole and once, and the machines side by side."""

import json
import os
import shutil

import pytest

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cli.main import main
from cnnbench.report.merge import merge_runs
from cnnbench.results.record import SEEN, load_run
from page_runs import write_run
from run_files import CASE, INVALID, UNSTEADY, make_run, save_run, save_set

A, B = {"host name": "alpha", "CPU": "EPYC"}, {"host name": "beta", "CPU": "XEON"}
INT8 = CASE.replace("avx_fp32", "avx_int8")


def runs_of(folder):
    """Return the values of the runs in a machine's folder, by case and the number of the run."""
    return {
        f"{path.parts[-4].removeprefix('logs-')} {path.parts[-3]}": load_run(path.parent).kpis[0].value
        for path in sorted(folder.glob("logs-*/itr-*/worker-0/run.json"))
    }


@pytest.fixture
def two(tmp_path):
    """Five runs of one machine, and of another that is a third faster, with a run alone of another case."""
    save_set(tmp_path / "a", [100, 101, 102, 101, 100], facts=A)
    save_set(tmp_path / "b", [130, 131, 132, 131, 130], facts=B)
    save_run(tmp_path / "b", make_run(300, 9, facts=B, case=INT8))
    return tmp_path


def test_the_runs_of_two_machines_come_in_by_host_name_and_are_compared(two, capsys):
    out = two / "out"
    assert main(["merge", str(two / "a"), str(two / "b"), "-o", str(out)]) == 0
    assert list(runs_of(out / "alpha").values()) == [100, 101, 102, 101, 100]
    assert runs_of(out / "beta")[f"{CASE} itr-3"] == 132
    assert runs_of(out / "beta")[f"{INT8} itr-1"] == 300
    text = capsys.readouterr().out
    assert "2 machines, 11 runs added" in text
    rows = [line for line in text.splitlines() if line.startswith("throughput_")]
    fields = [row.split() for row in rows]
    assert [row[1] for row in fields] == ["alpha", "beta", "beta"]
    assert "faster" in rows[1]
    assert {"1.298", "1.297"} & set(fields[1])  # 130.8 over 100.8
    assert max(len(line) for line in text.splitlines() if str(two) not in line) <= 80
    assert "Machines side by side" in (out / "report.html").read_text()


def test_a_merge_is_the_same_when_repeated_and_goes_on_where_it_was_ended(two, capsys):
    out = two / "out"
    first = merge_runs([two / "a"], out)
    (out / "alpha" / f"logs-{CASE}" / ".part-6" / "worker-0").mkdir(parents=True)  # a copy that was under way
    again = merge_runs([two / "b", two / "a", two / "b"], out)
    assert (first.added, first.known, again.added, again.known) == (5, 0, 6, 11)
    assert [one.name for one in again.machines] == ["alpha", "beta"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}
    last = merge_runs([out], out)
    assert (last.added, last.known) == (0, 11)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("run.json")} == before


def test_files_are_linked_and_come_in_whole(two):
    worker = write_run(two / "c", facts=A)
    merged = merge_runs([two / "c"], two / "out")
    (logs,) = merged.directories
    theirs = {path.relative_to(worker.parent) for path in worker.parent.rglob("*")}
    assert {path.relative_to(logs / "itr-1") for path in (logs / "itr-1").rglob("*")} == theirs
    assert (logs / "itr-1" / "worker-0" / "run.json").stat().st_ino == (worker / "run.json").stat().st_ino


def test_a_machine_of_the_same_name_that_is_another_is_told_apart(tmp_path, capsys):
    save_set(tmp_path / "a", [100, 101], facts=A | {"microcode": "0x1"})
    save_set(tmp_path / "b", [130, 131], begin=5, facts=A | {"microcode": "0x2"})
    save_set(tmp_path / "c", [150, 151], begin=9, facts={"host name": "../../alpha/..", "CPU": "EPYC"})
    save_run(tmp_path / "a", make_run(99, 20, facts={**A, "microcode": ""}))
    out = tmp_path / "out"
    assert main(["merge", *(str(tmp_path / name) for name in "abc"), "-o", str(out)]) == 0
    folders = {path.name: list(runs_of(path).values()) for path in out.iterdir() if path.is_dir()}
    assert folders == {"alpha": [100, 101, 99], "alpha-2": [130, 131], "_.._alpha_..": [150, 151]}
    assert "alpha-2: a machine that calls itself alpha as another does" in capsys.readouterr().err


def test_a_run_with_the_same_identity_and_other_bytes_is_refused_before_anything_is_written(two):
    save_run(two / "b", make_run(101, 1, facts=A, notes=["changed"]))
    with pytest.raises(CnnbenchError, match="and differs from it; a run is never changed"):
        merge_runs([two / "a", two / "b"], two / "out")
    assert not (two / "out").exists()
    merge_runs([two / "a"], two / "out")
    with pytest.raises(CnnbenchError, match="and differs from it"):
        merge_runs([two / "b"], two / "out")


def test_exported_runs_and_histories_come_in_by_their_results_alone(two, capsys):
    files = [two / "b.json", two / "b.db"]
    for option, file in zip(("-o", "--sqlite"), files, strict=True):
        assert main(["export", str(two / "b"), option, str(file)]) == 0
    for number, file in enumerate(files):
        merged = merge_runs([two / "a", file], two / f"out{number}")
        assert [one.name for one in merged.machines] == ["alpha", "beta"]
        assert list(runs_of(two / f"out{number}" / "beta").values()) == [130, 131, 132, 131, 130, 300]
        again = merge_runs([two / "b", *files], two / f"out{number}")
        assert (again.added, again.known) == (0, 18)
    capsys.readouterr()


def test_what_is_no_result_is_told_and_what_was_interrupted_is_left_out(two, capsys):
    save_run(two / "a", make_run(1, 50, facts=A | {SEEN: "the run was interrupted"}, criteria=(INVALID,)))
    save_run(two / "a", make_run(2, 51, facts=A, criteria=(INVALID,)))
    save_run(two / "a", make_run(99, 52, facts=A, criteria=(UNSTEADY,)))
    cut = save_run(two / "a", make_run(3, 53, facts=A))
    (cut / "run.json").write_text('{"schema')
    save_run(two / "a", make_run(4, 54, facts=A, run_id="x" * 9)).joinpath("run.json").unlink()
    bad = save_run(two / "a", make_run(5, 55, facts=A))
    content = json.loads((bad / "run.json").read_text()) | {"case": "../../outside"}
    (bad / "run.json").write_text(json.dumps(content))
    out = two / "out"
    assert main(["merge", str(two / "a"), "-o", str(out)]) == 1
    text = capsys.readouterr()
    assert "1 machine, 7 runs added, 1 left out that were interrupted" in text.out
    for words in ("not a complete result", "did not get as far as a result", "'../../outside' is no case's name"):
        assert words in text.err
    assert "1 of 7 runs unstable" in text.out
    assert not (two / "outside").exists()


def test_runs_of_one_machine_that_are_not_alike_are_told(two, capsys):
    save_run(two / "a", make_run(90, 30, facts=A | {"container engine": "docker", "kernel": "6.2"}))
    assert main(["merge", str(two / "a"), "-o", str(two / "out")]) == 0
    assert "its runs differ in container engine, kernel" in " ".join(capsys.readouterr().out.split())


def test_machines_that_have_no_case_in_common_stand_side_by_side_without_a_ratio(two, capsys):
    save_set(two / "c", [7], facts={"host name": "gamma"}, case=CASE.replace("avx_fp32", "amx_int8"))
    assert main(["merge", str(two / "a"), str(two / "c"), "-o", str(two / "out")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "gamma" in line)
    assert row.split()[2:] == ["7.000", "-", "-", "-", "-", "-", "1", "-"]


def test_bad_input_is_refused_with_what_is_needed(two, monkeypatch):
    with pytest.raises(UsageError, match="no such folder or file"):
        merge_runs([two / "none"], two / "out")
    (two / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: no result of a run there: .*; needed"):
        merge_runs([two / "empty"], two / "out")
    with pytest.raises(UsageError, match=r"has logs-.* and no machines.json: not a merged folder"):
        merge_runs([two / "a"], two / "b")
    (two / "file").write_text("")
    assert main(["merge", str(two / "a"), "-o", str(two / "file")]) == 2
    merge_runs([two / "a"], two / "out")
    (two / "out" / "machines.json").write_text("{}")
    with pytest.raises(CnnbenchError, match="not what a merge leaves"):
        merge_runs([two / "a"], two / "out")


def test_a_place_on_another_file_system_gets_copies(two, monkeypatch):
    def refuse(*_args, **_more):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert merge_runs([two / "a"], two / "out").added == 5
    shutil.rmtree(two / "a")
    assert list(runs_of(two / "out" / "alpha").values()) == [100, 101, 102, 101, 100]
