"""Make expectations of what a validation has measured, for later ones to be held to."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cases.expectation import (
    Expectation,
    ExpectedMachine,
    expectation_file,
    identity,
    read_expectations,
    write_expectations,
)
from cnnbench.report.platforms import places_used
from cnnbench.results.record import RunResult
from cnnbench.results.stats import MIN_SLICES, estimate_next
from cnnbench.validation.outcome import Outcome, primary
from cnnbench.validation.plan import Plan

MIN_RUNS = MIN_SLICES
"""Of fewer runs there is no interval."""
LEAST_REACH = 0.02
"""How far an interval goes to each side at the least: what `cnnbench compare` takes for no difference."""
TOLD = ("BATCH_SIZE", "CORES_PER_INSTANCE", "INSTANCES", "DATA_TYPE")
"""The parameters that an expectation is made for: with others, a figure is another."""


def check_writable(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UsageError where a file of expectations is there already, unless it may be written over."""
    if not overwrite and (there := [str(path) for path in paths if path.exists()]):
        raise UsageError(
            f"--write-expect: {', '.join(there)} is there; --overwrite replaces what it says of the cases that were run"
        )


def expect(outcome: Outcome, plan: Plan) -> Expectation | str:
    """Return what is to be expected of a case from now on, or why that cannot be told.

    The mean of its valid runs, and the interval that another run of the same is in 95 % of the time.
    """
    runs = [one.run for one in outcome.of_verdict("valid")]
    if len(runs) < MIN_RUNS:
        return f"{outcome.choice.case}: {len(runs)} valid runs, needed {MIN_RUNS}"
    if len({_setting(run) for run in runs}) > 1:
        return f"{outcome.choice.case}: its runs are of several settings"
    kpi = primary(runs[0])
    estimate = estimate_next([primary(run).value for run in runs])
    reach = max(estimate.half_width or 0.0, LEAST_REACH * estimate.mean)
    if estimate.mean - reach <= 0:
        return f"{outcome.choice.case}: its runs differ too much to expect anything of the next"
    cores, sockets = places_used(runs[0])
    is_rate = kpi.unit.endswith("/s") and cores >= sockets > 0
    return Expectation(
        case=outcome.choice.case,
        parameters=dict(_setting(runs[0])),
        value=_round(estimate.mean),
        low=_round(estimate.mean - reach),
        high=_round(estimate.mean + reach),
        unit=kpi.unit,
        per="core" if is_rate else "machine",
        machine=ExpectedMachine(name=plan.machine.cpu or plan.platform, sockets=sockets, cores=cores)
        if is_rate
        else None,
        source=f"{len(runs)} runs on {plan.machine.host}, {plan.machine.cpu}, {_day(runs[-1])}",
    )


def _setting(run: RunResult) -> tuple[tuple[str, str], ...]:
    effective = run.requested | run.effective
    return tuple((name, effective[name]) for name in TOLD if name in effective)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _day(run: RunResult) -> str:
    return datetime.fromisoformat(run.started.replace("Z", "+00:00")).date().isoformat()


def write_expected(workload: Path, plan: Plan, outcomes: Sequence[Outcome]) -> tuple[Path | None, list[str]]:
    """Write what is expected of a workload's cases from now on; return the file and why cases are not in it.

    What the file said of other cases, or of other settings, stays.
    """
    made = [expect(one, plan) for one in outcomes]
    new = [one for one in made if isinstance(one, Expectation)]
    told = [one for one in made if isinstance(one, str)]
    if not new:
        return None, told
    path = expectation_file(workload, plan.platform)
    before = read_expectations(path) if path.is_file() else ()
    entries = {identity(one): one for one in (*before, *new)}
    heading = f"What is expected of {workload.name} on {plan.platform}; written by cnnbench validate --write-expect."
    write_expectations(path, list(entries.values()), heading)
    return path, told
