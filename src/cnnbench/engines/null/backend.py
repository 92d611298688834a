"""An engine that computes nothing: what is then measured is the harness itself."""

import os
import time

import numpy as np

from cnnbench.engines.interface import Backend, LoadSpec

STEP_TIME = "CNNBENCH_NULL_STEP_MS"
"""Environment variable: how long a step sleeps, in ms. Give it by CUSTOMER_ENV."""


class NullBackend(Backend):
    """Sleep for a set time and answer class 0."""

    def load(self, spec: LoadSpec) -> None:
        """Read how long a step takes."""
        del spec
        self._step_s = float(os.environ.get(STEP_TIME, "0")) / 1000

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return probabilities of the right shape."""
        if self._step_s:
            time.sleep(self._step_s)
        return np.zeros((len(batch), 1001), dtype=np.float32)

    def close(self) -> None:
        """Nothing was taken."""

    def describe(self) -> dict[str, str]:
        """Say that nothing ran."""
        return {"null step (ms)": f"{self._step_s * 1000:g}"}
