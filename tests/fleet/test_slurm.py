"""Fleets on a real Slurm of several nodes on this machine: what lands where, and what holds when parts of it die."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

import slurm_cluster
from cnnbench.base.errors import UsageError
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.slurm import SlurmLauncher
from cnnbench.fleet.spec import Pool
from null_workload import CORES, clean_environment, find_specs, wait_until, write_checkout

pytestmark = pytest.mark.skipif(bool(slurm_cluster.explain_absence()), reason=slurm_cluster.explain_absence())

SPR = "{name: spr, launcher: slurm, constraint: SPR}"
GENOA = "{name: genoa, launcher: slurm, constraint: GENOA, machines: 2}"
SHORT = "STEPS: 8, WARMUP_STEPS: 1"
LONG = f"{SHORT}, CUSTOMER_ENV: CNNBENCH_NULL_STEP_MS=100"
PATIENCE_S = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class SlurmFleet:
    """A fleet whose file, folder and workload are in a directory."""

    def __init__(self, directory, cluster, *pools, parameters=SHORT, run=""):
        self.file, self.folder, self._cluster = directory / "fleet.yaml", directory / "fleet-runs", cluster
        write_checkout(directory, "GENERIC")
        listed = "".join(f"- {pool}\n" for pool in pools)
        self.file.write_text(
            f"pools:\n{listed}run:\n  workloads: [./workload/Harness]\n  parameters: {{{parameters}}}\n"
            f"  repeats: 0\n{run}"
        )

    def start(self, *options):
        """Start the controller."""
        return subprocess.Popen(
            [sys.executable, "-m", "cnnbench", "fleet", str(self.file), *options],
            env=clean_environment(**self._cluster.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options, code=0):
        """Run the controller to its end; return what it printed."""
        with self.start(*options) as process:
            printed = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == code, printed
        return printed

    @contextmanager
    def started(self):
        """Start a controller that is killed at the end of the block; so do controllers die."""
        with self.start() as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGKILL)

    def files(self, pattern):
        """Return what files below the folder say, by their paths in it."""
        return {
            path.relative_to(self.folder).as_posix(): json.loads(path.read_text())
            for path in sorted(self.folder.glob(pattern))
        }

    @property
    def outcomes(self):
        return self.files("results/*/*/outcome.json")

    @property
    def nodes(self):
        """The nodes that have begun batches."""
        return {node["host"] for node in self.files("batches/*/node.json").values()}

    def is_measuring(self, host):
        """Say whether a node has a worker of a case."""
        begun = {path.split("/")[1] for path, node in self.files("batches/*/node.json").items() if node["host"] == host}
        return any(f".{batch}/" in str(spec) for batch in begun for spec in find_specs(self.folder).values())

    def assert_all_measured(self, count):
        """Assert that there are so many runs, and that none has failed."""
        assert [one["verdict"] for one in self.outcomes.values() if one["verdict"] not in ("valid", "unstable")] == []
        assert len(self.outcomes) == len({one["task"] for one in self.outcomes.values()}) == count
        assert len(self.files("results/**/run.json")) == count

    @property
    def batches(self):
        """The batches that have been made."""
        return self.files("batches/*/batch.json")


def queued(cluster, *options):
    """Return a line of each task that Slurm has of all fleets and that has not ended."""
    return cluster.tell("squeue", "--noheader", "--array", "--format=%i %j %T %r", *options).splitlines()


def test_batches_land_where_their_constraints_say_and_say_so(tmp_path, cluster):
    fleet = SlurmFleet(tmp_path, cluster, SPR, GENOA)
    assert "3 of 3 runs done" in fleet.run()
    fleet.assert_all_measured(3)
    runs = fleet.files("results/**/run.json")
    found = {path.split("/")[1].rpartition("-")[0]: set() for path in runs}
    for path, run in runs.items():
        facts = run["facts"]
        assert facts["allocation"].startswith("Slurm task ")
        assert f"node {facts['host name']}, cluster " in facts["allocation"]
        assert sum(len(one["cpus"]) for one in run["plan"]["instances"]) >= CORES
        found[path.split("/")[1].rpartition("-")[0]].add(facts["host name"])
    assert found["spr"] == {"spr01"}
    assert found["genoa"] <= {"genoa01", "genoa02"}


def test_what_dies_in_the_middle_loses_no_run_and_counts_none_twice(tmp_path, cluster):
    """The controller, a node, another's slurmd and slurmctld; what was handed over is known again by its name."""
    fleet = SlurmFleet(tmp_path, cluster, GENOA, parameters=LONG, run="  trials: 2\n")
    with fleet.started():
        wait_until(lambda: fleet.nodes == {"genoa01", "genoa02"}, "batches on both nodes")
        wait_until(lambda: any(map(fleet.is_measuring, fleet.nodes)), "a run under way")
    for note in fleet.folder.glob("batches/*/submitted.json"):
        note.unlink()
    first, second = sorted(fleet.nodes, key=fleet.is_measuring, reverse=True)
    cluster.kill_node(first)
    wait_until(lambda: fleet.is_measuring(second), "the run of the other node")
    cluster.kill_daemon(second)
    for name in (first, second):
        cluster.set_node(name, "down")
    wait_until(lambda: len([line for line in queued(cluster) if "PENDING" in line]) == 2, "tasks to be requeued")
    cluster.end_controller()
    cluster.start_controller()
    for name in (first, second):
        cluster.start_node(name)
        cluster.set_node(name, "resume")
    fleet.run()
    fleet.assert_all_measured(4)


def test_a_preempted_task_goes_on_and_a_cancelled_one_is_made_again_elsewhere(tmp_path, cluster):
    fleet = SlurmFleet(tmp_path, cluster, SPR, "{name: genoa, launcher: slurm, constraint: GENOA}", parameters=LONG)
    with fleet.started():
        wait_until(lambda: len(fleet.nodes) == 2, "batches on both nodes")
        (drained,) = fleet.nodes - {"spr01"}
        (task,) = queued(cluster, f"--nodelist={drained}")
        cluster.set_node(drained, "drain")
        cluster.tell("scancel", task.split()[0])
        cluster.tell(
            "sbatch", "--partition=urgent", "--constraint=SPR", "--exclusive", "--output=/dev/null", "--wrap=true"
        )
    printed = fleet.run()
    cluster.set_node(drained, "resume")
    fleet.assert_all_measured(2)
    assert "Slurm: CANCELLED" in printed or "ended from outside" in printed
    assert len(fleet.batches) == 3
    allocations = {
        run["facts"]["host name"]: run["facts"]["allocation"] for run in fleet.files("results/**/run.json").values()
    }
    assert set(allocations) == {"spr01", *({"genoa01", "genoa02"} - {drained})}
    assert allocations["spr01"].endswith("restart 1")


def test_tasks_that_fail_say_why_in_slurms_words_and_their_own(tmp_path, cluster):
    pools = (SPR.replace("}", ", python: /bin/false}"), GENOA.replace("}", f", folder: {tmp_path}/elsewhere}}"))
    fleet = SlurmFleet(tmp_path, cluster, *pools, run="  attempts: 1\n")
    printed = fleet.run(code=1)
    reasons = {path.split("/")[1]: one["reason"] for path, one in fleet.outcomes.items()}
    assert reasons["spr-0"].endswith("Slurm: FAILED (NonZeroExitCode); exit code 1"), printed
    for slot in ("genoa-0", "genoa-1"):
        assert "does not have" in reasons[slot]
        assert "needed is a folder that all nodes share" in reasons[slot]


def test_cancel_ends_all_that_was_submitted(tmp_path, cluster):
    fleet = SlurmFleet(tmp_path, cluster, SPR, GENOA, parameters=LONG, run="  trials: 9\n")
    with fleet.started():
        wait_until(lambda: any(map(fleet.is_measuring, fleet.nodes)), "a run under way")
    assert "3 batches cancelled" in fleet.run("--cancel")
    wait_until(lambda: not queued(cluster) and not find_specs(fleet.folder), "nothing left of it")


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
def test_what_slurm_refuses_is_told_in_its_words(tmp_path, cluster, monkeypatch, pool, words):
    monkeypatch.setenv("SLURM_CONF", cluster.variables["SLURM_CONF"])
    launcher = SlurmLauncher(Pool.model_validate({"name": "one", "launcher": "slurm"} | pool), FleetFolder(tmp_path))
    with pytest.raises(UsageError) as error:
        launcher.check()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partion": "main"}, "partion: no such key; there are partition, account, qos, extra"),
        ({"extra": ["--array=0-9"]}, "--array is set by the fleet; leave it out"),
        ({"extra": ["-N2"]}, "must be an option of sbatch in one word, such as --mem=0"),
    ],
)
def test_options_that_a_pool_cannot_have_are_told(tmp_path, options, words):
    pool = Pool.model_validate({"name": "one", "launcher": "slurm", "options": options})
    with pytest.raises(UsageError, match=words):
        SlurmLauncher(pool, FleetFolder(tmp_path))


def test_a_fleet_that_slurm_refuses_submits_nothing(tmp_path, cluster):
    fleet = SlurmFleet(tmp_path, cluster, SPR, GENOA.replace("2", "3"))
    assert "pool genoa: machines is 3" in fleet.run(code=2)
    assert queued(cluster) == []
