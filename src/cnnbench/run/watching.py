"""Tell how far a case is while it runs, at no cost that its instances could feel.

They tell nothing but what they write down anyhow: how far they are, how many steps they have ended, and the times of
those, in memory that the controller reads (worker/control.py). It does so each TELL_S at the most, and never for more
than 1 % of the time, on a core that is not measured where there is one.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from pydantic import ValidationError

from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.base.progress import SECONDS, Progress, listening
from cnnbench.cases.variables import IN_CONTAINER
from cnnbench.launch.container import Owner
from cnnbench.launch.local import Run
from cnnbench.machine.host import sample_frequency_mhz
from cnnbench.machine.temperature import read_temperature_c
from cnnbench.proof.verdict import AUTO_HALF_WIDTH
from cnnbench.results import stats
from cnnbench.results.kpi_text import format_number, kpi_line
from cnnbench.results.record import INTERRUPTED_RUN, RunResult
from cnnbench.run.job import Job
from cnnbench.run.measured import images_of_steps, in_sequence
from cnnbench.run.status import (
    DIRECTORY,
    CaseEnd,
    CaseStatus,
    InstanceState,
    InstanceStatus,
    Phase,
    Progressed,
    Rate,
    add_end,
    case_file,
    write_status,
)
from cnnbench.worker.control import State

TELL_S = 1.0
"""How often it is told at the most how far a case is, but for a new phase or a failure, which is told at once."""
SHARE = 0.01
"""For what part of the time at the most the times measured are read and looked at."""
CONDITIONS_S = 10.0
"""How often frequency and temperature are read: a measured core is interrupted for some microseconds to answer."""
MARK = "cnnbench-status "
"""How a line begins by which a case in a container tells how far it is."""

Tell = Callable[[Progressed], object]


class Reporter:
    """Tell how far the case of this process is, to `tell`; without it nothing is told but what a Progress shows."""

    def __init__(self, tell: Tell | None = None) -> None:
        self._send = tell
        self._now = Progressed(phase=Phase(name="starting", began_s=time.time()))
        self._told_s = 0.0
        self._is_watched = False
        self.ended: tuple[RunResult, Path] | None = None

    def end(self, result: RunResult, logs: Path) -> None:
        """Say what came of the case, and where its logs are."""
        self.ended = result, logs

    def begin(self, phase: str, instances: tuple[InstanceStatus, ...] = ()) -> None:
        """Say what is done from now on, with these instances."""
        self._now = Progressed(phase=Phase(name=phase, began_s=time.time()), instances=instances)
        self._is_watched = False
        self._tell(at_once=True)

    def progress(self, step: Progress) -> None:
        """Say how far a step of what is done is; see base.progress.listening."""
        phase = self._now.phase
        if step.is_over:
            self._is_watched = False
            self._change(phase=Phase(name=f"done: {step.label}", began_s=time.time()))
            self._tell(at_once=True)
            return
        is_new = phase.name != step.label
        left_s, at_most_s = (None, step.left_s) if step.unit == SECONDS else (step.left_s, None)
        self._change(
            phase=Phase(
                name=step.label,
                began_s=time.time() if is_new else phase.began_s,
                done=step.done,
                total=step.total,
                unit=step.unit,
                left_s=left_s if is_new or left_s is not None else phase.left_s,
                at_most_s=at_most_s,
            )
        )
        if is_new or not self._is_watched:  # else who watches the instances tells it, all at one time
            self._tell(at_once=is_new)

    def take(self, now: Progressed) -> None:
        """Say of a case that runs elsewhere what is told from there."""
        is_new = now.phase.name != self._now.phase.name
        self._now = now
        self._tell(at_once=is_new)

    def watched(self, now: Progressed) -> None:
        """Say how far the instances are, and what they have measured so far."""
        self._now, self._is_watched = now, True
        self._tell(at_once=True)

    @property
    def phase(self) -> Phase:
        """What is done now."""
        return self._now.phase

    def _change(self, **fields: object) -> None:
        self._now = self._now.model_copy(update=fields)

    def _tell(self, *, at_once: bool) -> None:
        if self._send is not None and (at_once or time.monotonic() - self._told_s >= TELL_S):
            self._told_s = time.monotonic()
            self._send(self._now)


SILENT = Reporter()


@contextmanager
def report_case(logs_root: Path, call: str, case: str, backend: str) -> Iterator[Reporter]:
    """Keep the file that tells how far a case of this process is, for the block, and then tell how it ended.

    `call`: the name of the call of ctest.sh's; empty without one. That a file cannot be written is no reason to lose a
    measurement: who reads it sees how old it is.
    """
    directory, name, owner = logs_root / DIRECTORY, case_file(os.getpid()), Owner.of(os.getpid()).label
    began_s = time.time()

    def tell(now: Progressed) -> None:
        fields = {"began_s": began_s, "told_s": time.time(), "call": call, "case": case, "backend": backend}
        with suppress(OSError):
            write_status(directory, name, CaseStatus.model_validate({"owner": owner, "now": now, **fields}))

    def end(verdict: str, headline: str, logs: str = "") -> None:
        fields = {"case": case, "began_s": began_s, "ended_s": time.time(), "verdict": verdict, "logs": logs}
        with suppress(OSError):
            add_end(directory, call, CaseEnd.model_validate({"headline": " ".join(headline.split()), **fields}))
            (directory / name).unlink(missing_ok=True)

    reporter = Reporter(tell)
    tell(Progressed(phase=reporter.phase))
    try:
        with listening(reporter.progress):
            yield reporter
    except SkippedError as error:
        end("skipped", str(error))
        raise
    except (CnnbenchError, OSError) as error:
        end("failed", str(error))
        raise
    except KeyboardInterrupt:
        end("failed", INTERRUPTED_RUN)
        raise
    if reporter.ended:
        result, logs = reporter.ended
        primary = next((kpi for kpi in result.kpis if kpi.primary and result.verdict != "invalid"), None)
        end(result.verdict, kpi_line(primary).lstrip("*") if primary else result.reason, str(logs))


def reporter_in_container(variable: str, stream: TextIO = sys.stderr) -> Reporter:
    """Return what tells how far a case in a container is by lines, where `variable` asks for that."""
    if variable != IN_CONTAINER:
        return SILENT
    return Reporter(lambda now: print(f"{MARK}{now.model_dump_json()}", file=stream, flush=True))


def read_line(line: str) -> Progressed | None:
    """Return what a line of a container's tells of its case; None for any other line, or that of another version."""
    if not line.startswith(MARK):
        return None
    try:
        return Progressed.model_validate_json(line.removeprefix(MARK))
    except ValidationError:  # an image of another version: how far it is cannot be known
        return None


@dataclass
class _Pace:
    """When the first step of an instance was seen to have ended, and how many there were by then."""

    since_s: float
    steps: int


class Watch:
    """Look at the instances of a job while they run, and tell a reporter; called at each look of the controller's.

    `steps_of`: how many steps each instance is to measure; none where that is not settled beforehand.
    """

    def __init__(self, job: Job, reporter: Reporter, steps_of: Sequence[int]) -> None:
        self._job, self._reporter, self._steps_of = job, reporter, steps_of
        starting = (InstanceStatus(index=one.index, state="starting", steps=0) for one in job.measuring.instances)
        reporter.begin("starting the instances", tuple(starting))
        self._next_s = 0.0
        self._was_measuring = False
        self._paces: dict[int, _Pace] = {}
        self._conditions: tuple[float | None, float | None] = (None, None)
        self._conditions_s = 0.0
        self._note = ""

    def __call__(self, run: Run) -> str:
        """Tell how far the instances are; return what the progress is to show besides."""
        now_s, is_measuring = time.monotonic(), run.is_measuring
        if now_s < self._next_s and is_measuring == self._was_measuring and not run.has_failed:
            return self._note
        self._was_measuring, seen = is_measuring, run.seen
        states = [_state_of(*one) for one in seen]
        for index, (_, steps, _) in enumerate(seen):
            if steps and index not in self._paces:
                self._paces[index] = _Pace(now_s, steps)
        estimate, phase = None, self._reporter.phase
        if is_measuring:
            times = run.times
            estimate = throughput_so_far(self._job, times)
            left_s, at_most_s = self._left_of_window(times, estimate)
        else:
            left_s, at_most_s = self._left_of_warmup([steps for _, steps, _ in seen], now_s), None
        rate = Rate(mean=estimate.mean, half_width=estimate.half_width, unit="img/s") if estimate else None
        self._note = rate_text(rate) if rate else ""
        frequency_mhz, temperature_c = self._read_conditions(now_s) if is_measuring else (None, None)
        self._reporter.watched(
            Progressed(
                phase=phase.model_copy(update={"left_s": left_s, "at_most_s": at_most_s}),
                instances=tuple(
                    InstanceStatus(index=index, state=states[index], steps=steps)
                    for index, (_, steps, _) in enumerate(seen)
                ),
                clients=self._job.clients is not None,
                cpus=self._job.cpus,
                throughput=rate,
                frequency_mhz=frequency_mhz,
                temperature_c=temperature_c,
            )
        )
        took_s = time.monotonic() - now_s
        self._next_s = now_s + max(TELL_S, took_s / SHARE)
        return self._note

    def _read_conditions(self, now_s: float) -> tuple[float | None, float | None]:
        if not self._conditions_s or now_s - self._conditions_s >= CONDITIONS_S:
            self._conditions_s = now_s
            is_real = self._job.cpu.flags and "hypervisor" not in self._job.cpu.flags  # else it is the nominal one
            self._conditions = sample_frequency_mhz(self._job.cpus) if is_real else None, read_temperature_c()
        return self._conditions

    def _left_of_warmup(self, steps: Sequence[int], now_s: float) -> float | None:
        """Return the time that the warm-up takes still (s), by the steps so far; None until each instance has two."""
        left = []
        for index, ended in enumerate(steps):
            pace = self._paces.get(index)
            if pace is None or ended <= pace.steps:
                return None
            more = max(0, self._job.parameters.warmup_steps - ended)
            left.append(more * (now_s - pace.since_s) / (ended - pace.steps))
        return max(left, default=None)

    def _left_of_window(
        self, steps: Sequence[np.ndarray], estimate: stats.Estimate | None
    ) -> tuple[float | None, float | None]:
        """Return the time left of the measuring (s): what is expected, and the most; None where it is not known.

        Where it goes on until the interval is narrow enough, that gets narrower with the square root of the time.
        """
        p = self._job.parameters
        if p.scenario or not steps or any(len(rows) == 0 for rows in steps):
            return None, None
        elapsed_s = (max(rows[:, 2].max() for rows in steps) - min(rows[0, 0] for rows in steps)) / 1e9
        if self._steps_of:
            left = [
                (total - len(rows)) * elapsed_s / len(rows) for total, rows in zip(self._steps_of, steps, strict=True)
            ]
            return max(0.0, *left), None
        if p.mode == "accuracy":
            return max(0.0, float(p.accuracy_time) - elapsed_s), None
        at_most_s = max(0.0, p.max_time - elapsed_s)
        width = estimate.relative_half_width if estimate else None
        if width is None or self._job.sends_freely:
            return None, at_most_s
        needed_s = max(elapsed_s * (width / AUTO_HALF_WIDTH) ** 2, p.min_time)
        return min(max(0.0, needed_s - elapsed_s), at_most_s), at_most_s


def _state_of(state: State, steps: int, is_dead: bool) -> InstanceState:
    if is_dead:
        return "dead"
    if state is State.LOADING:
        return "warming up" if steps else "loading"
    names: dict[State, InstanceState] = {
        State.READY: "warming up",  # it goes on until all are ready
        State.MEASURING: "measuring",
        State.DONE: "done",
    }
    return names[state]


def throughput_so_far(job: Job, steps: Sequence[np.ndarray]) -> stats.Estimate | None:
    """Return the images/s of what is measured so far; None where that is not known yet, or before LoadGen is done."""
    if job.parameters.scenario or not steps or any(len(rows) < 2 for rows in steps):
        return None
    if job.sends_freely:
        (rows,) = steps
        window = stats.Window(int(rows[:, 0].min()), int(rows[:, 0].max()))
        steps = [in_sequence(rows)]
    else:
        window = stats.Window(max(int(rows[0, 0]) for rows in steps), min(int(rows[-1, 2]) for rows in steps))
    if window.end_ns <= window.start_ns:
        return None
    return stats.estimate_throughput(steps, images_of_steps(steps, job.parameters.images_per_step), window)


def rate_text(rate: Rate) -> str:
    """Write a rate for people, with its interval where there is one: that has two digits, as only the first counts."""
    if not rate.half_width:
        return f"{format_number(rate.mean)} {rate.unit}"
    decimals = max(0, 1 - math.floor(math.log10(rate.half_width)))
    return f"{rate.mean:.{decimals}f} ± {rate.half_width:.{decimals}f} {rate.unit}"
