"""Fleets on a real Slurm of several nodes on this machine: what lands where, and what holds when parts of it die."""

import json
import signal
from contextlib import contextmanager

import pytest

import slurm_cluster
from cnnbench.base.errors import UsageError
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.slurm import SlurmLauncher
from cnnbench.fleet.spec import Pool, Runs
from fleet_files import STEP, FleetFiles
from null_workload import find_specs, wait_until

pytestmark = pytest.mark.skipif(bool(slurm_cluster.explain_absence()), reason=slurm_cluster.explain_absence())

SPR = {"name": "spr", "launcher": "slurm", "constraint": "SPR"}
GENOA = {"name": "genoa", "launcher": "slurm", "constraint": "GENOA", "machines": 2}
SLOW = {"STEPS": 10, "WARMUP_STEPS": 1, "CUSTOMER_ENV": f"{STEP}=100"}


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory):
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def cluster(running_cluster, monkeypatch):
    """The cluster, as that which the commands of a test ask."""
    for name, text in running_cluster.variables.items():
        monkeypatch.setenv(name, text)
    running_cluster.settle()
    return running_cluster


class SlurmFleet(FleetFiles):
    """A fleet with pools on the cluster."""

    def __init__(self, directory, *pools, **runs):
        super().__init__(directory)
        self.content["pools"] = list(pools)
        self.write(repeats=0, **runs)

    def finish(self, *options, code=0):
        """Call the command to its end; return what it printed."""
        done = self.call(*options)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def started(self):
        """Start a controller that is killed at the end of the block; so do controllers die."""
        with self.start() as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGKILL)

    def nodes(self):
        """The nodes that have begun batches, in the fleet's folder or their own."""
        return {json.loads(path.read_text())["host"] for path in self.directory.glob("*/batches/*/node.json")}

    def is_measuring(self, host):
        """Say whether a node has a worker of a case."""
        paths = self.folder.glob("batches/*/node.json")
        begun = [path.parent.name for path in paths if json.loads(path.read_text())["host"] == host]
        return any(f".{batch}/" in str(spec) for batch in begun for spec in find_specs(self.folder).values())

    def assert_all_measured(self, count):
        """Assert that there are so many runs, each with one result, and that none has failed."""
        assert set(self.verdicts()) <= {"valid", "unstable"}
        assert len(self.outcomes()) == len({one["task"] for one in self.outcomes()}) == count
        assert len(list(self.folder.glob("results/**/run.json"))) == count


def queued(cluster, *options):
    """Return a line of each task that Slurm has of all fleets and that has not ended."""
    return cluster.tell("squeue", "--noheader", "--array", "--format=%i %j %T %r", *options).splitlines()


def test_batches_land_where_their_constraints_say_and_say_so(tmp_path, cluster):
    """The same from nodes that have folders of their own, whose results are fetched.

    One partition lets jobs run for less time than the plan would give them at the most.
    """
    own = {"shared": False, "folder": str(tmp_path / "own")}
    fleet = SlurmFleet(tmp_path, SPR | {"options": {"partition": "brief"}}, GENOA | own)
    assert "3 of 3 runs done" in fleet.finish()
    fleet.assert_all_measured(3)
    landed = {}
    for path in fleet.folder.glob("results/**/run.json"):
        facts = json.loads(path.read_text())["facts"]
        assert facts["allocation"].startswith("Slurm task ")
        assert f"node {facts['host name']}, cluster " in facts["allocation"]
        landed.setdefault(path.relative_to(fleet.folder).parts[1].rpartition("-")[0], set()).add(facts["host name"])
    assert landed["spr"] == {"spr01"}
    assert landed["genoa"] <= {"genoa01", "genoa02"}
    assert len(fleet.read("ended.json")) == 3
    assert cluster.tell("squeue", "--noheader") == ""


def test_what_dies_in_the_middle_loses_no_run_and_counts_none_twice(tmp_path, cluster):
    """The controller, a node, another's slurmd and slurmctld; what was handed over is known again by its name."""
    fleet = SlurmFleet(tmp_path, GENOA, parameters=SLOW, trials=2)
    with fleet.started():
        wait_until(lambda: fleet.nodes() == {"genoa01", "genoa02"}, "batches on both nodes")
        wait_until(lambda: any(map(fleet.is_measuring, fleet.nodes())), "a run under way")
    for note in fleet.folder.glob("batches/*/submitted.json"):
        note.unlink()
    first, second = sorted(fleet.nodes(), key=fleet.is_measuring, reverse=True)
    cluster.kill_node(first)
    wait_until(lambda: fleet.is_measuring(second), "the run of the other node")
    cluster.kill_daemon(second)
    for name in (first, second):
        cluster.set_node(name, "down")
    wait_until(lambda: len([line for line in queued(cluster) if "PENDING" in line]) == 2, "tasks to be requeued")
    cluster.end_controller()
    cluster.start_controller()
    cluster.start_node(second)
    cluster.set_node(second, "resume")
    fleet.finish()
    fleet.assert_all_measured(4)
    cluster.start_node(first)
    cluster.set_node(first, "resume")


def test_a_preempted_task_goes_on_and_a_cancelled_one_is_made_again_elsewhere(tmp_path, cluster):
    own = {"machines": 1, "shared": False, "folder": str(tmp_path / "own")}
    fleet = SlurmFleet(tmp_path, SPR, GENOA | own, parameters=SLOW)
    with fleet.started():
        wait_until(lambda: len(fleet.nodes()) == 2, "batches on both nodes")
        (drained,) = fleet.nodes() - {"spr01"}
        (task,) = queued(cluster, f"--nodelist={drained}")
        cluster.set_node(drained, "drain")
        cluster.tell("scancel", task.split()[0])
        cluster.tell(
            "sbatch", "--partition=urgent", "--constraint=SPR", "--exclusive", "--output=/dev/null", "--wrap=true"
        )
    printed = fleet.finish()
    cluster.set_node(drained, "resume")
    fleet.assert_all_measured(2)
    assert "Slurm: CANCELLED" in printed
    assert len(fleet.read("batch.json")) == 3
    allocations = {run["facts"]["host name"]: run["facts"]["allocation"] for run in fleet.run_files()}
    assert set(allocations) == {"spr01", *({"genoa01", "genoa02"} - {drained})}
    assert allocations["spr01"].endswith("restart 1")


def test_tasks_that_fail_say_why_in_slurms_words_and_their_own(tmp_path, cluster):
    lost = {"folder": str(tmp_path / "elsewhere")}
    fleet = SlurmFleet(tmp_path, SPR | {"python": "/bin/false"}, GENOA | lost, attempts=1)
    printed = fleet.finish(code=1)
    places = [path.relative_to(fleet.folder).parts[1] for path in sorted(fleet.folder.glob("results/*/*/outcome.json"))]
    reasons = dict(zip(places, [one["reason"] for one in fleet.outcomes()], strict=True))
    assert reasons["spr-0"].endswith("Slurm: FAILED (NonZeroExitCode); exit code 1"), printed
    for slot in ("genoa-0", "genoa-1"):
        assert "does not have" in reasons[slot]
        assert "needed is a folder that all nodes share" in reasons[slot]


def test_cancel_ends_all_that_was_submitted_and_brings_what_there_is(tmp_path, cluster):
    """What a controller that died had not noted yet is found by its name, and not submitted again."""
    own = {"shared": False, "folder": str(tmp_path / "own")}
    fleet = SlurmFleet(tmp_path, GENOA | own, trials=99)
    with fleet.started():
        wait_until(lambda: list(tmp_path.glob("own/results/*/*/outcome.json")), "the end of a run")
    for note in fleet.folder.glob("batches/*/submitted.json"):
        note.unlink()
    assert "2 batches cancelled" in fleet.finish("--cancel")
    (name,) = [path.name for path in fleet.folder.glob("slurm/*/cnnbench-*")]
    assert len(set(cluster.tell("squeue", "--noheader", "--states=all", "--format=%F", f"--name={name}").split())) == 1
    wait_until(lambda: not queued(cluster) and not find_specs(tmp_path), "nothing left of it")
    assert fleet.outcomes()


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"constraint": "ICX"}, "pool one: sbatch: allocation failure: Invalid feature specification"),
        ({"platform": "icx"}, "Invalid feature specification"),
        ({"options": {"partition": "nowhere"}}, "invalid partition specified: nowhere"),
        ({"constraint": "GENOA", "machines": 3}, "machines is 3, and so many nodes cannot be had: sbatch: allocation"),
        ({"options": {"account": "poor"}}, slurm_cluster.USED_UP),
        ({"options": {"extra": ["--mem=9T"]}}, "Requested node configuration is not available"),
        ({"options": {"extra": ["--no-such=1"]}}, "unrecognized option '--no-such=1'"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_words(tmp_path, cluster, pool, words):
    launcher = SlurmLauncher(Pool.model_validate({"name": "one", "launcher": "slurm"} | pool), FleetFolder(tmp_path))
    with pytest.raises(UsageError) as error:
        launcher.check(Runs(workloads=["x"]))
    assert words in str(error.value)


def test_a_fleet_that_slurm_refuses_submits_nothing(tmp_path, cluster):
    fleet = SlurmFleet(tmp_path, SPR, GENOA | {"machines": 3})
    assert "pool genoa: machines is 3" in fleet.finish(code=2)
    assert queued(cluster) == []
