"""Run a job on this machine: stage what it reads, try engines where that is left open, measure, and keep the logs."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from cnnbench.base.disk import explain_refusals
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, TimeUpInterrupt
from cnnbench.base.signals import time_limit
from cnnbench.engines.registry import AUTO
from cnnbench.results.kpi_text import write_logs
from cnnbench.results.record import TIMEOUT, Criterion, RunResult
from cnnbench.run.energy import NO_ENERGY
from cnnbench.run.inputs import NOTHING_STAGED, Inputs, stage_inputs
from cnnbench.run.job import Job
from cnnbench.run.kpis import primary_kind
from cnnbench.run.measurement import DEFAULT_HANG_S, LOGS, Measurement, MeasurementKind, new_logs_directory, out_of_time
from cnnbench.run.watching import SILENT, Reporter

TRIAL_S = 5.0
"""How long each engine is measured when the fastest is to be chosen."""


def measure_job(
    job: Job,
    cache: Path,
    root: Path,
    hang_s: float | None,
    timeout_s: float | None,
    kind: MeasurementKind = Measurement,
    reporter: Reporter = SILENT,
) -> tuple[RunResult, Path]:
    """Stage and measure; return the result, which is invalid when the time is up before, and its logs directory.

    `reporter` is told how far it is.
    """
    hang_s = hang_s or DEFAULT_HANG_S
    try:
        with time_limit(timeout_s):
            job = choose_engine(job, cache, hang_s, kind)
            reporter.begin("staging")
            inputs = stage_inputs(job, cache)
            logs = new_logs_directory(root, job.case.name)
            try:
                with explain_refusals(logs, LOGS):
                    result = kind(job, inputs, logs, hang_s).run(reporter)
            except CnnbenchError:
                if not any(logs.glob("*/output.log")):  # nothing was started, so there is no run to tell of
                    shutil.rmtree(logs.parent)
                raise
    except TimeUpInterrupt as error:  # outside of Measurement.run, which makes a result of it by itself
        seen = "the time was up while staging" + (" or trying engines" if job.rivals else "")
        result, logs = _reject(job, out_of_time(error), seen, root)
    except NoEngineError as error:
        failure = Criterion(name="engine", passed=False, found=str(error), needed="")
        result, logs = _reject(job, failure, "", root)
    with explain_refusals(logs, LOGS):
        write_logs(result, logs, result.exit_code)
    return result, logs


def _reject(job: Job, failure: Criterion, seen: str, root: Path) -> tuple[RunResult, Path]:
    """Return the result and the new logs directory of a job that has not begun."""
    if job.rivals:
        job = replace(job, parameters=job.parameters.model_copy(update={"engine": AUTO}))
    logs = new_logs_directory(root, job.case.name)
    return Measurement(job, NOTHING_STAGED, logs, DEFAULT_HANG_S).reject(failure, seen), logs


class NoEngineError(InvalidMeasurementError):
    """No engine's trial was good, so that there is none to choose."""


def choose_engine(
    job: Job,
    cache: Path,
    hang_s: float,
    kind: MeasurementKind = Measurement,
    *,
    in_image: bool = False,
) -> Job:
    """Return a job itself, or where its engine is still to be chosen, the rival that a trial finds the fastest.

    What counts is the primary figure: throughput, or the mean latency. An engine that cannot be staged or whose trial
    is invalid is out, and where all are, NoEngineError is raised.
    """
    if not job.rivals:
        return job
    found: dict[str, float] = {}
    told = []
    for rival in job.rivals:
        try:
            trial = _try_engine(rival, stage_inputs(rival, cache, in_image=in_image), hang_s, kind)
        except CnnbenchError as error:  # the others may do, and a note tells
            told.append(f"{rival.engine.name} failed ({error})")
            continue
        if trial.interrupted:
            raise KeyboardInterrupt
        if trial.failures and trial.failures[0].name == TIMEOUT:
            raise TimeUpInterrupt(trial.failures[0].found)
        if trial.verdict == "invalid":
            told.append(f"{rival.engine.name} invalid ({trial.reason})")
            continue
        primary = next(kpi for kpi in trial.kpis if kpi.primary)
        found[rival.engine.name] = primary.value
        told.append(f"{rival.engine.name} {primary.value:.4g} {primary.unit}")
    if not found:
        raise NoEngineError(f"ENGINE={AUTO}: no engine's trial was good: {'; '.join(told)}")
    best = primary_kind(job.parameters.mode).best(found)
    chosen = next(rival for rival in job.rivals if rival.engine.name == best)
    note = f"ENGINE={AUTO}: {best} is the fastest in trials of {TRIAL_S:g} s: {', '.join(told)}"
    others = tuple(one for one in job.notes if one not in job.rivals[0].notes)
    return replace(chosen, notes=(*chosen.notes, *others, note))


def _try_engine(rival: Job, inputs: Inputs, hang_s: float, kind: MeasurementKind) -> RunResult:
    """Measure an engine for a moment; only its figure is kept."""
    short = {"steps": "auto", "min_time": TRIAL_S, "max_time": TRIAL_S, "perf_analyzer": False}
    job = replace(rival, parameters=rival.parameters.model_copy(update=short), peak_program=None, energy=NO_ENERGY)
    with tempfile.TemporaryDirectory(prefix="cnnbench-trial-") as logs:
        return kind(job, inputs, Path(logs), hang_s).run()
