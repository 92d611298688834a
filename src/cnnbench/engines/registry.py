"""Know the engines: each declares itself, in a folder of this package or in another that is installed.

A declaration says what its engine can do as optional parts: the rest of the program asks for a part, never for an
engine's name. It imports nothing of a framework: a part that needs one is named as "module:Name", or as a module that
is run with the Python of the engine's environment.
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.engines.interface import EngineOptions
from cnnbench.machine.host import CpuInfo

GROUP = "cnnbench.engines"
"""The entry-point group by which another package has engines: a point leads to an `Engine`, or to a tuple of them."""

AUTO = "auto"
"""Of a build: the first that can run. Of ENGINE: the fastest, by a trial."""

Takes = Literal["graph", "network"]
"""What an engine is handed: a frozen graph, or one of the networks; its workloads have the parameters of that."""

PythonVersion = tuple[int, int]


@dataclass(frozen=True)
class Build:
    """One build of an engine, which runs in an environment of its own.

    `lock`: the stem of its lock file in requirements/. `obstacle`: why it cannot run on a CPU with a Python, empty when
    it can. `index`: where else packages of the lock file are, which PyPI has not. `own_python`: the environment
    variable by which a caller has it run with a Python of theirs. `in_images`: whether images have it unasked.
    """

    name: str
    lock: str
    obstacle: Callable[[CpuInfo, PythonVersion], str] = lambda _cpu, _python: ""
    int8: bool = False
    gpu: bool = False
    shares_weights: bool = True
    in_images: bool = False
    index: str = ""
    own_python: str = ""


@dataclass(frozen=True)
class Steps:
    """A module that makes something out of models or images, run with the Python of an engine's environment.

    `sources`: the files of this package, relative to it, that decide what is made: a change of one makes it anew.
    `lock`: the lock file of its environment, where that is no build of the engine's. `obstacle`: why it cannot run with
    a Python, empty when it can.
    """

    module: str
    sources: tuple[str, ...]
    lock: str = ""
    obstacle: Callable[[PythonVersion], str] = lambda _python: ""


@dataclass(frozen=True)
class Conditions:
    """What an engine is told of a case when its options are checked.

    `precision`: its name. `number_type`, `on_gpu`: what the name says. `replicas`: copies of the network in a process.
    `threads`: those of the smallest instance. `network`: its name.
    """

    precision: str
    number_type: str
    on_gpu: bool
    replicas: int
    threads: int
    network: str


@dataclass(frozen=True)
class Setting:
    """What the environment of an engine's instances depends on. `cache`: a directory for what is compiled."""

    build: str
    number_type: str
    batch_size: int
    options: Any
    cache: Path


@dataclass(frozen=True)
class Share:
    """What instances of a served model have: how many they are, the threads of each, the number computed in."""

    instances: int
    threads: int
    number_type: str


@dataclass(frozen=True)
class TritonBackend:
    """A backend of Triton Server's own that takes an engine's prepared network as it is, without the engine.

    `name`: what a model's configuration calls it. `file`: which file of a prepared network it takes; `called`: by what
    name it looks for it. `numbers`: the types of number that a network may be held in, or else computed in, for it.
    `puts_together`: whether it computes at once what the server has put together of several requests.
    `parameters`: those of a model's configuration. `notes`: by the type of number, what it does otherwise there.
    """

    name: str
    file: str
    called: str
    numbers: frozenset[str]
    puts_together: bool
    parameters: Callable[[Share], dict[str, str]]
    notes: Mapping[str, str] = field(default_factory=dict)


def _needs_nothing(_environ: Mapping[str, str], _on_gpu: bool) -> str:
    return ""


@dataclass(frozen=True)
class Engine:
    """What an engine is and can do.

    `backend`: its `interface.Backend`. `reader`: its `interface.Reader`. `summary`: what it is, for help texts.
    `builds`: the preferred ones first; none when it runs in the controller's own environment. `options`: its own
    parameters. `heeds`: of the parameters that all engines have, those that not every engine heeds, but this one does.
    `refused`: why it cannot run a type of number.
    `check`: raises UsageError for options that do not go together or with a case; returns notes. `environment`: what
    its instances' environment has beyond the caller's. `obstacle`: what this host lacks for it, by the caller's
    environment and whether it is to run on a GPU. `whole_steps`: whether it is handed whole steps, and parts them
    itself. `of_network`: what of its options the making of a network depends on.

    Of graphs: `embeds` makes the embedded model, `prepares_graphs` makes any graph ready, `quantizes_graphs` to int8;
    `reads_shards` turns TFRecord shards into an image set. Of networks: `builds_networks` does so for all engines, and
    `quantizes_networks` to int8 and `converts_networks` to other numbers those that are `reads_onnx`: handed to the
    engine as ONNX; `handles_files` takes in a user's ONNX file and gives one. `exports_networks` writes what the engine
    loads without converting or compiling it again; `ahead_of_time`: whether it loads nothing else; `parts_weights`,
    `tries_kernels`: whether that can have its weights apart, and kernels chosen by trying. `tells_layers`: whether it
    tells itself what its layers run on; no trace of a library is taken then. `triton`: the backend of Triton Server's
    own that takes what this one is handed.
    """

    name: str
    backend: str
    takes: Takes = "graph"
    summary: str = ""
    reader: str = ""
    builds: tuple[Build, ...] = ()
    options: type[EngineOptions] = EngineOptions
    heeds: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Any, Conditions], list[str]] = lambda _options, _conditions: []
    environment: Callable[[Setting], dict[str, str]] = lambda _setting: {}
    obstacle: Callable[[Mapping[str, str], bool], str] = _needs_nothing
    whole_steps: Callable[[Any], bool] = lambda _options: False
    of_network: Callable[[Any], dict[str, object]] = lambda _options: {}
    embeds: Steps | None = None
    prepares_graphs: Steps | None = None
    quantizes_graphs: Steps | None = None
    reads_shards: Steps | None = None
    builds_networks: Steps | None = None
    quantizes_networks: Steps | None = None
    converts_networks: Steps | None = None
    handles_files: Steps | None = None
    exports_networks: Steps | None = None
    reads_onnx: bool = False
    ahead_of_time: bool = False
    parts_weights: bool = False
    tries_kernels: bool = False
    tells_layers: bool = False
    triton: TritonBackend | None = None

    @property
    def has_model(self) -> bool:
        """Whether it computes with a model; without one, there are no outputs to check and no precision to prove."""
        return self.takes == "network" or self.prepares_graphs is not None

    @property
    def gpu(self) -> bool:
        """Whether it runs on NVIDIA GPUs too."""
        return any(build.gpu for build in self.builds)

    @property
    def int8(self) -> bool:
        """Whether a build of it computes in int8."""
        return any(build.int8 for build in self.builds)

    def build(self, name: str) -> Build:
        """Return a build by name; raise UsageError listing the known ones."""
        for build in self.builds:
            if build.name == name:
                return build
        known = ", ".join(build.name for build in self.builds) or "none"
        raise UsageError(f"VARIANT={name}: is no build of the engine {self.name}; there are {known}")

    def asked_build(self, options: EngineOptions) -> str:
        """Return which build its options ask for; an engine lets that be chosen by an option named `variant`."""
        return getattr(options, "variant", AUTO)


@cache
def engines() -> Mapping[str, Engine]:
    """Return all engines by name, those of other packages last; raise CnnbenchError where two have one name."""
    found: dict[str, Engine] = {}
    for engine in (*_own_engines(), *_others_engines()):
        if engine.name in found:
            raise CnnbenchError(
                f"engine {engine.name!r}: declared by {found[engine.name].backend} and by {engine.backend}; one of "
                "these packages must go, or have another name for it"
            )
        found[engine.name] = engine
    return found


def _own_engines() -> Iterator[Engine]:
    package = importlib.import_module(__package__ or "")
    for folder in pkgutil.iter_modules(package.__path__):
        if folder.ispkg:
            yield from importlib.import_module(f"{package.__name__}.{folder.name}").ENGINES


def _others_engines() -> Iterator[Engine]:
    for point in importlib.metadata.entry_points(group=GROUP):
        named = f"entry point {point.name} of {GROUP}, {point.value}"
        try:
            declared = point.load()
        except Exception as error:  # another package's code: whatever it raises is told with its name
            told = f"{named}: {type(error).__name__}: {error}; mend that package or uninstall it"
            raise CnnbenchError(told) from error
        for engine in declared if isinstance(declared, tuple) else (declared,):
            if not isinstance(engine, Engine):
                raise CnnbenchError(f"{named}: is a {type(engine).__name__}; needed is an Engine")
            if engine.builds or any(isinstance(getattr(engine, one.name), Steps) for one in fields(engine)):
                raise CnnbenchError(
                    f"{named}: the engine {engine.name} has builds or steps, whose lock files and sources are looked "
                    "for in this package alone; leave them out, so that it runs in the environment of cnnbench"
                )
            yield engine


def find_engine(name: str) -> Engine:
    """Return an engine by name; raise UsageError listing the known ones."""
    if name not in engines():
        raise UsageError(f"engine {name!r}: not known; there are {', '.join(engines())}")
    return engines()[name]


def find_part(part: str) -> Engine:
    """Return the first engine that has a part, such as `builds_networks`; raise CnnbenchError where none has."""
    for engine in engines().values():
        if getattr(engine, part):
            return engine
    raise CnnbenchError(f"no engine {part.replace('_', ' ')}; there are {', '.join(engines())}")


def triton_backends() -> Mapping[str, Engine]:
    """Return the engines whose networks a backend of Triton Server's own takes, by that backend's name."""
    return {engine.triton.name: engine for engine in engines().values() if engine.triton}


def engines_that_take(takes: Takes) -> tuple[str, ...]:
    """Return the names of the engines that are handed graphs, or networks, and have a model."""
    return tuple(name for name, engine in engines().items() if engine.takes == takes and engine.has_model)


def import_part(target: str) -> Any:
    """Import the object that "module:Name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
