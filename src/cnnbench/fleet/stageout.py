"""Bring what a machine without the shared folder has left into the fleet's folder."""

import io
import shutil
from functools import partial
from pathlib import Path

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.progress import Progress
from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.folder import ENDED, LOG, NODE, NOW, OUTCOME, REMEDY, FleetFolder, read_ending
from cnnbench.staging.archive import unpack


def missing_places(folder: FleetFolder, batch: BatchFile) -> list[str]:
    """Return where below results/ the runs of a batch go that have not come yet."""
    return [task.place for task in batch.tasks if not (folder.results / task.place).exists()]


def install_archive(folder: FleetFolder, batch: BatchFile, tar_path: Path) -> None:
    """Move the runs of a batch that are in a tar of a machine's results/ to their places, each whole or not at all.

    What the tar has of the batch's own files, below its id, comes too.
    """
    part = folder.path / "partial" / f"archive.{batch.id}"
    shutil.rmtree(part, ignore_errors=True)
    make_directory(part, REMEDY)
    with explain_refusals(part, REMEDY, lambda: shutil.rmtree(part, ignore_errors=True)):
        unpack(tar_path, part, progress=partial(Progress, stream=io.StringIO()))
        for task in batch.tasks:
            outcome = read_ending(part / task.place / OUTCOME)
            if outcome and outcome.batch not in task.not_of:
                folder.install(part / task.place, task.place)
        for name in (NODE, NOW, ENDED, LOG):
            if (part / batch.id / name).is_file():
                (part / batch.id / name).replace(folder.batches / batch.id / name)
    shutil.rmtree(part)
