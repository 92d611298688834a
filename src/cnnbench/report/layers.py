"""Tabulate what each layer of a run ran on, how long it took, and what ran between the layers."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.precisions import PRECISIONS, Precision
from cnnbench.engines.layers import LAYERS, TRACE_DIRECTORY
from cnnbench.proof.precision import ran_as
from cnnbench.proof.trace import TracedStep, read_trace
from cnnbench.report.table import Format
from cnnbench.report.text import align
from cnnbench.results.record import find_last_run
from cnnbench.worker.spec import WorkerSpec

COLUMNS = (
    "record", "number", "kind", "shape", "implementation", "types", "partition", "count", "gmacs", "time_ms",
    "time_share", "macs_share", "as_required",
)  # fmt: skip
BAR = 24
"""How long a bar is at the most."""
_SUMMED = ("count", "gmacs", "time_ms", "time_share", "macs_share")


@dataclass(frozen=True)
class Trace:
    """The trace of one run: its case's precision and batch size, and what a step ran."""

    worker: Path
    precision: Precision
    batch_size: int
    step: TracedStep


def load_trace(directory: Path) -> Trace:
    """Read the trace of the last run in a logs-<case>, itr-N or worker directory; raise CnnbenchError without one."""
    run = find_last_run(directory)
    trace = run / TRACE_DIRECTORY
    described, log = trace / "spec.json", trace / "output.log"
    if not described.is_file() or not (log.is_file() or (trace / LAYERS).is_file()):
        raise CnnbenchError(
            f"{run}: has no trace (trace/spec.json, and trace/output.log or trace/{LAYERS}); a run leaves one "
            "whose engine tells its layers itself; have that of others traced by ONEDNN_VERBOSE=True"
        )
    spec = WorkerSpec.read(described)
    step = read_trace(trace)
    if not step.layers:
        raise CnnbenchError(
            f"{trace}: shows no layer of a step; the last lines of its output tell what the process did"
        )
    return Trace(run, PRECISIONS[spec.precision], spec.batch_size, step)


def show_layers(directory: Path, output_format: Format) -> str:
    """Return the table of a run's layers, the totals of each implementation, and what ran between the layers.

    Times are of one step: a layer's is the median over the steps traced, that of other work the mean.
    """
    trace = load_trace(directory)
    records = _records(trace)
    if output_format == "json":
        return json.dumps(records, indent=2)
    return _format_csv(records) if output_format == "csv" else _format_tables(trace, records)


def _records(trace: Trace) -> list[dict[str, Any]]:
    """Return a record for each layer, each implementation and each kind of other work."""
    layers, total_ms = trace.step.layers, trace.step.time_ms or 1
    total_macs = sum(layer.macs for layer in layers) or 1
    records: list[dict[str, Any]] = [
        {
            "record": "layer",
            "number": number,
            "kind": layer.kind,
            "shape": layer.shape,
            "implementation": layer.implementation,
            "types": layer.types,
            "partition": layer.partition,
            "count": 1,
            "gmacs": layer.macs / 1e9,
            "time_ms": layer.time_ms,
            "time_share": layer.time_ms / total_ms,
            "macs_share": layer.macs / total_macs,
            "as_required": ran_as(trace.precision, layer),
        }
        for number, layer in enumerate(layers, start=1)
    ]
    totals: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for record in records:
        key = (record["implementation"], record["types"], record["as_required"])
        total = totals.setdefault(
            key,
            {"record": "implementation", "implementation": key[0], "types": key[1], "as_required": key[2]}
            | dict.fromkeys(_SUMMED, 0),
        )
        for name in _SUMMED:
            total[name] += record[name]
    others = [
        {
            "record": "other",
            "kind": other.kind,
            "count": other.count,
            "time_ms": other.time_ms,
            "time_share": other.time_ms / total_ms,
        }
        for other in trace.step.others
    ]
    records += sorted(totals.values(), key=lambda total: -total["gmacs"])
    if not trace.step.time_ms:  # an engine that tells its layers itself tells no times
        records = [record | {"time_ms": None, "time_share": None} for record in records]
    return [*records, *others]


def _format_csv(records: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().rstrip("\n")


def _format_tables(trace: Trace, records: list[dict[str, Any]]) -> str:
    layers, totals, others = (
        [record for record in records if record["record"] == kind] for kind in ("layer", "implementation", "other")
    )
    told = ["kind", "shape", "implementation", "types"]
    if any(one["partition"] for one in layers):
        told.append("partition")
    times = ["time (ms)", "time (%)"] if trace.step.time_ms else []
    work = ["count", "GMAC", *times, "MACs (%)", "as required"]
    took = f"{trace.step.time_ms:.2f} ms" if times else "times not told"
    parts = [
        f"{trace.worker}: {trace.precision.name}, one step of {trace.batch_size} images, {took}",
        align(
            ["layer", *told, *work[1:]],
            [[str(one["number"]), *(one[name] for name in told), *_describe(one)[1:]] for one in layers],
            width=None,  # shapes and implementations are searched for as they are
        ),
        align(
            ["implementation", "types", *work],
            [[one["implementation"], one["types"], *_describe(one)] for one in totals],
            width=None,
        ),
    ]
    if others:
        cells = [
            [one["kind"], f"{one['count']:g}", f"{one['time_ms']:.3f}", f"{100 * one['time_share']:.1f}"]
            for one in others
        ]
        parts.append(align(["between the layers", "count", "time (ms)", "time (%)"], cells))
    return "\n\n".join(parts)


def _describe(record: dict[str, Any]) -> list[str]:
    times = [f"{record['time_ms']:.3f}", f"{100 * record['time_share']:.1f}"] if record["time_ms"] is not None else []
    return [
        str(record["count"]),
        f"{record['gmacs']:.4f}",
        *times,
        f"{100 * record['macs_share']:.2f}",
        "yes" if record["as_required"] else "NO",
    ]


def show_layer_errors(errors: Sequence[Mapping[str, Any]], kept: Collection[str], numbers: Mapping[str, str]) -> str:
    """Return a table, with bars, of how far each layer's answers lie from those of the network before conversion.

    `errors`: name, `mse`, `snr_db` and `cos_dist` of each. `kept`: names of layers left in 16 bits. `numbers`: names by
    the specification's numbers of operations.
    """
    numbered = {name: number for number, name in numbers.items()}
    noise = [10 ** (-one["snr_db"] / 20) for one in errors]
    longest = max(noise, default=0) or 1
    rows = [
        [
            numbered.get(one["name"], one["name"]) + (" (kept)" if one["name"] in kept else ""),
            f"{one['mse']:.3g}",
            f"{one['snr_db']:.1f}" if one["snr_db"] < float("inf") else "exact",
            f"{one['cos_dist']:.2g}",
            f"{share:.1%}",
            "#" * round(BAR * share / longest),
        ]
        for one, share in zip(errors, noise, strict=True)
    ]
    return align(["layer", "mse", "SNR (dB)", "cosine distance", "noise", ""], rows)
