"""Hold what one run found: everything later (KPI text, tables, comparisons) reads only this."""

import os
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError

SCHEMA = 1
RUN_FILE = "run.json"
WORKER = "worker-0"
"""The directory inside `logs-<case>/itr-N` that holds a run's files."""
KILLED = "Some instances were killed during execution! See README.md for more."
"""The reason that the reference document gives when an instance has not produced a result."""
SEEN = "what was seen"
"""The fact that says how a run without a result ended."""
TIMEOUT = "timeout"
"""The criterion that a run fails which was not done in time."""
INTERRUPTED_RUN = "the run was interrupted"

Verdict = Literal["valid", "unstable", "invalid"]


_EXACT = ConfigDict(extra="forbid")
"""No key that is not known. What a run has many of is no model but has slots, which takes a third of the memory."""


@dataclass(frozen=True, slots=True, config=_EXACT)
class Kpi:
    """One figure of merit: `key (unit): value` in the KPI text."""

    key: str
    unit: str
    value: Annotated[float, Field(allow_inf_nan=False)]
    primary: bool = False


@dataclass(frozen=True, slots=True, config=_EXACT)
class Criterion:
    """One thing that makes a number valid: what was found, what was needed, and whether it held.

    `severity`: whether a failure makes the run invalid or marks it as unstable.
    """

    name: str
    passed: bool
    found: str
    needed: str
    severity: Literal["invalid", "unstable"] = "invalid"


class RunResult(BaseModel):
    """One run of one test case.

    `requested`: the parameters after all defaults. `effective`: what the plan made of them. `facts`: host, software,
    artefacts and conditions by name, in the order in which they are printed. `plan`: the instances as planned.
    `instances`: what each reported. `notes`: what a reader should know before comparing the number. Exactly one KPI is
    primary, unless the run is invalid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    run_id: str
    started: str
    workload: str
    case: str
    requested: dict[str, str]
    effective: dict[str, str]
    facts: dict[str, str]
    plan: dict[str, Any]
    instances: list[dict[str, Any]]
    kpis: list[Kpi]
    criteria: list[Criterion]
    notes: list[str]

    @model_validator(mode="after")
    def _require_a_primary_kpi(self) -> "RunResult":
        primary = [kpi.key for kpi in self.kpis if kpi.primary]
        if self.verdict != "invalid" and len(primary) != 1:
            raise ValueError(
                f"{len(primary)} primary KPIs ({', '.join(primary)}) in a run that is {self.verdict}, needed 1"
            )
        return self

    @property
    def failures(self) -> list[Criterion]:
        """The criteria that did not hold, the invalidating ones first."""
        return sorted((c for c in self.criteria if not c.passed), key=lambda c: c.severity)

    @property
    def verdict(self) -> Verdict:
        """Say valid, unstable (measured, but not steady) or invalid."""
        failed: list[Verdict] = [one.severity for one in self.criteria if not one.passed]
        return ("invalid" if "invalid" in failed else "unstable") if failed else "valid"

    @property
    def started_at(self) -> datetime | None:
        """When it was started, in UTC; None where it does not say."""
        try:
            found = datetime.fromisoformat(self.started.replace("Z", "+00:00"))  # Python 3.10 does not know the Z
            return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            return None

    @property
    def interrupted(self) -> bool:
        """Say whether it was ended from outside, so that it tells nothing of what was to be measured."""
        return self.facts.get(SEEN) == INTERRUPTED_RUN

    @property
    def exit_code(self) -> int:
        """Return what a run with this result ends with."""
        return InvalidMeasurementError.exit_code if self.verdict == "invalid" else 0

    @property
    def reason(self) -> str:
        """Say why the run is not valid; empty when it is."""
        return "; ".join(f"{c.name}: {c.found}, needed {c.needed}" if c.needed else c.found for c in self.failures)


def find_iterations(directory: Path) -> dict[int, Path]:
    """Return the `itr-N` directories in a `logs-<case>` directory by their numbers, in the order of the runs."""
    found = ((re.fullmatch("itr-([1-9][0-9]*)", path.name), path) for path in directory.glob("itr-*") if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def find_runs(directory: Path) -> list[Path]:
    """Return the worker directories of a `logs-<case>`, `itr-N` or worker directory, in the order of the runs.

    There are none in a `logs-<case>` without an `itr-N`. Whether a run has a result is for `load_run` to say.
    """
    if iterations := find_iterations(directory):
        return [iteration / WORKER for iteration in iterations.values()]
    if (directory / WORKER).is_dir():
        return [directory / WORKER]
    # Not resolve(), which raises where a link leads to itself.
    if Path(os.path.realpath(directory)).name.startswith("logs-") and not (directory / RUN_FILE).exists():
        return []
    return [directory]


def find_last_run(directory: Path) -> Path:
    """Return the last run in a logs-<case>, itr-N or worker directory; raise CnnbenchError without one."""
    if not directory.is_dir():
        raise CnnbenchError(f"{directory}: no such directory; needed is a logs-<case>, itr-N or worker-0")
    if not (runs := find_runs(directory)):
        raise CnnbenchError(f"{directory}: no itr-N there; no run of the case has begun")
    return runs[-1]


def load_run(directory: Path) -> RunResult:
    """Read a worker directory's run.json; raise CnnbenchError when it is missing, cut off or of another schema."""
    path = directory / RUN_FILE
    if not path.is_file():
        raise CnnbenchError(f"{directory}: no {RUN_FILE} there; the run did not get as far as a result")
    return read_result(path)


def read_result(path: Path) -> RunResult:
    """Read a result file, whatever its name; raise CnnbenchError when it is cut off or of another schema."""
    return _accept(lambda: RunResult.model_validate_json(path.read_bytes()), str(path))


def parse_result(text: str | bytes, where: str) -> RunResult:
    """Return the result that a text holds; raise CnnbenchError when it is cut off or of another schema."""
    return _accept(lambda: RunResult.model_validate_json(text), where)


def check_result(document: object, where: str) -> RunResult:
    """Return the result that a JSON document holds; raise CnnbenchError when it is none, or of another schema."""
    return _accept(lambda: RunResult.model_validate(document), where)


def _accept(validate: Callable[[], RunResult], where: str) -> RunResult:
    try:
        return validate()
    except ValidationError as error:
        raise CnnbenchError(f"{where}: not a complete result of schema {SCHEMA}: {_complaint(error)}") from error


def _complaint(error: ValidationError) -> str:
    """Say what is wrong with a result; another schema before what that leads to."""
    for one in error.errors():
        if one["loc"] == ("schema_version",):
            return f"it is of schema {one['input']!r:.40}; read it with the version of cnnbench that wrote it"
    return error.errors()[0]["msg"]
