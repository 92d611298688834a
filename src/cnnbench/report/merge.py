"""Join the runs of several machines in one folder, `<machine>/logs-<case>/itr-N`: whole runs, each once."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.disk import describe_refusal, explain_refusals, held, make_directory
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.machines import Machine, Machines
from cnnbench.report.sets import NEEDED, find_results
from cnnbench.report.text import printable
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, find_iterations, find_runs, read_result

MACHINES_FILE = "machines.json"
"""Which machines a merged folder has, the first one in front."""
REMEDY = "make room, or name another folder with -o"

_Identity = tuple[str, str, str]
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
class _Found:
    """A run that is to come in: where it is, what machine's, of which case, when it was started."""

    place: Path
    machine: str
    case: str
    started: str


def logs_of(folder: Path) -> list[Path]:
    """Return the logs-<case> directories in a machine's folder."""
    return sorted(path for path in folder.glob("logs-*") if path.is_dir())


def merge_runs(sources: Sequence[Path], output: Path) -> Merged:
    """Bring the runs of folders into `output`, which may have some of them already; files are linked where they can be.

    `sources`: folders as `cnnbench validate` leaves them, build directories, merged folders, logs-<case>, itr-N or
    result files. A run comes in whole or not at all, so a merge that was ended goes on when it is called again. Raises
    UsageError where a source is not there or has no run; CnnbenchError where two runs have one identity and are not
    the same, before anything is written.
    """
    problems: list[str] = []
    make_directory(output, REMEDY)
    with held(output, f"{output}: another merge is at work there; wait until it ends"):
        machines = Machines(read_machines(output))
        there = {identity: place for place, identity in _scan(output, machines.known)}
        digests: dict[_Identity, str] = {}
        coming: list[_Found] = []
        known = interrupted = 0
        for source in sources:
            count = 0
            for place, run, digest in _read_source(source, problems):
                count += 1
                identity = (run.workload, run.case, run.run_id)
                if identity in there and identity not in digests:
                    digests[identity] = _digest(there[identity])
                if identity in digests:
                    if digests[identity] != digest:
                        raise CnnbenchError(
                            printable(
                                f"{place} and {there[identity]}: both are run {run.run_id} of {run.case}, and differ; "
                                "a run is never changed, so leave out the one that was"
                            )
                        )
                    known += 1
                    continue
                if run.interrupted:
                    interrupted += 1
                    continue
                there[identity], digests[identity] = _result_file(place), digest
                machine = machines.find(run)
                coming.append(_Found(place, machine.name, run.case, run.started))
            if not count:
                reasons = f": {'; '.join(problems)}" if problems else ""
                raise UsageError(printable(f"{source}: no result of a run there{reasons}; needed {NEEDED}"))
        with explain_refusals(output, REMEDY):
            _write_machines(output, machines.known)
            for one in sorted(coming, key=lambda one: one.started):
                _bring(one.place, output / one.machine / f"logs-{one.case}")
    return Merged(
        output,
        tuple(machines.known),
        len(coming),
        known,
        interrupted,
        tuple(dict.fromkeys(map(printable, problems))),
        tuple(machines.told_apart),
    )


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


def _scan(output: Path, machines: Sequence[Machine]) -> Iterator[tuple[Path, _Identity]]:
    """Yield the runs that are in a merged folder."""
    for one in machines:
        for logs in logs_of(output / one.name):
            for worker in find_runs(logs):
                run = read_result(worker / RUN_FILE)
                yield worker / RUN_FILE, (run.workload, run.case, run.run_id)


def _read_source(source: Path, problems: list[str]) -> Iterator[tuple[Path, RunResult, str]]:
    for place in find_results(source, problems):
        path = _result_file(place)
        try:
            if not path.is_file():
                problems.append(f"{place}: no {RUN_FILE} there; the run did not get as far as a result")
                continue
            run, digest = read_result(path), _digest(path)
        except CnnbenchError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{place}: cannot be read: {describe_refusal(error)}")
        else:
            if not re.fullmatch("[A-Za-z0-9._-]+", run.case):
                problems.append(f"{place}: {run.case!r:.80} is no case's name")
                continue
            yield place, run, digest


def _result_file(place: Path) -> Path:
    return place if place.is_file() else place / RUN_FILE


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _bring(place: Path, logs: Path) -> None:
    """Copy a run as the next itr-N of a logs directory: under another name first, so that it is never there in part."""
    number = max(find_iterations(logs), default=0) + 1
    part = logs / f".part-{number}"
    if part.exists():
        shutil.rmtree(part)
    logs.mkdir(parents=True, exist_ok=True)
    if place.is_file():
        (part / WORKER).mkdir(parents=True)
        _link(str(place), str(part / WORKER / RUN_FILE))
    elif place.name == WORKER:
        shutil.copytree(place.parent, part, symlinks=True, copy_function=_link)
    else:
        shutil.copytree(place, part / WORKER, symlinks=True, copy_function=_link)
    part.rename(logs / f"itr-{number}")


def _link(source: str, target: str) -> None:
    """Link a file to another place, or copy it where that cannot be."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(source, target, follow_symlinks=False)
