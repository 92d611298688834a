"""Measure the product itself as one of the engines: through its own cases, workers and judgement."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from interleaved import WORKLOAD
from peer_process import Block

from cnnbench.errors import InvalidMeasurementError
from cnnbench.job import plan_case, prepare_job, stage_inputs
from cnnbench.result import RunResult
from cnnbench.run import Measurement
from cnnbench.staging.cache import cache_root

HANG_S = 600
DEFAULTS = {
    "throughput": {"BATCH_SIZE": "32", "CORES_PER_INSTANCE": "1"},
    "latency": {"BATCH_SIZE": "1", "INSTANCES": "1"},
}
"""Settings where neither `--config` nor `--set` says otherwise."""


class Product:
    """A case, run anew for each block; its loading lies outside of what it measures."""

    def __init__(
        self, mode: str, precision: str, settings: Mapping[str, str], config: Path | None, seconds: float
    ) -> None:
        case = f"test_resnet50v1_5_tensorflow_xeon_public_inference_{mode}_{precision}"
        defaults = {} if config else DEFAULTS[mode]
        timing = {"MIN_TIME": str(seconds), "MAX_TIME": str(seconds)}
        self.job = prepare_job(plan_case(WORKLOAD, case, os.environ, defaults | settings | timing, config), os.environ)
        self._inputs = stage_inputs(self.job, cache_root(os.environ))
        self.batch_size, self.instances = self.job.parameters.batch_size, len(self.job.plan.instances)
        self.cpus = sorted(cpu for instance in self.job.plan.instances for cpu in instance.cpus)
        self._last: RunResult | None = None

    @property
    def versions(self) -> str:
        """The versions of what the last block ran."""
        facts = self._last.facts if self._last else {}
        return ", ".join(f"{name} {facts[name]}" for name in ("TensorFlow", "ITEX") if name in facts)

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
        others = [kpi.value / 100 for kpi in self._last.kpis if kpi.key == "Other load"]
        return Block(steps, others[0] if others else None)
