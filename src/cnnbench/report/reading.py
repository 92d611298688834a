"""Read the runs that commands are given: logs directories, result files, and files of results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnbench.base.disk import describe_refusal
from cnnbench.base.errors import CnnbenchError
from cnnbench.results.exchange import read_results
from cnnbench.results.record import RUN_FILE, WORKER, RunResult, find_runs, load_run


@dataclass(frozen=True)
class FoundRun:
    """A run and the name of its logs. `place`: its worker directory, or the file that it was read from."""

    name: str
    place: Path
    result: RunResult


@dataclass
class Found:
    """The runs that there are, in the order in which they were given. `failures`: what could not be read, and why."""

    runs: list[FoundRun] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def named(self) -> list[tuple[str, RunResult]]:
        """The results by the names of their logs."""
        return [(one.name, one.result) for one in self.runs]


def read_runs(paths: Sequence[Path]) -> Found:
    """Read the runs of logs-<case>, itr-N and worker directories, and of files of results.

    What cannot be read is a failure beside the others.
    """
    found = Found()
    of_directories: list[tuple[int, Path]] = []
    for path in paths:
        try:
            if path.is_file() and path.name != RUN_FILE:
                runs, failures = read_results(path)
                found.runs += [FoundRun(name, path, run) for name, run in runs]
                found.failures += failures
                continue
            workers = find_runs(path.parent if path.is_file() else path)
        except CnnbenchError as error:
            found.failures.append(str(error))
            continue
        except (OSError, RuntimeError) as error:  # the latter is how Python tells of a link that leads to itself
            found.failures.append(f"{path}: cannot be read: {_describe(error)}")
            continue
        if not workers:
            found.failures.append(f"{path}: no itr-N there; no run of the case has begun")
        for worker in workers:
            try:
                run = load_run(worker)
            except CnnbenchError as error:
                found.failures.append(str(error))
            except OSError as error:
                found.failures.append(f"{worker}: cannot be read: {_describe(error)}")
            else:
                of_directories.append((len(found.runs), worker))
                found.runs.append(FoundRun("", worker, run))
    names = name_runs([worker for _, worker in of_directories])
    for (at, worker), name in zip(of_directories, names, strict=True):
        found.runs[at] = FoundRun(name, worker, found.runs[at].result)
    return found


def _describe(error: OSError | RuntimeError) -> str:
    return describe_refusal(error) if isinstance(error, OSError) else str(error)


def name_runs(workers: Sequence[Path]) -> list[str]:
    """Return `logs-<case>/itr-N` or a lone worker directory's name, but paths where two have the same name."""
    names = [
        "/".join(path.parts[-3:-1]) if path.name == WORKER else path.name
        for path in (worker.resolve() for worker in workers)
    ]
    unique = names if len(set(names)) == len(names) else [str(worker) for worker in workers]
    return [name.encode("utf-8", "backslashreplace").decode() for name in unique]  # names of files need not be text
