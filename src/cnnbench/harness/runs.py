"""Run what lines of the reference harness ask for: one after the other, or all of a benchmark spec."""

import csv
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.disk import check_directory, explain_refusals, make_directory
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.base.signals import check_timeout, end_by_exceptions
from cnnbench.cases.parameters import FIELDS
from cnnbench.harness.line import Request
from cnnbench.harness.spec import Variant
from cnnbench.machine.ceiling import name_own_program
from cnnbench.machine.host import read_cpuinfo
from cnnbench.report.table import list_kpis
from cnnbench.report.text import WORDS, Footnotes, align
from cnnbench.results import stats
from cnnbench.results.kpi_text import format_number, kpi_lines
from cnnbench.results.record import RunResult, find_runs, load_run
from cnnbench.run.job import Job, describe_job, plan_case, prepare_job
from cnnbench.run.native import measure_job

RESULTS = "results.csv"


def run_request(request: Request) -> int:
    """Run all that a line asks for; of several runs, end with a table. Return the worst run's exit code."""
    check_timeout("--timeout", request.timeout_s)
    check_directory(f"--logs-root {request.logs_root}", request.logs_root)
    codes, logs = [], []
    trials: list[list[RunResult]] = [[] for _ in request.runs]
    jobs = _jobs(request)
    if request.dry_run:
        print("\n".join(line for job in jobs for line in describe_job(job, cache_root(os.environ))))
        return 0
    for number, job in [*enumerate(jobs)] * request.trials:
        result, directory = _measure(job, request.logs_root, request.timeout_s)
        print("\n".join(kpi_lines(result)))
        print(f"# logs: {directory}", flush=True)
        if result.interrupted:
            raise KeyboardInterrupt
        codes.append(result.exit_code)
        logs.append(directory)
        trials[number].append(result)
    if len(logs) > 1:
        print("\n" + list_kpis(logs).text)
    if request.trials > 1:
        print("\n" + tabulate_trials(trials))
    return max(codes, default=0)


def tabulate_trials(trials: Sequence[Sequence[RunResult]]) -> str:
    """Return a table of the primary KPI of each run over its trials: the mean, and its interval between them."""
    rows = []
    for results in trials:
        found = [kpi for result in results for kpi in result.kpis if kpi.primary and result.verdict != "invalid"]
        kpi = f"{found[0].key} ({found[0].unit})" if found else ""
        estimate = stats.estimate_trials([one.value for one in found]) if found else None
        width = estimate.half_width if estimate else None
        interval = f", no interval of fewer than {stats.MIN_SLICES}" if width is None else f" ±{format_number(width)}"
        rows.append(
            [
                results[0].effective["BATCH_SIZE"],
                f"{len(found)} of {len(results)}",
                kpi,
                f"{format_number(estimate.mean)}{interval}" if estimate else WORDS["invalid"],
            ]
        )
    return align(["BATCH_SIZE", "good trials", "KPI", "mean, 95 % interval between trials"], rows)


def _jobs(request: Request, env: Mapping[str, str] = {}) -> list[Job]:
    """Return the runs of a line made ready; `env`: more environment of the instances."""
    environ = {name: value for name, value in os.environ.items() if name not in FIELDS}
    environ |= name_own_program(environ)
    more = {"CUSTOMER_ENV": " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())} if env else {}
    planned = [plan_case(request.workload, case, environ, settings | more) for case, settings in request.runs]
    return [prepare_job(one, environ) for one in planned]


def _measure(job: Job, root: Path, timeout_s: float | None) -> tuple[RunResult, Path]:
    for note in job.notes:
        print(f"cnnbench: {note}", file=sys.stderr)
    end_by_exceptions()  # anew for each: after a run whose time was up, signals are ignored
    return measure_job(job, cache_root(os.environ), root.absolute(), None, timeout_s)


@dataclass(frozen=True)
class Entry:
    """What became of one run of a spec: its result, or why there is none."""

    variant: Variant
    result: RunResult | None
    reason: str
    failed: bool


def describe_variants(variants: Sequence[Variant]) -> list[str]:
    """Return the variants as lines of text, with the reason of those that are skipped here: what `--dry-run` prints.

    Raises UsageError naming all whose lines make no sense.
    """
    flags, lines, refused = read_cpuinfo().flags, [], []
    for variant in variants:
        lines.append(f"{variant.key}: {variant.line}")
        try:
            _jobs(variant.read(flags), variant.benchmark.env)
        except SkippedError as error:
            lines.append(f"  skipped: {error}")
        except UsageError as error:
            refused.append(f"{variant.key}: {error}")
    if refused:
        raise UsageError("\n".join(refused))
    return lines


def run_spec(variants: Sequence[Variant], output: Path, timeout_s: float | None) -> int:
    """Run the variants in turn, going on after one that fails; print one table, write it as CSV, return the exit code.

    What ended well before, with the same parameters, is taken from its logs below `output` and not run again.
    """
    check_timeout("--timeout", timeout_s)
    flags = read_cpuinfo().flags
    requests = [variant.read(flags) for variant in variants]  # before the first is run, as a line may make no sense
    for variant, request in zip(variants, requests, strict=True):
        if request.trials > 1:
            raise UsageError(f"{variant.key}: --trials {request.trials}: is for `cnnbench run` and `launch`")
    another = "make room, or give another --output"
    make_directory(output, another)
    entries = []
    for number, (variant, request) in enumerate(zip(variants, requests, strict=True), start=1):
        print(f"{number} of {len(variants)}: {variant.key}: {variant.line}", file=sys.stderr, flush=True)
        entries.append(_run_variant(variant, request, output / variant.key, timeout_s))
    header, rows = _tabulate(entries)
    notes, results = Footnotes(), output / RESULTS
    shown = [[*row[:-2], notes.cite(row[-2], row[-1])] for row in rows]
    with explain_refusals(results, another), results.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    print(f"{notes.below(align(header[:-1], shown))}\n\nwrote {output / RESULTS}")
    return CnnbenchError.exit_code if any(entry.failed for entry in entries) else 0


def _run_variant(variant: Variant, request: Request, root: Path, timeout_s: float | None) -> Entry:
    try:
        (job,) = _jobs(request, variant.benchmark.env)
        if (done := _find_done(job, root)) is not None:
            print("  done already", file=sys.stderr)
            return Entry(variant, done, done.reason, failed=False)
        result, _ = _measure(job, root, timeout_s or request.timeout_s)
    except SkippedError as error:
        return Entry(variant, None, str(error), failed=False)
    except CnnbenchError as error:  # the others are still to be run, and the exit code tells
        print(f"cnnbench: {error}", file=sys.stderr)
        return Entry(variant, None, str(error), failed=True)
    if result.interrupted:
        raise KeyboardInterrupt
    return Entry(variant, result, result.reason, failed=result.exit_code != 0)


def _find_done(job: Job, root: Path) -> RunResult | None:
    """Return the last good run of a job below its logs' root, None where there is none of the same parameters."""
    directory = root / f"logs-{job.case.name}"
    for worker in reversed(find_runs(directory)) if directory.is_dir() else ():
        try:
            run = load_run(worker)
        except CnnbenchError:  # cut off while it was measured, so it is none
            continue
        if run.exit_code == 0 and run.requested == job.requested:
            return run
    return None


def _tabulate(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return a heading and a row for each entry: parameters, the columns of all benchmarks, the verdict and its reason.

    A column shows a KPI, or a fact of the result such as the GPU.
    """
    parameters = list(dict.fromkeys(name for entry in entries for name in entry.variant.values))
    columns = list(dict.fromkeys(label for entry in entries for label, _ in entry.variant.benchmark.output))
    rows = []
    for entry in entries:
        found: dict[str, str] = {}
        if entry.result and not entry.failed:
            found = entry.result.facts | {kpi.key: format_number(kpi.value) for kpi in entry.result.kpis}
        shown = {label: found.get(key, "") for label, key in entry.variant.benchmark.output}
        rows.append(
            [
                entry.variant.name,
                *(entry.variant.values.get(name, "") for name in parameters),
                *(shown.get(label, "") for label in columns),
                WORDS[entry.result.verdict] if entry.result else "FAILED" if entry.failed else "skipped",
                entry.reason,
            ]
        )
    return ["benchmark", *parameters, *columns, "verdict", "reason"], rows
