"""What the controller does about runs that are disturbed, refused or lost, and about schedulers that do not answer."""

import json
import shutil
import tarfile

import pytest
from scripted import ScriptedFleet

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.fleet.batch import Now
from cnnbench.fleet.controller import PATIENCE_S
from cnnbench.fleet.folder import CLOSED, NOW, SUBMITTED, FleetFolder, write_file
from cnnbench.fleet.launcher import JobState
from cnnbench.fleet.node import BatchRun
from cnnbench.fleet.plan import plan_fleet
from cnnbench.fleet.stageout import install_archive


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
        "pool pool: the scheduler does not answer; asking again"
    ]


def test_what_a_quota_leaves_no_room_for_is_handed_over_when_the_rest_has_ended(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: {}, machines=3, quota=1)
    control = fleet.run()
    assert [one.verdict for one in control.outcomes.values()] == ["valid"] * 3
    assert len(fleet.launcher.batches) == 3
    assert control.cost_hours() == pytest.approx(3 * 60 / 3600, abs=0.01)


@pytest.mark.parametrize("silent", ["silent", "silent_polls"])
def test_a_scheduler_that_does_not_answer_for_long_ends_the_controller_and_no_run(tmp_path, silent):
    fleet = ScriptedFleet(tmp_path, lambda *_: {}, machines=2, **{silent: 10**6})
    begun_s = fleet.clock()
    with pytest.raises(CnnbenchError, match=r"for 900 s: the scheduler does not answer\nno run is counted as lost"):
        fleet.run()
    assert PATIENCE_S < fleet.clock() - begun_s < PATIENCE_S + 60
    setattr(fleet.launcher, silent, 0)
    control = fleet.run()
    assert [one.verdict for one in control.outcomes.values()] == ["valid"] * 2
    assert len(fleet.launcher.batches) == 2, "none was handed over again"
    assert not control.aside


def test_a_machine_whose_results_cannot_be_fetched_keeps_no_other_from_ending(tmp_path):
    lost = JobState("lost", "m0", "no answer for 600 s")
    answers = on("m0")
    fleet = ScriptedFleet(
        tmp_path, lambda batch, host: lost if host == "m0" else answers(batch, host), machines=3, unfetched="m0",
        chooses_nodes=False,
    )  # fmt: skip
    control = fleet.run()
    by_slot = {task.slot: control.outcomes[task.id] for task in fleet.plan.tasks}
    assert (by_slot[0].kind, by_slot[1].verdict, by_slot[2].verdict) == ("lost", "valid", "valid")
    assert by_slot[0].reason.endswith("no answer for 600 s")
    assert [batch.slot for batch in fleet.launcher.batches].count(1) == 1


def test_a_run_that_kills_its_batch_takes_no_other_with_it(tmp_path):
    def kill(batch, host):
        victim = fleet.plan.tasks[0].id
        if victim not in [task.id for task in batch.file.tasks]:
            return {}
        write_file(fleet.folder.batches / batch.id / NOW, Now(task=victim, since_s=fleet.clock(), done=0))
        return JobState("failed", host, "OUT_OF_MEMORY")

    fleet = ScriptedFleet(tmp_path, kill, runs={"trials": 4})
    outcomes = fleet.run().outcomes
    first, *others = [outcomes[task.id] for task in fleet.plan.tasks]
    assert first.reason == "begun 3 times, and lost each time; the last time: OUT_OF_MEMORY"
    assert [one.verdict for one in others] == ["valid"] * 3


def test_a_folder_takes_no_other_pools_of_the_same_name(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: {})
    fleet.run()
    for changes in ({"launcher": "slurm"}, {"platform": "GENERIC"}, {"constraint": "hbm"}):
        pool = fleet.plan.fleet.pools[0].model_copy(update=changes)
        other = plan_fleet(fleet.plan.fleet.model_copy(update={"pools": [pool]}), tmp_path, {"pool": 1})
        with fleet.folder.held(), pytest.raises(UsageError, match=f"pools.0.{next(iter(changes))}: .*, now"):
            fleet.folder.adopt(other)


def test_a_failed_run_is_made_again_on_its_machine_and_what_that_has_kept_does_not_count(tmp_path):
    fleet = ScriptedFleet(
        tmp_path, on("m0", verdict="failed", kind="failed", reason="no such file"), machines=2, chooses_nodes=False
    )
    fleet.run()
    kept = FleetFolder(tmp_path / "machine")  # as one with a folder of its own
    (failed,) = [task for task in fleet.plan.tasks if task.slot == 0]
    shutil.copytree(fleet.folder.results / f"pool-0/{failed.id}", kept.results / f"pool-0/{failed.id}")
    with fleet.folder.held():
        control = fleet.control()
        control.begin()
        assert control.retry_failed() == 1
        fleet.launcher.answer = lambda *_: JobState("running", "m0")
        control.step()
        batch = fleet.launcher.batches[-1]
        assert (batch.slot, len(batch.file.tasks)) == (0, 1), "where it failed, and not elsewhere"
        archive = tmp_path / "results.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(kept.results, arcname=".")
        install_archive(fleet.folder, batch.file, archive)
        assert not (fleet.folder.results / batch.file.tasks[0].place).exists()
    assert BatchRun(batch.file, kept, "", {})._missing() == batch.file.tasks


def test_node_hours_are_told_of_what_runs_from_elsewhere_too(tmp_path):
    fleet = ScriptedFleet(tmp_path, lambda *_: JobState("running", "m0"))
    with fleet.folder.held():
        fleet.folder.adopt(fleet.plan)
        control = fleet.control()
        control.begin()
        control.step()
    fleet.clock.sleep(1800)
    beside = fleet.control()
    beside.look()
    assert beside.cost_hours() == pytest.approx(0.5)


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


def test_a_machine_whose_clock_is_ahead_and_that_does_not_answer_ends_no_other(tmp_path):
    answers = iter([JobState("running", "m0")] * 9)
    fleet = ScriptedFleet(tmp_path, lambda *_: next(answers), ahead_s=3600, silent_cancels=2)
    control = fleet.run()
    assert fleet.launcher.cancelled
    assert sum("it cannot be ended yet: the scheduler does not answer" in line for line in fleet.told) == 2
    assert {one.kind for one in control.outcomes.values()} == {"refused"}


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
