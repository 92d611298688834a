"""Measure what the harness costs: a case's throughput over that of a bare loop on the same graph, cores and batch.

.venv/bin/python benchmarks/harness.py [--rounds 10] [--cores-per-instance 1] [--batch-size 32] [--steps 10]
"""

import os
import subprocess
from pathlib import Path

from interleaved import compare, make_job, make_parser, measure

from cnnbench.job import stage_inputs
from cnnbench.staging.cache import cache_root


def main() -> None:
    """Compare."""
    arguments = make_parser(__doc__).parse_args()
    job = make_job(arguments, INSTANCES="1")
    inputs = stage_inputs(job, cache_root(os.environ))
    if inputs.model is None:
        raise SystemExit("the engine has no model to loop on")
    instance = job.plan.instances[0]
    numbers = (arguments.batch_size, job.parameters.warmup_steps, arguments.steps, instance.threads, *instance.cpus)
    command = [inputs.python, Path(__file__).with_name("bare_loop.py"), inputs.model.graph, inputs.model.check_images]
    environment = job.environment | {"TF_CPP_MIN_LOG_LEVEL": "2"}

    def loop() -> float:
        words = [str(word) for word in (*command, *numbers)]
        return float(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)

    compare(arguments.rounds, "harness", lambda: measure(job), "bare loop", loop)


if __name__ == "__main__":
    main()
