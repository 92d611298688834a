"""Turn a run's directory into its result: the one way to it, as the run ends and at any time later.

Pure but for reading: nothing outside of the directory counts, neither this machine nor its environment or cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.engines.layers import TRACE_DIRECTORY
from cnnbench.launch.instances import Plan
from cnnbench.launch.mpi import note_moves
from cnnbench.machine.topology import format_cpu_list
from cnnbench.proof import verdict as validity
from cnnbench.results import stats
from cnnbench.results.record import SEEN, Criterion, Kpi, RunResult
from cnnbench.run.energy_seen import note_energy, use_energy
from cnnbench.run.facts import instance_facts, run_notes, software_facts
from cnnbench.run.kpis import compute_kpis
from cnnbench.run.measured import Measured
from cnnbench.run.record import EnergySeen, Outside, Record, read_outside, read_record, read_seen

_CUT_OFF = Criterion(
    name="record",
    passed=False,
    found="the run was cut off: nothing says how it ended, so what ran it was killed too, or the machine went down",
    needed="",
)


def judge_run(directory: Path) -> RunResult:
    """Return the result of the run that left this directory; raise CnnbenchError when that has no record to judge by.

    What a run has measured, but cannot be read as that, makes it invalid.
    """
    outside = read_outside(directory)
    if outside is None:
        return _judge_inside(directory)
    if outside.record is None:
        return apply_outside(_judge_inside(directory, outside.energy), outside)
    record, failure = outside.record, outside.failure or _CUT_OFF
    return apply_outside(_compose(record, record.plan, [], [], [failure], {}, record.notes), outside)


def apply_outside(result: RunResult, outside: Outside) -> RunResult:
    """Return the result of a run in a container with what only its host knows; a failure that it saw is the reason."""
    known: dict[str, Any] = {
        "requested": result.requested | outside.requested,
        "effective": result.effective | outside.effective,
        "facts": result.facts | outside.facts,
        "notes": [*result.notes, *outside.notes],
    }
    if outside.failure is not None:
        known |= {"criteria": [outside.failure], "kpis": []}
    return RunResult.model_validate(dict(result) | known)


def _judge_inside(directory: Path, energy: EnergySeen | None = None) -> RunResult:
    """Judge a run by what it left itself; `energy`: what was read from outside."""
    record, seen = read_record(directory), read_seen(directory)
    if energy is not None:
        seen = replace(seen, energy=energy)
    if seen.end is None:
        return _reject(directory, record, _CUT_OFF, "")
    if seen.end.failure is not None:
        return _reject(directory, record, seen.end.failure, seen.end.seen)
    run = Measured(directory, record, seen)
    try:
        return _judge_measured(run)
    except InvalidMeasurementError as error:
        return _reject(directory, record, Criterion(name="instances", passed=False, found=str(error), needed=""), "")


def _judge_measured(run: Measured) -> RunResult:
    """Judge a run that came to its end."""
    record, plan, results = run.record, run.plan, run.results
    planned = len(run.measuring.instances) + (len(plan.instances) if record.clients else 0)
    survival = validity.judge_survival(planned, len(results) + len(run.served))
    if survival.passed and record.clients:
        found = f"{len(run.served)} of {len(plan.instances)} finished, and {len(results)} of {len(results)} clients"
        survival = replace(survival, found=found)
    if not survival.passed:
        return _finish(run, results, [], [survival], {})
    kpis, criteria = compute_kpis(run), [survival, *_judge_figures(run)]
    facts = {"measured for": f"{run.window.seconds:.2f} s, {sum(len(rows) for rows in run.steps)} steps"}
    if not run.is_accuracy:
        if record.clients is None:
            figures = stats.instance_figures(run.steps, run.images, run.window)
            results = [result | figure for result, figure in zip(results, figures, strict=True)]
            facts |= instance_facts(plan, figures)
        if run.contention is None:
            facts = {"contention": f"not judged: {run.window.seconds:.2f} s are too short to tell it"} | facts
    facts |= _service_facts(run) if record.clients else {}
    if run.seen.capacity:
        tried = (
            f"{rate:.4g}/s {'not told' if p99 is None else f'{p99:.4g} ms'}"
            for rate, p99, _ in run.seen.capacity.trials
        )
        facts["99 % of latency, by rate"] = ", ".join(tried)
    facts |= run.loadgen.facts if run.loadgen else {}
    if (energy := use_energy(run)) is not None:
        facts |= energy.facts
    proven = (run.sampled.facts if run.sampled else {}) | (run.proof.facts if run.proof else {})
    if not any(kpi.primary for kpi in kpis):
        criteria.append(validity.reject_without_steps(record.mode))
    return _finish(run, run.served or results, kpis, criteria, facts | proven)


def _judge_figures(run: Measured) -> list[Criterion]:
    """Hold a run in which all instances survived against every criterion that applies to it, in their order."""
    record = run.record
    affinities = {result["index"]: result["affinities"] for result in run.served or run.results}
    criteria = [validity.judge_pinning(run.plan, affinities)]
    if record.clients is not None:
        criteria += _judge_clients(run)
    if run.loadgen is not None:
        criteria.append(validity.judge_loadgen(run.loadgen.valid, run.loadgen.reasons))
    if run.audit is not None:
        criteria.append(validity.judge_audit(run.audit))
    if run.proof or run.sampled:
        criteria.append(validity.judge_precision(run.precision, run.proof, run.sampled))
    if run.agreement is not None:
        criteria.append(validity.judge_outputs(run.precision, run.agreement))
    if run.ceiling_failure:
        needed = "the peak measured again after the run"
        criteria.append(Criterion(name="ceiling", passed=False, found=run.ceiling_failure, needed=needed))
    elif run.utilization is not None:
        criteria.append(validity.judge_ceiling(run.utilization))
    if run.is_accuracy:
        criteria.append(validity.judge_coverage(run.answered, run.images_given, record.accuracy_time_s))
        if run.measured_top1 is not None:
            criteria.append(validity.judge_measured_outputs(run.precision, run.measured_top1))
        if run.loss is not None:
            whole = run.answered == run.images_given
            criteria.append(validity.judge_loss(run.loss[0], None if whole else run.loss[1]))
        return criteria
    steady = not record.arrivals and not record.scenario  # what comes at random is not steady
    still = validity.judge_steadiness(run.steadiness) if steady else []
    if record.max_time_s is not None and steady:
        still.append(validity.judge_interval(run.throughput, record.max_time_s, run.window.seconds))
    cause = validity.name_cause(run.contention, run.throttling, run.displaced_per_s)
    criteria += validity.explain(still, cause)
    if run.contention is not None:
        criteria.append(validity.judge_contention(run.contention))
    if run.throttling is not None:
        criteria.append(validity.judge_throttling(run.throttling))
    if run.ranks is not None and run.ranks.hosts > 1:
        criteria.append(validity.judge_clocks(run.ranks.clock_error_ns / 1e9, run.window.seconds))
    return criteria


def _judge_clients(run: Measured) -> list[Criterion]:
    """Hold the clients of a server, and what it says itself, against what makes its figures the server's."""
    record, service = run.record, run.service
    assert record.clients is not None
    assert run.client_share is not None
    one = Plan(record.clients.instances[:1], 0)  # all of them are threads of one process, on the same cores
    pinning = validity.judge_pinning(one, {0: run.results[0]["affinities"]})
    criteria = [replace(pinning, name="client's pinning")]
    if not run.is_accuracy:  # where what it takes for decoding spoils no figure
        criteria.append(validity.judge_client(run.client_share, run.late_share))
    if record.arrivals:
        criteria.append(validity.judge_keeping_up(*run.kept_up, record.held_requests))
    if service is not None:
        criteria.append(validity.judge_requests(service.requests, service.failures))
    if record.latency_bound_ms is not None:
        criteria.append(validity.judge_latency_bound(run.percentiles.get(99), record.latency_bound_ms))
    if (second := run.seen.second_client) is not None:
        theirs = (second.requests_per_s, second.windows_per_s, second.delayed_share, second.failure)
        criteria.append(validity.judge_second_client(run.requests_per_s, *theirs))
    return criteria


def _service_facts(run: Measured) -> dict[str, str]:
    """Return what a server says of itself and of its batches, and what else asked it."""
    service, facts = run.service, {**run.results[0]["versions"], **run.server_facts}
    if service and service.executions:
        shares = ", ".join(f"{size}: {count / service.executions:.0%}" for size, count in service.batches.items())
        facts["batches of images, by size"] = shares
    if second := run.seen.second_client:
        facts["perf_analyzer"] = f"{second.version}, {second.requests} requests"
    return facts


def _finish(
    run: Measured,
    results: list[dict[str, Any]],
    kpis: list[Kpi],
    criteria: list[Criterion],
    facts: dict[str, str],
) -> RunResult:
    """Return the result of a run that came to its end, with the facts and notes that are known of it."""
    record, plan, ranks = run.record, run.plan, run.ranks
    shared = record.weight_sharing and plan.cores_per_instance > 1
    notes = run_notes(record.notes, results, threads_shared=shared)
    notes += note_energy(run) if kpis else []
    if ranks:
        notes += note_moves(record.plan, plan) + ranks.notes()
    found = _known_facts(run.directory, record, plan, results) | (ranks.facts() if ranks else {}) | facts
    return _compose(record, plan, results, kpis, criteria, found, notes)


def _reject(directory: Path, record: Record, failure: Criterion, seen: str) -> RunResult:
    """Return the result of a run that failed as a whole, which need not have begun."""
    facts = _known_facts(directory, record, record.plan, []) | ({SEEN: seen} if seen else {})
    shared = record.weight_sharing and record.plan.cores_per_instance > 1
    notes = run_notes(record.notes, [], threads_shared=shared)
    return _compose(record, record.plan, [], [], [failure], facts, notes)


def _known_facts(directory: Path, record: Record, plan: Plan, results: list[dict[str, Any]]) -> dict[str, str]:
    host = record.host | {"CPUs used": format_cpu_list(plan.cpus)}
    if record.clients is not None:
        host["client's CPUs"] = format_cpu_list(record.clients.instances[0].cpus)
    return host | software_facts(results, directory / TRACE_DIRECTORY / "output.log") | record.inputs


def _compose(
    record: Record,
    plan: Plan,
    results: list[dict[str, Any]],
    kpis: list[Kpi],
    criteria: list[Criterion],
    facts: dict[str, str],
    notes: Sequence[str],
) -> RunResult:
    counts = {"INSTANCES": str(len(plan.instances)), "CORES_PER_INSTANCE": str(plan.cores_per_instance)}
    return RunResult(
        run_id=record.run_id,
        started=record.started,
        workload=record.workload,
        case=record.case,
        requested=record.requested,
        effective=record.effective | {name: text for name, text in counts.items() if name in record.effective},
        facts=facts,
        plan=plan.to_dict(),
        instances=results,
        kpis=kpis,
        criteria=criteria,
        notes=list(notes),
    )
