"""Read what a workload declares about itself and settings files in the same form; put a case's settings together."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbench.base.errors import UsageError
from cnnbench.cases.artefacts import load_artefacts
from cnnbench.cases.case import Settings, TestCase, check_name, from_environment, pick_sections, resolve
from cnnbench.cases.parameters import (
    FIELDS,
    IMAGENET,
    PROCEDURAL,
    Function,
    Parameters,
    PrecisionName,
    TopologyName,
    parameters_of,
    precisions_of,
    told,
)
from cnnbench.cases.variables import DEFAULTS_VARIABLE, DIRECTORY_VARIABLE
from cnnbench.engines.registry import engines_that_take, find_engine
from cnnbench.inputs.networks import TOPOLOGIES

Sections = dict[str, dict[str, str]]
ImageName = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-]+[a-z0-9]+)*$")]


class ImageNames(BaseModel):
    """What the names of a workload's container images begin with.

    `parts`: those that the others are made of (-benchmark, -inference-dataset, -model). `inference`: those that cases
    run in (-dummy, -real, -sgx).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: ImageName
    inference: ImageName


class Workload(BaseModel):
    """A workload's `workload.yaml`.

    `slug`: the name inside case names. `function`: what its cases run. `engine`: which lock files make its
    environments; where ENGINE is one of its parameters, the default. `topologies`: the networks that its case names
    tell apart; empty when it has one. `images`: the names of its container images, None when it has none. `defaults`:
    settings by globs of case names. `network`: which of the harness's networks it has, as a graph or to be built; empty
    when none, or `topologies`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    slug: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    function: Function = "inference"
    engine: str
    topologies: tuple[TopologyName, ...] = ()
    images: ImageNames | None = None
    network: str = ""
    defaults: Sections

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that its cases have."""
        return parameters_of(find_engine(self.engine).takes, self.function)

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that its cases may run on: its own, or where ENGINE is a parameter, all that this may be."""
        if "ENGINE" not in self.parameters:
            return (self.engine,)
        return (self.engine, *(name for name in engines_that_take("network") if name != self.engine))

    @property
    def precisions(self) -> tuple[PrecisionName, ...]:
        """What PRECISION may be in its cases."""
        return precisions_of(find_engine(self.engine).takes)

    @property
    def networks(self) -> tuple[str, ...]:
        """What TOPOLOGY may be in its cases."""
        own = self.network if self.network in TOPOLOGIES and "ENGINE" in self.parameters else ""
        return self.topologies or (own or FIELDS["TOPOLOGY"].default,)

    def parse_case(self, name: str) -> TestCase:
        """Read the name of one of its cases; raise UsageError saying how one is made up."""
        return TestCase.parse(name, self.slug, self.topologies, self.precisions, self.function)


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


def declared_cases(directory: Path, platform: str) -> list[TestCase]:
    """Return the cases that cmake makes of a workload's declarations for a platform, SGX twins left out."""
    workload = load_workload(directory)
    declaration = directory / "cmake" / f"{platform}.cmake"
    if not declaration.is_file():
        known = ", ".join(sorted(path.stem for path in declaration.parent.glob("*.cmake"))) or "none"
        raise UsageError(f"PLATFORM={platform}: {directory.name} is not available on it; it is on {known}")
    precisions = _read_words(declaration, "set(PRECISIONS")
    kinds = _read_words(directory / "CMakeLists.txt", "add_workload(CASES")
    cases = []
    for precision, network in itertools.product(precisions, workload.topologies or [""]):
        for mode, _, kind in (words.partition("_") for words in kinds):
            words = ("test", workload.slug, workload.function, mode, precision, network, kind)
            cases.append(workload.parse_case("_".join(word for word in words if word)))
    return cases


def _read_words(path: Path, beginning: str) -> list[str]:
    """Return the words of the one line of a cmake file that begins so and ends with a bracket."""
    found = re.findall(rf"^{re.escape(beginning)} ([a-z0-9_ ]+)\)$", path.read_text(), re.MULTILINE)
    if len(found) != 1:
        raise UsageError(f"{path}: {len(found)} lines `{beginning} ...)`, needed one")
    return found[0].split()


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


@dataclass(frozen=True)
class Sources:
    """Where a workload's cases get their settings from, read once for all of them.

    `known`: the parameters that they have; `networks`: what their TOPOLOGY may be. `declared` and `config`: the
    sections of files by their names; see `case.resolve` for what differs between them.
    """

    known: tuple[str, ...]
    networks: tuple[str, ...]
    declared: Mapping[str, Sections]
    config: Mapping[str, Sections]
    environ: Mapping[str, str]

    @classmethod
    def read(cls, workload: Workload, environ: Mapping[str, str], config: Path | None = None) -> "Sources":
        """Read the files; raise UsageError saying what is wrong with one."""
        declared: dict[str, Sections] = {}
        if "ENGINE" in workload.parameters:
            declared["engine in workload.yaml"] = {"*": {"ENGINE": workload.engine}}
        declared["workload.yaml"] = workload.defaults
        if path := environ.get(DEFAULTS_VARIABLE):
            declared[path] = load_sections(Path(path))
        sections = {str(config): load_sections(config)} if config else {}
        return cls(workload.parameters, workload.networks, declared, sections, environ)

    def resolve(self, case: TestCase, arguments: Mapping[str, Settings]) -> Parameters:
        """Return a case's parameters, paths in them absolute; raise UsageError for a bad one.

        `arguments`: what is stronger than the environment, by origin, the weakest first.
        """
        declared, config = (
            {origin: pick_sections(sections, case.name) for origin, sections in files.items()}
            for files in (self.declared, self.config)
        )
        asked = {**config, "environment": from_environment(self.environ, self.known), **arguments}
        parameters = resolve(case, asked, declared, self.known)
        if parameters.topology not in self.networks:
            raise UsageError(f"TOPOLOGY={parameters.topology}: this workload has {', '.join(self.networks)}")
        directory, located = Path(self.environ.get(DIRECTORY_VARIABLE) or Path.cwd()), {}
        if parameters.model:
            located["model"] = _locate_model(parameters.model, directory)
        if parameters.dataset not in (PROCEDURAL, IMAGENET):
            located["dataset"] = str(directory / Path(parameters.dataset).expanduser())
        for name in (name.lower() for name in FIELDS if told(name, "path")):
            if path := getattr(parameters, name):
                located[name] = str(directory / Path(path).expanduser())
        return parameters.model_copy(update=located)


def _locate_model(model: str, directory: Path) -> str:
    """Return an artefact's name as it is, or the absolute path of a file that is there."""
    artefacts = load_artefacts()
    if model in artefacts:
        return model
    path = directory / Path(model).expanduser()
    if not path.is_file():
        graphs = ", ".join(name for name, artefact in artefacts.items() if artefact.file_name.endswith(".pb"))
        raise UsageError(f"MODEL={model}: no such file in {directory}; needed a frozen graph (.pb), or one of {graphs}")
    return str(path)
