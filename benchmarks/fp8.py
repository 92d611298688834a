"""Measure what 8-bit floating point costs where it is emulated: the rate of steps over that of the float32 network.

    .venv/bin/python benchmarks/fp8.py [--engines openvino onnxruntime] [--rounds 20] [--seconds 1]

For each engine one process holds ResNet50 in all forms, on all cores, and takes turns in it: float32, then each form,
then in the other order. `fp8, as it stands` is the standard file, which the engine converts number by number; `fp8` is
the form that the engines are handed, with the same answers. Where the CPU has bfloat16 instructions, the forms are
computed in that too, over the bfloat16 network.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cnnbench.worker.process import load_backend
from cnnbench.worker.spec import WorkerSpec

WARM_UP_STEPS = 3
BATCH = "8"


def work(directory: Path, rounds: int, seconds: float) -> None:
    """Be the process of an engine: print each round's rate of each form over that of the first."""
    specs = {path.stem: WorkerSpec.read(path) for path in sorted(directory.glob("*.json"))}
    backends = {name: load_backend(spec) for name, spec in specs.items()}
    first = next(iter(specs.values()))
    images = np.load(first.check_images)
    batch = np.ascontiguousarray(images[np.arange(first.batch_size) % len(images)])

    def rate(name: str) -> float:
        began, steps = time.perf_counter(), 0
        while (now := time.perf_counter()) - began < seconds or not steps:
            backends[name].infer(batch)
            steps += 1
        return steps / (now - began)

    for backend in backends.values():
        for _ in range(WARM_UP_STEPS):
            backend.infer(batch)
    names = list(specs)
    for number in range(rounds):
        found = {name: rate(name) for name in (names if number % 2 else names[::-1])}
        print(*(found[name] / found[names[0]] for name in names), flush=True)


def main() -> int:
    """Compare; return the exit code."""
    # What these import is not in the environment of the engines.
    from cnnbench.base.cache import cache_root
    from cnnbench.base.checkout import REPOSITORY, SOURCES
    from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
    from cnnbench.engines.conversion import NETWORK
    from cnnbench.machine.host import read_cpuinfo
    from cnnbench.report.text import align
    from cnnbench.run.inputs import stage_inputs
    from cnnbench.run.job import plan_case, prepare_job
    from cnnbench.run.workers import worker_environment, worker_specs
    from cnnbench.staging.sampler import NO_SAMPLER
    from cnnbench.tuning.turns import MIN_ROUNDS, interval_text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engines", nargs="+", choices=("openvino", "onnxruntime"), default=["openvino", "onnxruntime"]
    )
    parser.add_argument("--rounds", type=int, default=20, help=f"{MIN_ROUNDS} or more (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1, help="of each turn, at least a step (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < MIN_ROUNDS:
        parser.error(f"--rounds {arguments.rounds}: {MIN_ROUNDS} or more are needed for the interval of a median")
    workload, rows = REPOSITORY / "workload" / "ResNet50-FP8-Public", []
    in_bfloat16 = not missing_for_precision(PRECISIONS["bfloat16"], read_cpuinfo().flags)
    for engine in arguments.engines:
        groups = {"fp32": ["fp32", "fp8", "fp8_weight"]}
        if in_bfloat16 and engine == "openvino":
            groups["bfloat16"] = ["bfloat16", "fp8", "fp8_weight"]
        for arithmetic, precisions in groups.items():
            with tempfile.TemporaryDirectory() as scratch:
                directory, forms = Path(scratch), []
                for precision in precisions:
                    case = f"test_resnet50_fp8_public_inference_throughput_{precision}"
                    asked = {"ENGINE": engine, "BATCH_SIZE": BATCH, "INSTANCES": "1", "CORES_PER_INSTANCE": "auto"}
                    asked |= {"FP8_ARITHMETIC": arithmetic, "FP8_SKIP_OP_NAMES": "none"}
                    job = prepare_job(plan_case(workload, case, os.environ, asked), os.environ)
                    inputs = stage_inputs(job, cache_root(os.environ))
                    spec = worker_specs(job, inputs, engine, directory, directory)[0]
                    forms.append((precision, spec))
                    if precision == "fp8":
                        standard = directory / "standard"
                        standard.mkdir()
                        shutil.copy(Path(spec.model) / NETWORK, standard)
                        forms.append(("fp8, as it stands", dataclasses.replace(spec, model=str(standard))))
                for number, (_, spec) in enumerate(forms):
                    spec.write(directory / f"{number}.json")
                command = [inputs.python, __file__, directory, arguments.rounds, arguments.seconds]
                done = subprocess.run(
                    [str(word) for word in command],
                    env=worker_environment(job, forms[-1][1], NO_SAMPLER) | {"PYTHONPATH": str(SOURCES)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            found = np.array([line.split() for line in done.stdout.splitlines()[-arguments.rounds :]], dtype=float)
            for number, (form, _) in enumerate(forms[1:], start=1):
                rows.append([engine, form, f"{interval_text(list(found[:, number]), 3)} of {arithmetic}"])
                print(": ".join(rows[-1]), file=sys.stderr, flush=True)
    print(align(["engine", "form", "rate of steps"], rows))
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 4 and Path(sys.argv[1]).is_dir():
        work(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    else:
        sys.exit(main())
