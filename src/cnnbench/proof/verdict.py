"""Judge what a run measured, criterion by criterion; anything that fails makes the number invalid or unstable."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cnnbench.cases.precisions import REQUIRED_SHARE, Precision
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.machine.ceiling import Utilization
from cnnbench.machine.contention import Contention, Throttling
from cnnbench.machine.topology import format_cpu_list
from cnnbench.proof.precision import MOST_SHARE, PrecisionProof
from cnnbench.proof.samples import REQUIRED_COVER, SampledProof
from cnnbench.results.loadgen import AUDITS, LoadGenAudit
from cnnbench.results.record import KILLED, Criterion
from cnnbench.results.stats import MIN_SLICES, PERCENTILE_FLOORS, Estimate, Steadiness

CLOCKS_BOUND = 0.01
CONTENTION_BOUND = 0.05
THROTTLED_BOUND = 0.01
DRIFT_BOUND = 0.05
DRIFT_SIGNIFICANCE = 0.05
SPREAD_BOUND = 0.10
CLIENT_BOUND, LATE_BOUND = 0.80, 0.01
"""What a client may take of a core's time, and how many requests may be sent late, so that it is no bottleneck."""
BACKLOG_BOUND = 0.02
"""What part of the requests may wait at the end, where that is more than what is computed and what waits for that."""
SECOND_CLIENT_BOUND = 0.05
"""How far the requests a second of two clients of one server may lie apart."""
TOP1_LOSS_BOUND = 0.005
DISTURBING_SHARE, DISTURBING_SWITCHES = 0.005, 5.0
"""From what share of the cores' time, and how many involuntary switches a second of each, a cause is named."""
LEAST_ANSWERED = 100
"""Of how many images at the least an accuracy is told that had a time: its interval is some 20 % wide then."""
AUTO_HALF_WIDTH = 0.01
"""STEPS=auto measures until the 95 % interval of throughput is within this share of the mean."""


def judge_survival(planned: int, finished: int) -> Criterion:
    """Judge whether every planned instance finished; the failing text is the documented one."""
    if finished == planned:
        return Criterion(name="instances", passed=True, found=f"{finished} of {planned} finished", needed="all")
    return Criterion(name="instances", passed=False, found=KILLED, needed="")


def judge_pinning(plan: Plan, affinities: Mapping[int, Mapping[str, Sequence[int]]]) -> Criterion:
    """Judge whether every thread of every worker stayed on its worker's planned CPUs.

    `affinities`: for each instance, the CPUs each thread of its process may run on at the end.
    """
    strays = []
    for instance in plan.instances:
        allowed = _process_cpus(plan.instances, instance.process)
        for thread, cpus in affinities[instance.index].items():
            if not allowed.issuperset(cpus):
                strays.append(f"thread {thread} of instance {instance.index} on {format_cpu_list(cpus)}")
    hosts = dict.fromkeys(instance.host for instance in plan.instances)
    used = {host: [cpu for one in plan.instances if one.host == host for cpu in one.cpus] for host in hosts}
    if any(len(cpus) != len(set(cpus)) for cpus in used.values()):
        strays.append("instances share a CPU")
    where = "; ".join(f"{format_cpu_list(cpus)}{f' of {host}' if host else ''}" for host, cpus in used.items())
    return Criterion(
        name="pinning",
        passed=not strays,
        found="; ".join(strays[:3]) if strays else f"all threads on {where}",
        needed="every thread on the planned CPUs",
    )


def _process_cpus(instances: Iterable[InstancePlan], process: int) -> set[int]:
    return {cpu for instance in instances if instance.process == process for cpu in instance.cpus}


def judge_client(share: float, late: float | None) -> Criterion:
    """Judge whether what asks a server had time to spare, so that the figures are the server's.

    `share`: of a core's time that it took. `late`: of the requests that were to be sent at a moment, how many were
    sent too late; None where they were sent when the ones before were answered.
    """
    found = f"the client took {share:.0%} of a core's time"
    needed = f"at most {CLIENT_BOUND:.0%}"
    if late is not None:
        found += f", and sent {late:.2%} of the requests late"
        needed += f", and at most {LATE_BOUND:.0%} late"
    passed = share <= CLIENT_BOUND and (late is None or late <= LATE_BOUND)
    remedy = "" if passed else ": have larger requests or SHARED_MEMORY, or stop other work on this machine"
    return Criterion(name="client", passed=passed, found=found, needed=needed + remedy)


def judge_keeping_up(answered: int, due: int, held: int) -> Criterion:
    """Judge whether a server answered requests as fast as they came: else, latency grows for as long as it is asked.

    `held`: how many requests its instances compute at once.
    """
    waiting = due - answered
    most = max(2 * held, BACKLOG_BOUND * due)
    return Criterion(
        name="keeping up",
        passed=waiting <= most,
        found=f"{waiting} of {due} requests were not answered when the last one came",
        needed=f"at most {most:.0f}: send fewer a second (REQUEST_RATE)",
    )


def judge_loadgen(valid: bool, reasons: Sequence[str]) -> Criterion:
    """Judge what LoadGen says of its own run; it has the reasons, and what to change."""
    found = "VALID" if valid else f"INVALID: {'; '.join(reasons)}"
    return Criterion(name="LoadGen", passed=valid, found=found, needed="VALID")


def judge_audit(audit: LoadGenAudit) -> Criterion:
    """Judge what an audit of MLPerf's finds: of a run of LoadGen's, by another of the same settings but its own."""
    found = f"{audit.name}: {'' if audit.valid else 'INVALID by itself, '}{audit.ratio:.3f} of the run's speed"
    needed = f"at most {audit.high:.2f}" if audit.low is None else f"{audit.low:.2f} to {audit.high:.2f}"
    if AUDITS[audit.name].answers:
        found += f", {audit.differing} of {audit.answered} answers differ" if audit.answered else ", no answer logged"
        needed += ", and no answer that differs from those of the run for accuracy"
    return Criterion(name="audit", passed=audit.passed, found=found, needed=needed)


def judge_requests(answered: int, failed: int) -> Criterion:
    """Judge whether a server answered all that it was asked."""
    return Criterion(
        name="requests", passed=not failed, found=f"{answered} answered, {failed} failed", needed="no failures"
    )


def judge_second_client(
    ours_per_s: float, theirs_per_s: float, windows_per_s: Sequence[float], delayed: float, failure: str
) -> Criterion:
    """Judge whether perf_analyzer had as many requests a second answered as our clients had before.

    `windows_per_s`: in each of its windows. `delayed`: the share of the requests that it says it sent late. `failure`:
    why it has no figures. A run where they differ is unstable, not invalid: what our clients counted was answered, and
    as one asks after the other, what disturbed either cannot be told from what a client is the cause of.
    """
    needed = f"within {SECOND_CLIENT_BOUND:.0%} of our clients' figure"
    if failure:
        found = f"perf_analyzer has no figures beside our clients' {ours_per_s:.4g} requests/s: {failure}"
        return Criterion(name="second client", passed=False, found=found, needed=needed, severity="unstable")
    difference = theirs_per_s / ours_per_s - 1
    found = f"perf_analyzer had {theirs_per_s:.4g} requests/s, our clients {ours_per_s:.4g}: {difference:+.1%}"
    passed = abs(difference) <= SECOND_CLIENT_BOUND
    if not passed:
        if windows_per_s:
            found += f" (its windows {min(windows_per_s):.4g} to {max(windows_per_s):.4g})"
        if delayed:
            found += f", and it sent {delayed:.1%} of the requests late"
        needed += (
            ": stop other work on this machine, measure for longer (MIN_TIME), and run it again; where they always "
            "differ so, a client's own time counts: have more requests under way (CONCURRENCY), or larger ones"
        )
    return Criterion(name="second client", passed=passed, found=found, needed=needed, severity="unstable")


def judge_latency_bound(p99_ms: float | None, bound_ms: float) -> Criterion:
    """Judge whether the 99th percentile of latency was within its bound, at a rate that was found to hold it."""
    needed = f"at most {bound_ms:g} ms (LATENCY_BOUND_MS)"
    if p99_ms is None:
        found, needed = "too few requests for a 99th percentile", f"{needed} of {PERCENTILE_FLOORS[99]} or more"
        return Criterion(name="latency bound", passed=False, found=found, needed=needed)
    if p99_ms > bound_ms:
        needed += ": the machine is less steady than when the rate was found; run it again"
    return Criterion(
        name="latency bound", passed=p99_ms <= bound_ms, found=f"99 % within {p99_ms:.4g} ms", needed=needed
    )


def judge_precision(precision: Precision, told: PrecisionProof | None, sampled: SampledProof | None) -> Criterion:
    """Judge whether the precision asked for is the one that ran, by what is known of it: one or the other, or both.

    `told`: by the engine, or by a library's trace; it decides alone where samples do not, if it tells instructions or
    if there can be no samples. `sampled`: from the measured instances' own instructions.
    """
    parts = [*([_judge_samples(sampled)] if sampled else []), *([_judge_account(precision, told)] if told else [])]
    if len(parts) == 1:
        return parts[0]
    assert sampled is not None
    assert told is not None
    alone = not sampled.decided and (told.instructions_told or bool(sampled.failure and not sampled.total))
    passed = parts[1].passed and (parts[0].passed or alone)
    disagree = sampled.decided and parts[0].passed != parts[1].passed
    return Criterion(
        name="precision",
        passed=passed,
        found="; ".join(part.found for part in parts) + ("; the two disagree" if disagree else ""),
        needed="; ".join(part.needed for part in parts),
    )


def _judge_samples(sampled: SampledProof) -> Criterion:
    """Judge whether the samples prove the precision."""
    needed = f"{sampled.needed:.1%} at the interval's lower end"
    if sampled.failure and not sampled.total:
        return Criterion(name="precision", passed=False, found=f"not sampled: {sampled.failure}", needed=needed)
    ran = ", ".join(f"{name} {count / sampled.multiplying:.1%}" for name, count in list(sampled.classes.items())[:3])
    low, high = sampled.interval
    share = f"{sampled.share:.1%} [{low:.1%}, {high:.1%}] " if sampled.multiplying else ""
    found = f"{share}of {sampled.multiplying} samples among multiply-accumulates were at {sampled.precision.name}"
    if sampled.covered < REQUIRED_COVER:
        why = f": {sampled.failure}" if sampled.failure else ""
        found += f", and only {sampled.covered:.0%} of the CPU time was sampled{why}"
        needed += f", and {REQUIRED_COVER:.0%} of the CPU time (CNNBENCH_SAMPLER=off has a trace prove it)"
    elif not sampled.decided:
        needed += ": measure for longer (STEPS, MIN_TIME; for accuracy, more images)"
    return Criterion(
        name="precision",
        passed=sampled.passed,
        found=f"{'' if sampled.decided else 'unproven by samples: '}{found} ({ran or 'none'})",
        needed=needed,
    )


def _judge_account(precision: Precision, proof: PrecisionProof) -> Criterion:
    ran = ", ".join(f"{name} {share:.0%}" for name, share in list(proof.implementations.items())[:3])
    of = precision.name if proof.instructions_told else f"{precision.name}'s data type"
    remedy = (
        "; MKL, to which PyTorch leaves layers of few images on few threads, names no instructions on this CPU: take "
        "a larger BATCH_SIZE, more CORES_PER_INSTANCE, or another ENGINE"
        if proof.unnamed > 1 - REQUIRED_SHARE
        else ""
    )
    return Criterion(
        name="precision",
        passed=REQUIRED_SHARE <= proof.share <= MOST_SHARE,
        found=f"{proof.share:.1%} of the multiply-accumulates ran as {of} ({ran or 'no trace'})",
        needed=f"{REQUIRED_SHARE:.0%} to {MOST_SHARE:.0%} of what the graph needs{remedy}",
    )


def judge_ceiling(utilization: Utilization) -> Criterion:
    """Judge whether the machine can have done what was counted."""
    return Criterion(
        name="ceiling",
        passed=utilization.share <= 1,
        found=f"{utilization.achieved:.4g} {utilization.ceiling.compute.unit} are {utilization.share:.1%} of the peak "
        f"measured, {utilization.ceiling.describe()}",
        needed="at most 100%: no machine computes faster than it can, so either something slowed the cores while "
        "the peak was measured (stop other work on this machine, and measure again), or images were counted whose "
        "arithmetic was not all done",
    )


def judge_contention(contention: Contention) -> Criterion:
    """Judge whether the instances had their cores to themselves."""
    return Criterion(
        name="contention",
        passed=contention.others + contention.steal <= CONTENTION_BOUND,
        found=f"other processes took {contention.others:.1%} of the cores' time, the hypervisor {contention.steal:.1%}",
        needed=f"at most {CONTENTION_BOUND:.0%} together: stop other work on this machine",
        severity="unstable",
    )


def judge_clocks(error_s: float, window_s: float) -> Criterion:
    """Judge whether the times of several hosts are known well enough to speak of one common window."""
    return Criterion(
        name="clocks",
        passed=error_s <= CLOCKS_BOUND * window_s,
        found=f"times of other hosts are known to {1e3 * error_s:.3g} ms in a window of {window_s:.3g} s",
        needed=f"to {CLOCKS_BOUND:.0%} of it: measure for longer, or have all hosts' clocks kept by one server",
        severity="unstable",
    )


def judge_throttling(throttling: Throttling) -> Criterion:
    """Judge whether a CPU quota left the instances their cores' time.

    A run that it did not is unstable, not invalid: all that was counted is true of a machine with this quota, and a
    container may be just what was to be measured. It is no figure of the cores that it names, though, and as a quota
    slows steadily, neither drift nor spread would say so.
    """
    return Criterion(
        name="throttling",
        passed=throttling.share <= THROTTLED_BOUND,
        found=f"a CPU quota of {throttling.quota_cpus:.4g} held work back {throttling.share:.1%} of the cores' time",
        needed=f"at most {THROTTLED_BOUND:.0%}: raise or remove the quota (docker's --cpus, as in DOCKER_OPTIONS; "
        "a Kubernetes limit; systemd's CPUQuota)",
        severity="unstable",
    )


@dataclass(frozen=True)
class Agreement:
    """How far outputs lie from the reference: the largest difference of a probability, and the share of equal bests."""

    largest_difference: float
    top1: float


def compare_outputs(outputs: Sequence[Path], reference: Path) -> Agreement:
    """Compare each instance's outputs for the fixed batch with the reference; return the worst."""
    wanted = np.load(reference)
    differences, agreements = [], []
    for path in outputs:
        found = np.load(path)
        if found.shape != wanted.shape or not np.isfinite(found).all():
            return Agreement(float("inf"), 0.0)
        differences.append(float(np.abs(found - wanted).max()))
        agreements.append(float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()))
    return Agreement(max(differences), min(agreements))


def judge_outputs(precision: Precision, agreement: Agreement) -> Criterion:
    """Judge whether the measured graph answers as the reference does, within the precision's bound."""
    return Criterion(
        name="outputs",
        passed=agreement.largest_difference <= precision.softmax_bound and agreement.top1 >= precision.top1_agreement,
        found=f"probabilities within {agreement.largest_difference:.2g}, {agreement.top1:.0%} equal top-1",
        needed=f"within {precision.softmax_bound:g}, {precision.top1_agreement:.0%}",
    )


def judge_measured_outputs(precision: Precision, top1: float) -> Criterion:
    """Judge whether the measured steps of an accuracy run, whose batches may be larger, answer so too."""
    return Criterion(
        name="measured outputs",
        passed=top1 >= precision.top1_agreement,
        found=f"{top1:.0%} equal top-1 for the images that outputs were checked with",
        needed=f"{precision.top1_agreement:.0%}",
    )


def judge_steadiness(steady: Steadiness | None) -> list[Criterion]:
    """Judge drift and spread of throughput; a run of too few steps to tell counts as unsteady.

    A drift counts only when it can be told from chance: in a short run any line through the slices has some slope.
    """
    if steady is None:
        return [
            Criterion(
                name="steadiness",
                passed=False,
                found="too few steps to judge",
                needed=f"{2 * MIN_SLICES} steps of each instance in the common window: raise STEPS",
                severity="unstable",
            )
        ]
    return [
        Criterion(
            name="drift",
            passed=abs(steady.drift) <= DRIFT_BOUND or steady.drift_p > DRIFT_SIGNIFICANCE,
            found=f"{steady.drift:+.1%} (p = {steady.drift_p:.2g})",
            needed=f"at most {DRIFT_BOUND:.0%}, or p above {DRIFT_SIGNIFICANCE}: warm up or measure for longer",
            severity="unstable",
        ),
        Criterion(
            name="spread",
            passed=steady.spread <= SPREAD_BOUND,
            found=f"{steady.spread:.1%}",
            needed=f"at most {SPREAD_BOUND:.0%}: stop other work on this machine, or measure for longer",
            severity="unstable",
        ),
    ]


def name_cause(contention: Contention | None, throttling: Throttling | None, displaced_per_s: float) -> str:
    """Return what was seen to disturb a run that did not hold still; `displaced_per_s`: involuntary switches a core."""
    seen = []
    if contention and contention.others > DISTURBING_SHARE:
        seen.append(f"other processes took {contention.others:.1%} of the cores' time")
    if contention and contention.steal > DISTURBING_SHARE:
        seen.append(f"the hypervisor took {contention.steal:.1%}")
    if throttling and throttling.share > 0:
        seen.append(f"a CPU quota took {throttling.share:.1%}")
    if displaced_per_s > DISTURBING_SWITCHES:
        seen.append(f"threads were displaced {displaced_per_s:.0f} times a second on each core")
    return " and ".join(seen) or "nothing was seen to take its cores: what shares their caches, memory or clock is not"


def explain(criteria: Sequence[Criterion], cause: str) -> list[Criterion]:
    """Return the criteria of how still a run held, the first that it failed by a figure with what disturbed it."""
    found = list(criteria)
    for number, one in enumerate(found):
        if not one.passed and one.name != "steadiness" and not one.found.startswith("no interval"):
            found[number] = replace(one, found=f"{one.found} ({cause})")
            break
    return found


def judge_interval(throughput: Estimate, max_time_s: float, measured_s: float) -> Criterion:
    """Judge whether STEPS=auto reached the interval it measures for; `measured_s`: after what time it stopped."""
    width = throughput.relative_half_width
    found = "no interval from so few steps" if width is None else f"±{width:.1%} of the mean"
    if width is not None and width > AUTO_HALF_WIDTH and measured_s < max_time_s:
        found += f" after {measured_s:.1f} s, where it got no narrower"
    return Criterion(
        name="interval",
        passed=width is not None and width <= AUTO_HALF_WIDTH,
        found=found,
        needed=f"±{AUTO_HALF_WIDTH:.0%} within MAX_TIME={max_time_s:g} s; raise MAX_TIME or quiet the machine",
        severity="unstable",
    )


def reject_without_steps(mode: str) -> Criterion:
    """Say that a run has measured nothing that its primary KPI could be made of."""
    return Criterion(
        name=mode, passed=False, found="no step lies inside the common window of all instances", needed="more STEPS"
    )


def judge_loss(loss: float, low: float | None = None) -> Criterion:
    """Judge how much top-1 accuracy the precision costs against float32, as a share of the same images.

    `low`: the lower end of its interval, which counts where only some images of the set are answered.
    """
    at_least = "" if low is None else f", {100 * low:.2f} % at least,"
    return Criterion(
        name="accuracy loss",
        passed=(loss if low is None else low) <= TOP1_LOSS_BOUND,
        found=f"{100 * loss:.2f} %{at_least} of top-1 accuracy against the float32 model",
        needed=f"at most {100 * TOP1_LOSS_BOUND:g} %",
    )


def is_covered(answered: int, images: int, time_s: float | None) -> bool:
    """Tell whether an accuracy run answered for the images that it was to: all, or those that its time allowed."""
    return answered == images or (time_s is not None and LEAST_ANSWERED <= answered < images)


def judge_coverage(answered: int, images: int, time_s: float | None) -> Criterion:
    """Judge whether an accuracy run answered for enough images; `time_s`: how long it took images at the most."""
    return Criterion(
        name="coverage",
        passed=is_covered(answered, images, time_s),
        found=f"{answered} of {images} images answered" + (f" in ACCURACY_TIME={time_s:g} s" if time_s else ""),
        needed=f"all, or {LEAST_ANSWERED}: raise ACCURACY_TIME" if time_s else "all",
    )
