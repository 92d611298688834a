"""Measure the product itself as one of the engines: through its own cases, workers and judgement."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from interleaved import WORKLOAD
from peer_engines import HERE
from peer_process import Block

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.cases.case import pick_sections
from cnnbench.cases.parameters import FIELDS
from cnnbench.cases.workload import DEFAULTS_VARIABLE, load_sections
from cnnbench.machine.ceiling import PEAK_VARIABLE
from cnnbench.results.record import RunResult
from cnnbench.run.job import Job, plan_case, prepare_job, stage_inputs
from cnnbench.run.measurement import Measurement

HANG_S = 600
DEFAULTS = {
    "throughput": {"BATCH_SIZE": "16", "CORES_PER_INSTANCE": "1"},
    "latency": {"BATCH_SIZE": "1", "INSTANCES": "1"},
}
"""Settings where neither `--config` nor `--set` says otherwise."""
PEAK_PROGRAM = HERE.parent / "build" / "cnnbench-peak"
"""What measures the cores' ceiling where the environment names no other program."""


def case_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without parameters of cases, so that the command line decides, and with a peak program."""
    kept = {name: value for name, value in environ.items() if name not in {*FIELDS, DEFAULTS_VARIABLE}}
    return ({PEAK_VARIABLE: str(PEAK_PROGRAM)} if PEAK_PROGRAM.is_file() else {}) | kept


def product_job(mode: str, precision: str, settings: Mapping[str, str], config: Path | None, seconds: float) -> Job:
    """Return the product's case, planned for dummy data and blocks of so many seconds."""
    case = f"test_resnet50v1_5_tensorflow_xeon_public_inference_{mode}_{precision}"
    asked = DEFAULTS[mode] | (pick_sections(load_sections(config), case) if config else {}) | dict(settings)
    pinned = {"DATA_TYPE": "dummy", "STEPS": "auto", "MIN_TIME": str(seconds), "MAX_TIME": str(seconds)}
    environ = case_environment(os.environ)
    return prepare_job(plan_case(WORKLOAD, case, environ, asked | pinned), environ)


class Product:
    """A case, run anew for each block; its loading lies outside of what it measures."""

    def __init__(self, job: Job) -> None:
        self.job, self._inputs = job, stage_inputs(job, cache_root(os.environ))
        self.batch_size, self.instances = job.parameters.batch_size, len(job.plan.instances)
        self._last: RunResult | None = None

    @property
    def versions(self) -> str:
        """The versions of what the last block ran."""
        facts = self._last.facts if self._last else {}
        return ", ".join(f"{name} {facts[name]}" for name in ("TensorFlow", "ITEX", "zentf") if name in facts)

    @property
    def ran(self) -> str:
        """What the last block's trace proved, and the settings."""
        found = [one.found for one in self._last.criteria if one.name == "precision"] if self._last else []
        settings = {"VARIANT": self.job.variant, "CUSTOMER_ENV": self.job.effective.get("CUSTOMER_ENV", "")}
        return "; ".join([*found, *(f"{name}={value}" for name, value in settings.items() if value)])

    def block(self, seconds: float) -> Block:
        """Run the case, which was planned for so many seconds; an invalid run raises InvalidMeasurementError."""
        del seconds
        with tempfile.TemporaryDirectory() as logs:
            self._last = Measurement(self.job, self._inputs, Path(logs), HANG_S).run()
            if self._last.verdict == "invalid":
                raise InvalidMeasurementError(f"invalid run: {self._last.reason}")
            steps = [np.load(Path(logs) / f"instance-{n}" / "steps.npy") for n in range(self.instances)]
        shares = {kpi.key: kpi.value / 100 for kpi in self._last.kpis if kpi.unit == "%"}
        complaint = "" if self._last.verdict == "valid" else f"{self._last.verdict}: {self._last.reason}"
        return Block(steps, shares.get("Other load"), shares.get("Compute utilization"), complaint)
