"""Tabulate machines side by side: what each comes to in each case, and against the first by `compare`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from cnnbench.base.errors import UsageError
from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.comparison import Compared, Comparison, Direction, compare_sets
from cnnbench.report.comparison_text import explain
from cnnbench.report.machines import Machine, Machines
from cnnbench.report.matching import match_sets
from cnnbench.report.reading import count_places
from cnnbench.report.sets import RunSet, SetRun
from cnnbench.report.table import DEFINING_FACTS, common_prefix, effective_parameters, find_interval, shorten
from cnnbench.report.text import Footnotes, align, printable, wrap
from cnnbench.results.finding import ALPHA
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult
from cnnbench.results.stats import estimate_trials

CONTAINER_ENGINE = "container engine"
THRESHOLD = 0.02
"""The smallest difference between machines that matters, as `cnnbench compare` has it."""


@dataclass(frozen=True)
class Standing:
    """What one machine comes to in one case.

    `parameters`: those that tell it from other settings of the case. `value`: of the primary KPI the mean over runs,
    None where none is valid; `interval`: its 95 % interval, over the runs where they are three or more, else the one
    run's own. `per_core`, `per_socket`: of what the instances were on; None of what is no rate. `ratio`, `low`, `high`:
    over the first machine. `finding`: what `compare` finds; empty on the first one. `energy`: KPIs of energy, by name.
    """

    workload: str
    case: str
    precision: str
    parameters: Mapping[str, str]
    machine: Machine
    kpi: str
    unit: str
    value: float | None
    interval: tuple[float, float] | None
    per_core: float | None
    per_socket: float | None
    ratio: float | None
    low: float | None
    high: float | None
    finding: str
    remark: str
    runs: int
    unstable: int
    invalid: int
    energy: Mapping[str, tuple[float, str]]


def by_machine(runs: Iterable[SetRun]) -> list[tuple[Machine, RunSet]]:
    """Return the runs of each machine, in the order in which the machines are first seen."""
    machines, found = Machines(), dict[str, list[SetRun]]()
    for one in runs:
        found.setdefault(machines.find(one.run).name, []).append(one)
    return [(one, RunSet(printable(one.name), one.name, tuple(found[one.name]), ())) for one in machines.known]


def stand(machines: Sequence[tuple[Machine, RunSet]], better: Direction) -> list[Standing]:
    """Return the standings of machines, by workload, case and settings, in each the first machine in front."""
    compared = _compare([runs for _, runs in machines], better)
    against = {
        (id(one.match.second[0].run), one.second.label): one for one in (compared.comparisons if compared else ())
    }
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[Standing]] = {}
    varying = _varying([runs for _, runs in machines])
    for machine, own in machines:
        for (workload, case, settings), runs in _group(own.runs, varying).items():
            comparison = next((one for run in runs if (one := against.get((id(run.run), own.label)))), None)
            standing = _stand(machine, workload, case, dict(settings), [one.run for one in runs], comparison)
            found.setdefault((workload, case, settings), []).append(standing)
    return list(chain.from_iterable(found.values()))


def _compare(sets: Sequence[RunSet], better: Direction) -> Compared | None:
    """Compare with the first all those that have a case in common with it; None where none has."""
    able = []
    for other in sets[1:]:
        try:
            match_sets(sets[0], other, unlike=False)
        except UsageError:  # they have no case in common, so there is nothing to say of the two
            continue
        able.append(other)
    return compare_sets([sets[0], *able], better, threshold=THRESHOLD) if able else None


def _varying(sets: Iterable[RunSet]) -> dict[tuple[str, str], list[str]]:
    """Return the parameters that some machine has several values of, by workload and case."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in sets:
        cases: dict[tuple[str, str], dict[str, set[str]]] = {}
        for member in one.runs:
            values = cases.setdefault((member.run.workload, member.run.case), {})
            for name, text in effective_parameters(member.run).items():
                values.setdefault(name, set()).add(text)
        for case, values in cases.items():
            found.setdefault(case, []).extend(name for name, texts in values.items() if len(texts) > 1)
    return {case: list(dict.fromkeys(names)) for case, names in found.items()}


def _group(
    runs: Iterable[SetRun], varying: Mapping[tuple[str, str], Sequence[str]]
) -> dict[tuple[str, str, tuple[tuple[str, str], ...]], list[SetRun]]:
    groups: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[SetRun]] = {}
    for one in runs:
        parameters, case = effective_parameters(one.run), (one.run.workload, one.run.case)
        settings = tuple((name, parameters[name]) for name in varying[case] if name in parameters)
        groups.setdefault((*case, settings), []).append(one)
    return groups


def _stand(
    machine: Machine,
    workload: str,
    case: str,
    settings: Mapping[str, str],
    runs: Sequence[RunResult],
    comparison: Comparison | None,
) -> Standing:
    valid = [run for run in runs if run.verdict != "invalid"]
    primary = [(run, kpi) for run in valid for kpi in run.kpis if kpi.primary]
    key, unit = (primary[0][1].key, primary[0][1].unit) if primary else ("", "")
    figures = [kpi.value for _, kpi in primary]
    value, interval = estimate_figures([run for run, _ in primary], key, figures)
    cores, sockets = places_used(primary[0][0]) if primary else (0, 0)
    is_rate = unit.endswith("/s")
    shifts = comparison.shifts if comparison else ()
    ends = comparison.interval if comparison and shifts else (None, None)
    return Standing(
        workload=workload,
        case=case,
        precision=runs[0].requested.get("PRECISION", ""),
        parameters=dict(settings),
        machine=machine,
        kpi=key,
        unit=unit,
        value=value,
        interval=interval,
        per_core=value / cores if value is not None and is_rate and cores else None,
        per_socket=value / sockets if value is not None and is_rate and sockets else None,
        ratio=shifts[0].ratio if shifts else None,
        low=ends[0],
        high=ends[1],
        finding=comparison.finding if comparison else "",
        remark="; ".join(
            filter(
                None,
                [
                    explain(comparison, THRESHOLD) if comparison else "",
                    _tell_mixture(valid),
                    "" if valid else runs[0].reason,
                ],
            )
        ),
        runs=len(runs),
        unstable=sum(run.verdict == "unstable" for run in runs),
        invalid=len(runs) - len(valid),
        energy=_energy(valid),
    )


def estimate_figures(
    runs: Sequence[RunResult], key: str, figures: Sequence[float]
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean of a KPI of runs, and its 95 % interval if there is one: over them, or that of a lone run."""
    if not figures:
        return None, None
    if len(figures) == 1:
        return figures[0], find_interval(runs[0], key)
    estimate = estimate_trials(figures)
    if estimate.half_width is None:
        return estimate.mean, None
    return estimate.mean, (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width)


def places_used(run: RunResult) -> tuple[int, int]:
    """Return how many cores and sockets the instances of a run were on; 0 where its plan does not tell."""
    cpus, sockets = count_places(run)
    count = run.effective.get("INSTANCES", ""), run.effective.get("CORES_PER_INSTANCE", "")
    told = int(count[0]) * int(count[1]) if all(text.isdecimal() for text in count) else 0
    return cpus or told, sockets


def _tell_mixture(runs: Sequence[RunResult]) -> str:
    """Say in which facts that define a figure the runs differ of which the mean is taken; empty where in none.

    A run without a fact differs by nothing, but for the container engine: without, it was run on the machine itself.
    Those of a pool are of many hosts, and those of one machine of one.
    """
    values = {
        name: {run.facts.get(name) for run in runs if name in run.facts or name == CONTAINER_ENGINE}
        for name in DEFINING_FACTS
        if name != HOST_NAME
    }
    names = [name for name, found in values.items() if len(found) > 1]
    return f"its runs differ in {', '.join(names)}" if names else ""


def _energy(runs: Sequence[RunResult]) -> dict[str, tuple[float, str]]:
    """Return the KPIs of energy and power that runs have, each with its mean and unit."""
    found: dict[tuple[str, str], list[float]] = {}
    for kpi in (kpi for run in runs for kpi in run.kpis if not kpi.primary and " 95 % " not in kpi.key):
        if {"W", "J"} & set(kpi.unit.replace("/", " ").split()):
            found.setdefault((kpi.key, kpi.unit), []).append(kpi.value)
    return {key: (sum(values) / len(values), unit) for (key, unit), values in found.items()}


def platforms_table(standings: Sequence[Standing]) -> str:
    """Tabulate standings for a terminal; what the machines are stands below."""
    if not standings:
        return ""
    prefix, notes = common_prefix([one.case for one in standings]), Footnotes()
    kpis = list(dict.fromkeys(f"{one.kpi} ({one.unit})" for one in standings if one.kpi))
    header = ["case", *(["KPI"] if len(kpis) > 1 else []), "machine", "value", "per core", "per socket", "ratio",
              "from", "to", "runs", "verdict"]  # fmt: skip
    cells = []
    for one in standings:
        settings = " ".join(f"{name}={text}" for name, text in one.parameters.items())
        unstable = f"{one.unstable} of {one.runs} runs unstable" if one.unstable and not one.finding else ""
        told = "; ".join(filter(None, [one.remark, unstable]))
        value = describe_value(one)
        cells.append(
            [
                printable(f"{one.case.removeprefix(prefix)} {settings}".strip()),
                *([printable(f"{one.kpi} ({one.unit})" if one.kpi else "")] if len(kpis) > 1 else []),
                printable(one.machine.name),
                value,
                *(("" if of is None else format_number(of)) for of in (one.per_core, one.per_socket)),
                *(("" if of is None else f"{of:.3f}") for of in (one.ratio, one.low, one.high)),
                str(one.runs),
                notes.cite(one.finding or ("unstable" if unstable else "see" if told else ""), told),
            ]
        )
    machines = list(dict.fromkeys(one.machine for one in standings))
    rule = (
        ("" if len(kpis) > 1 else f"{kpis[0]}; " if kpis else "")
        + f"value: the mean over runs, ± its 95 % interval; per core and per socket: of those that were used; ratio: "
        f"over {printable(machines[0].name)}, verdicts as of `cnnbench compare` (threshold {THRESHOLD:.0%}, level "
        f"{ALPHA:.0%} in all comparisons together)"
    )
    rows = [[printable(one.name), shorten("CPU", printable(one.cpu)), printable(one.microcode)] for one in machines]
    return "\n\n".join(
        [notes.below(align(header, cells)), wrap(rule, more=""), align(["machine", "CPU", "microcode"], rows)]
    )


def describe_value(one: Standing) -> str:
    """Return a value with how far its interval goes at the most; INVALID in place of a number that there is not."""
    if one.value is None:
        return "INVALID"
    if one.interval is None:
        return format_number(one.value)
    reach = max(one.value - one.interval[0], one.interval[1] - one.value)
    return f"{format_number(one.value)} ±{reach:.{0 if reach >= 10 else 2}f}"
