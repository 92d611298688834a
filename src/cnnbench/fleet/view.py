"""Show a plan, and how far a fleet is, as tables of a terminal."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from rich import box
from rich.table import Table

from cnnbench.base.errors import CnnbenchError
from cnnbench.fleet.batch import Ending
from cnnbench.fleet.controller import OpenBatch
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.plan import Plan, Task
from cnnbench.report.text import align, printable, wrap

MOST_ROWS = 40
"""How many batches a live table shows at the most; the others are counted."""
VERDICTS: tuple[Literal["valid", "unstable", "invalid", "failed"], ...] = ("valid", "unstable", "invalid", "failed")


def show_plan(plan: Plan) -> str:
    """Return the plan as a table, a row for each case with its parameters, and what it comes to."""
    rows: dict[tuple[str, str, str], list[Task]] = {}
    for task in plan.tasks:
        rows.setdefault((task.pool, task.work.workload, str(task.work)), []).append(task)
    cells = [
        [pool, printable(work), str(plan.machines[pool]), str(len(tasks)),
         f"{sum(task.work.run_s for task in tasks) / 3600:.2f}"]
        for (pool, _, work), tasks in rows.items()
    ]  # fmt: skip
    table = align(["pool", "case and parameters", "machines", "runs", "node hours"], cells)
    longest = {
        pool: max(
            sum(task.work.run_s for task in plan.tasks if task.pool == pool and task.slot == 0), 0.0
        ) / 3600 for pool in plan.machines
    }  # fmt: skip
    machines = sum(plan.machines.values())
    told = (
        f"{len(plan.tasks)} runs on {machines} machine{'s' if machines > 1 else ''} of {len(plan.machines)} "
        f"pool{'s' if len(plan.machines) > 1 else ''}, about {plan.node_hours:.2f} node hours, "
        f"{max(longest.values()):.2f} hours where all machines run side by side; plan {plan.id}"
    )
    return f"{table}\n\n{wrap(told, more='')}"


def count_verdicts(outcomes: Mapping[str, Ending], total: int) -> str:
    """Return how many runs have come to what, and how many are left."""
    counts = Counter(one.verdict for one in outcomes.values())
    parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    left = total - sum(counts.values())
    return ", ".join([f"{sum(counts.values())} of {total} runs done", *parts, *([f"{left} to go"] if left else [])])


def live_table(
    plan: Plan, folder: FleetFolder, open_batches: Mapping[str, OpenBatch], outcomes: Mapping[str, Ending], cost: float
) -> Table:
    """Return the table of what is under way: pool, node, case, state, time left."""
    table = Table(box=box.SIMPLE_HEAD, title=count_verdicts(outcomes, len(plan.tasks)), title_justify="left")
    for name in ("pool", "node", "case", "state", "left"):
        table.add_column(name, no_wrap=name != "case", overflow="fold", justify="right" if name == "left" else "left")
    tasks = {task.id: task for task in plan.tasks} if open_batches else {}
    for one in list(open_batches.values())[:MOST_ROWS]:
        table.add_row(*describe_batch(folder, one, tasks, outcomes))
    more = len(open_batches) - MOST_ROWS
    told = [f"{more} more batches"] if more > 0 else []
    if not open_batches:
        table.show_header = False
    table.caption = ", ".join([*told, f"{cost:.2f} of about {plan.node_hours:.2f} node hours"])
    table.caption_justify = "left"
    return table


def describe_batch(
    folder: FleetFolder, one: OpenBatch, tasks: Mapping[str, Task], outcomes: Mapping[str, Ending]
) -> list[str]:
    """Return the cells of a batch's row."""
    left = [task for task in one.file.tasks if task.id not in outcomes]
    seconds = sum(tasks[task.id].work.run_s for task in left)
    done = f"{len(one.file.tasks) - len(left)} of {len(one.file.tasks)}"
    node, now = one.node or folder.read_node(one.id), folder.read_now(one.id)
    if one.job is None:
        state = "to be handed over"
    elif node is None:
        state = one.state.state
    elif now is None or not now.task:
        state = "waits for the machine"
    else:
        state = f"runs, {done} done"
    case = ""
    if now and now.task in tasks:
        task = tasks[now.task]
        case = printable(str(task.work))
        if task.id not in outcomes:
            seconds -= min(time.time() - now.since_s, task.work.run_s)
    return [one.file.pool, node.host if node else one.state.node or f"slot {one.slot}", case, state, _span(seconds)]


def _span(seconds: float) -> str:
    if seconds < 0:
        raise CnnbenchError(f"{seconds:g} s left: a span of time is not negative")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
