"""Say what was measured, on what, and how to measure it again: the page's first and last sections."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.case import FIXED_BY_NAME
from cnnbench.cases.workload import Sources, load_workload
from cnnbench.machine.ceiling import PEAK_VARIABLE
from cnnbench.report.page.model import Cell
from cnnbench.report.page.runs import PageRun, Runs, newest
from cnnbench.results.record import Criterion
from cnnbench.run.job import setting_text

COLUMNS = {
    "throughput (img/s)": "Throughput",
    "capacity (requests/s)": "Capacity",
    "latency, mean (ms)": "Latency mean",
    "p50 (ms)": "Latency p50",
    "p99 (ms)": "Latency p99",
    "top-1 (%)": "Accuracy top-1",
    "loss (%)": "Top-1 loss",
    "ISA share (%)": "ISA share",
    "of peak (%)": "Compute utilization",
    "power (W)": "Power",
    "J/image": "Energy per image",
}
"""The KPIs that the summary has columns for, where any run has them."""
COLUMNED = ("TOPOLOGY", "ENGINE", "BATCH_SIZE", "INSTANCES", "CORES_PER_INSTANCE")
"""The parameters that have columns of their own, or are told by what a row begins with."""
MOST_TOLD = 60
"""Of how many runs, the newest, all criteria, facts and notes are written out."""


@dataclass(frozen=True)
class Row:
    """A row of the summary: the run, what its settings are besides those with columns, and its numbers."""

    run: PageRun
    settings: str
    numbers: Sequence[Cell]


@dataclass(frozen=True)
class Summary:
    """The first section: `columns` are those of the numbers. `counts`: how many runs there are of each verdict."""

    columns: Sequence[str]
    rows: Sequence[Row]
    counts: dict[str, int]


@dataclass(frozen=True)
class Told:
    """One run written out: what reproduces it, what it was judged by, and the facts that are not those of all runs."""

    run: PageRun
    command: str
    criteria: Sequence[Criterion]
    facts: dict[str, str]
    notes: Sequence[str]


@dataclass(frozen=True)
class Origins:
    """The last section but the commands of older runs: `common` are the facts that all runs share."""

    common: dict[str, str]
    told: Sequence[Told]
    commands: Sequence[tuple[PageRun, str]]
    notes: Sequence[str]


def summarise(runs: Runs) -> Summary:
    """Return the summary of all runs."""
    columns = [title for title, key in COLUMNS.items() if any(key in run.kpis for run in runs.runs)]
    rows = []
    for run in runs.runs:
        settings = [f"{name}={shlex.quote(text)}" for name, text in _asked(run).items() if name not in COLUMNED]
        rows.append(Row(run, " ".join(settings), [_number(run, COLUMNS[title]) for title in columns]))
    counted = Counter(run.result.verdict for run in runs.runs)
    return Summary(columns, rows, {name: counted[name] for name in ("valid", "unstable", "invalid")})


def _number(run: PageRun, key: str) -> Cell:
    text = run.text(key)
    return Cell(text, run.number if text else 0, strong=bool(text) and run.kpis[key].primary)


def tell_origins(runs: Runs) -> Origins:
    """Return what the machine was, which versions and files, and the command for each run."""
    results = [run.result for run in runs.runs]
    common = {
        name: text
        for name, text in (results[0].facts.items() if results else ())
        if all(result.facts.get(name) == text for result in results)
    }
    shown, notes = newest(runs.runs, MOST_TOLD)
    told = [
        Told(
            run,
            reproduce(run),
            run.result.criteria,
            {name: text for name, text in run.result.facts.items() if name not in common},
            run.result.notes,
        )
        for run in reversed(shown)
    ]
    older = [(run, reproduce(run)) for run in reversed(runs.runs[: len(runs.runs) - len(shown)])]
    return Origins(common, told, older, notes)


def reproduce(run: PageRun) -> str:
    """Return the command that measures a run again: its case, with the parameters that are not the case's own."""
    result = run.result
    words = ["cnnbench", "case", "--workload", f"workload/{result.workload}", "--case", result.case, "--logs-root", "."]
    if "container engine" in result.facts:
        words += ["--backend", "docker"]
    words += [f"--{name.lower()}={text}" for name, text in _asked(run).items()]
    peak = f"{PEAK_VARIABLE}=build/cnnbench-peak " if "Peak" in run.kpis else ""
    return peak + shlex.join(words)


def _asked(run: PageRun) -> dict[str, str]:
    """Return the parameters that a run was asked for and that are not the case's own."""
    defaults = _defaults(run.result.workload, run.result.case)
    return {
        name: text
        for name, text in run.result.requested.items()
        if name not in FIXED_BY_NAME[:-1] and text != defaults.get(name, "")
    }


_KNOWN: dict[tuple[str, str], dict[str, str]] = {}


def _defaults(workload: str, case: str) -> dict[str, str]:
    """Return the parameters that a case has when nothing is asked for; none of a case that this checkout has not."""
    if (workload, case) not in _KNOWN:
        _KNOWN[workload, case] = _resolve(workload, case)
    return _KNOWN[workload, case]


def _resolve(name: str, case: str) -> dict[str, str]:
    directory = REPOSITORY / "workload" / Path(name).name
    try:
        workload = load_workload(directory)
        parameters = Sources.read(workload, {}).resolve(workload.parse_case(case), {})
    except (CnnbenchError, OSError, ValueError):
        return {}
    return {key: setting_text(getattr(parameters, key.lower())) for key in workload.parameters}
