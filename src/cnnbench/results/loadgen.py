"""Read the summary that MLPerf's LoadGen writes of a run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FIGURES = {
    "Samples per second": ("samples_per_s", 1.0),
    "Completed samples per second": ("samples_per_s", 1.0),
    "90.0th percentile latency (ns)": ("p90_ms", 1e-6),
    "99.0th percentile latency (ns)": ("p99_ms", 1e-6),
    "90.00 percentile latency (ns)": ("p90_ms", 1e-6),
    "99.00 percentile latency (ns)": ("p99_ms", 1e-6),
}
"""Lines of the summary, and what each is here."""

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
