"""Read and write what is expected of a workload's cases on a platform: `expect/<PLATFORM>.yaml` in its directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cnnbench.base.errors import UsageError
from cnnbench.cases.case import check_name
from cnnbench.cases.workload import load_workload

FOLDER = "expect"
Per = Literal["machine", "socket", "core"]

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExpectedMachine(_Model):
    """The machine that a figure is of: what it is called, and how many sockets and cores the figure was made on."""

    name: str = Field(min_length=1)
    sockets: int = Field(ge=1)
    cores: int = Field(ge=1)

    @model_validator(mode="after")
    def _have_a_core_each(self) -> "ExpectedMachine":
        if self.cores < self.sockets:
            raise ValueError(f"cores: {self.cores} on {self.sockets} sockets; needed one on each at the least")
        return self


class Expectation(_Model):
    """What a case's primary KPI should be, `low` to `high`, all of them on the machine that is named.

    `parameters`: the settings that it is expected with; a run with others is not what is meant. `per`: what it is
    compared by on a machine of another size. `source`: where it is from. `published`: how a document that gives it
    describes it, so that it stands among the published figures; empty for our own.
    """

    case: str
    parameters: dict[str, str] = {}
    value: _Positive
    low: _Positive
    high: _Positive
    unit: str
    per: Per = "machine"
    machine: ExpectedMachine | None = None
    source: str = Field(min_length=1)
    published: str = ""

    @field_validator("parameters", mode="before")
    @classmethod
    def _write_as_text(cls, value: Any) -> Any:
        return {str(name): str(text) for name, text in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _hold_together(self) -> "Expectation":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"low {self.low:g}, value {self.value:g}, high {self.high:g}: must be in this order")
        if self.machine is None and (self.per != "machine" or self.published):
            raise ValueError(
                f"per {self.per}{', published' if self.published else ''}: needs `machine`, which it is of"
            )
        return self

    def scaled(self, cores: int, sockets: int) -> tuple[float, float, float]:
        """Return value, low and high for what a run was on: as they are, or per core or socket times its number."""
        factor = 1.0
        if self.machine and self.per != "machine":
            factor = cores / self.machine.cores if self.per == "core" else sockets / self.machine.sockets
        return self.value * factor, self.low * factor, self.high * factor


def expectation_file(workload: Path, platform: str) -> Path:
    """Return where the expectations of a workload's directory for a platform are."""
    return workload / FOLDER / f"{platform}.yaml"


def load_expectations(workload: Path, platform: str) -> tuple[Expectation, ...] | None:
    """Return what is expected of a workload on a platform, None where no file says; raise UsageError for a bad file."""
    path = expectation_file(workload, platform)
    return read_expectations(path) if path.is_file() else None


def read_expectations(path: Path) -> tuple[Expectation, ...]:
    """Read a file of expectations; raise UsageError saying which entry is wrong and what of it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not yaml: {error}") from error
    if not isinstance(content, list) or not content:
        raise UsageError(f"{path}: must be a list of expectations, each with case, value, low, high, unit and source")
    workload = load_workload(path.parent.parent)
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Expectation] = {}
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, Mapping):
            raise UsageError(f"{path}: entry {number}: must be a mapping, found {str(entry)[:60]!r}")
        try:
            one = Expectation(**{str(name): value for name, value in entry.items()})
            workload.parse_case(one.case)
            for name in one.parameters:
                check_name(name, workload.parameters)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{path}: entry {number}{f', {where}' if where else ''}: {first['msg']}") from error
        except UsageError as error:
            raise UsageError(f"{path}: entry {number}: {error}") from error
        if found.setdefault(identity(one), one) is not one:
            raise UsageError(f"{path}: entry {number}: {one.case} is there already, with the same parameters")
    return tuple(found.values())


def identity(one: Expectation) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return what no two expectations of a file have in common."""
    return one.case, tuple(sorted(one.parameters.items()))


def write_expectations(path: Path, entries: Sequence[Expectation], heading: str) -> None:
    """Write a file of expectations, whole or not at all; `heading`: a line of comment in front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [one.model_dump(exclude_defaults=True) for one in entries]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    part = path.with_name(f".{path.name}.part")
    part.write_text(f"# {heading}\n{text}", encoding="utf-8")
    part.replace(path)
