"""Match the runs of two sets by case and parameters, and tell in what else they differ."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import FIELDS
from cnnbench.report.sets import RunSet, SetRun
from cnnbench.report.table import (
    DEFINING_FACTS,
    OF_ONE_RUN,
    effective_parameters,
    find_differing,
    get_parameter,
    shorten,
)
from cnnbench.report.text import printable
from cnnbench.results.record import RunResult

Case = tuple[str, str]
"""The workload's name, and that of the case."""

_SHARE = re.compile(r"[ ,]*[0-9.]+ ?%.*")
"""A share and what follows it: of what was measured, and no two runs have the same."""


@dataclass(frozen=True)
class Condition:
    """Something other than the case in which two sets differ, with what it is in each of them."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class Match:
    """The runs of a case and its parameters in two sets.

    `parameters`: those that tell it from other matches of the case. `conditions`: in what else the two differ.
    """

    case: str
    workload: str
    parameters: dict[str, str]
    first: tuple[SetRun, ...]
    second: tuple[SetRun, ...]
    conditions: tuple[Condition, ...]


def match_sets(first: RunSet, second: RunSet, *, unlike: bool) -> tuple[list[Match], list[str]]:
    """Return what two sets have in common, and in words what only one of them has.

    Runs of a case are told apart by the parameters that vary within one of the sets, as in a sweep. What is the same
    within each set but not in both is what is compared: it is a condition. `unlike`: compare cases of other names too.
    Raises UsageError where there is nothing in common.
    """
    cases = [_by_case(first), _by_case(second)]
    pairs = _pair_cases(first, second, unlike=unlike)
    alone = [
        f"only {one.label} has runs of {printable(case[1])}"
        for one, own, side in ((first, cases[0], 0), (second, cases[1], 1))
        for case in own
        if case not in [pair[side] for pair in pairs]
    ]
    matches: list[Match] = []
    for case, other in pairs:
        found, left = _match_case(first, cases[0][case], second, cases[1][other])
        matches += found
        alone += left
    if not matches:
        raise UsageError(f"{first.label} and {second.label}: nothing to compare: {'; '.join(alone)}")
    return matches, alone


def _by_case(one: RunSet) -> dict[Case, list[SetRun]]:
    found: dict[Case, list[SetRun]] = {}
    for member in one.runs:
        found.setdefault((member.run.workload, member.run.case), []).append(member)
    return found


def _pair_cases(first: RunSet, second: RunSet, *, unlike: bool) -> list[tuple[Case, Case]]:
    """Return which case goes with which; raise UsageError for other workloads where these were not asked for."""
    one, other = list(_by_case(first)), list(_by_case(second))
    pairs = [(case, case) for case in one if case in other]
    if not unlike:
        if not pairs:
            told = [f"{of.label} has {_list(names)}" for of, names in ((first, one), (second, other))]
            raise UsageError(
                f"no case in common: {', '.join(told)}; give runs of the same cases, or --unlike to compare those of "
                "other workloads that measure the same, or the one case of each"
            )
        return pairs
    left = [[case for case in cases if case not in [pair[0] for pair in pairs]] for cases in (one, other)]
    kinds = [{_kind(case): case for case in cases} for cases in left]
    alike = [(case, kinds[1][kind]) for kind, case in kinds[0].items() if kind in kinds[1]]
    if not alike and len(left[0]) == len(left[1]) == 1:
        alike = [(left[0][0], left[1][0])]
    return pairs + alike


def _list(cases: Sequence[Case], most: int = 3) -> str:
    names = [printable(case) for _, case in cases]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _kind(case: Case) -> str:
    """Return what a case's name says beside the workload's."""
    return re.sub(r"^test_.+?_(?=(sgx_)?(inference|serving)_)", "", case[1])


def _match_case(
    first: RunSet, ones: Sequence[SetRun], second: RunSet, others: Sequence[SetRun]
) -> tuple[list[Match], list[str]]:
    """Match the runs of a case by the parameters that vary within a set."""
    varying = list(dict.fromkeys([*_varying(ones), *_varying(others)]))
    groups = [_group(runs, varying) for runs in (ones, others)]
    matches, alone = [], []
    for key, runs in groups[0].items():
        parameters = {name: value for name, value in zip(varying, key, strict=True) if value}
        if (theirs := groups[1].get(key)) is None:
            alone.append(_describe_alone(first, runs, parameters))
            continue
        run = runs[0].run
        matches.append(
            Match(run.case, run.workload, parameters, tuple(runs), tuple(theirs), tuple(list_conditions(runs, theirs)))
        )
    alone += [
        _describe_alone(second, runs, dict(zip(varying, key, strict=True)))
        for key, runs in groups[1].items()
        if key not in groups[0]
    ]
    return matches, alone


def _varying(runs: Sequence[SetRun]) -> list[str]:
    return find_differing([one.run for one in runs])


def _group(runs: Sequence[SetRun], names: Sequence[str]) -> dict[tuple[str, ...], list[SetRun]]:
    groups: dict[tuple[str, ...], list[SetRun]] = {}
    for one in runs:
        parameters = effective_parameters(one.run)
        groups.setdefault(tuple(get_parameter(parameters, name) for name in names), []).append(one)
    return groups


def _describe_alone(of: RunSet, runs: Sequence[SetRun], parameters: Mapping[str, str]) -> str:
    told = " ".join(f"{name}={value}" for name, value in parameters.items())
    return printable(f"only {of.label} has runs of {runs[0].run.case} with {told}")


def list_conditions(ones: Sequence[SetRun], others: Sequence[SetRun]) -> list[Condition]:
    """Return the parameters, facts and notes that are not the same in two sets; of a run's own facts none.

    What invalid runs say counts only where there are no others: a killed run knows little of itself.
    """
    sides = [
        [one.run for one in runs if one.run.verdict != "invalid"] or [one.run for one in runs]
        for runs in (ones, others)
    ]
    return [
        *_differing(sides, effective_parameters),
        *_differing(sides, _facts_of),
        *_differing_notes(sides),
    ]


def _facts_of(run: RunResult) -> dict[str, str]:
    return {name: _tell(name, value) for name, value in run.facts.items() if not name.startswith(OF_ONE_RUN)}


@functools.lru_cache(maxsize=4096)  # thousands of runs share most of their facts
def _tell(name: str, value: str) -> str:
    """Return a fact as a condition shows it."""
    return shorten(name, _SHARE.sub("", value))


def _differing(
    sides: Sequence[Sequence[RunResult]], values_of: Callable[[RunResult], Mapping[str, str]]
) -> Iterable[Condition]:
    """Yield what differs. Of facts that do not define a run, only those that no two runs of both sets have alike."""
    each = [[values_of(run) for run in side] for side in sides]
    for name in dict.fromkeys(name for side in each for values in side for name in values):
        first, second = (list(dict.fromkeys(get_parameter(values, name) for values in side)) for side in each)
        telling = name in DEFINING_FACTS or name in FIELDS
        if set(first) != set(second) if telling else set(first).isdisjoint(second):
            yield Condition(*map(printable, (name, " or ".join(first), " or ".join(second))))


def _differing_notes(sides: Sequence[Sequence[RunResult]]) -> Iterable[Condition]:
    """Return the notes that all runs of one set have and none of the other."""
    always, ever = (
        [merge(*(set(run.notes) for run in side)) for side in sides] for merge in (set.intersection, set.union)
    )
    for here in (0, 1):
        for note in sorted(always[here] - ever[1 - here]):
            yield Condition("note", printable(note) if here == 0 else "", printable(note) if here == 1 else "")
