"""What a build directory's files tell: of calls and cases that run, have ended or died; and of files that are none."""

import json
import os
import subprocess
import sys
import time

import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.launch.container import Owner
from cnnbench.machine.temperature import read_temperature_c
from cnnbench.report.status import status_lines
from cnnbench.run.status import (
    COSTS,
    DIRECTORY,
    Call,
    CaseEnd,
    CaseStatus,
    Costs,
    InstanceStatus,
    Phase,
    Progressed,
    Rate,
    add_end,
    case_file,
    read_build,
    write_status,
)
from cnnbench.run.watching import rate_text, read_line, reporter_in_container
from sysfs import write

NOW_S = 1_800_000_000.0


@pytest.fixture
def build(tmp_path):
    (tmp_path / "CTestTestfile.cmake").touch()
    return tmp_path


@pytest.fixture
def killed():
    """A process that was killed: what is left of it is its description."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner.of(process.pid)
    process.kill()
    process.wait()
    return owner


def case_of(call="", case="a", owner=None, **now):
    phase = Phase(name="measuring throughput avx_fp32", began_s=NOW_S - 20, done=10, total=60, unit="s")
    return CaseStatus(
        owner=(owner or Owner.of(os.getpid())).label,
        began_s=NOW_S - 30,
        told_s=NOW_S,
        call=call,
        case=case,
        backend="native",
        now=Progressed(**{"phase": phase, **now}),
    )


def put(build, case):
    write_status(build / DIRECTORY, case_file(case.pid), case)


def lines(build):
    return status_lines(read_build(build), NOW_S)


def end_of(case, seconds=20.0, verdict="valid"):
    headline = "Throughput (img/s): 151.4"
    return CaseEnd(case=case, began_s=NOW_S - seconds, ended_s=NOW_S, verdict=verdict, headline=headline)


def test_where_nothing_has_run_that_is_said(build):
    assert lines(build) == ["nothing is running, and nothing has run here yet"]


def test_a_case_that_runs_is_told_with_all_that_is_known(build):
    phase = Phase(name="measuring", began_s=NOW_S, done=10, total=60, unit="s", left_s=12, at_most_s=50)
    put(
        build,
        case_of(
            phase=phase,
            instances=(
                InstanceStatus(index=0, state="measuring", steps=41),
                InstanceStatus(index=1, state="measuring", steps=39),
                InstanceStatus(index=2, state="dead", steps=7),
            ),
            throughput=Rate(mean=152.34, half_width=1.23, unit="img/s"),
            frequency_mhz=2600.4,
            temperature_c=54.0,
        ),
    )
    assert lines(build) == [
        "a",
        "  30 s so far, at least 12 s left",
        "  measuring",
        "    10 of 60 s, about 12 s left, at most 50 s",
        "  152.3 ± 1.2 img/s so far",
        "  instances: 2 measuring, 1 dead; 7 to 41 steps each, warm-up included",
        "  cores: 2600 MHz, 54 °C",
    ]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"left_s": None, "at_most_s": 50}, "10 of 60 s, at most 50 s left"),
        ({"left_s": 5, "at_most_s": 5}, "10 of 60 s, about 5 s left"),
        ({"left_s": 0, "at_most_s": 50}, "10 of 60 s, at most 50 s left"),
        ({"left_s": 0, "at_most_s": 0}, "10 of 60 s, waiting for the steps under way"),
        ({"total": None, "unit": "steps"}, "10 steps"),
        ({"total": 1000, "unit": "images", "left_s": 4000}, "10 of 1000 images, about 1 h 06 min left"),
        ({"done": 2e9, "total": 3e9, "unit": "B"}, "2.0 GB of 3.0 GB"),
    ],
)
def test_no_time_left_is_told_that_is_not_known(build, change, shown):
    phase = {"name": "x", "began_s": NOW_S, "done": 10, "total": 60, "unit": "s"} | change
    put(build, case_of(phase=Phase(**phase)))
    assert lines(build)[3].strip() == shown


@pytest.mark.parametrize(
    ("mean", "half_width", "shown"),
    [
        (152.34, 1.23, "152.3 ± 1.2 img/s"),
        (1090962.2, 4666.0, "1090962 ± 4666 img/s"),
        (0.51234, 0.00123, "0.5123 ± 0.0012 img/s"),
        (152.34, None, "152.3 img/s"),
        (50.0, 0.0, "50.00 img/s"),
    ],
)
def test_a_rate_has_the_digits_that_its_interval_allows(mean, half_width, shown):
    assert rate_text(Rate(mean=mean, half_width=half_width, unit="img/s")) == shown


def test_a_case_that_tells_nothing_new_is_said_to(build):
    put(build, case_of())
    assert "  nothing new for 40 s" in status_lines(read_build(build), NOW_S + 40)


def test_a_killed_case_is_told_as_dead_and_not_as_running(build, killed):
    put(build, case_of(owner=killed))
    assert lines(build)[:2] == ["nothing is running", "died: a"]
    assert f"process {killed.pid}, last heard of 0 s ago" in lines(build)[2]
    assert lines(build)[3] == "  when it was at: measuring throughput avx_fp32"


def test_what_ran_before_the_machine_started_again_is_dead(build):
    before = Owner.parse(Owner.of(os.getpid()).label.replace(Owner.of(os.getpid()).boot, "another-boot"))
    put(build, case_of(owner=before))
    assert lines(build)[:2] == ["nothing is running", "died: a"]


def test_a_call_tells_which_case_it_is_at_and_how_long_all_of_them_take(build):
    write_status(build / DIRECTORY, COSTS, Costs(seconds={"c": 100.5}))
    call = Call(build, ["a", "b", "c", "d"], runs=2)
    call.begin_run(1, "BATCH_SIZE=1")
    name = call.status.name
    add_end(build / DIRECTORY, name, end_of("a"))
    assert "last: a" in lines(build)
    put(build, case_of(name, "b", phase=Phase(name="x", began_s=NOW_S, left_s=30)))
    top = lines(build)[:3]
    # Left: b's 30 s; a once more, as it took; c twice, as in another call. b's second run and d's are not known.
    assert f"ctest.sh (process {os.getpid()}): case 2 of 8, " in top[0]
    assert top[0].endswith("at least 4 min 11 s left")
    assert top[1:] == ["  how long 3 cases will take is not known yet", "  run 1 of 2: BATCH_SIZE=1"]
    assert lines(build)[-2:] == ["last: a", "  valid after 20 s: Throughput (img/s): 151.4"]


def test_how_long_a_case_took_last_is_known_in_later_calls(build):
    ends = [("a", 20, "valid"), ("a", 30, "unstable"), ("a", 1, "invalid"), ("b", 7, "skipped"), ("c", 9, "valid")]
    for at, (case, seconds, verdict) in enumerate(ends):
        call = Call(build, [case], runs=1)
        ended = {"began_s": NOW_S + 100 * at, "ended_s": NOW_S + 100 * at + seconds}
        add_end(build / DIRECTORY, call.status.name, end_of(case, verdict=verdict).model_copy(update=ended))
        call.end(0)
    assert read_build(build).costs_s == {"a": 30, "c": 9}
    assert len(list((build / DIRECTORY).glob("*.ends"))) == 1  # of the last call
    (build / DIRECTORY / COSTS).write_text("{")
    seen = read_build(build)
    assert seen.costs_s == {"c": 9}
    assert "costs.json: damaged" in seen.complaints[0]


def test_a_call_that_ended_is_told_with_its_last_case(build):
    call = Call(build, ["a"], runs=1)
    add_end(build / DIRECTORY, call.status.name, end_of("a", verdict="invalid"))
    call.end(8)
    shown = status_lines(read_build(build), time.time())
    assert shown[0] == "nothing is running"
    assert shown[1].endswith("ago with exit code 8 after 1 of 1 case")
    assert shown[2:] == ["last: a", "  INVALID after 20 s: Throughput (img/s): 151.4"]


def test_a_new_call_removes_the_files_of_those_that_are_over_and_no_others(build, killed):
    past = Call(build, ["a"], runs=1)
    add_end(build / DIRECTORY, past.status.name, end_of("a"))
    past.end(0)
    lost = past.status.model_copy(update={"name": "call-2", "owner": killed.label, "ended_s": None})
    write_status(build / DIRECTORY, "call-2.json", lost)
    put(build, case_of("call-2", "b", killed))
    going_on = Call(build, ["c"], runs=1)
    add_end(build / DIRECTORY, going_on.status.name, end_of("c"))
    new = Call(build, ["d"], runs=1)
    assert [seen.call.cases for seen in read_build(build).calls] == [("c",), ("d",)]
    left = {f"{going_on.status.name}.json", f"{going_on.status.name}.ends", f"{new.status.name}.json", COSTS}
    assert {path.name for path in (build / DIRECTORY).iterdir()} == left


def test_a_call_that_cannot_be_told_of_goes_on(build):
    (build / DIRECTORY).write_text("no directory")
    call = Call(build, ["a"], 1)
    call.begin_run(1, "")
    call.end(0)
    assert call.status.exit_code == 0
    assert (build / DIRECTORY).read_text() == "no directory"


def test_a_killed_call_is_told_as_dead(build, killed):
    call = Call(build, ["a", "b"], runs=1).status.model_copy(update={"owner": killed.label})
    write_status(build / DIRECTORY, f"{call.name}.json", call)
    put(build, case_of(call.name, owner=killed))
    shown = lines(build)
    assert shown[:2] == [
        "nothing is running",
        f"ctest.sh (process {killed.pid}) died after 0 of 2 cases: killed, or the machine started again",
    ]
    assert "died: a" in shown


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "damaged"),
        (b'{"schema_version":1,"own', "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[]", "damaged"),
        (b'{"schema_version":7}', "of schema 7, needed 1; read it with the cnnbench that wrote it"),
        (b'{"schema_version":1,"owner":"x"}', "damaged, owner"),
    ],
)
@pytest.mark.parametrize("name", ["case-1.json", "call-1.json"])
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_shown(build, name, content, complaint):
    put(build, case_of())
    (build / DIRECTORY / name).write_bytes(content)
    (found,) = read_build(build).complaints
    assert found.startswith(f"{build / DIRECTORY / name}: {complaint}")
    assert lines(build)[0] == "a"


def test_a_file_of_another_field_is_refused(build):
    fields = json.loads(case_of().model_dump_json()) | {"more": 1}
    (build / DIRECTORY).mkdir()
    (build / DIRECTORY / "case-1.json").write_text(json.dumps(fields))
    assert "damaged, more: Extra inputs are not permitted; remove it" in read_build(build).complaints[0]


def test_what_is_no_build_directory_is_said_to_be_none(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CnnbenchError, match="no build directory of a workload's"):
            read_build(path)


def test_what_a_case_in_a_container_tells_is_read_and_other_lines_are_not(capsys):
    now = case_of().now
    reporter_in_container("container", sys.stderr).watched(now)
    reporter_in_container("", sys.stderr).watched(now)
    (line,) = capsys.readouterr().err.splitlines()
    assert read_line(line + "\n") == now
    for other in ("measuring: 5 of 60 s", 'cnnbench-status {"schema_version":2}', "cnnbench-status {"):
        assert read_line(other) is None


def test_the_warmest_processor_counts_and_nothing_else_that_is_warm(tmp_path):
    assert read_temperature_c(tmp_path) is None
    monitors = tmp_path / "class/hwmon"
    for number, (name, milli) in enumerate([("nvme", "90000"), ("coretemp", "54000"), ("coretemp", "61500")]):
        write(monitors / f"hwmon{number}/name", name)
        write(monitors / f"hwmon{number}/temp1_input", milli)
    (monitors / "hwmon1/temp2_input").mkdir()  # one that does not answer
    assert read_temperature_c(tmp_path) == 61.5
