"""Measure the most that this machine does with the program of native/peak.c, and hold a throughput against it."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import CnnbenchError
from cnnbench.machine.topology import format_cpu_list

PEAK_VARIABLE = "CNNBENCH_PEAK"
"""Environment variable: the program that measures peaks; cmake sets it for the cases, and the images have it."""
HOW_TO_GET = "where there is a C compiler, cmake makes it as cnnbench-peak in the build directory"
OWN_PROGRAM = REPOSITORY / "build" / "cnnbench-peak"
"""Where the checkout's own cmake makes it; commands that no cmake calls look there."""

MEMORY = "triad"
TIMEOUT_S = 60.0
"""How long the program may take: a second on idle cores, some ten times that where other work takes turns on them."""

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Peak(BaseModel):
    """What the program has measured of one kind: `unit` a second, on the first CPU alone and on all at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: Literal["GFLOP/s", "GOP/s", "GB/s"]
    isa: str
    one_core: _Rate
    all_cores: _Rate

    def raise_to(self, other: "Peak") -> "Peak":
        """Return the larger of each figure: what the machine was seen to do."""
        one, both = max(self.one_core, other.one_core), max(self.all_cores, other.all_cores)
        return self.model_copy(update={"one_core": one, "all_cores": both})


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: Annotated[dict[str, Peak], Field(min_length=1)]


@dataclass(frozen=True)
class Ceiling:
    """The most that the used cores do: the rate of a precision's arithmetic, and memory's."""

    kind: str
    cpus: tuple[int, ...]
    compute: Peak
    memory: Peak

    def raise_to(self, other: "Ceiling") -> "Ceiling":
        """Return the ceiling that both measurements were below."""
        compute, memory = self.compute.raise_to(other.compute), self.memory.raise_to(other.memory)
        return Ceiling(self.kind, self.cpus, compute, memory)

    def describe(self) -> str:
        """Return what the rate of arithmetic was measured to be, of which instructions, and where."""
        compute, cpus = self.compute, format_cpu_list(self.cpus)
        return (
            f"{compute.all_cores:.4g} {compute.unit} of {self.kind} ({compute.isa}) on CPUs {cpus}, "
            f"{compute.one_core:.4g} on CPU {self.cpus[0]} alone"
        )


@dataclass(frozen=True)
class Utilization:
    """A rate of arithmetic (10^9 operations/s, as the ceiling's unit) below a ceiling."""

    achieved: float
    ceiling: Ceiling

    @property
    def share(self) -> float:
        """What part of the ceiling the rate is."""
        return self.achieved / self.ceiling.compute.all_cores


def utilize(ceiling: Ceiling, images_per_s: float, macs_per_image: int) -> Utilization:
    """Return what a throughput is of a ceiling, counting each multiply-accumulate of the graph as two operations."""
    return Utilization(images_per_s * 2 * macs_per_image / 1e9, ceiling)


def name_own_program(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable for what cmake made in this checkout's `build`; none where another is named, or none made."""
    return {PEAK_VARIABLE: str(OWN_PROGRAM)} if PEAK_VARIABLE not in environ and OWN_PROGRAM.is_file() else {}


def find_peak_program(environ: Mapping[str, str]) -> Path | None:
    """Return the program that measures peaks, None where the environment names none; raise if it is not there."""
    if not (name := environ.get(PEAK_VARIABLE)):
        return None
    program = Path(name).absolute()
    if not program.is_file():
        raise CnnbenchError(f"{PEAK_VARIABLE}={name}: no such file; {HOW_TO_GET}; leave the variable out to go without")
    if not os.access(program, os.X_OK):
        raise CnnbenchError(
            f"{PEAK_VARIABLE}={name}: may not be executed: its file system is mounted noexec, or it is not marked as a "
            "program; name a copy where programs may run (ctest.sh: configure a build directory there, cmake -B), or "
            "leave the variable out to go without"
        )
    return program


def measure_ceiling(program: Path, kind: str, cpus: Sequence[int]) -> Ceiling:
    """Measure the ceiling of a kind of arithmetic on some CPUs, which takes about a second."""
    peaks = measure_peaks(program, cpus, [kind, MEMORY])
    if missing := {kind, MEMORY} - set(peaks):
        raise CnnbenchError(f"{program}: has not measured {', '.join(sorted(missing))}, but {', '.join(peaks)}")
    return Ceiling(kind, tuple(cpus), peaks[kind], peaks[MEMORY])


def measure_peaks(program: Path, cpus: Sequence[int], kinds: Sequence[str] = ()) -> dict[str, Peak]:
    """Run the program and return its figures by kind: of the kinds given, or of all that this CPU has."""
    command = [str(program), "--cpus", ",".join(map(str, cpus)), *kinds]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CnnbenchError(f"{program}: not done within {TIMEOUT_S:g} s; stop other work on this machine") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CnnbenchError(f"{program}: {error}; {HOW_TO_GET}") from error
    if done.returncode != 0:
        raise CnnbenchError(f"{program}: failed with exit code {done.returncode}: {done.stderr.strip()}")
    try:
        return _Report.model_validate_json(done.stdout).kinds
    except ValidationError as error:
        found = f"{error.errors()[0]['msg']} in {done.stdout[:200]!r}"
        raise CnnbenchError(f"{program}: printed no figures ({found}); {HOW_TO_GET}") from error


def peak_table(peaks: Mapping[str, Peak], cpus: Sequence[int]) -> str:
    """Return the figures as a table for people."""
    rows = [["kind", "unit", "instructions", f"CPU {cpus[0]}", f"CPUs {format_cpu_list(cpus)}"]]
    rows += [
        [kind, peak.unit, peak.isa, f"{peak.one_core:.1f}", f"{peak.all_cores:.1f}"] for kind, peak in peaks.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [f"{{:<{width}}}" for width in widths[:3]] + [f"{{:>{width}}}" for width in widths[3:]]
    return "\n".join("  ".join(aligned).format(*row) for row in rows)
