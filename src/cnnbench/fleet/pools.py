"""Judge pools of machines: what differs between those of one pool, how far they spread, and which is out of line."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.comparison import DISTURBANCES
from cnnbench.report.table import common_prefix
from cnnbench.report.text import align, printable, wrap
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult

CONDITIONS = (
    "CPU", "sockets, cores, threads", "SMT", "NUMA nodes", "last-level caches", "CPU quota", "governor", "turbo",
    "microcode", "hypervisor", "kernel", "memory", "memory speed", "transparent hugepages", "container image",
    "model SHA-256", "int8 graph SHA-256", "dataset SHA-256",
)  # fmt: skip
"""The facts that machines of one pool have in common, unless a figure of theirs is to be pooled with care."""
SEEN = ("CPU frequency", *DISTURBANCES)
"""The KPIs that tell under which conditions a machine ran."""
OUTLYING_Z = 3.5
"""From which modified z score on a machine is out of line (Iglewicz, Hoaglin, Detect and Handle Outliers, 1993)."""
NORMAL = 0.6745
"""The median absolute deviation of a normal distribution with a standard deviation of 1."""
LEAST_MACHINES = 4
"""Of fewer, the median and what is out of line with it cannot be told apart."""
LEAST_SPREAD = 0.002
"""What the deviation counts as at the least (a share): machines of one build do not agree better than that."""
APART = 0.02
"""By which share a machine must be off, besides, to matter."""


@dataclass(frozen=True)
class Figure:
    """What pools are judged by of one run, in place of the whole of it."""

    pool: str
    host: str
    case: str
    settings: str
    kpi: str
    value: float | None
    conditions: Mapping[str, str]
    seen: Mapping[str, float]


@dataclass(frozen=True)
class Outlier:
    """A machine that is out of line in a case: by how much (a share of the pool's median), how far, and why."""

    host: str
    deviation: float
    z: float
    cause: str


@dataclass(frozen=True)
class PoolCase:
    """One case of one pool.

    `middle`: the median of its machines' medians. `within`: the standard deviation of a machine's runs about their
    mean, pooled over machines; `between`: that of the machines' medians, both shares; None where there are too few.
    """

    pool: str
    case: str
    kpi: str
    machines: int
    runs: int
    middle: float
    within: float | None
    between: float | None
    outliers: tuple[Outlier, ...]


@dataclass
class PoolFigures:
    """The figures of all runs, taken up one by one so that no more than them is held."""

    _found: dict[tuple[str, str, str, str], dict[str, list[float]]] = field(default_factory=dict)
    _conditions: dict[str, dict[str, dict[str, Counter[str]]]] = field(default_factory=dict)
    _seen: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        """Take up a run; one without a figure tells of its machine alone."""
        told = self._conditions.setdefault(figure.pool, {}).setdefault(figure.host, {})
        for name, text in figure.conditions.items():
            told.setdefault(name, Counter())[text] += 1
        seen = self._seen.setdefault((figure.pool, figure.host), {})
        for name, value in figure.seen.items():
            seen.setdefault(name, []).append(value)
        if figure.value is not None and figure.value > 0:
            key = (figure.pool, figure.case, figure.settings, figure.kpi)
            self._found.setdefault(key, {}).setdefault(figure.host, []).append(figure.value)

    def list_differences(self) -> list[str]:
        """Return a line for each condition in which machines of one pool differ."""
        lines = []
        for pool, hosts in self._conditions.items():
            for name in CONDITIONS:
                by_value: dict[str, list[str]] = {}
                for host, told in hosts.items():
                    for text in told.get(name, ()):
                        by_value.setdefault(text, []).append(host)
                if len(by_value) > 1 and not (name.endswith("SHA-256") and not _differs_between(hosts, name)):
                    parts = (
                        f"{text} ({_hosts_text(members)})"
                        for text, members in sorted(by_value.items(), key=lambda one: -len(one[1]))
                    )
                    lines.append(f"pool {pool}: machines differ in {name}: {'; '.join(parts)}")
        return lines

    def judge(self) -> list[PoolCase]:
        """Return what each case of each pool comes to."""
        return [self._judge(*key, hosts) for key, hosts in self._found.items()]

    def _judge(self, pool: str, case: str, settings: str, kpi: str, hosts: Mapping[str, list[float]]) -> PoolCase:
        medians = {host: statistics.median(values) for host, values in hosts.items()}
        logs = [math.log(value) for value in medians.values()]
        middle = statistics.median(medians.values())
        within = pooled_deviation(hosts.values())
        between = statistics.stdev(logs) if len(logs) > 1 else None
        outliers = [
            Outlier(host, medians[host] / middle - 1, z, self._explain(pool, host))
            for host, z in robust_scores(medians).items()
            if abs(z) > OUTLYING_Z and abs(medians[host] / middle - 1) > APART
        ]
        runs = sum(map(len, hosts.values()))
        text = f"{case} {settings}".strip()
        return PoolCase(pool, text, kpi, len(hosts), runs, middle, within, between, tuple(outliers))

    def _explain(self, pool: str, host: str) -> str:
        """Say in which conditions a machine is unlike most others of its pool."""
        hosts, causes = self._conditions[pool], []
        for name in CONDITIONS:
            common = Counter(text for told in hosts.values() for text in told.get(name, ()))
            own = hosts[host].get(name)
            if own and common and (most := common.most_common(1)[0][0]) not in own:
                causes.append(f"{name} is {' and '.join(own)}, of most others {most}")
        for name in SEEN:
            values = {
                one: statistics.fmean(seen[name])
                for (of, one), seen in self._seen.items()
                if of == pool and name in seen
            }
            if host not in values or len(values) < LEAST_MACHINES:
                continue
            usual = statistics.median(values.values())
            off = values[host] - usual
            if abs(off) > (APART * usual if name == "CPU frequency" else 1.0):
                unit = "MHz" if name == "CPU frequency" else "%"
                causes.append(f"{name} {values[host]:.4g} {unit}, of most others {usual:.4g} {unit}")
        return "; ".join(causes) or "no condition that is recorded tells why"


def _differs_between(hosts: Mapping[str, Mapping[str, Counter[str]]], name: str) -> bool:
    """Say whether machines have other sets of values, where each has several, as of several models."""
    return len({tuple(sorted(told[name])) for told in hosts.values() if name in told}) > 1


def _hosts_text(hosts: Sequence[str]) -> str:
    most = 4
    named = ", ".join(sorted(hosts)[:most])
    return f"{named} and {len(hosts) - most} more" if len(hosts) > most else named


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation of logarithms about their group's mean, over all groups; None without freedom."""
    total, freedom = 0.0, 0
    for values in groups:
        logs = [math.log(value) for value in values]
        mean = statistics.fmean(logs)
        total += sum((one - mean) ** 2 for one in logs)
        freedom += len(logs) - 1
    return math.sqrt(total / freedom) if freedom else None


def robust_scores(medians: Mapping[str, float]) -> dict[str, float]:
    """Return the modified z score of each machine, of logarithms; none where there are too few machines."""
    if len(medians) < LEAST_MACHINES:
        return {}
    logs = {host: math.log(value) for host, value in medians.items()}
    middle = statistics.median(logs.values())
    deviation = statistics.median(abs(one - middle) for one in logs.values())
    scale = max(deviation / NORMAL, LEAST_SPREAD)
    return {host: (one - middle) / scale for host, one in logs.items()}


def figure_of(pool: str, settings: str, run: RunResult) -> Figure:
    """Return what a pool is judged by of a run; `settings`: the parameters that it was asked for with."""
    primary = next((kpi for kpi in run.kpis if kpi.primary), None)
    return Figure(
        pool=pool,
        host=run.facts.get(HOST_NAME, ""),
        case=run.case,
        settings=settings,
        kpi=f"{primary.key} ({primary.unit})" if primary else "",
        value=primary.value if primary and run.verdict != "invalid" else None,
        conditions={name: run.facts[name] for name in CONDITIONS if name in run.facts},
        seen={kpi.key: kpi.value for kpi in run.kpis if kpi.key in SEEN},
    )


HEADER = ("case", "pool", "KPI", "median", "ratio", "within", "between", "machines", "runs")
HOW_TO_READ = (
    "median: of the machines' medians; ratio: over the first pool; within: the standard deviation of a machine's "
    "runs; between: that of machines' medians, both as a share"
)


def pool_rows(cases: Sequence[PoolCase], pools: Sequence[str]) -> list[list[str]]:
    """Return a row, as of HEADER, for what each case of each pool comes to, beside the first pool that has it."""
    first: dict[tuple[str, str], PoolCase] = {}
    for pool in pools:
        for one in cases:
            if one.pool == pool:
                first.setdefault((one.case, one.kpi), one)
    prefix, rows = common_prefix([one.case for one in cases]), []
    for one in sorted(cases, key=lambda one: (one.case, one.kpi, list(pools).index(one.pool))):
        base = first[one.case, one.kpi]
        ratio = "" if base is one else f"{one.middle / base.middle:.3f}"
        rows.append(
            [printable(one.case.removeprefix(prefix)), one.pool, printable(one.kpi), format_number(one.middle), ratio,
             _percent(one.within), _percent(one.between), str(one.machines), str(one.runs)]
        )  # fmt: skip
    return rows


def pools_table(rows: Sequence[Sequence[str]]) -> str:
    """Tabulate rows of pools; empty without any."""
    return f"{align(HEADER, rows)}\n\n{wrap(HOW_TO_READ, more='')}" if rows else ""


def list_outliers(cases: Sequence[PoolCase]) -> list[str]:
    """Return a line for each machine that is out of line in a case."""
    return [
        f"pool {one.pool}: {outlier.host} is out of line in {one.case}: {outlier.deviation:+.1%} of the pool's median "
        f"(robust z {outlier.z:+.1f}): {outlier.cause}"
        for one in cases
        for outlier in one.outliers
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
