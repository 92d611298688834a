"""Measure what the sampler costs: the rate of steps with its timers running over that without.

    .venv/bin/python benchmarks/sampler.py [--engines null tensorflow openvino ...] [--rounds 40] [--seconds 0.5]

For each engine one process holds ResNet50 loaded, on all cores, and takes turns in it: steps for some time with the
sampler, then without, then in the other order. `null` computes nothing and takes 1 ms a step, of which 0.1 ms of
processor time would be a tenth. Exits with 1 where a median is below 0.995, or nothing was sampled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cnnbench.results.samples import read_records
from cnnbench.worker.process import load_backend
from cnnbench.worker.sampler import Sampler
from cnnbench.worker.spec import WorkerSpec

BOUND = 0.995
NULL = "null"
STEP_MS = "1"
NULL_WORKLOAD = "{name: Harness, slug: harness, title: the harness itself, engine: 'null', defaults: {}}\n"
WARM_UP_S = 3.0


def work(path: str, rounds: int, seconds: float) -> None:
    """Be the process of an engine: print the ratio of each round."""
    spec = WorkerSpec.read(Path(path))
    assert spec.sampling is not None
    sampler = Sampler(Path(spec.shared) / "samples", spec.sampling.capacity, spec.sampling.period_ns)
    backend = load_backend(spec)
    images = np.load(spec.check_images) if spec.check_images else np.zeros((1, 224, 224, 3), dtype=np.float32)
    batch = np.ascontiguousarray(images[np.arange(spec.batch_size) % len(images)])

    def rate(length_s: float) -> float:
        """Return the steps a second of some time."""
        began, steps = time.perf_counter(), 0
        while (now := time.perf_counter()) - began < length_s:
            backend.infer(batch)
            steps += 1
        return steps / (now - began)

    def sampled_rate() -> float:
        sampler.arm()
        sampler.record()
        found = rate(seconds)
        sampler.pause()
        return found

    rate(WARM_UP_S)
    for number in range(rounds):
        if number % 2:
            bare, sampled = rate(seconds), sampled_rate()
        else:
            sampled, bare = sampled_rate(), rate(seconds)
        print(sampled / bare, flush=True)
    if not len(read_records(Path(spec.shared) / "samples")[0]):
        sys.exit("nothing was sampled")


def main() -> int:
    """Compare; return the exit code."""
    # What these import is not in the environment of the engines.
    from cnnbench.base.cache import cache_root
    from cnnbench.base.checkout import SOURCES
    from cnnbench.engines.registry import engines_that_take
    from cnnbench.harness.line import read_request
    from cnnbench.machine.host import read_cpuinfo
    from cnnbench.report.text import align
    from cnnbench.results.stats import median_interval
    from cnnbench.run.inputs import stage_inputs
    from cnnbench.run.job import plan_case, prepare_job
    from cnnbench.run.workers import worker_environment, worker_specs
    from cnnbench.tuning.turns import MIN_ROUNDS, interval_text

    names = [NULL, "tensorflow", *engines_that_take("network")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=40, help=f"{MIN_ROUNDS} or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < MIN_ROUNDS:
        parser.error(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    rows, slow = [], False
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.engines:
            directory = Path(scratch) / name
            directory.mkdir()
            if name == NULL:
                (directory / "workload.yaml").write_text(NULL_WORKLOAD)
                asked = {"CUSTOMER_ENV": f"CNNBENCH_NULL_STEP_MS={STEP_MS}"}
                workload, case = directory, "test_harness_inference_throughput_avx_fp32"
            else:
                words = ["--model", "resnet50", "--engine", name, "--precision", "32.32", "--batch-size", "4"]
                request = read_request(words, read_cpuinfo().flags)
                workload, ((case, asked),) = request.workload, request.runs
            asked |= {"INSTANCES": "1", "CORES_PER_INSTANCE": "auto"}
            job = prepare_job(plan_case(workload, case, os.environ, asked), os.environ)
            inputs = stage_inputs(job, cache_root(os.environ))
            if inputs.sampler.library is None:
                sys.exit(f"nothing samples here: {inputs.sampler.reason}")
            spec = worker_specs(job, inputs, name, directory, directory)[0]
            spec.write(directory / "spec.json")
            command = [inputs.python, __file__, directory / "spec.json", arguments.rounds, arguments.seconds]
            done = subprocess.run(
                [str(word) for word in command],
                env=worker_environment(job, spec, inputs.sampler) | {"PYTHONPATH": str(SOURCES)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            ratios = [float(line) for line in done.stdout.splitlines()[-arguments.rounds :]]
            rows.append([name, interval_text(ratios, 4)])
            print(": ".join(rows[-1]), file=sys.stderr, flush=True)
            slow = slow or median_interval(ratios)[0] < BOUND
    print(align(["engine", "with the sampler over without"], rows))
    return int(slow)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].endswith("spec.json"):
        work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    else:
        sys.exit(main())
