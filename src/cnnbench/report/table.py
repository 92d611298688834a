"""Tabulate the KPIs of runs: one row per run, and the statistics over repeated runs."""

import csv
import functools
import json
import re
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cnnbench.base.errors import UsageError
from cnnbench.cases.case import FIXED_BY_NAME
from cnnbench.cases.parameters import FIELDS, default_text
from cnnbench.machine.facts import ALLOCATION, HOST_NAME, POWER_OF
from cnnbench.report.reading import read_runs
from cnnbench.report.selection import ALL, Selection
from cnnbench.report.text import MARKDOWN, TERMINAL, WORDS, Footnotes, Style, align
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import SEEN, Kpi, RunResult

Format = Literal["table", "csv", "json"]
TextFormat = Literal["table", "csv", "json", "markdown"]
STYLES: dict[str, Style] = {"table": TERMINAL, "markdown": MARKDOWN}
"""The formats that people read."""

CSV_COLUMNS = (
    "record", "logs", "case", "kpi", "unit", "value", "low", "high", "verdict", "reason",
    "mean", "standard_deviation", "median", "n", "unstable",
)  # fmt: skip
"""The columns that a CSV has always; one for each parameter and fact shown follows."""
CPUS_USED = "CPUs used"
DEFINING_FACTS = (
    HOST_NAME, "CPU", "sockets, cores, threads", "SMT", "NUMA nodes", CPUS_USED, "governor", "turbo", "microcode",
    "hypervisor", "CPU quota", "container engine", "kernel", "memory", "transparent hugepages", "TensorFlow", "ITEX",
    "zentf", "oneDNN", "numpy", "model SHA-256", "int8 graph SHA-256", "dataset SHA-256",
)  # fmt: skip
"""The facts without which a number is another machine's, engine's, model's or data set's; the rest vary by the run."""

OF_ONE_RUN = (
    "load average before", "measured for", "instance ", "times of other hosts", "contention", "batches of images",
    "99 % of latency", ALLOCATION, POWER_OF, SEEN,
)  # fmt: skip
"""What facts begin with that are each run's own, and no condition that it was made under."""

_SHA256_DIGITS = 12


@dataclass(frozen=True)
class Listing:
    """What `list-kpi` has to say: the table, and why directories are missing from it, and what it has once."""

    text: str
    failures: list[str]
    repeated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KpiRow:
    """One KPI of one run, and the parameters and facts to show; without a KPI when the run is invalid."""

    logs: str
    run: RunResult
    kpi: Kpi | None
    parameters: Mapping[str, str]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Shown:
    """What tables have columns of: these parameters and facts, the ends of intervals, and each run's parameters."""

    parameters: Sequence[str]
    facts: Sequence[str]
    all_kpis: bool
    params: bool


@dataclass(frozen=True)
class _Summary:
    """One KPI over the repeated runs of a case with the same parameters and defining facts.

    `n`: how many runs. `unstable`: how many of them were measured, but not steady.
    """

    case: str
    parameters: Mapping[str, str]
    facts: Mapping[str, str]
    kpi: str
    unit: str
    mean: float
    standard_deviation: float
    median: float
    n: int
    unstable: int


def list_kpis(
    directories: Sequence[Path],
    selection: Selection = ALL,
    *,
    all_kpis: bool = False,
    params: bool = False,
    output_format: TextFormat = "table",
) -> Listing:
    """Tabulate the runs of logs-<case>, itr-N and worker directories, and of files of results; see `show_kpis`."""
    if not directories:
        raise UsageError("list-kpi: needs logs directories, such as logs-*")
    found = read_runs(directories, selection, whole=0)
    text = show_kpis(found.named, all_kpis=all_kpis, params=params, output_format=output_format)
    return Listing(text, found.failures, found.repeated)


def show_kpis(
    runs: Sequence[tuple[str, RunResult]],
    *,
    all_kpis: bool = False,
    params: bool = False,
    output_format: TextFormat = "table",
) -> str:
    """Tabulate runs by the names of their logs.

    `all_kpis`: every KPI instead of the primary one. `params`: every effective parameter instead of those that differ
    between the runs, which CSV and JSON have always. An unstable run shows its value and its reason, an invalid one its
    reason and never a value.
    """
    style = STYLES.get(output_format)
    differing = find_differing([run for _, run in runs])
    facts = _find_differing_facts([run for _, run in runs])
    rows = kpi_rows(runs, all_kpis=all_kpis, parameters=None if params or style is None else differing, facts=facts)
    summaries = _summarise(rows)
    if style:
        shown = _Shown(differing, facts, all_kpis, params)
        return _format_tables(rows, summaries, shown, style) if rows else ""
    records = [_run_record(row) for row in rows] + [_summary_record(summary) for summary in summaries]
    return format_csv(records, CSV_COLUMNS) if output_format == "csv" else json.dumps(records, indent=2)


def kpi_rows(
    runs: Sequence[tuple[str, RunResult]],
    *,
    all_kpis: bool = False,
    parameters: Sequence[str] | None = None,
    facts: Sequence[str] = (),
) -> list[KpiRow]:
    """Return what all tables are made of: a row per run and KPI, with these parameters (None: all) and facts."""
    rows: list[KpiRow] = []
    for name, run in runs:
        shown = {
            key: value for key, value in effective_parameters(run).items() if parameters is None or key in parameters
        }
        known = {key: run.facts[key] for key in facts if key in run.facts}
        rows += [KpiRow(name, run, kpi, shown, known) for kpi in choose_kpis(run, all_kpis)]
    return rows


def kpi_table(runs: Sequence[RunResult]) -> str:
    """Tabulate the primary KPI of each run with its 95 % interval, or its percentiles where it has none.

    Runs of one case have a column of the parameters that differ between them.
    """
    prefix = common_prefix([run.case for run in runs])
    cells, notes, settings = [], Footnotes(), _tell_apart(runs)
    differ = any(settings)
    for run, setting in zip(runs, settings, strict=True):
        kpi = choose_kpis(run, all_kpis=False)[0]
        spread = _describe_spread(run, kpi) if kpi else ""
        verdict = notes.cite(WORDS[run.verdict], run.reason)
        told = [setting] if differ else []
        cells.append([run.case.removeprefix(prefix), *told, *_describe_kpi(kpi), spread, verdict])
    header = ["case", *(["settings"] if differ else []), "KPI", "value", "spread", "verdict"]
    return notes.below(align(header, cells)) if cells else ""


def _tell_apart(runs: Sequence[RunResult]) -> list[str]:
    """Return of each run the parameters that differ between those of its case, as far as they were asked for."""
    cases: dict[str, list[RunResult]] = {}
    for run in runs:
        cases.setdefault(run.case, []).append(run)
    differing = {case: name_differing([run.requested for run in alike]) for case, alike in cases.items()}
    return [" ".join(f"{name}={get_parameter(run.requested, name)}" for name in differing[run.case]) for run in runs]


def effective_parameters(run: RunResult) -> dict[str, str]:
    """Return the parameters as they took effect, less those that the case's name tells."""
    return {name: value for name, value in (run.requested | run.effective).items() if name not in FIXED_BY_NAME}


def find_differing(runs: Sequence[RunResult]) -> list[str]:
    """Return the names of the parameters whose value is not the same in all runs."""
    return name_differing([effective_parameters(run) for run in runs])


def name_differing(each: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of the parameters whose value is not the same in all of these."""
    names = dict.fromkeys(name for parameters in each for name in parameters)
    return [name for name in names if len({get_parameter(parameters, name) for parameters in each}) > 1]


def get_parameter(parameters: Mapping[str, str], name: str) -> str:
    """Return a parameter of a run; of a run that was made before there was that one, what is its default since."""
    return parameters[name] if name in parameters else _default(name)


def set_parameters(parameters: Mapping[str, str]) -> Hashable:
    """Return what is the same of runs with the same parameters, whichever of them there were when they were made."""
    return frozenset((name, value) for name, value in parameters.items() if value != _default(name))


@functools.cache
def _default(name: str) -> str:
    return default_text(name) if name in FIELDS else ""


def _setting(run: RunResult) -> Hashable:
    """Return what tells a case's runs apart that were asked for differently."""
    return run.case, set_parameters(run.requested), set_parameters(run.effective)


def _defining(run: RunResult) -> Hashable:
    """Return the facts that tell a case's runs apart that were asked for alike."""
    return tuple(run.facts.get(name) for name in DEFINING_FACTS)


def repetition(run: RunResult) -> Hashable:
    """Return what is the same of runs that repeat each other."""
    return run.case, _setting(run), _defining(run)


def _find_differing_facts(runs: Sequence[RunResult]) -> list[str]:
    """Return the names of the defining facts of which the runs have different values.

    The CPUs used follow from the parameters, so they differ only where two runs had the same parameters. A run without
    a fact (dummy data have no digest, a killed run no versions) differs by nothing.
    """
    found: dict[tuple[str, Hashable], set[str]] = {}
    for run in runs:
        for name in DEFINING_FACTS:
            if name in run.facts:
                found.setdefault((name, _setting(run) if name == CPUS_USED else ""), set()).add(run.facts[name])
    differing = {name for (name, _), values in found.items() if len(values) > 1}
    return [name for name in DEFINING_FACTS if name in differing]


def choose_kpis(run: RunResult, all_kpis: bool) -> list[Kpi | None]:
    """Return the KPIs to show, in one row each; an invalid run has one row without.

    The ends of an interval are no rows of their own: they stand beside their KPI.
    """
    if run.verdict == "invalid":
        return [None]
    ends = {f"{kpi.key} 95 % {end}" for kpi in run.kpis for end in ("low", "high")}
    return [kpi for kpi in run.kpis if (all_kpis and kpi.key not in ends) or kpi.primary] or [None]


def _summarise(rows: Sequence[KpiRow]) -> list[_Summary]:
    """Return mean, sample standard deviation and median of each KPI over two or more repeated runs."""
    measured = [(row, kpi) for row in rows if (kpi := row.kpi)]
    if len({id(row.run) for row, _ in measured}) < 2:
        return []
    import pandas  # here, as it takes half a second that a table of one run does not need

    numbers: dict[Hashable, int] = {}  # pandas groups by numbers, not by what is as large as a run's parameters
    runs = {id(row.run): row.run for row, _ in measured}  # of a run's many rows once
    alike = {key: numbers.setdefault(repetition(run), len(numbers)) for key, run in runs.items()}
    frame = pandas.DataFrame(
        {
            "case": row.run.case,
            "alike": alike[id(row.run)],
            "kpi": kpi.key,
            "unit": kpi.unit,
            "value": kpi.value,
            "unstable": row.run.verdict == "unstable",
            "row": row,
        }
        for row, kpi in measured
    )
    statistics = frame.groupby(["case", "alike", "kpi", "unit"], sort=False).agg(
        mean=("value", "mean"), deviation=("value", "std"), median=("value", "median"), n=("value", "count"),
        unstable=("unstable", "sum"), row=("row", "first"),
    )  # fmt: skip
    return [
        _Summary(
            case,
            one.row.parameters,
            one.row.facts,
            kpi,
            unit,
            float(one.mean),
            float(one.deviation),
            float(one.median),
            int(one.n),
            int(one.unstable),
        )
        for (case, _, kpi, unit), one in zip(statistics.index, statistics.itertuples(), strict=True)
        if one.n > 1
    ]


def _title(key: str, unit: str) -> str:
    return f"{key} ({unit})" if unit else key


def _describe_kpi(kpi: Kpi | None) -> tuple[str, str]:
    """Return a KPI's title and value; nothing for a run that has none to show."""
    return (_title(kpi.key, kpi.unit), format_number(kpi.value)) if kpi else ("", "")


def find_interval(run: RunResult, key: str) -> tuple[float, float] | None:
    """Return the ends of a KPI's 95 % confidence interval; None when it has none."""
    values = {kpi.key: kpi.value for kpi in run.kpis}
    low, high = values.get(f"{key} 95 % low"), values.get(f"{key} 95 % high")
    return None if low is None or high is None else (low, high)


def _describe_ends(row: KpiRow) -> list[str]:
    """Return the ends of the interval of a row's KPI; nothing where it has none."""
    interval = find_interval(row.run, row.kpi.key) if row.kpi else None
    return list(map(format_number, interval)) if interval else ["", ""]


def _describe_spread(run: RunResult, kpi: Kpi) -> str:
    if interval := find_interval(run, kpi.key):
        return f"{' to '.join(map(format_number, interval))} (95 %)"
    values = {other.key: format_number(other.value) for other in run.kpis}
    prefix = f"{kpi.key} p"
    return " ".join(
        f"{key.removeprefix(f'{kpi.key} ')}={value}" for key, value in values.items() if key.startswith(prefix)
    )


def _run_record(row: KpiRow) -> dict[str, Any]:
    record: dict[str, Any] = {
        "record": "run",
        "logs": row.logs,
        "case": row.run.case,
        "parameters": row.parameters,
        "facts": row.facts,
    }
    if row.kpi:
        record |= {"kpi": row.kpi.key, "unit": row.kpi.unit, "value": row.kpi.value}
        if interval := find_interval(row.run, row.kpi.key):
            record |= {"low": interval[0], "high": interval[1]}
    record["verdict"] = row.run.verdict
    return record | ({"reason": row.run.reason} if row.run.reason else {})


def _summary_record(summary: _Summary) -> dict[str, Any]:
    return {"record": "repeated", **vars(summary)}


def format_csv(records: Sequence[Mapping[str, Any]], always: Sequence[str]) -> str:
    """Return records as CSV: the columns there are always, and one for each of their parameters and facts."""
    columns = dict.fromkeys(always)
    for record in records:
        columns |= dict.fromkeys((*record["parameters"], *record.get("facts", ())))
    lines: list[str] = []
    # Python quotes a carriage return, at which readers end a line, only where lines end with it: so they do until here.
    keep = _Sink(lambda line: lines.append(line.removesuffix("\r\n")))
    writer = csv.DictWriter(keep, list(columns), extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({**record["parameters"], **record.get("facts", {}), **record} for record in records)
    return "\n".join(lines)


@dataclass(frozen=True)
class _Sink:
    """What a csv writer hands its lines to."""

    write: Callable[[str], object]


def _join(values: Mapping[str, str]) -> str:
    return " ".join(f"{shlex.quote(name)}={shlex.quote(value)}" for name, value in values.items())


def _format_tables(rows: Sequence[KpiRow], summaries: Sequence[_Summary], shown: _Shown, style: Style) -> str:
    """Return the runs' table, that of the repeated runs, and where asked for the parameters of each run.

    Logs directories are named for their case, so the case has a column of its own only when one is named otherwise.
    """
    prefix = common_prefix([row.run.case for row in rows])
    told = all(row.logs.partition("/")[0] == f"logs-{row.run.case}" for row in rows)
    cut, notes = len(f"logs-{prefix}") if told and prefix else 0, style.footnotes()
    names = [[row.logs[cut:]] if told else [row.logs, row.run.case.removeprefix(prefix)] for row in rows]
    interval = ["low", "high"] if shown.all_kpis else []
    settings = [*shown.parameters, *shown.facts]
    header = ["logs", *([] if told else ["case"]), *settings, "KPI", "value", *interval, "verdict"]
    cells = [
        [
            *name,
            *_pick(row, shown),
            *_describe_kpi(row.kpi),
            *(_describe_ends(row) if interval else ()),
            notes.cite(WORDS[row.run.verdict], row.run.reason),
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    parts = [notes.below(style.table(header, cells))]
    if cut:
        parts.append(style.paragraph(f"The names of the logs directories begin with logs-{prefix}"))
    if summaries:
        header = ["repeated runs of", *settings, "KPI", "mean", "stdev", "median", "n", "unstable"]
        cells = [
            [
                summary.case.removeprefix(prefix),
                *_pick(summary, shown),
                _title(summary.kpi, summary.unit),
                *(format_number(v) for v in (summary.mean, summary.standard_deviation, summary.median)),
                str(summary.n),
                str(summary.unstable),
            ]
            for summary in summaries
        ]
        parts.append(style.table(header, cells))
    if shown.params:
        texts = {id(row.run): f"{name[0]}: {_join(row.parameters)}" for name, row in zip(names, rows, strict=True)}
        parts.append(style.items("parameters", list(texts.values())))
    return "\n\n".join(parts)


def _pick(of: KpiRow | _Summary, shown: _Shown) -> list[str]:
    return [
        *(of.parameters.get(name, "") for name in shown.parameters),
        *(shorten(name, of.facts.get(name, "")) for name in shown.facts),
    ]


def shorten(name: str, fact: str) -> str:
    """Return a fact in the form that fits a column.

    >>> shorten("CPU", "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz")
    'Intel Xeon Platinum 8480+'
    """
    if name.endswith("SHA-256"):
        return fact[:_SHA256_DIGITS]
    return re.sub(r"\((R|TM)\)| CPU\b| Processor\b| @.*", "", fact) if name == "CPU" else fact


def common_prefix(cases: Sequence[str]) -> str:
    """Return `test_<workload>_[sgx_]<function>_` when it is the same in all cases, else nothing."""
    matches = [re.match(r"test_.+?_(sgx_)?(inference|serving)_", case) for case in cases]
    found = {match[0] if match else "" for match in matches}
    return found.pop() if len(found) == 1 else ""
