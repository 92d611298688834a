"""Make a fleet's plan: every run that is asked for, on which machine of which pool. Nothing is touched here."""

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import UsageError
from cnnbench.cases.case import Settings, check_name, estimate_run_s
from cnnbench.cases.parameters import Parameters
from cnnbench.cases.platforms import GENERIC
from cnnbench.cases.sets import read_sweep
from cnnbench.cases.variables import DIRECTORY_VARIABLE
from cnnbench.cases.workload import Sources, Workload, declared_cases, load_workload
from cnnbench.fleet.spec import Fleet, Pool, Runs
from cnnbench.run.images import ImageOptions, inference_image


@dataclass(frozen=True)
class Work:
    """A case with its parameters, the same for every machine that has it.

    `run_s`: about how long it takes. `image`: what it runs in; empty where it runs natively.
    """

    workload: str
    case: str
    parameters: Settings
    run_s: float
    image: str = ""

    def __str__(self) -> str:
        """Return the case and what it is asked for with."""
        return " ".join([self.case, *(f"{name}={value}" for name, value in self.parameters.items())])


@dataclass(frozen=True, slots=True)
class Task:
    """One run: `slot` counts the machines of a pool, `trial` the repetitions, both from 0.

    `id`: a digest of what the run is, so that the same file always asks for the same tasks.
    """

    id: str
    pool: str
    slot: int
    work: Work
    trial: int


@dataclass(frozen=True)
class Plan:
    """All runs of a fleet; `machines`: how many each pool has. `id`: a digest of them and of what pools run them on."""

    id: str
    fleet: Fleet
    machines: Mapping[str, int]
    tasks: tuple[Task, ...]

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools by their names."""
        return {pool.name: pool for pool in self.fleet.pools}

    @property
    def node_hours(self) -> float:
        """About how many hours of machines the runs take together."""
        return sum(task.work.run_s for task in self.tasks) / 3600


def digest(*parts: object) -> str:
    """Return a short, stable digest of plain data."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def plan_fleet(fleet: Fleet, base: Path, machines: Mapping[str, int]) -> Plan:
    """Plan the runs of a fleet; raise UsageError for what no case can be run with.

    `base`: where workloads that are paths count from. `machines`: how many each pool has.
    """
    tasks: list[Task] = []
    for pool in fleet.pools:
        work = plan_work(pool, fleet.run, base)
        tasks += [
            Task(digest(pool.name, slot, one.workload, one.case, one.parameters, trial), pool.name, slot, one, trial)
            for slot in range(machines[pool.name])
            for trial in range(fleet.run.trials)
            for one in work
        ]
    images = {pool.name: pool.images for pool in fleet.pools}
    used = sorted({(task.pool, task.work.image) for task in tasks})
    pools = [(one.name, one.launcher, one.constraint, one.platform, one.backend) for one in fleet.pools]
    found = digest(
        [task.id for task in tasks], pools, [(pool, image, images[pool].get(image, "")) for pool, image in used]
    )
    return Plan(found, fleet, dict(machines), tuple(tasks))


def plan_work(pool: Pool, run: Runs, base: Path) -> list[Work]:
    """Return what each machine of a pool runs once, in order."""
    combinations = read_sweep(run.sets)
    for name in run.parameters:
        check_name(name)
    work: list[Work] = []
    for written in run.workloads:
        directory = find_workload(written, base)
        workload = load_workload(directory)
        names = [case.name for case in declared_cases(directory, pool.platform.upper() or GENERIC)]
        chosen = [name for name in names if _matches(name, run.cases) and not _matches(name, run.exclude)]
        sources = Sources.read(workload, {DIRECTORY_VARIABLE: str(base)})
        reference = written if "/" not in written else str(directory)
        for name, combination in itertools.product(chosen, combinations):
            asked = {**run.parameters, **combination}
            parameters = sources.resolve(workload.parse_case(name), {"run.parameters": asked})
            image = _pinned_image(pool, workload, parameters) if pool.backend == "container" else ""
            work.append(Work(reference, name, asked, run.run_s or estimate_run_s(parameters), image))
    if not work:
        raise UsageError(
            f"pool {pool.name}: cases {', '.join(run.cases)} choose no case of {', '.join(run.workloads)} on "
            f"{pool.platform or GENERIC}; `ctest.sh -N` lists them"
        )
    for glob in run.cases:
        if not any(fnmatch.fnmatchcase(one.case, glob) for one in work):
            raise UsageError(f"run.cases: {glob} matches no case of pool {pool.name}; `ctest.sh -N` lists them")
    return work


def find_workload(written: str, base: Path) -> Path:
    """Return the directory of a workload by its name, or by a path."""
    return (base / written).resolve() if "/" in written else REPOSITORY / "workload" / written


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _pinned_image(pool: Pool, workload: Workload, parameters: Parameters) -> str:
    """Return the image that a case runs in; raise UsageError where its digest is not told."""
    image = inference_image(workload, parameters.data_type, False, ImageOptions(pool.registry, pool.release))
    if image not in pool.images:
        raise UsageError(
            f"pool {pool.name}: its cases run in {image}, whose digest is not told; add "
            f"`images: {{{image}: sha256:...}}`"
        )
    return image
