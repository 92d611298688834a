"""Run LoadGen beside the run that counts: to find the rate of its Server scenario, and to audit what was measured."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.results.loadgen import AUDITS, LoadGenSummary, read_summary
from cnnbench.run.measured import AUDIT, AUDITED_ANSWERS
from cnnbench.run.rates import search_rate, trial_s
from cnnbench.run.record import CapacitySeen
from cnnbench.worker.loadgen import LOADGEN, SUMMARY, LoadGenSpec

KEPT = 0.9
"""What of the rate found a run is given that is longer than a trial, and meets more that disturbs it."""

Run = Callable[[LoadGenSpec, Path, str], None]
"""Runs LoadGen to its end, with its logs in a directory that is there; the last tells people what is run."""


def find_target(spec: LoadGenSpec, run: Run, tell: Callable[[CapacitySeen], object]) -> float:
    """Return the queries a second that Server is to be run at, and tell those tried.

    It is KEPT of the highest that LoadGen says VALID of; the trials begin with half of what is got through Offline.
    Raises InvalidMeasurementError where none is VALID.
    """

    def try_one(changed: LoadGenSpec, name: str) -> LoadGenSummary:
        with tempfile.TemporaryDirectory(prefix="cnnbench-trial-") as logs:
            run(changed, Path(logs), f"trying {name}")
            return read_summary((Path(logs) / LOADGEN / SUMMARY).read_text(encoding="utf-8"))

    def attempt(rate: float, name: str) -> tuple[float | None, bool]:
        found = try_one(replace(spec, target_rate=rate, min_duration_ms=int(1000 * trial_s(rate))), name)
        return found.figures.get("p99_ms"), found.valid

    fastest = try_one(replace(spec, scenario="Offline", min_duration_ms=int(1000 * trial_s(0))), "as fast as it goes")
    found = search_rate(fastest.figures["samples_per_s"], attempt)
    found = found.model_copy(update={"rate_per_s": KEPT * found.rate_per_s})
    tell(found)
    if not found.rate_per_s:
        rate, p99, _ = found.trials[-1]
        told = "" if p99 is None else f", with 99 % of latency within {p99:.4g} ms"
        raise InvalidMeasurementError(
            f"SCENARIO=Server: INVALID at {rate:.3g} queries/s already{told}: have a faster network or more "
            "cores, or give a USER_CONF with `resnet50.Server.target_latency = MS`"
        )
    return found.rate_per_s


def run_audit(spec: LoadGenSpec, name: str, logs: Path, run: Run) -> None:
    """Run LoadGen again as an audit has it, into the logs of a run, and what its answers are held against."""
    (logs / AUDIT).mkdir()
    run(replace(spec, audit=AUDITS[name].config), logs / AUDIT, f"auditing by {name}")
    if AUDITS[name].answers:
        (logs / AUDITED_ANSWERS).mkdir()
        run(replace(spec, accuracy=True), logs / AUDITED_ANSWERS, f"asking what {name} is held against")
