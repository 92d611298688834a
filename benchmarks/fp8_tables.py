"""Make the specification's tables of ResNet50 in fp8: throughput by batch, and size and latency of three conversions.

    .venv/bin/python benchmarks/fp8_tables.py throughput [--data dummy real] [--batches 1 2 4 ...] [--output FILE.csv]
    .venv/bin/python benchmarks/fp8_tables.py latency [--output FILE.csv]

Each cell is a case of workload/ResNet50-FP8-Public, with its proof, verdict and half its 95 % interval; `!` marks one
that is unstable, and one that is invalid has none. A run that needs more than --memory GiB is `oom`: its
instances have that much address space, and end when they are refused more. `top-1` is the accuracy over all drawn
validation images, and its loss is counted on the same images, with a paired interval. A CSV file has a line for each
cell.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.table import find_interval
from cnnbench.report.text import align
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult, find_last_run, load_run

WORKLOAD = REPOSITORY / "workload" / "ResNet50-FP8-Public"
CNNBENCH = (sys.executable, "-m", "cnnbench")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 90, 96)
FORMS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ResNet50": ("fp32", {}),
    "FP16 ResNet50": ("fp16", {}),
    "BF16 ResNet50": ("bfloat16", {}),
    "FP8 ResNet50": ("fp8", {"FP8_SKIP_OP_NAMES": "none"}),
    "FP8 ResNet50 (first conv in fp16)": ("fp8", {"FP8_SKIP_OP_NAMES": "Conv_0"}),
    "FP8 ResNet50 (first conv and last gemm in fp16)": ("fp8", {"FP8_SKIP_OP_NAMES": "Conv_0,Gemm_126"}),
    "FP8 ResNet50 (first conv, conv_13 and last gemm in fp16)": (
        "fp8",
        {"FP8_SKIP_OP_NAMES": "Conv_0,Conv_13,Gemm_126"},
    ),
    "FP8-weight ResNet50": ("fp8_weight", {"FP8_SKIP_OP_NAMES": "none"}),
}
"""The rows of the specification, and what they are here."""

CONVERSIONS: Mapping[str, Sequence[str]] = {
    "pure-FP8": (),
    "Occ-FP8": ("--fp8_skip_op_names", "Conv_5,Conv_13,Gemm_126"),
    "AutoPad-FP8": ("--compiler_options", "custom_patterns=PadConvChannel"),
}
MAX_TIME_S, MAX_TIME_OF_LARGE_S, LARGE_BATCH = 5, 16, 32
"""How long cells are measured at the most: those of larger batches long enough for the steps that an interval needs."""
ACCURACY = ("Accuracy top-1", "Top-1 loss")
RUNS = 5
STAGING_GIB = 1024.0
REFUSED = re.compile(r"std::bad_alloc|Cannot allocate memory|MemoryError|Failed to allocate .*memory|bad allocation")


def measure(mode: str, precision: str, settings: Mapping[str, str], root: Path, memory_gib: float) -> RunResult | str:
    """Return the result of a case, or a word for why there is none: `oom`, or `skipped` by what the CPU lacks."""
    case = f"test_resnet50_fp8_public_inference_{mode}_{precision}"
    words = [f"--{name.lower()}={value}" for name, value in settings.items()]
    command = [*CNNBENCH, "case", "--workload", str(WORKLOAD), "--case", case, "--logs-root", str(root), *words]
    limit = ["prlimit", f"--as={int(memory_gib * 2**30)}"]
    logs = root / f"logs-{case}"
    shutil.rmtree(logs, ignore_errors=True)  # of the cell before
    done = subprocess.run([*limit, *command], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        return "skipped"
    if not logs.is_dir():
        return "oom" if REFUSED.search(done.stderr) else sys.exit(f"{' '.join(command)}: {done.stderr}")
    directory = find_last_run(logs)
    run = load_run(directory)
    outputs = "".join(path.read_text(errors="replace") for path in directory.glob("process-*/output.log"))
    return "oom" if run.verdict == "invalid" and REFUSED.search(outputs + done.stderr) else run


@dataclass(frozen=True)
class Cell:
    """A figure of a run, or a word for why there is none."""

    value: float | None
    interval: tuple[float, float] | None
    verdict: str

    @classmethod
    def of(cls, run: RunResult | str, key: str) -> "Cell":
        """Return a run's figure."""
        if isinstance(run, str):
            return cls(None, None, run)
        value = next((kpi.value for kpi in run.kpis if kpi.key == key), None)
        return cls(value, find_interval(run, key), run.verdict)

    def text(self) -> str:
        """Return it as the table has it."""
        if self.value is None:
            return "INVALID" if self.verdict == "invalid" else self.verdict
        mark = "" if self.verdict == "valid" else " !"
        if not self.interval:
            return format_number(self.value) + mark
        low, high = self.interval
        return f"{format_number(self.value)} ±{format_number((high - low) / 2)}{mark}"

    def numbers(self) -> list[str]:
        """Return it as a line of the CSV file has it: the value, the ends of its interval and the verdict."""
        value = "" if self.value is None else f"{self.value:.6g}"
        return [
            value,
            *(f"{end:.6g}" for end in self.interval or ()),
            *([] if self.interval else ["", ""]),
            self.verdict,
        ]


def throughput_table(arguments: argparse.Namespace, root: Path) -> list[list[str]]:
    """Measure all forms at all batches; return the rows. The CSV file has each figure as soon as it is there."""
    quick = {"MIN_TIME": "3", "WARMUP_STEPS": "2", "ENGINE": arguments.engine}
    rows = [["data", "network", *(f"bs{size}" for size in arguments.batches), "top-1 (%)", "top-1 loss (%)"]]
    record(arguments.output, ["data", "network", "batch", "KPI", "value", "low", "high", "verdict"], anew=True)
    accuracies: dict[str, list[Cell]] = {}
    for data in arguments.data:
        for name, (precision, settings) in FORMS.items():
            cells = []
            staging = {**quick, **settings, "STEPS": "1", "BATCH_SIZE": "1", "DATA_TYPE": data}
            measure("throughput", precision, staging, root, STAGING_GIB)  # converts the network, which needs more
            for size in arguments.batches:
                longest = str(MAX_TIME_S if size <= LARGE_BATCH else MAX_TIME_OF_LARGE_S)
                asked = {**quick, **settings, "BATCH_SIZE": str(size), "DATA_TYPE": data, "MAX_TIME": longest}
                cell = Cell.of(measure("throughput", precision, asked, root, arguments.memory), "Throughput")
                record(arguments.output, [data, name, str(size), "Throughput (img/s)", *cell.numbers()])
                print(f"{data}, {name}, batches of {size}: {cell.text()}", file=sys.stderr, flush=True)
                cells.append(cell.text())
            if name not in accuracies:
                asked = {"ENGINE": arguments.engine, **settings}
                run = measure("accuracy", precision, asked, root, arguments.memory) if arguments.accuracy else "-"
                accuracies[name] = [Cell.of(run, key) for key in ACCURACY]
                for key, cell in zip(ACCURACY, accuracies[name], strict=True):
                    record(arguments.output, ["real", name, "25", f"{key} (%)", *cell.numbers()])
            rows.append([data, name, *cells, *(cell.text() for cell in accuracies[name])])
    return rows


def record(output: Path | None, line: Sequence[str], *, anew: bool = False) -> None:
    """Add a line to the CSV file, if one is wanted."""
    if output:
        with output.open("w" if anew else "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(line)


def latency_table(arguments: argparse.Namespace, root: Path) -> list[list[str]]:
    """Convert in three ways, export, and measure five runs of each; return the rows."""
    model = WORKLOAD / "model" / "resnet50.onnx"
    if not model.is_file():
        sys.exit(f"{model}: not there; test_resnet.py makes it")
    found: dict[str, list[str]] = {}
    for name, words in CONVERSIONS.items():
        directory = root / name
        command = [*CNNBENCH, "convert", "--input_model", str(model), "--output_model", str(root / f"{name}.onnx")]
        command += [
            "--input_shape",
            "input=1,3,224,224",
            "--precision",
            "fp8",
            "--fp8_params",
            "F143,F143,-3,-3",
            *words,
        ]
        subprocess.run(
            [*command, "--export", str(directory), "--engine", arguments.engine], check=True, stdout=sys.stderr
        )
        (file,) = (path for path in directory.glob("executable.*") if path.suffix != ".json")
        done = subprocess.run(
            [*CNNBENCH, "run-exported", str(file), "--logs-root", str(root)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        runs = re.findall(r"run#\d+ +([\d.]+)", done.stdout)
        sizes = [f"{(root / f'{name}.onnx').stat().st_size / 1e6:.1f} MB", f"{file.stat().st_size / 1e6:.1f} MB"]
        found[name] = [*sizes, *(f"{latency} ms" for latency in runs), *["INVALID"] * (RUNS - len(runs))]
        print(f"{name}: {', '.join(found[name])}", file=sys.stderr, flush=True)
    what = ["ONNX file", "what the engine loads", *(f"run#{number}" for number in range(1, RUNS + 1))]
    rows = [["size and latency", *found], *([one, *cells] for one, *cells in zip(what, *found.values(), strict=True))]
    for number, row in enumerate(rows):
        record(arguments.output, row, anew=number == 0)
    return rows


def main() -> int:
    """Make a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("throughput", "latency"))
    parser.add_argument("--engine", choices=("openvino", "onnxruntime"), default="openvino")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--data", nargs="+", choices=("dummy", "real"), default=["dummy", "real"])
    parser.add_argument("--accuracy", action="store_true", help="measure top-1 too")
    parser.add_argument("--memory", type=float, default=16, metavar="GIB", help="what a run may have (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        table = throughput_table if arguments.table == "throughput" else latency_table
        header, *rows = table(arguments, Path(scratch))
    print(f"{read_cpuinfo().model_name}, {len(os.sched_getaffinity(0))} cores, {arguments.engine}")
    print(align(header, rows, width=None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
