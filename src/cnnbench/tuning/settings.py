"""Report a tuning sweep: how all settings fared, the summary table, and the best ones as a settings file."""

from collections.abc import Sequence
from dataclasses import replace

from cnnbench.cases.case import TestCase
from cnnbench.cases.platforms import GENERIC
from cnnbench.machine.facts import machine_facts
from cnnbench.report.table import CPUS_USED, DEFINING_FACTS
from cnnbench.report.text import Footnotes, align
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import Kpi, RunResult
from cnnbench.tuning.decide import Median, estimate_median
from cnnbench.tuning.space import TUNED
from cnnbench.tuning.sweep import Outcome, primary_kpi

_DIGEST_DIGITS = 12


def ranking(outcome: Outcome) -> str:
    """Tabulate every setting of a case, the fastest first: the median of its runs, and why it is out if it is."""
    notes, rows = Footnotes(), []
    measured = {name: [run for run in runs.values() if run.verdict != "invalid"] for name, runs in outcome.runs.items()}
    order = sorted(
        [*outcome.runs, *(name for name in outcome.dropped if name not in outcome.runs)],
        key=lambda name: (name != outcome.best, name in outcome.dropped, _order(measured.get(name, []))),
    )
    settings = {name: dict(word.partition("=")[::2] for word in name.split() if "=" in word) for name in order}
    parameters = list(dict.fromkeys(parameter for setting in settings.values() for parameter in setting))
    for name in order:
        runs = measured.get(name, [])
        median, kpi = (_median(runs), primary_kpi(runs[0])) if runs else (None, None)
        if name in outcome.dropped:
            told = notes.cite("dropped", outcome.dropped[name])
        else:
            told = "best" if name == outcome.best else notes.cite("tied", "not told apart from the best")
        rows.append(
            [
                *((settings[name].get(parameter, "") for parameter in parameters) if parameters else [name]),
                f"{format_number(median.value)} {kpi.unit}" if median and kpi else "",
                _describe_interval(median, len(runs)) if median else "",
                str(len(runs)),
                str(_count_unstable(runs)),
                told,
            ]
        )
    header = [*(parameters or ["setting"]), "median", "interval", "runs", "unstable", "outcome"]
    return "\n".join([f"{outcome.case.name}:", "", notes.below(align(header, rows))])


def summary_table(outcomes: Sequence[Outcome], platform: str) -> str:
    """Tabulate the best setting of each case as the reference document does, and with its interval and instances."""
    rows = []
    for outcome in outcomes:
        if outcome.best is None:
            continue
        runs = _best_runs(outcome)
        median, effective = _median(runs), runs[0].effective
        rows.append(
            [
                outcome.case.precision,
                effective["BATCH_SIZE"],
                effective["CORES_PER_INSTANCE"],
                platform if platform != GENERIC else runs[0].facts.get("CPU", GENERIC),
                format_number(median.value),
                primary_kpi(runs[0]).unit,
                _describe_interval(median, len(runs)),
                effective["INSTANCES"],
                effective.get("VARIANT", ""),
                f"{_count_unstable(runs)} of {len(runs)} runs",
            ]
        )
    header = ["precision", "BS", "CPI", "CPU", "value", "unit", "interval", "instances", "variant", "unstable"]
    return align(header, rows)


def settings_file(outcomes: Sequence[Outcome], declared: Sequence[TestCase], platform: str, command: str) -> str:
    """Return the best settings as a file for `--config`: a section for each tuned case.

    A `_pkm` case's setting holds for the plain case beside it too, unless that one was tuned as well.
    """
    found = [outcome for outcome in outcomes if outcome.best is not None]
    first = _best_runs(found[0])[0]
    machine = [name for name in (*machine_facts(), CPUS_USED) if name in DEFINING_FACTS and name in first.facts]
    date = max(_best_runs(outcome)[-1].started for outcome in found)[:10]
    lines = [
        f"# Best-known settings of {first.workload} on {platform}, for --config; measured on {date} (UTC) by",
        f"# {command}",
        *(f"# {name}: {first.facts[name]}" for name in machine if name != CPUS_USED),
    ]
    tuned = {outcome.case.name for outcome in found}
    for outcome in found:
        runs, case = _best_runs(outcome), outcome.case
        software = _describe_software(runs[0], machine)
        lines += ["", f"# {_describe_best(runs)}", *([f"# {software}"] if software else [])]
        names = [case.name]
        plain = replace(case, case_type="")
        if case.case_type == "pkm" and plain in declared and plain.name not in tuned:
            names.append(plain.name)
        for name in names:
            lines.append(f'"*_{name.partition(f"_{case.function}_")[2]}":')
            asked = {parameter: runs[0].requested[parameter] for parameter in TUNED}
            lines += [f"  {parameter}: {value}" for parameter, value in asked.items() if value != "auto"]
    return "\n".join(lines) + "\n"


def _best_runs(outcome: Outcome) -> list[RunResult]:
    """Return the runs of the best setting in the order of the rounds."""
    runs = outcome.runs[outcome.best] if outcome.best else {}
    return [runs[number] for number in sorted(runs)]


def _describe_best(runs: Sequence[RunResult]) -> str:
    kpi, median, effective = primary_kpi(runs[0]), _median(runs), runs[0].effective
    unstable = f", {_count_unstable(runs)} of them unstable" if _count_unstable(runs) else ""
    return (
        f"{kpi.key}: {format_number(median.value)} {kpi.unit}, {_describe_interval(median, len(runs))}, "
        f"{len(runs)} run{'' if len(runs) == 1 else 's'}{unstable}; {effective['INSTANCES']} x "
        f"{effective['CORES_PER_INSTANCE']} cores (CPUs {runs[0].facts.get(CPUS_USED, 'unknown')})"
    )


def _describe_software(run: RunResult, machine: Sequence[str]) -> str:
    facts = {name: run.facts[name] for name in DEFINING_FACTS if name in run.facts and name not in machine}
    texts = [f"{name} {text[:_DIGEST_DIGITS] if 'SHA-256' in name else text}" for name, text in facts.items()]
    return ", ".join(texts)


def _median(runs: Sequence[RunResult]) -> Median:
    return estimate_median([primary_kpi(run).value for run in runs])


def _order(runs: Sequence[RunResult]) -> float:
    """Return what sorts settings by their medians, the best first and those without a value last."""
    if not runs:
        return float("inf")
    kpi: Kpi = primary_kpi(runs[0])
    value = _median(runs).value
    return value if kpi.key.startswith("Latency") else -value


def _count_unstable(runs: Sequence[RunResult]) -> int:
    return sum(run.verdict == "unstable" for run in runs)


def _describe_interval(median: Median, runs: int) -> str:
    if runs == 1:
        return "one run"
    return f"{format_number(median.low)} to {format_number(median.high)} ({100 * median.confidence:.3g} %)"
