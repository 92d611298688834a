"""Read what a workload declares about itself, and settings files in the same form."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbench.case import Parameters, TestCase, check_name, pick_sections, resolve
from cnnbench.errors import UsageError

Sections = dict[str, dict[str, str]]


class Workload(BaseModel):
    """A workload's `workload.yaml`.

    `slug`: the name inside case names. `engine`: which lock files make its environments. `defaults`: settings by
    globs of case names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    slug: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    engine: str
    defaults: Sections


def load_workload(directory: Path) -> Workload:
    """Read `workload.yaml` of a workload's directory; raise UsageError saying what is wrong with it."""
    path = directory / "workload.yaml"
    if not path.is_file():
        raise UsageError(f"{directory}: no workload.yaml there; a workload is a directory below workload/")
    content = _read_yaml(path)
    content["defaults"] = _check_sections(path, content.get("defaults"))
    try:
        return Workload(**content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def load_sections(path: Path) -> Sections:
    """Read a settings file: a yaml mapping from globs of case names to parameters."""
    if not path.is_file():
        raise UsageError(f"{path}: no such settings file")
    return _check_sections(path, _read_yaml(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not yaml: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a yaml mapping")
    return content


def _check_sections(path: Path, content: object) -> Sections:
    if not isinstance(content, dict) or not all(isinstance(settings, dict) for settings in content.values()):
        raise UsageError(f"{path}: must map globs of case names, such as '*_gated', to parameters")
    sections: Sections = {}
    for glob, settings in content.items():
        for name in settings:
            try:
                check_name(str(name))
            except UsageError as error:
                raise UsageError(f"{path}, section {glob}: {error}") from error
        sections[str(glob)] = {str(name): "" if value is None else str(value) for name, value in settings.items()}
    return sections


def resolve_parameters(
    workload: Workload,
    case: TestCase,
    environment: dict[str, str],
    arguments: dict[str, str],
    config: Path | None = None,
) -> Parameters:
    """Return a case's parameters from all their sources; see `case.resolve` for the order and the errors."""
    layers = {"workload.yaml": pick_sections(workload.defaults, case.name)}
    if config is not None:
        layers[str(config)] = pick_sections(load_sections(config), case.name)
    return resolve(case, layers | {"environment": environment, "argument": arguments})
