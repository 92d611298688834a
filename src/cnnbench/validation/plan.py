"""Plan a validation: which cases, how often, with which settings, on which machine; kept in a file of its folder."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.case import TestCase, from_environment, parse_arguments
from cnnbench.cases.parameters import Parameters
from cnnbench.cases.variables import DEFAULTS_VARIABLE
from cnnbench.cases.workload import Sources, Workload, load_sections
from cnnbench.machine.host import CpuInfo

PLAN_FILE = "plan.json"
BUILD = "build"
"""The build directory in a validation's folder, which is there before the plan is: that needs its cases."""
Depth = Literal["quick", "default", "full"]
RUNS: dict[Depth, int] = {"quick": 1, "default": 1, "full": 3}
"""How many runs of each case there are to be, unless told."""
DEFAULT_REPEATS = 2
QUICK_TYPES = ("gated", "pkm")
"""The case types that a quick validation is of."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlannedMachine(_Model):
    """The machine that a validation is of."""

    host: str
    cpu: str
    microcode: str

    @classmethod
    def of(cls, cpu: CpuInfo) -> "PlannedMachine":
        """Return this one."""
        return cls(host=platform.node(), cpu=cpu.model_name or "", microcode=cpu.microcode or "")


class CaseChoice(_Model):
    """A case of a workload."""

    workload: str
    case: str


class Plan(_Model):
    """What a validation's folder is of.

    `runs`: how many of each case. `repeats`: how many more there may be of a case that was unstable. `cmake`: options
    of the configuration. `options`: parameters of all cases. `environment`: those that the environment sets. `files`:
    the settings files with their SHA-256.
    """

    schema_version: Literal[1] = 1
    platform: str
    machine: PlannedMachine
    backend: str
    cmake: tuple[str, ...]
    depth: Depth
    runs: int
    repeats: int
    options: tuple[str, ...]
    environment: dict[str, str]
    files: dict[str, str]
    cases: tuple[CaseChoice, ...]


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of a folder; None of one that has none yet; raise UsageError where it is another's."""
    path = folder / PLAN_FILE
    if path.is_file():
        try:
            return Plan.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise CnnbenchError(f"{path}: no plan: {error.errors()[0]['msg']}; give another -o") from error
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if not name.startswith(".") and name != BUILD]:
        raise UsageError(f"{folder}: has {others[0]} and no {PLAN_FILE}: not a validation's folder; give -o a new one")
    return None


def write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan into its folder, whole or not at all."""
    part = folder / f".{PLAN_FILE}.part"
    part.write_text(plan.model_dump_json(indent=2) + "\n", encoding="utf-8")
    part.replace(folder / PLAN_FILE)


def tell_differences(before: Plan, now: Plan) -> list[str]:
    """Say in what two plans differ."""
    told = []
    old, new = before.model_dump(), now.model_dump()
    for name in (name for name in old if old[name] != new[name]):
        if name == "cases":
            counts = [
                f"{len(set(one) - set(other))} {word}"
                for one, other, word in ((before.cases, now.cases, "no longer"), (now.cases, before.cases, "new"))
                if set(one) - set(other)
            ]
            told.append(f"cases: {', '.join(counts) or 'in another order'}")
        else:
            told.append(f"{name}: {_text(old[name])}, now {_text(new[name])}")
    return told


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text}" for name, text in value.items()) or "none"
    return " ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


class WorkloadSettings:
    """Where the cases of a workload get their settings from in a validation.

    `defaults`: a file that is weaker than all but the workload's own, `config`: one that is stronger than what is
    declared; None for none. `note`: why the best-known settings are not used, if so.
    """

    def __init__(
        self, directory: Path, workload: Workload, defaults: Path | None, config: Path | None, note: str = ""
    ) -> None:
        self.directory, self.workload, self.defaults, self.config = directory, workload, defaults, config
        self.note = note

    @classmethod
    def choose(
        cls, directory: Path, workload: Workload, code: str, depth: Depth, config: Path | None, cores: int
    ) -> "WorkloadSettings":
        """Return those of a platform: quick ones for a quick run, and the best-known settings, unless a file is given.

        Best-known settings that need more than the `cores` here are those of a larger machine, and are not used.
        """
        known: Path | None = directory / f"bkm-{code.lower()}.yaml"
        note = ""
        if config or not (known and known.is_file()):
            known = None
        elif (most := _most_cores(known)) > cores:
            note = f"{known}: not used: it has CORES_PER_INSTANCE={most}, and there are {cores} usable cores here"
            known = None
        quick = (directory / "quick.yaml", directory.parent / "quick.yaml")
        defaults = next((path for path in quick if path.is_file()), None) if depth == "quick" else None
        return cls(directory, workload, defaults, config or known, note)

    @property
    def files(self) -> dict[str, str]:
        """The files by their SHA-256."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.defaults, self.config) if path
        }

    def resolve(self, case: TestCase, options: Sequence[str], environ: Mapping[str, str]) -> Parameters:
        """Return a case's parameters; raise UsageError for a bad one."""
        weaker = {DEFAULTS_VARIABLE: str(self.defaults)} if self.defaults else {}
        sources = Sources.read(self.workload, {**environ, **weaker}, self.config)
        return sources.resolve(case, {"argument": parse_arguments(options)})


def _most_cores(path: Path) -> int:
    """Return the largest CORES_PER_INSTANCE of a settings file."""
    given = [settings.get("CORES_PER_INSTANCE", "") for settings in load_sections(path).values()]
    return max((int(text) for text in given if text.isdecimal()), default=0)


def environment_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that the environment sets: they are part of the plan."""
    return from_environment(environ)
