"""Read fleet.yaml: which pools of machines there are, and what is to run on each machine of them."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from cnnbench.base.errors import UsageError
from cnnbench.cases.artefacts import Sha256
from cnnbench.cases.platforms import check_platform

AbsolutePath = Annotated[str, Field(pattern=r"^(/.*)?$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, bool | int | float) else value)]
"""A parameter's value, which yaml may have taken for a number."""

_Options = TypeVar("_Options", bound=BaseModel)


class Strict(BaseModel):
    """A part of fleet.yaml, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pool(Strict):
    """Machines that are alike, and how they are reached.

    `platform`: the code whose cases run there; empty for GENERIC's on whatever machine. `constraint`: what the
    scheduler is to choose machines by; empty for the platform's code. `machines`: how many; None for as many as the
    launcher's options name, else one. `checkout`, `python`, `cache`, `folder`: where cnnbench, its Python, the cache
    and the fleet's folder are on these machines; empty where they are as here. `shared`: whether `folder` is this
    fleet's own, over a shared file system. `images`: the digests of the images that cases run in, by name. `options`:
    the launcher's own.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
    launcher: str
    platform: str = ""
    constraint: str = ""
    machines: PositiveInt | None = None
    backend: Literal["native", "container"] = "native"
    checkout: AbsolutePath = ""
    python: AbsolutePath = ""
    cache: AbsolutePath = ""
    folder: AbsolutePath = ""
    shared: bool = True
    images: dict[str, Digest] = {}
    registry: str = ""
    release: str = "latest"
    container_cli: str = "docker"
    docker_options: str = ""
    options: dict[str, Any] = {}


class Runs(Strict):
    """What runs on each machine of every pool.

    `workloads`: names of directories below workload/, or paths of others. `cases`, `exclude`: globs of case names.
    `sets`: as ctest.sh's --set. `parameters`: what all runs have besides. `trials`: how often each run is made.
    `timeout_s`, `hang_after_s`: as of `cnnbench case`. `run_s`: about how long a run takes; None to estimate it.
    `attempts`: how often a run is begun at the most that does not come to an end. `repeats`: how often one is made
    again that others disturbed. `files`: SHA-256 digests of files that every machine must have, by path, relative to
    its cache. `clock_skew_s`: how far clocks may be apart.
    """

    workloads: Annotated[list[str], Field(min_length=1)]
    cases: Annotated[list[str], Field(min_length=1)] = ["*"]
    exclude: list[str] = []
    sets: list[str] = []
    parameters: dict[str, Text] = {}
    trials: Annotated[int, Field(ge=1, le=1000)] = 1
    timeout_s: PositiveFloat = 28800.0
    hang_after_s: PositiveFloat | None = None
    run_s: PositiveFloat | None = None
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    repeats: Annotated[int, Field(ge=0, le=20)] = 2
    files: dict[str, Sha256] = {}
    clock_skew_s: PositiveFloat = 5.0


class Fleet(Strict):
    """A fleet.yaml."""

    pools: Annotated[list[Pool], Field(min_length=1)]
    run: Runs


def read_fleet(path: Path) -> Fleet:
    """Read a fleet's file; raise UsageError with the line, the field, what was found and what is allowed."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; needed is the fleet's yaml file (doc/fleet.md)")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not yaml: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a yaml mapping with `pools:` and `run:` (doc/fleet.md)")
    try:
        fleet = Fleet.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}:{_explain(error, Fleet, tree)}") from error
    names = [pool.name for pool in fleet.pools]
    for number, pool in enumerate(fleet.pools):
        where = f"{path}:{_line(tree, ('pools', number))}: pool {pool.name}"
        if pool.name in names[:number]:
            raise UsageError(f"{where}: there are two of that name; give each its own")
        if pool.platform:
            try:
                check_platform(pool.platform)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from error
        if not pool.shared and not pool.folder:
            raise UsageError(f"{where}: shared is false, so `folder` must name a directory on its machines")
    return fleet


def read_options(model: type[_Options], pool: Pool) -> _Options:
    """Read a pool's options for its launcher; raise UsageError with the field, what was found and what is allowed."""
    try:
        return model.model_validate(pool.options)
    except ValidationError as error:
        raise UsageError(f"pool {pool.name}: options:{_explain(error, model, None)}") from error


def _explain(error: ValidationError, model: type[BaseModel], tree: yaml.Node | None) -> str:
    """Return the line and text of the first error of a file."""
    first = error.errors()[0]
    at = ".".join(map(str, first["loc"]))
    line = f"{_line(tree, first['loc'])}: " if tree else " "
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        return f"{line}{at}: no such key; there are {', '.join(known)}"
    if first["type"] == "missing":
        return f"{line}{at}: is missing"
    return f"{line}{at}={str(first['input'])[:80]}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the part of a model at a place may have."""
    if loc and model is Fleet:
        return list(Pool.model_fields) if loc[0] == "pools" else list(Runs.model_fields)
    return list(model.model_fields)


def _line(tree: yaml.Node, loc: tuple[int | str, ...]) -> int:
    """Return the line of a place in a yaml file, or of the nearest one around it."""
    node, line = tree, tree.start_mark.line
    for key in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        else:
            break
    return line + 1
