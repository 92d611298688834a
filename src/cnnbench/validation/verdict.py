"""Judge what cases have come to by what is expected of them, and say so on a page: precision by precision."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cnnbench.cases.expectation import Expectation
from cnnbench.report.platforms import places_used
from cnnbench.report.table import common_prefix, effective_parameters, find_interval
from cnnbench.report.text import Footnotes, align, printable, wrap
from cnnbench.results.kpi_text import format_number
from cnnbench.results.record import RunResult
from cnnbench.run.kpis import find_kind
from cnnbench.validation.outcome import BEST_RULE, Outcome, primary

Word = Literal["within", "below", "above", "not measured", "INVALID"]
WORST_FIRST: tuple[Word, ...] = ("below", "INVALID", "not measured", "above", "within")
REGRESSION, INVALID, FAILED = 4, 3, 1


@dataclass(frozen=True)
class Judged:
    """A case against what is expected of it, here: `expected`, `low` and `high` are those of a machine of this size.

    `ratio`: of what was measured to what is expected. `below`: worse than low to high, which for a latency is longer.
    """

    workload: str
    case: str
    precision: str
    parameters: Mapping[str, str]
    unit: str
    value: float | None
    expected: float
    low: float
    high: float
    per: str
    ratio: float | None
    word: Word
    remark: str
    source: str


def judge_expectation(one: Expectation, workload: str, precision: str, outcome: Outcome | None) -> Judged:
    """Hold a case to what is expected of it."""
    value, remark, figures = None, "", (one.value, one.low, one.high)
    word: Word = "not measured"
    run = outcome.counting if outcome else None
    if outcome is None:
        remark = "not one of the cases that were run"
    elif run is None:
        word = "INVALID" if outcome.state == "INVALID" else "not measured"
        remark = why(outcome)
    elif others := _other_settings(one, run):
        remark = f"run with {others}"
    elif (kpi := primary(run)).unit != one.unit:
        remark = f"measured in {kpi.unit}, expected in {one.unit}"
    else:
        cores, sockets = places_used(run)
        if not {"machine": 1, "core": cores, "socket": sockets}[one.per]:
            remark = "the run does not tell what it was on"
        else:
            figures, value = one.scaled(cores, sockets), kpi.value
            word = _place(value, figures[1], figures[2], find_kind(kpi.key).better == "lower")
            remark = f"unstable: {_failed_criteria(run)}" if run.verdict == "unstable" else ""
    return Judged(
        workload=workload,
        case=one.case,
        precision=precision,
        parameters=one.parameters,
        unit=one.unit,
        value=value,
        expected=figures[0],
        low=figures[1],
        high=figures[2],
        per=_describe_scale(one),
        ratio=None if value is None else value / figures[0],
        word=word,
        remark=remark,
        source=one.source,
    )


def _place(value: float, low: float, high: float, lower_is_better: bool) -> Word:
    if low <= value <= high:
        return "within"
    return "below" if (value < low) != lower_is_better else "above"


def _other_settings(one: Expectation, run: RunResult) -> str:
    effective = effective_parameters(run)
    other = {name: effective.get(name, "none") for name, text in one.parameters.items() if effective.get(name) != text}
    return " ".join(f"{name}={text}" for name, text in other.items())


def _describe_scale(one: Expectation) -> str:
    if one.machine is None or one.per == "machine":
        return ""
    of = one.machine.cores if one.per == "core" else one.machine.sockets
    each = format_number(one.value / of)
    return f"{format_number(one.value)} on {of} {one.per}s ({one.machine.name}): {each} per {one.per}"


def _failed_criteria(run: RunResult) -> str:
    return ", ".join(criterion.name for criterion in run.failures)


def why(outcome: Outcome) -> str:
    """Say why a case has no number."""
    if outcome.runs:
        return outcome.runs[-1].run.reason
    return outcome.failed or outcome.skipped or "not run yet"


@dataclass(frozen=True)
class Verdict:
    """What a validation came to. `precisions`: of each case, by workload and case."""

    platform: str
    outcomes: Sequence[Outcome]
    precisions: Mapping[tuple[str, str], str]
    judged: Sequence[Judged]
    without: Sequence[str]

    @property
    def exit_code(self) -> int:
        """Return what a validation ends with: a regression before what could not be seen."""
        states = {one.state for one in self.outcomes}
        if any(one.word == "below" for one in self.judged):
            return REGRESSION
        if "INVALID" in states:
            return INVALID
        return FAILED if "not run" in states or any(one.failed for one in self.outcomes) else 0


def verdict_text(verdict: Verdict) -> str:
    """Return the page for a terminal of 80 columns."""
    parts = [_precision_table(verdict), _expectation_table(verdict), *map(wrap, verdict.without)]
    parts += [_reasons(verdict, "INVALID"), _reasons(verdict, "failed"), _reasons(verdict, "unstable")]
    parts += [_reasons(verdict, "skipped"), wrap(f"Rule: {BEST_RULE}.", more="")]
    return "\n\n".join(part for part in parts if part)


def _precision_table(verdict: Verdict) -> str:
    rows: dict[tuple[str, str], list[Outcome]] = {}
    for one in verdict.outcomes:
        rows.setdefault((one.choice.workload, _precision(verdict, one)), []).append(one)
    several = len({workload for workload, _ in rows}) > 1
    cells = []
    for (workload, precision), own in rows.items():
        judged = [one for one in verdict.judged if one.precision == precision and one.workload == workload]
        worst = min((one.word for one in judged), key=WORST_FIRST.index, default="")
        states = [one.state for one in own]
        counts = [states.count(state) for state in ("valid", "unstable", "INVALID", "skipped")]
        counts.insert(3, sum(bool(one.failed) for one in own))
        cells.append(
            [
                *([workload] if several else []),
                precision,
                str(len(own)),
                *(str(count) if count else "" for count in counts),
                worst or ("no expectation" if any(one.counting for one in own) else ""),
            ]
        )
    header = [*(["workload"] if several else []), "precision", "cases", "valid", "unstable", "IN VALID", "failed",
              "skipped", "against what is expected"]  # fmt: skip
    header[header.index("IN VALID")] = "INVALID"
    return align(header, cells)


def _precision(verdict: Verdict, one: Outcome) -> str:
    return verdict.precisions[one.choice.workload, one.choice.case]


def _expectation_table(verdict: Verdict) -> str:
    """Return a row for each case that has a number or something expected of it."""
    notes, cells = Footnotes(), []
    expected = {(one.workload, one.case) for one in verdict.judged}
    names = [one.case for one in verdict.judged] + [one.choice.case for one in verdict.outcomes if one.counting]
    prefix = common_prefix(names)
    for one in verdict.judged:
        remark = "; ".join(text for text in (one.remark, one.per, one.source) if text)
        numbers = [one.value, one.expected, one.low, one.high]
        cells.append(
            [
                printable(one.case.removeprefix(prefix)),
                *("INVALID" if one.word == "INVALID" and at == 0 else _number(of) for at, of in enumerate(numbers)),
                _number(one.ratio, 3),
                one.unit,
                notes.cite(one.word, printable(remark)),
            ]
        )
    for outcome in verdict.outcomes:
        choice = outcome.choice
        if (run := outcome.counting) and (choice.workload, choice.case) not in expected:
            kpi = primary(run)
            cells.append(
                [
                    printable(choice.case.removeprefix(prefix)),
                    _number(kpi.value),
                    "",
                    "",
                    "",
                    "",
                    kpi.unit,
                    "no expectation" if run.verdict == "valid" else f"no expectation, {run.verdict}",
                ]
            )
    if not cells:
        return ""
    table = align(["case", "value", "expected", "from", "to", "ratio", "unit", "verdict"], cells)
    rule = "below: worse than from-to, which for a latency is longer; ratio: value to expected"
    return "\n\n".join([notes.below(table), *([wrap(rule, more="")] if verdict.judged else [])])


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if digits is not None else format_number(value)


def _reasons(verdict: Verdict, state: str) -> str:
    """List the cases of a state by their reasons."""
    found: dict[str, list[str]] = {}
    for one in verdict.outcomes:
        if one.failed if state == "failed" else one.state == state:
            run = one.counting  # of an unstable run the criteria's names, as the report has what was found
            reason = one.failed if state == "failed" else _failed_criteria(run) if run else why(one)
            found.setdefault(printable(reason), []).append(printable(one.choice.case))
    if not found:
        return ""
    lines = [f"{state}:"]
    for reason, cases in found.items():
        lines.append(wrap(reason, "  ", "  "))
        lines += [f"    {case}" for case in cases]
    return "\n".join(lines)


def verdict_records(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as other programs read it."""
    cases = []
    for one in verdict.outcomes:
        record: dict[str, Any] = {
            "workload": one.choice.workload,
            "case": one.choice.case,
            "precision": _precision(verdict, one),
            "state": one.state,
            "runs": [str(run.worker) for run in one.runs],
        }
        if run := one.counting:
            kpi = primary(run)
            record |= {"run": run.run_id, "kpi": kpi.key, "unit": kpi.unit, "value": kpi.value}
            if interval := find_interval(run, kpi.key):
                record |= {"low": interval[0], "high": interval[1]}
        if one.failed:
            record["failed"] = one.failed
        if one.state != "valid":
            record["reason"] = run.reason if run else why(one)
        cases.append(record)
    return {
        "schema_version": 1,
        "platform": verdict.platform,
        "exit_code": verdict.exit_code,
        "cases": cases,
        "expected": [asdict(one) for one in verdict.judged],
        "without_expectation": list(verdict.without),
    }


def verdict_json(verdict: Verdict, **more: Any) -> str:
    """Return a verdict as JSON, with what else there is to tell."""
    return json.dumps(verdict_records(verdict) | more, indent=2)
