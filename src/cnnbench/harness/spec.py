"""Read a benchmark spec: named benchmarks, each a line of the reference harness with parameters to fill in.

The form is that of the reference harness's `benchmarks.yml`: `description`, `parameters` (names to lists of values, of
which every combination is one run, the first name changing slowest), `cmd` with `{name}` where a value goes, `output`
(columns: a heading and the KPI, or the fact of the run, that it shows) and `env` (environment of the instances).
`gated` marks those that are short enough for a small machine.
"""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from cnnbench.base.errors import UsageError
from cnnbench.harness.line import Request, read_launch_line, read_request

DEFAULT_OUTPUT = (("images/s", "Throughput"), ("mean (ms)", "Latency mean"), ("p50 (ms)", "Latency p50"))


class Benchmark(BaseModel):
    """One named benchmark of a spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    gated: bool = False
    parameters: dict[str, Annotated[list[int | float | str], Field(min_length=1)]] = {}
    cmd: str
    output: tuple[tuple[str, str], ...] = DEFAULT_OUTPUT
    env: dict[str, str] = {}


class _Spec(RootModel[dict[str, Benchmark]]):
    """A spec file."""


@dataclass(frozen=True)
class Variant:
    """One run of a benchmark: the values of its parameters, and the line with them filled in."""

    name: str
    benchmark: Benchmark
    values: dict[str, str]
    line: str

    @property
    def key(self) -> str:
        """A name for its logs."""
        return "-".join([self.name, *(f"{name}={value}" for name, value in self.values.items())]).replace("/", "_")

    def read(self, cpu_flags: frozenset[str]) -> Request:
        """Return what its line asks for; raise UsageError where it is no line of the harness, or several runs."""
        words = shlex.split(self.line)
        words = words[1:] if words[:1] == ["cnnbench"] else words
        if words[:1] == ["run"]:
            request = read_request(words[1:], cpu_flags)
        elif words[:1] == ["launch"]:
            request = read_launch_line(words[1:], cpu_flags)
        else:
            raise UsageError(f"{self.name}: cmd must begin with `cnnbench run` or `cnnbench launch`, not {self.line!r}")
        if len(request.runs) != 1:
            raise UsageError(f"{self.name}: {self.line!r} is {len(request.runs)} runs; give the values as parameters")
        return request


def read_spec(path: Path) -> dict[str, Benchmark]:
    """Read a spec file; raise UsageError saying what is wrong with it."""
    if not path.is_file():
        raise UsageError(f"--spec {path}: no such file; needed is a yaml file of benchmarks")
    try:
        return _Spec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).root
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--spec {path}: not yaml: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--spec {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def choose_variants(spec: dict[str, Benchmark], names: Sequence[str], gated: bool) -> list[Variant]:
    """Return the runs of the named benchmarks, all where none is named; only gated ones if so asked for.

    Raises UsageError for a name that is not in the spec, and for a line that wants a value that there is none of.
    """
    if unknown := [name for name in names if name not in spec]:
        raise UsageError(f"--benchmark {unknown[0]}: not in the spec; there are {', '.join(spec)}")
    chosen = {name: spec[name] for name in names or spec if spec[name].gated or not gated}
    if not chosen:
        raise UsageError("--gated: none of these benchmarks is marked as gated")
    return [variant for name, benchmark in chosen.items() for variant in _expand(name, benchmark)]


def _expand(name: str, benchmark: Benchmark) -> list[Variant]:
    variants = []
    for combination in itertools.product(*benchmark.parameters.values()):
        values = {key: str(value) for key, value in zip(benchmark.parameters, combination, strict=True)}
        try:
            line = benchmark.cmd.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(values) or "none"
            raise UsageError(f"{name}: cmd wants {error}, which is no parameter; there are {known}") from error
        variants.append(Variant(name, benchmark, values, " ".join(line.split())))
    return variants
