"""Plan a tuning sweep: which cases, which settings of each, and which of those cannot run here."""

import fnmatch
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.cases.case import TestCase, parse_arguments
from cnnbench.cases.sets import Combination, read_sweep
from cnnbench.cases.workload import Sources, declared_cases, load_workload
from cnnbench.engines.registry import find_engine
from cnnbench.machine.topology import Topology, read_topology
from cnnbench.run.job import PLATFORM_VARIABLE, Job, plan_case, prepare_job

TUNED = ("BATCH_SIZE", "CORES_PER_INSTANCE", "INSTANCES", "VARIANT")
"""The parameters that a sweep may vary; all others are how it measures."""
DEFAULT_CASES = "*_throughput_*_pkm"
MOST_ROUNDS = 1000

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_IMAGES_PER_CORE = 32
"""Larger batches a core only make steps longer; the published settings have 2 to 32."""


@dataclass(frozen=True)
class SweepRequest:
    """What a sweep is asked for; `words` are parameters as `--steps=20`."""

    workload: Path
    platform: str
    globs: tuple[str, ...]
    sets: tuple[str, ...]
    rounds: int
    config: Path | None
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that asks for it, less the paths of this machine."""
        words = [
            "cnnbench",
            "sweep",
            *(f"--case={glob}" for glob in self.globs),
            *(f"--set={text}" for text in self.sets),
        ]
        words += [f"--rounds={self.rounds}", *([f"--config={self.config.name}"] if self.config else []), *self.words]
        return shlex.join(words)


@dataclass(frozen=True)
class Space:
    """The settings of a case by name: those that can run here, and why the others cannot."""

    case: TestCase
    jobs: dict[str, Job]
    refused: dict[str, CnnbenchError]

    @property
    def obstacles(self) -> dict[str, list[str]]:
        """The settings that cannot run here, by the reason."""
        texts = dict.fromkeys(map(str, self.refused.values()))
        return {text: [name for name, error in self.refused.items() if str(error) == text] for text in texts}

    @property
    def skipped(self) -> bool:
        """Say whether this machine cannot run the case, whatever the setting."""
        return not self.jobs and all(isinstance(error, SkippedError) for error in self.refused.values())


def plan_sweep(request: SweepRequest, environ: Mapping[str, str]) -> list[Space]:
    """Plan every setting of every case; raise UsageError for a bad value before anything is measured.

    A setting that does not fit this machine, or that it cannot run, is refused with the reason and no error.
    """
    if not 1 <= request.rounds <= MOST_ROUNDS:
        raise UsageError(f"--rounds {request.rounds}: must be 1 to {MOST_ROUNDS}")
    given, arguments = read_sweep(request.sets), parse_arguments(request.words)
    for name in given[0]:
        if name not in TUNED:
            raise UsageError(
                f'--set "{name}=...": a sweep tunes {", ".join(TUNED)}; give others as --{name.lower()}=...'
            )
        if name in arguments:
            raise UsageError(f"{name}={arguments[name]} (argument): is given by --set too; give it once")
    environ = {**environ, PLATFORM_VARIABLE: request.platform}
    workload = load_workload(request.workload)
    sources, engine = Sources.read(workload, environ, request.config), find_engine(workload.engine)
    variants = [build.name for build in engine.builds] if "VARIANT" in workload.parameters else []
    cases = _choose_cases(declared_cases(request.workload, request.platform), request.globs)
    spaces = {
        case: given if request.sets else default_space(read_topology(), case.mode, variants, arguments)
        for case in cases
    }
    for case, combinations in spaces.items():
        for combination in combinations:
            sources.resolve(case, {"--set": combination, "argument": arguments})

    def plan(case: TestCase, combination: Combination) -> Job:
        planned = plan_case(request.workload, case.name, environ, arguments | combination, request.config)
        return prepare_job(planned, environ)

    planned = []
    for case, combinations in spaces.items():
        planned.append(space := Space(case, {}, {}))
        for combination in combinations:
            name = " ".join(f"{parameter}={value}" for parameter, value in combination.items()) or "as declared"
            try:
                space.jobs[name] = plan(case, combination)
            except (UsageError, SkippedError) as error:  # told with the others' results
                space.refused[name] = error
    return planned


def _choose_cases(declared: Sequence[TestCase], globs: Sequence[str]) -> list[TestCase]:
    """Return the cases that match a glob; raise UsageError for one that matches none, or none that can be tuned."""
    tunable = [case for case in declared if case.mode != "accuracy" and case.case_type != "gated"]
    for glob in globs:
        if not any(fnmatch.fnmatchcase(case.name, glob) for case in tunable):
            names = " ".join(case.name for case in tunable)
            raise UsageError(f"--case {glob}: matches no case that can be tuned; there are {names}")
    return [case for case in tunable if any(fnmatch.fnmatchcase(case.name, glob) for glob in globs)]


def default_space(
    topology: Topology, mode: str, variants: Sequence[str], fixed: Mapping[str, str] = {}
) -> list[Combination]:
    """Return the settings to try on a machine: batch sizes, cores per instance that divide a NUMA node, engine builds.

    As many instances as fit run together. Latency is tuned at batch size 1. `variants`: the engine's, maybe none.
    `fixed`: what is not to be tuned, as its value is given.
    """
    node = max(len(topology.cores_of_node(number)) for number in topology.nodes)
    settings = [
        {"BATCH_SIZE": str(batch), "CORES_PER_INSTANCE": str(cores), **({"VARIANT": variant} if variant else {})}
        for variant in variants or [""]
        for cores in range(1, node + 1)
        if node % cores == 0
        for batch in ((1,) if mode == "latency" else BATCH_SIZES)
        if batch <= MOST_IMAGES_PER_CORE * cores
    ]
    tuned = [{name: value for name, value in one.items() if name not in fixed} for one in settings]
    return [one for number, one in enumerate(tuned) if one not in tuned[:number]]


def describe_spaces(spaces: Sequence[Space]) -> list[str]:
    """Return the cases and their settings as lines of text: what `--dry-run` prints."""
    lines = []
    for space in spaces:
        if space.skipped:
            lines.append(f"{space.case.name}: skipped: {'; '.join(space.obstacles)}")
            continue
        lines.append(f"{space.case.name}: {len(space.jobs)} settings")
        for name, job in space.jobs.items():
            plan = job.plan
            lines.append(f"  {name}: {len(plan.instances)} instances of {plan.cores_per_instance} cores")
        lines += [f"  {', '.join(names)}: cannot run here: {reason}" for reason, names in space.obstacles.items()]
    return lines
