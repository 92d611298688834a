"""Find what it costs a run to be watched: its rate while it is over its rate while it is not, on all cores.

    .venv/bin/python benchmarks/live.py [--rounds 60] [--seconds 2] [--precision avx_fp32] [--batch-size 1]

One run of ResNet50 with an instance on each core, so that there is no core to keep off to, and turns within it: for
some time the controller looks at the instances' times, writes the status file and has a view of it drawn on a terminal,
each second, as ctest.sh does; then nobody looks. Also the processor time of all that, as a share of one core's. Exits
with 1 where the median of the ratios is below 0.995.
"""

import os
import pty
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from interleaved import make_job, make_parser

from cnnbench.base.cache import cache_root
from cnnbench.cli.live import LiveView
from cnnbench.launch.local import Run
from cnnbench.results import stats
from cnnbench.run.inputs import Inputs, stage_inputs
from cnnbench.run.job import Job
from cnnbench.run.measured import images_of_steps
from cnnbench.run.measurement import Measurement
from cnnbench.run.status import Call
from cnnbench.run.watching import report_case

BOUND = 0.995


class Turns:
    """Which turn it is, from when the first began: an even one is watched. `cpu_s`: what each kind has taken."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen, self._cpu_s = -1, 0.0
        self.began_ns = 0
        self.cpu_s = [0.0, 0.0]

    @property
    def is_watched(self) -> bool:
        """Say whether it is an even turn; before the first, it is."""
        return not self.began_ns or self._number % 2 == 0

    @property
    def _number(self) -> int:
        return int((time.monotonic_ns() - self.began_ns) / 1e9 / self._seconds)

    def count(self) -> None:
        """Note the processor time of this process when a turn is over; called at each look of the controller's."""
        if not self.began_ns:
            self.began_ns, self._cpu_s, self._seen = time.monotonic_ns(), time.process_time(), 0
        if self._number != self._seen:
            cpu_s = time.process_time()
            self.cpu_s[self._seen % 2] += cpu_s - self._cpu_s
            self._seen, self._cpu_s = self._number, cpu_s


class TurnedMeasurement(Measurement):
    """A run that is watched by turns."""

    def __init__(self, job: Job, inputs: Inputs, logs: Path, hang_s: float, turns: Turns) -> None:
        super().__init__(job, inputs, logs, hang_s)
        self._turns = turns

    def _watch(self) -> Callable[[Run], str]:  # type: ignore[override]
        watch = super()._watch()

        def look(run: Run) -> str:
            if run.is_measuring:
                self._turns.count()
            return watch(run) if self._turns.is_watched else ""

        return look


class TurnedView(LiveView):
    """A view that is drawn by turns."""

    turns: Turns

    def draw(self) -> None:
        """Draw where it is the turn for that."""
        if self.turns.is_watched:
            super().draw()


def main() -> int:
    """Compare the watched turns with the unwatched; return the exit code."""
    parser = make_parser(__doc__)
    parser.set_defaults(rounds=60, batch_size=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn (default: %(default)s)")
    arguments = parser.parse_args()
    count = 2 * arguments.rounds
    length_s = f"{(count + 1) * arguments.seconds:g}"
    job = make_job(arguments, STEPS="auto", MIN_TIME=length_s, MAX_TIME=length_s)
    turns = Turns(arguments.seconds)
    steps = run_by_turns(job, turns)
    edges = turns.began_ns + np.arange(count + 1) * int(arguments.seconds * 1e9)
    images = images_of_steps(steps, arguments.batch_size)
    done = sum(stats.images_by(rows, counts, edges) for rows, counts in zip(steps, images, strict=True))
    rates = np.diff(done) / arguments.seconds
    median, low, high = stats.median_interval(list(rates[::2] / rates[1::2]))
    print(f"images/s: {rates[::2].mean():.2f} watched, {rates[1::2].mean():.2f} not")
    print(f"watched / not: median {median:.4f}, 95 % interval {low:.4f} to {high:.4f}, {arguments.rounds} pairs")
    watched, unwatched = (cpu_s / (arguments.rounds * arguments.seconds) for cpu_s in turns.cpu_s)
    print(f"controller and view: {watched:.2%} of one core's time watched, {unwatched:.2%} not")
    print(f"bound {BOUND}: {'passed' if median >= BOUND else 'failed'}")
    return 0 if median >= BOUND else 1


def run_by_turns(job: Job, turns: Turns) -> list[np.ndarray]:
    """Run a job; return the raw times of each instance's steps."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        build, logs = Path(name), Path(name) / "logs"
        logs.mkdir()
        (build / "CTestTestfile.cmake").touch()
        call = Call(build, [job.case.name], runs=1).status.name
        reading, writing = pty.openpty()
        threading.Thread(target=_discard, args=(reading,), daemon=True).start()
        view = TurnedView(build, call, stack.enter_context(os.fdopen(writing, "w")))
        view.turns = turns
        stack.enter_context(view)
        reporter = stack.enter_context(report_case(build, call, job.case.name, "native"))
        inputs = stage_inputs(job, cache_root(os.environ))
        TurnedMeasurement(job, inputs, logs, 300, turns).run(reporter)
        return [np.load(logs / f"instance-{one.index}" / "steps.npy") for one in job.plan.instances]


def _discard(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:  # EIO: the terminal was closed
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
