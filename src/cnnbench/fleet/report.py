"""End a fleet with one report: its runs in one folder, pools and machines side by side."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.disk import explain_refusals
from cnnbench.base.errors import CnnbenchError
from cnnbench.fleet.batch import Ending
from cnnbench.fleet.folder import REMEDY, FleetFolder, place_of
from cnnbench.fleet.plan import Plan, Task
from cnnbench.fleet.pools import HEADER, HOW_TO_READ, PoolFigures, figure_of, list_outliers, pool_rows, pools_table
from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.comparison import Direction
from cnnbench.report.machines import Machine
from cnnbench.report.merge import merge_runs
from cnnbench.report.page.model import Section, Table
from cnnbench.report.page.page import PAGE, end_with_page
from cnnbench.report.page.platforms import name_machines, show_standings
from cnnbench.report.platforms import platforms_table, stand
from cnnbench.report.sets import RunSet, SetRun
from cnnbench.report.text import printable
from cnnbench.results.record import RunResult, read_result

REPORT = "report.txt"
"""The tables, beside the merged runs."""
MOST_ON_PAGE = 5000
"""Of more runs a page would be too large to be read; the merged folder has them all."""
POOLS_LEAD = (
    "The runs of each pool, one of each machine where it has three or more; a bar is their mean, and the line on it "
    f"the 95 % interval. In the table of how far machines are apart, {HOW_TO_READ}. "
)
APART = "How far machines of a pool, and runs of a machine, are apart"
LEAST_MACHINES = 3
"""From how many machines on a pool's machines are what is compared, else its runs."""


@dataclass(frozen=True)
class Report:
    """What a fleet came to; `problems`: results that cannot be read, and what keeps figures from being pooled."""

    text: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """A run with a result: what task it is of, below which folder, on which machine, and its figure."""

    task: Task
    run_file: str
    host: str
    value: float | None

    def read(self, folder: FleetFolder) -> RunResult:
        """Read the result again."""
        return read_result(_path(folder, self.task, self.run_file))


def write_report(plan: Plan, folder: FleetFolder, outcomes: Mapping[str, Ending], better: Direction) -> Report:
    """Merge the runs, write the page, and return the tables."""
    problems: list[str] = []
    figures = PoolFigures()
    made = list(_read_runs(plan.tasks, folder, outcomes, figures, problems))
    if not made:
        return Report("", tuple(problems))
    cases = figures.judge()
    merged = merge_runs([folder.results], folder.merged)
    told = [*figures.list_differences(), *list_outliers(cases), *merged.told_apart]
    rows = pool_rows(cases, list(plan.machines))
    standings = stand(_pools_as_sets(plan, folder, made), better)
    parts = [pools_table(rows), platforms_table(standings)]
    if len(made) <= MOST_ON_PAGE:
        pools = Section("pools", "Pools", POOLS_LEAD, tables=[Table(APART, HEADER, rows)], notes=told)
        if len({(one.task.pool, one.host) for one in made}) > 1:
            names = name_machines([one.machine for one in standings])
            pools = show_standings(pools, "pool", standings, names)
        parts.append(end_with_page(merged.directories, folder.merged / PAGE, [pools]))
    else:
        some = f"`cnnbench report {folder.merged}/MACHINE/logs-*`"
        parts.append(f"no page, of {len(made)} runs: make one of some, by {some}")
    problems += merged.problems
    text = "\n\n".join(part for part in (*parts, *map(printable, told)) if part)
    with explain_refusals(folder.path, REMEDY):
        (folder.path / REPORT).write_text(f"{text}\n", encoding="utf-8")
    return Report(text, tuple(dict.fromkeys(problems)))


def _read_runs(
    tasks: Iterable[Task],
    folder: FleetFolder,
    outcomes: Mapping[str, Ending],
    figures: PoolFigures,
    problems: list[str],
) -> Iterable[_Made]:
    """Yield the runs that have a result, and take up their figures; one of another schema is a problem."""
    tasks = list(tasks)
    varying = find_varying(tasks)
    for task in tasks:
        outcome = outcomes[task.id]
        if not outcome.run_file:
            continue
        try:
            run = read_result(_path(folder, task, outcome.run_file))
        except CnnbenchError as error:
            problems.append(f"{outcome.host}: {error}")
            continue
        settings = " ".join(f"{name}={value}" for name, value in task.work.parameters.items() if name in varying)
        figure = figure_of(task.pool, settings, run)
        figures.add(figure)
        yield _Made(task, outcome.run_file, sys.intern(figure.host), figure.value)


def _path(folder: FleetFolder, task: Task, run_file: str) -> Path:
    return folder.results / place_of(task.pool, task.slot, task.id) / run_file


def find_varying(tasks: Iterable[Task]) -> set[str]:
    """Return the parameters of which there are several values, so that they tell runs of a case apart."""
    works = {id(task.work): task.work for task in tasks}.values()
    names = {name for work in works for name in work.parameters}
    return {name for name in names if len({work.parameters.get(name) for work in works}) > 1}


def _pools_as_sets(plan: Plan, folder: FleetFolder, made: Sequence[_Made]) -> list[tuple[Machine, RunSet]]:
    """Return the runs that stand for each pool: of many machines the middle run of each, else all runs.

    Runs of one machine are alike in what machines differ in, so the machines are what a verdict about a pool counts.
    """
    found = []
    for pool in plan.machines:
        own = [one for one in made if one.task.pool == pool]
        if not own:
            continue
        if len({one.host for one in own}) >= LEAST_MACHINES:
            own = _middle_runs(own) or own
        results = [one.read(folder) for one in own]
        runs = [SetRun(f"{run.facts.get(HOST_NAME, '')} {run.run_id}", run, run.started_at) for run in results]
        facts = results[0].facts
        machine = Machine(pool, pool, facts.get("CPU", ""), facts.get("microcode", ""))
        found.append((machine, RunSet(pool, pool, tuple(runs), ())))
    return found


def _middle_runs(made: Iterable[_Made]) -> list[_Made]:
    """Return the run in the middle of each machine's runs of a case."""
    groups: dict[tuple[str, int], list[_Made]] = {}
    for one in made:
        if one.value is not None:
            groups.setdefault((one.host, id(one.task.work)), []).append(one)
    ordered = (sorted(group, key=lambda one: one.value or 0.0) for group in groups.values())
    return [group[(len(group) - 1) // 2] for group in ordered]
