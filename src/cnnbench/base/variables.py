"""Name the environment variables of this program's own, so that a misspelt one is told and not passed over."""

import difflib
from collections.abc import Mapping

from cnnbench.base.errors import UsageError

OWN = (
    *("CNNBENCH_ALLOCATION", "CNNBENCH_NODE"),
    *("CNNBENCH_ATTENDED", "CNNBENCH_BASE_IMAGE", "CNNBENCH_CACHE", "CNNBENCH_CONFIG", "CNNBENCH_DEFAULTS"),
    *("CNNBENCH_DIRECTORY", "CNNBENCH_DRY_RUN", "CNNBENCH_GRAMINE", "CNNBENCH_HANG_AFTER", "CNNBENCH_NEIGHBOUR"),
    "CNNBENCH_NULL_STEP_MS",
    *("CNNBENCH_OPTIONS", "CNNBENCH_PEAK", "CNNBENCH_PROGRESS", "CNNBENCH_PYTHON", "CNNBENCH_PYTORCH_CUDA"),
    *("CNNBENCH_SAMPLER", "CNNBENCH_SETUP_S", "CNNBENCH_SKIPS", "CNNBENCH_STATUS", "CNNBENCH_TEST_NETWORK_IMAGES"),
    "CNNBENCH_WORKLOAD",
)

_LIKENESS = 0.87
"""How like one of ours a name is at the least that is taken for a slip: CACHE_DIR for CACHE is, HOME is not."""


def check_spelling(environ: Mapping[str, str]) -> None:
    """Raise UsageError for a variable that nearly is one of ours; one that is like none of ours is somebody else's.

    A note would come too late: with CAHCE for CACHE, gigabytes would be on their way to another disk already.
    """
    slips = [
        f"{name}: no variable of cnnbench; did you mean {near[0]}?"
        for name in sorted(environ)
        if name.startswith("CNN") and name not in OWN and (near := difflib.get_close_matches(name, OWN, 1, _LIKENESS))
    ]
    if slips:
        raise UsageError("\n".join([*slips, "correct it, or take it out of the environment"]))
