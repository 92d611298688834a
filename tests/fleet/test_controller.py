"""What the controller does about runs that are disturbed, refused or lost, and about schedulers that do not answer."""

import json

import pytest
from scripted import ScriptedFleet

from cnnbench.base.errors import UsageError
from cnnbench.fleet.controller import PATIENCE_S
from cnnbench.fleet.folder import CLOSED, SUBMITTED
from cnnbench.fleet.launcher import JobState


def on(bad_host: str, **bad):
    """Return a script in which one host's runs have these outcomes, and all others are valid."""
    return lambda _, host: bad if host == bad_host else {}


def test_a_disturbed_run_is_made_again_on_another_machine_and_the_first_is_kept(tmp_path):
    fleet = ScriptedFleet(tmp_path, on("m0", verdict="unstable", disturbed="contention: 40%", reason="contention"))
    control = fleet.run()
    (task,) = fleet.plan.tasks
    assert control.outcomes[task.id].verdict == "valid"
    assert [batch.avoid for batch in fleet.launcher.batches] == [(), ("m0",)]
    (aside,) = fleet.folder.set_aside.iterdir()
    assert json.loads((aside / "outcome.json").read_text())["host"] == "m0"
    assert any("to be made again: contention: 40%" in text for text in fleet.told)


def test_a_run_that_is_disturbed_everywhere_stays_unstable_after_so_many_repeats(tmp_path):
    fleet = ScriptedFleet(
        tmp_path, lambda *_: {"verdict": "unstable", "disturbed": "contention"}, machines=3, runs={"repeats": 2},
        chooses_nodes=False,
    )  # fmt: skip
    control = fleet.run()
    assert {one.verdict for one in control.outcomes.values()} == {"unstable"}
    first = fleet.plan.tasks[0].id
    slots = [batch.slot for batch in fleet.launcher.batches if first in [task.id for task in batch.file.tasks]]
    assert slots == [0, 1, 2], "each time another machine, where slots are machines"
    again = ScriptedFleet.control(fleet)
    again.begin()
    assert again.done, "a later call repeats no more"


def test_what_one_machine_refuses_another_does(tmp_path):
    fleet = ScriptedFleet(tmp_path, on("m0", verdict="failed", kind="refused", reason="other bytes"))
    assert {one.host for one in fleet.run().outcomes.values()} == {"m1"}
    everywhere = ScriptedFleet(
        tmp_path / "all", lambda *_: {"verdict": "failed", "kind": "refused", "reason": "other bytes"}
    )
    (outcome,) = everywhere.run().outcomes.values()
    assert (outcome.verdict, outcome.reason) == ("failed", "other bytes")
    assert len(everywhere.launcher.batches) == 3
    bound = ScriptedFleet(
        tmp_path / "bound", on("m0", verdict="failed", kind="refused", reason="other bytes"), chooses_nodes=False
    )
    assert [one.reason for one in bound.run().outcomes.values()] == ["other bytes"]
    assert len(bound.launcher.batches) == 1


def test_what_a_scheduler_loses_is_handed_over_again_and_given_up_in_its_words(tmp_path):
    lost = JobState("failed", "m0", "NODE_FAIL: the node went down")
    answers = iter([lost, {}])
    fleet = ScriptedFleet(tmp_path / "once", lambda *_: next(answers))
    assert [one.verdict for one in fleet.run().outcomes.values()] == ["valid"]
    always = ScriptedFleet(tmp_path / "always", lambda *_: lost)
    (outcome,) = always.run().outcomes.values()
    assert outcome.kind == "lost"
    assert outcome.reason == "begun 3 times, and lost each time; the last time: NODE_FAIL: the node went down"
    closed = [json.loads(path.read_text()) for path in always.folder.batches.glob(f"*/{CLOSED}")]
    assert [one["reason"] for one in closed] == [lost.reason] * 3


def test_runs_that_a_lost_batch_had_not_begun_are_not_given_up(tmp_path):
    lost = JobState("failed", "m0", "NODE_FAIL: the node went down")
    fleet = ScriptedFleet(tmp_path, lambda *_: ({}, lost), runs={"trials": 6})
    assert [one.verdict for one in fleet.run().outcomes.values()] == ["valid"] * 6
    assert [len(batch.file.tasks) for batch in fleet.launcher.batches] == [6, 5, 4, 3, 2, 1]


def test_a_scheduler_that_does_not_answer_for_a_while_is_asked_again(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: {}, silent=5)
    assert [one.verdict for one in fleet.run().outcomes.values()] == ["valid"]
    assert [text for text in fleet.told if "does not answer" in text] == [
        f"pool pool: the scheduler does not answer; asking again for {PATIENCE_S:g} s"
    ]
    dead = ScriptedFleet(tmp_path / "dead", lambda *_: {}, silent=10**6)
    (outcome,) = dead.run().outcomes.values()
    assert outcome.reason.endswith("the scheduler does not answer")


def test_a_batch_whose_handing_over_was_not_noted_is_not_handed_over_twice(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: JobState("running", "m0"), machines=2)
    with fleet.folder.held():
        fleet.folder.adopt(fleet.plan)
        first = fleet.control()
        first.begin()
        first.step()
        for path in fleet.folder.batches.glob(f"*/{SUBMITTED}"):
            path.unlink()
        second = fleet.control()
        second.begin()
        second.step()
        assert len(fleet.launcher.batches) == len(second.open) == 2
        assert all(one.job for one in second.open.values())
        (fleet.folder.path / "cancel").touch()
        assert not second.run()
        assert sorted(fleet.launcher.cancelled) == sorted(batch.id for batch in fleet.launcher.batches)


def test_a_machine_whose_clock_is_ahead_is_ended_and_told(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: JobState("running", "m0"), ahead_s=3600, chooses_nodes=False)
    (outcome,) = fleet.run().outcomes.values()
    assert (outcome.verdict, outcome.kind) == ("failed", "refused")
    assert "the clock of m0 is 359" in outcome.reason
    assert len(fleet.launcher.cancelled) == 1


def test_every_machine_of_a_pool_gets_the_same_runs_under_other_names(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: {}, machines=3, runs={"trials": 2, "sets": ["BATCH_SIZE=1 2"]})
    tasks = fleet.plan.tasks
    assert len({task.id for task in tasks}) == len(tasks) == 12
    assert len({(task.slot, task.trial, task.work.parameters["BATCH_SIZE"]) for task in tasks}) == 12
    assert [task.slot for task in tasks if task.trial == 0 and task.work.parameters["BATCH_SIZE"] == "1"] == [0, 1, 2]
    other = ScriptedFleet(tmp_path / "other", lambda *_: {}, machines=3, runs={"trials": 3})
    fleet.run()
    with fleet.folder.held(), pytest.raises(UsageError, match=r"run\.sets: .*, now"):
        fleet.folder.adopt(other.plan)
