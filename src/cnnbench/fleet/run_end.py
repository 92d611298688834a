"""Say how a run of a fleet ended, whatever brought it here."""

from dataclasses import dataclass

from cnnbench.fleet.batch import Kind, Outcome
from cnnbench.report.comparison import DISTURBANCES
from cnnbench.results.record import RunResult

_DISTURBED = ("contention", "throttling")
"""The criteria by which others had a run's cores."""
_DISTURBING_SHARE = 1.0
"""From what share of the cores' time (%) on others are named as what disturbed a run that is not steady."""


@dataclass(frozen=True)
class RunEnd:
    """A run that has ended: of which batch, on which machine, in which job of the scheduler, and when."""

    batch: str
    host: str
    allocation: str
    began_s: float
    ended_s: float

    def judged(self, task: str, run: RunResult, run_file: str) -> Outcome:
        """Return the outcome of a run with a result, which lies in that file of the run's folder."""
        return Outcome(
            task=task,
            batch=self.batch,
            verdict=run.verdict,
            reason=run.reason,
            disturbed=describe_disturbance(run),
            host=self.host,
            allocation=self.allocation,
            began_s=self.began_s,
            ended_s=self.ended_s,
            run_file=run_file,
        )

    def failed(self, task: str, reason: str, kind: Kind = "failed") -> Outcome:
        """Return the outcome of a run without a result."""
        return Outcome(
            task=task, batch=self.batch, verdict="failed", reason=reason, kind=kind, host=self.host,
            allocation=self.allocation, began_s=self.began_s, ended_s=self.ended_s,
        )  # fmt: skip


def describe_disturbance(run: RunResult) -> str:
    """Say what had the cores of a run that is unstable for it; empty where nothing was seen to, or it is not."""
    if run.verdict != "unstable":
        return ""
    seen = [
        f"{kpi.key} {kpi.value:.1f} {kpi.unit}"
        for kpi in run.kpis
        if kpi.key in DISTURBANCES and kpi.value >= _DISTURBING_SHARE
    ]
    judged = [f"{one.name}: {one.found}" for one in run.failures if one.name in _DISTURBED]
    return "; ".join(judged or seen)
