"""`cnnbench fleet`: cases on the machines of several pools, through their schedulers, to one report."""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live

from cnnbench.base.disk import check_directory
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, UsageError
from cnnbench.base.signals import INTERRUPTED, end_by_exceptions
from cnnbench.cli.comparing import better
from cnnbench.fleet.controller import Controller
from cnnbench.fleet.folder import CANCEL, FLEET, FleetFolder, HeldError
from cnnbench.fleet.kubernetes import KubernetesLauncher
from cnnbench.fleet.launcher import Launcher, UnavailableError, find_launcher
from cnnbench.fleet.plan import Plan, plan_fleet
from cnnbench.fleet.render import require_own, write_base
from cnnbench.fleet.report import write_report
from cnnbench.fleet.spec import Fleet, read_fleet
from cnnbench.fleet.view import count_verdicts, live_table, show_plan
from cnnbench.report.text import printable


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the pools and what runs there: yaml (doc/fleet.md)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="the fleet's folder (default: FILE-runs beside it)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the plan, and touch nothing")
    what.add_argument(
        "--render",
        type=Path,
        metavar="DIR",
        help="write what Kubernetes is to run, a kustomize base; start nothing",
    )
    what.add_argument("--status", action="store_true", help="tell how far the fleet is, from its files")
    what.add_argument("--cancel", action="store_true", help="end all that the fleet has submitted")
    parser.add_argument("--retry-failed", action="store_true", help="make the runs again that failed before")
    parser.epilog = (
        "The same command goes on where it was ended, and what runs on machines does so meanwhile. Exit codes: 1 when "
        "a run failed, else 3 when one is invalid, else 0."
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked for."""
    file: Path = arguments.file
    fleet = read_fleet(file)
    base = file.absolute().parent
    folder = FleetFolder((arguments.output or base / f"{file.stem}-runs").absolute())
    launchers = _find_launchers(fleet, folder)
    plan = plan_fleet(fleet, base, {name: one.machines for name, one in launchers.items()})
    if arguments.dry_run:
        print(show_plan(plan))
        return 0
    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
    control = Controller(plan, folder, launchers, base, lambda text: console.print(printable(text)))
    if arguments.status:
        return _show_status(plan, folder, control, console)
    if arguments.cancel:
        return _cancel(plan, folder, control)
    end_by_exceptions()
    check_directory(f"-o {folder.path}", folder.path)
    if arguments.render:
        return _render(arguments.render, plan, folder, control, launchers)
    with folder.held():
        folder.adopt(plan)
        (folder.path / CANCEL).unlink(missing_ok=True)
        for one in launchers.values():
            try:
                one.check(fleet.run)
            except UnavailableError as error:
                if not folder.has_begun:
                    raise UsageError(str(error)) from error
                console.print(printable(f"goes on without: {error}"))
        control.begin()
        if arguments.retry_failed:
            console.print(f"{control.retry_failed()} failed runs are made again")
        try:
            if not _follow(plan, folder, control, console):
                console.print(f"cancelled; {count_verdicts(control.outcomes, len(plan.tasks))}")
                return INTERRUPTED
        except KeyboardInterrupt:
            console.print(
                "interrupted; what runs on machines goes on: the same command follows it again, --cancel ends it"
            )
            return INTERRUPTED
        return _conclude(plan, folder, control, console)


def _find_launchers(fleet: Fleet, folder: FleetFolder) -> dict[str, Launcher]:
    found = {}
    for pool in fleet.pools:
        try:
            found[pool.name] = find_launcher(pool.launcher)(pool, folder)
        except UsageError as error:
            raise UsageError(f"pool {pool.name}: {str(error).removeprefix(f'pool {pool.name}: ')}") from error
    return found


def _follow(plan: Plan, folder: FleetFolder, control: Controller, console: Console) -> bool:
    """Run to the end; draw a live table on a terminal, else print a line when a run has ended."""
    if not console.is_terminal:
        told = [len(control.outcomes)]

        def tell() -> None:
            if len(control.outcomes) != told[0]:
                told[0] = len(control.outcomes)
                console.print(count_verdicts(control.outcomes, len(plan.tasks)))

        return control.run(tell)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw() -> None:
            live.update(live_table(plan, folder, control.open, control.outcomes, control.cost_hours()), refresh=True)

        return control.run(draw)


def _render(
    directory: Path, plan: Plan, folder: FleetFolder, control: Controller, launchers: Mapping[str, Launcher]
) -> int:
    """Write what would be submitted, under the names by which the same command without --render finds it again."""
    renderers = {name: one for name, one in launchers.items() if isinstance(one, KubernetesLauncher)}
    for pool in plan.fleet.pools:
        if pool.name not in renderers:
            raise UsageError(
                f"pool {pool.name}: --render writes manifests of Kubernetes, and this pool has the launcher "
                f"{pool.launcher}; put it into a file of its own"
            )
    require_own(directory)
    with folder.held():
        folder.adopt(plan)
        control.begin()
        manifests = [one for pool, batches in control.prepare().items() for one in renderers[pool].render(batches)]
    write_base(directory, manifests)
    print(
        f"{directory}: {len(manifests)} manifests; after `kubectl apply -k {directory}`, the same command without "
        "--render follows them and fetches what they leave"
    )
    return 0


def _show_status(plan: Plan, folder: FleetFolder, control: Controller, console: Console) -> int:
    if not (folder.path / FLEET).is_file():
        raise UsageError(f"{folder.path}: no fleet has been started there; leave --status out to start it")
    folder.adopt(plan)
    control.look()
    console.print(live_table(plan, folder, control.open, control.outcomes, control.cost_hours()))
    if not control.open and not control.done:
        console.print("nothing is under way: the same command without --status goes on")
    return 0


def _cancel(plan: Plan, folder: FleetFolder, control: Controller) -> int:
    """End all batches: by the controller that is at work, or without one, here."""
    if not (folder.path / FLEET).is_file():
        raise UsageError(f"{folder.path}: no fleet has been started there, so there is nothing to cancel")
    (folder.path / CANCEL).touch()
    try:
        with folder.held():
            folder.adopt(plan)
            control.begin()
            count = len(control.open)
            control.cancel()
    except HeldError:
        print("the controller that is at work there ends all that it submitted")
        return 0
    print(f"{count} batches cancelled; {count_verdicts(control.outcomes, len(plan.tasks))}")
    return 0


def _conclude(plan: Plan, folder: FleetFolder, control: Controller, console: Console) -> int:
    """Print what the runs came to, pools and machines side by side, and what is wrong; return the exit code."""
    report = write_report(plan, folder, control.outcomes, better)
    if report.text:
        console.print(f"\n{report.text}\n")
    for task in plan.tasks:
        outcome = control.outcomes[task.id]
        if outcome.verdict != "valid":
            where = f"{task.pool}, {outcome.host or f'slot {task.slot}'}"
            console.print(printable(f"{outcome.verdict.upper()} {task.work} ({where}): {outcome.reason}"))
    repeats = sum(map(len, control.aside.values()))
    console.print(
        f"{count_verdicts(control.outcomes, len(plan.tasks))}; {repeats} made again; "
        f"{control.cost_hours():.2f} node hours"
    )
    for text in report.problems:
        console.print(f"cnnbench: {text}")
    counts = Counter(one.verdict for one in control.outcomes.values())
    if counts["failed"] or report.problems:
        return CnnbenchError.exit_code
    return InvalidMeasurementError.exit_code if counts["invalid"] else 0
