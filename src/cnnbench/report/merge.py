"""Join the runs of several machines in one folder, `<machine>/logs-<case>/itr-N`: whole runs, each once."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.disk import explain_refusals, held, make_directory
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.machines import Machine, Machines
from cnnbench.report.reading import Failure, FoundRun, Identity, iterate
from cnnbench.report.selection import ALL, Sieve
from cnnbench.report.sets import NEEDED
from cnnbench.report.text import printable
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, find_iterations, find_runs, parse_result, read_result

MACHINES_FILE = "machines.json"
"""Which machines a merged folder has, the first one in front."""
REMEDY = "make room, or name another folder with -o"

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Merged:
    """What a merged folder has now.

    `machines`: the first one seen in front. `added`: how many runs came in by this call. `known`: how many were given
    that it had, or that were given twice. `interrupted`: how many were left out because they were ended from outside.
    `problems`: what else is not in it, and why. `told_apart`: which machines the host name alone does not tell.
    """

    output: Path
    machines: tuple[Machine, ...]
    added: int
    known: int
    interrupted: int
    problems: tuple[str, ...]
    told_apart: tuple[str, ...]

    @property
    def directories(self) -> list[Path]:
        """The logs-<case> directories of all machines, as a report takes them."""
        return [path for one in self.machines for path in logs_of(self.output / one.name)]


class _MachinesFile(BaseModel):
    """The content of `machines.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    machines: list[Machine]


@dataclass(frozen=True)
class _Coming:
    """A run that is to come in: where it is, of which case, of what machine, when it was started.

    `text`: its result, where that is all that there is of it; empty where its place has it.
    """

    place: Path
    case: str
    machine: str
    started: str
    text: str


def logs_of(folder: Path) -> list[Path]:
    """Return the logs-<case> directories in a machine's folder."""
    return sorted(path for path in folder.glob("logs-*") if path.is_dir())


def merge_runs(sources: Sequence[Path], output: Path) -> Merged:
    """Bring the runs of folders into `output`, which may have some of them already; files are linked where they can be.

    `sources`: folders as `cnnbench validate` leaves them, build directories, merged folders, logs-<case>, itr-N,
    result files, and what `cnnbench export` writes, of which a run has its result alone. A run comes in whole or not at
    all, so a merge that was ended goes on when it is called again. Raises UsageError where a source is not there or has
    no run; CnnbenchError where two runs have one identity and are not the same, before anything is written.
    """
    problems: list[str] = []
    is_new = not output.exists()
    make_directory(output, REMEDY)
    with held(output, f"{output}: another merge is at work there; wait until it ends"):
        try:
            machines = Machines(read_machines(output))
            coming, known, interrupted = _choose(sources, output, machines, problems)
        except BaseException:
            if is_new:
                output.rmdir()
            raise
        with explain_refusals(output, REMEDY):
            _write_machines(output, machines.known)
            for one in sorted(coming, key=lambda one: one.started):
                _bring(one, output / one.machine / f"logs-{one.case}")
    return Merged(
        output,
        tuple(machines.known),
        len(coming),
        known,
        interrupted,
        tuple(dict.fromkeys(map(printable, problems))),
        tuple(machines.told_apart),
    )


def _choose(
    sources: Sequence[Path], output: Path, machines: Machines, problems: list[str]
) -> tuple[list[_Coming], int, int]:
    """Return the runs that are to come in, and how many are there already, and were interrupted."""
    there: dict[Identity, Path | str] = {identity: path for path, identity in _scan(output, machines.known)}
    coming: list[_Coming] = []
    known = interrupted = 0
    for source in sources:
        count = 0
        for found in _read_source(source, problems):
            count += 1
            run = found.result
            path = None if source.is_file() else found.place / RUN_FILE
            if (first := there.get(found.identity)) is not None:
                if not _are_same(first, path, run):
                    raise CnnbenchError(
                        printable(
                            f"{found.place}: is run {run.run_id} of {run.case} as another one is"
                            f"{f', {first.parent}' if isinstance(first, Path) else ''}, and differs from it; a run is "
                            "never changed, so leave out the one that was"
                        )
                    )
                known += 1
            elif run.interrupted:
                interrupted += 1
            else:
                text = "" if path else run.model_dump_json(indent=2)
                there[found.identity] = path or text
                coming.append(_Coming(found.place, run.case, machines.find(run).name, run.started, text))
        if not count:
            reasons = f": {'; '.join(problems)}" if problems else ""
            raise UsageError(printable(f"{source}: no result of a run there{reasons}; needed is {NEEDED}"))
    return coming, known, interrupted


def read_machines(output: Path) -> list[Machine]:
    """Return the machines of a merged folder; none of one that is yet to be filled."""
    path = output / MACHINES_FILE
    if path.is_file():
        try:
            return _MachinesFile.model_validate_json(path.read_bytes()).machines
        except ValidationError as error:
            raise CnnbenchError(f"{path}: not what a merge leaves: {error.errors()[0]['msg']}") from error
    if others := [one.name for one in sorted(output.iterdir()) if not one.name.startswith(".")]:
        raise UsageError(f"{output}: has {others[0]} and no {MACHINES_FILE}: not a merged folder; give -o a new one")
    return []


def _write_machines(output: Path, machines: Sequence[Machine]) -> None:
    part = output / f".{MACHINES_FILE}.part"
    content = {"schema_version": 1, "machines": [asdict(one) for one in machines]}
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(output / MACHINES_FILE)


def _scan(output: Path, machines: Sequence[Machine]) -> Iterator[tuple[Path, Identity]]:
    """Yield the runs that are in a merged folder."""
    for one in machines:
        for logs in logs_of(output / one.name):
            for worker in find_runs(logs):
                run = read_result(worker / RUN_FILE)
                yield worker / RUN_FILE, (run.workload, run.case, run.run_id)


def _read_source(source: Path, problems: list[str]) -> Iterator[FoundRun]:
    """Yield the runs that a source has; what is none is a problem."""
    if not source.exists():
        raise UsageError(printable(f"{source}: no such folder or file; needed is {NEEDED}"))
    for one in iterate([source], Sieve(ALL)):
        if isinstance(one, Failure):
            problems.append(one.told)
        elif re.fullmatch("[A-Za-z0-9._-]+", one.result.case):
            yield one
        else:
            problems.append(f"{one.place}: {one.result.case!r:.80} is no case's name")


def _are_same(first: Path | str, second: Path | None, run: RunResult) -> bool:
    """Tell whether a result that was there first, a file or its text, is `run`; `second`: the file of that, if any."""
    if isinstance(first, Path) and second and first.samefile(second):
        return True
    return run == (read_result(first) if isinstance(first, Path) else parse_result(first, "an exported run"))


def _bring(one: _Coming, logs: Path) -> None:
    """Copy a run as the next itr-N of a logs directory: under another name first, so that it is never there in part."""
    number = max(find_iterations(logs), default=0) + 1
    part = logs / f".part-{number}"
    if part.exists():
        shutil.rmtree(part)
    logs.mkdir(parents=True, exist_ok=True)
    if one.text:
        (part / WORKER).mkdir(parents=True)
        (part / WORKER / RUN_FILE).write_text(f"{one.text}\n", encoding="utf-8")
    elif one.place.name == WORKER:
        shutil.copytree(one.place.parent, part, symlinks=True, copy_function=_link)
    else:
        shutil.copytree(one.place, part / WORKER, symlinks=True, copy_function=_link)
    part.rename(logs / f"itr-{number}")


def _link(source: str, target: str) -> None:
    """Link a file to another place, or copy it where that cannot be."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(source, target, follow_symlinks=False)
