"""`--status` tells how far a fleet is that nobody follows."""

from fleet_files import FleetFiles
from null_workload import find_specs, wait_until


def test_a_batch_that_ended_without_a_controller_has_nothing_left(tmp_path):
    fleet = FleetFiles(tmp_path)
    with fleet.start() as process:
        wait_until(lambda: find_specs(fleet.folder), "the run")
        process.kill()
    wait_until(fleet.outcomes, "its end")
    done = fleet.call("--status")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs done" in done.stdout
    assert " 0:00 " in done.stdout
