"""Write how far calls of ctest.sh and their cases are, in lines for people: of a terminal, and of `--status`."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from cnnbench.base.progress import BYTES, OVERTIME, SECONDS, bytes_text, duration_text
from cnnbench.report.text import WORDS
from cnnbench.run.status import (
    STATES,
    BuildSeen,
    CallSeen,
    CaseEnd,
    CaseStatus,
    Phase,
    Progressed,
    left_of_call,
    left_of_case,
)
from cnnbench.run.watching import rate_text

MOMENT_S = 0.5
"""A time left that is shorter is not told."""
SILENCE_S = 15.0
"""From when on it is said that a case has told nothing new."""


def status_lines(build: BuildSeen, now_s: float | None = None) -> list[str]:
    """Return what runs in a build directory, what has died there, and what ran last; `now_s`: s since the epoch."""
    now_s = time.time() if now_s is None else now_s
    lines: list[str] = []
    for seen in build.calls:
        if seen.call.is_running:
            lines += _call_lines(seen, build.costs_s, now_s)
        elif seen.call.ended_s is None or seen is build.calls[-1]:
            lines += _past_lines(seen, now_s)
    for case in build.alone:
        if case.is_gone():
            lines += _died_lines(case, now_s)
        else:
            lines += case_lines(case, build.costs_s.get(case.case), now_s)
    for end in build.ended_alone:
        if not build.calls or end.ended_s > _newest(build):
            lines += last_lines(end)
    if not build.is_running:
        lines.insert(0, "nothing is running" if lines else "nothing is running, and nothing has run here yet")
    return lines


def _newest(build: BuildSeen) -> float:
    return max(seen.call.ended_s or seen.call.told_s for seen in build.calls)


def _call_lines(seen: CallSeen, costs_s: dict[str, float], now_s: float) -> list[str]:
    lines = call_lines(seen, costs_s, now_s)
    for case in seen.running:
        lines += case_lines(case, costs_s.get(case.case), now_s)
    for case in seen.died:
        lines += _died_lines(case, now_s)
    return lines + (last_lines(seen.ended[-1]) if seen.ended else [])


def call_lines(seen: CallSeen, costs_s: dict[str, float], now_s: float) -> list[str]:
    """Say which case of a running call it is, since when, and how long it takes still, as far as that is known."""
    call = seen.call
    number = min(seen.over + max(1, len(seen.running)), seen.count)
    parts = [f"case {number} of {seen.count}", f"{duration_text(now_s - call.began_s)} so far"]
    left = left_of_call(seen, costs_s, now_s)
    if left.seconds >= MOMENT_S:
        parts.append(f"{'at least' if left.is_least else 'about'} {duration_text(left.seconds)} left")
    lines = [f"ctest.sh (process {call.pid}): {', '.join(parts)}"]
    if left.unknown:
        cases = "a case" if left.unknown == 1 else f"{left.unknown} cases"
        lines.append(f"  how long {cases} will take is not known yet")
    if call.settings:
        lines.append(f"  run {call.run} of {call.runs}: {call.settings}")
    return lines


def _past_lines(seen: CallSeen, now_s: float) -> list[str]:
    call = seen.call
    count = seen.over if call.ended_s is not None else min(seen.count, len(seen.ended))
    over = f"{count} of {seen.count} {'case' if seen.count == 1 else 'cases'}"
    if call.ended_s is None:
        lines = [f"ctest.sh (process {call.pid}) died after {over}: killed, or the machine started again"]
    else:
        ago = duration_text(now_s - call.ended_s)
        lines = [f"ctest.sh ended {ago} ago with exit code {call.exit_code} after {over}"]
    for case in seen.died:
        lines += _died_lines(case, now_s)
    return lines + (last_lines(seen.ended[-1]) if seen.ended else [])


def _died_lines(case: CaseStatus, now_s: float) -> list[str]:
    when = datetime.fromtimestamp(case.told_s).astimezone().isoformat(" ", "seconds")
    ago = duration_text(now_s - case.told_s)
    seen = f"  process {case.pid}, last heard of {ago} ago ({when})"
    return [f"died: {case.case}", seen, f"  when it was at: {case.now.phase.name}"]


def last_lines(end: CaseEnd) -> list[str]:
    """Say what came of a case."""
    verdict = WORDS[end.verdict] if end.verdict in ("valid", "unstable", "invalid") else end.verdict
    return [f"last: {end.case}", f"  {verdict} after {duration_text(end.seconds)}: {end.headline}"]


def case_lines(case: CaseStatus, cost_s: float | None, now_s: float) -> list[str]:
    """Say how far a running case is."""
    parts = [f"{duration_text(now_s - case.began_s)} so far"]
    left_s = left_of_case(case, cost_s, now_s)
    if left_s is not None and left_s >= MOMENT_S:
        parts.append(f"{'at least' if cost_s is None else 'about'} {duration_text(left_s)} left")
    if case.backend == "docker":
        parts.append("in a container")
    lines = [case.case, f"  {', '.join(parts)}", f"  {case.now.phase.name}"]
    if counted := count_text(case.now.phase, now_s - case.told_s):
        lines.append(f"    {counted}")
    if case.now.throughput is not None:
        lines.append(f"  {rate_text(case.now.throughput)} so far")
    lines += [f"  {text}" for text in (instances_text(case.now), conditions_text(case.now)) if text]
    if now_s - case.told_s >= SILENCE_S:
        lines.append(f"  nothing new for {duration_text(now_s - case.told_s)}")
    return lines


def count_text(phase: Phase, age_s: float) -> str:
    """Say how much of a phase is done and how long it takes still; `age_s`: how long ago that was told (s)."""
    return ", ".join(text for text in (_done_text(phase), *_left(phase, age_s)) if text)


def _done_text(phase: Phase) -> str:
    if phase.done is None:
        return ""
    if phase.unit == BYTES:
        return bytes_text(phase.done) + ("" if phase.total is None else f" of {bytes_text(phase.total)}")
    total = "" if phase.total is None else f" of {phase.total:.6g}"
    return f"{phase.done:.15g}{total} {phase.unit}"


def _left(phase: Phase, age_s: float) -> Iterator[str]:
    left_s = None if phase.left_s is None else max(0.0, phase.left_s - age_s)
    at_most_s = None if phase.at_most_s is None else max(0.0, phase.at_most_s - age_s)
    if at_most_s is not None and at_most_s < MOMENT_S:
        yield OVERTIME
        return
    if left_s is not None and left_s >= MOMENT_S:
        yield f"about {duration_text(left_s)} left"
    if at_most_s is not None and (left_s is None or at_most_s - left_s >= MOMENT_S):
        yield f"at most {duration_text(at_most_s)}{'' if left_s is not None and left_s >= MOMENT_S else ' left'}"


def instances_text(now: Progressed) -> str:
    """Say how many instances are in each state, and how many steps they have ended."""
    if not now.instances:
        return ""
    counts = Counter(one.state for one in now.instances)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    steps = sorted(one.steps for one in now.instances)
    range_text = f"{steps[0]}" if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
    return f"{'clients' if now.clients else 'instances'}: {states}; {range_text} steps each, warm-up included"


def conditions_text(now: Progressed) -> str:
    """Say how fast the cores in use run, and how warm the processors are, where that can be read."""
    parts = [f"{now.frequency_mhz:.0f} MHz"] if now.frequency_mhz is not None else []
    parts += [f"{now.temperature_c:.0f} °C"] if now.temperature_c is not None else []
    return f"cores: {', '.join(parts)}" if parts else ""


def share_done(phase: Phase) -> float | None:
    """Return which part of a phase is done, for a bar; None where that is not known."""
    if phase.left_s is not None and phase.unit == SECONDS and phase.done is not None:
        return phase.done / (phase.done + phase.left_s) if phase.done + phase.left_s else 1.0
    if not phase.done or not phase.total:
        return None
    return min(1.0, phase.done / phase.total)
