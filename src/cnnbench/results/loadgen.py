"""Read what MLPerf's LoadGen writes of a run, and compare it with that of a run that audits it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIGURES = {
    "Samples per second": ("samples_per_s", 1.0),
    "Completed samples per second": ("samples_per_s", 1.0),
    "90.0th percentile latency (ns)": ("p90_ms", 1e-6),
    "99.0th percentile latency (ns)": ("p99_ms", 1e-6),
    "90.00 percentile latency (ns)": ("p90_ms", 1e-6),
    "99.00 percentile latency (ns)": ("p99_ms", 1e-6),
}
"""Lines of the summary, and what each is here."""

_NO_ERRORS = "No errors encountered during test."
"""What the summary says of a run for its answers, which is neither VALID nor INVALID."""

_ONLY_TOLD = re.compile(r"Processed |Would discard |Early stopping \d")
"""How lines begin that give no reason."""


@dataclass(frozen=True)
class LoadGenSummary:
    """What LoadGen says: whether the run was VALID, why not and what to change, and its own figures by name."""

    scenario: str
    valid: bool
    reasons: Sequence[str]
    figures: dict[str, float]

    @property
    def facts(self) -> dict[str, str]:
        """What a result says of it."""
        return {"LoadGen": f"{self.scenario}, {'VALID' if self.valid else 'INVALID'}"}


def read_summary(text: str) -> LoadGenSummary:
    """Read a summary; raise ValueError for what is none."""
    scenario = re.search(r"^Scenario : (.+)$", text, re.MULTILINE)
    result = re.search(r"^Result is : (\w+)$", text, re.MULTILINE)
    if not scenario and not result and re.search(r"warnings? encountered", text):
        return LoadGenSummary("accuracy", _NO_ERRORS in text, ("errors, which its log has",), {})
    if not scenario or not result:
        raise ValueError("no summary of LoadGen's: no scenario or no result in it")
    told = [line.strip() for line in text[result.end() : text.find("====", result.end())].splitlines()]
    reasons = [
        line.lstrip("* ").rstrip(",") for line in told if re.search(r" satisfied\s*: NO$", line) or line[:1] == "*"
    ]
    reasons = [line for line in reasons if not _ONLY_TOLD.match(line)]
    figures = {}
    for name, value in re.findall(r"^\s*([^:\n]+?)\s*: ([0-9.e+-]+)$", text, re.MULTILINE):
        if name in _FIGURES:
            key, factor = _FIGURES[name]
            figures[key] = float(value) * factor
    return LoadGenSummary(scenario[1].strip(), result[1] == "VALID", tuple(reasons), figures)


Answers = Mapping[int, str]
"""The answers of a log by the numbers of their samples, as LoadGen has them (hexadecimal)."""


@dataclass(frozen=True)
class Audit:
    """A test of MLPerf's for what was submitted, of its compliance directory.

    `config`: LoadGen's settings. `slower`, `faster`: by what share the run may differ; None for any.
    `answers`: whether its answers are held against those of a run for them.
    """

    config: str
    slower: float | None
    faster: float
    answers: bool = False


AUDITS = {
    "TEST01": Audit(
        "*.*.mode = 2\n*.*.accuracy_log_rng_seed = 720381539243781796\n*.*.accuracy_log_sampling_target = 256\n",
        *(0.10, 0.10, True),
    ),
    "TEST04": Audit(
        "*.*.mode = 2\n*.*.performance_issue_unique = 0\n*.*.performance_issue_same = 1\n"
        "*.*.performance_issue_same_index = 3\n",
        *(None, 0.10),
    ),
    "TEST05": Audit(
        "*.*.mode = 2\n*.*.qsl_rng_seed = 313588358309856706\n*.*.sample_index_rng_seed = 471397156132239067\n"
        "*.*.schedule_rng_seed = 413914573387865862\n",
        *(0.05, 0.05),
    ),
}
"""TEST01: answers are those for accuracy; TEST04: no sample is remembered; TEST05: no seed is favoured."""
SHORT_MS = {"SingleStream": 0.2, "MultiStream": 1.6}
SHORT_BOUND = 0.20
"""How much runs may differ whose latency is that short, as the rules have it."""


def read_answers(path: Path) -> Answers:
    """Read the answers that LoadGen has logged; raise ValueError for what is no such log."""
    return {int(one["qsl_idx"]): str(one["data"]) for one in json.loads(path.read_bytes())}


@dataclass(frozen=True)
class LoadGenAudit:
    """How a run that audits compares: `ratio` of its speed to the audited run's, and how many answers differed."""

    name: str
    ratio: float
    low: float | None
    high: float
    valid: bool
    answered: int = 0
    differing: int = 0

    @property
    def passed(self) -> bool:
        """Whether the audit finds nothing."""
        within = self.ratio <= self.high and (self.low is None or self.ratio >= self.low)
        return self.valid and within and not self.differing and (self.answered > 0 or not AUDITS[self.name].answers)

    @classmethod
    def compare(
        cls, name: str, run: LoadGenSummary, audited: LoadGenSummary, answers: tuple[Answers, Answers] | None
    ) -> "LoadGenAudit":
        """Compare a run with the one that audits it; `answers`: those of the latter, and those of all samples."""
        audit, key = AUDITS[name], {"SingleStream": "p90_ms", "MultiStream": "p99_ms"}.get(run.scenario)
        if key is None:
            ratio = audited.figures["samples_per_s"] / run.figures["samples_per_s"]
        else:
            ratio = run.figures[key] / audited.figures[key]
        short = key is not None and run.figures[key] <= SHORT_MS[run.scenario]
        slower, faster = (
            one if one is None or not short else max(one, SHORT_BOUND) for one in (audit.slower, audit.faster)
        )
        low = None if slower is None else 1 - slower
        given, known = answers or ({}, {})
        differing = sum(known.get(sample) != answer for sample, answer in given.items())
        return cls(name, ratio, low, 1 + float(faster or 0), audited.valid, len(given), differing)
