"""Make of what a Pod has left of a run what a machine leaves in a fleet's folder: its logs, and how it ended."""

import io
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cnnbench.base.disk import make_directory
from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.base.progress import Progress
from cnnbench.base.signals import INTERRUPTED
from cnnbench.fleet.batch import Kind, Outcome, TaskFile
from cnnbench.fleet.folder import OUTCOME, REMEDY, FleetFolder, write_file
from cnnbench.fleet.node import CASE_LOG
from cnnbench.fleet.pod import REFUSED
from cnnbench.fleet.run_end import RunEnd
from cnnbench.machine.facts import ALLOCATION, HOST_NAME
from cnnbench.results.kpi_text import STATUS, write_logs
from cnnbench.results.record import RUN_FILE, RunResult, load_run
from cnnbench.run.container import FILES
from cnnbench.run.handover import BEGIN, END, ERROR
from cnnbench.run.judging import apply_outside
from cnnbench.run.record import Outside, write_outside
from cnnbench.staging.archive import unpack


@dataclass(frozen=True)
class PodRunEnd(RunEnd):
    """A run whose container has ended: of which image, and of how much memory it was."""

    image: str
    memory: str


def install_run(folder: FleetFolder, task: TaskFile, run: PodRunEnd, archive: bytes, printed: str) -> None:
    """Put a run into its place, with what its archive holds; one that was interrupted is to be made again."""
    part = _new_part(folder, task, run)
    worker = part / f"logs-{task.case}" / "itr-1" / "worker-0"
    make_directory(worker, REMEDY)
    (part / CASE_LOG).write_text(_without_archive(printed), encoding="utf-8")
    tar = part / "export.tar.gz"
    tar.write_bytes(archive)
    try:
        unpack(tar, worker, progress=partial(Progress, stream=io.StringIO()))
    except CnnbenchError as error:
        shutil.rmtree(part)
        refuse_run(folder, task, run, f"its logs cannot be unpacked: {error}")
        return
    tar.unlink()
    outcome = _judge(task, run, part, worker)
    if outcome is None:
        shutil.rmtree(part)
        return
    write_file(part / OUTCOME, outcome)
    folder.install(part, task.place)


def refuse_run(folder: FleetFolder, task: TaskFile, run: PodRunEnd, reason: str) -> None:
    """Put a run into its place that left nothing but this reason."""
    folder.write_outcome(task.place, run.failed(task.id, reason))


def _judge(task: TaskFile, run: PodRunEnd, part: Path, worker: Path) -> Outcome | None:
    """Return how a run ended; None where it was interrupted."""
    if (worker / ERROR).is_file():
        status, words = int((worker / STATUS).read_text()), (worker / ERROR).read_text()
        if status == INTERRUPTED:
            return None
        if words.startswith(REFUSED):
            return run.failed(task.id, f"refused by {run.host}: {words.removeprefix(REFUSED)}", "refused")
        kind: Kind = "skipped" if status == SkippedError.exit_code else "failed"
        return run.failed(task.id, f"{kind} (exit code {status}): {words}", kind)
    try:
        result = _add_what_is_known(load_run(worker), task, run, worker)
    except CnnbenchError as error:
        return run.failed(task.id, str(error))
    if result.interrupted:
        return None
    return run.judged(task.id, result, (worker / RUN_FILE).relative_to(part).as_posix())


def _add_what_is_known(result: RunResult, task: TaskFile, run: PodRunEnd, worker: Path) -> RunResult:
    """Return a result with what its container could not know, as one has that ran in a container of this machine."""
    facts = {
        HOST_NAME: run.host,
        ALLOCATION: run.allocation,
        "container image": run.image,
        "container engine": "kubernetes",
        "container memory limit": run.memory,
    }
    given = {name: text for name in FILES if Path(text := task.parameters.get(name, "")).is_absolute()}
    outside = Outside(requested=given, effective=given, facts=facts)
    write_outside(worker, outside)
    whole = apply_outside(result, outside)
    write_logs(whole, worker, whole.exit_code)
    return whole


def _new_part(folder: FleetFolder, task: TaskFile, run: PodRunEnd) -> Path:
    part = folder.path / "partial" / f"{task.id}.{run.batch}.{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    make_directory(part, REMEDY)
    return part


def _without_archive(printed: str) -> str:
    """Return what a container has printed for people."""
    lines = printed.splitlines()
    begin = next((number for number, line in enumerate(lines) if BEGIN.fullmatch(line.strip())), len(lines))
    end = next((number for number in range(begin, len(lines)) if lines[number].strip() == END), len(lines))
    return "".join(f"{line}\n" for line in [*lines[:begin], *lines[end + 1 :]])
