"""Find what the energy of a run is read from: counters of this machine, and a user's own meter."""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from cnnbench.base.errors import UsageError
from cnnbench.machine.energy import Domain, UnreadableError, find_zones
from cnnbench.machine.gpu_energy import find_gpu
from cnnbench.machine.host import read_host

ENERGY = "energy"
"""The fact that says what a run's energy is of, or why it has none."""


@dataclass(frozen=True)
class EnergySources:
    """What energy is read from, and for how long while nothing is started; or the reason why it is not read.

    `meter`: its command, which counts in place of the domains. `missing`: what could not be read beside these.
    `note`: what a reader of the figures should know.
    """

    domains: tuple[Domain, ...] = ()
    meter: tuple[str, ...] = ()
    idle_s: float = 0.0
    reason: str = ""
    missing: str = ""
    note: str = ""

    def describe(self) -> str | None:
        """Return what it is the energy of, or why it is not read; None where it is not to be."""
        if self.meter:
            return f"of what the meter reads: {shlex.join(self.meter)}"
        if self.domains:
            names = ", ".join(domain.name for domain in self.domains)
            return f"of {names}" + (f"; without the processors: {self.missing}" if self.missing else "")
        return f"not measured: {self.reason}" if self.reason else None


NO_ENERGY = EnergySources()
"""Where none is to be read, and nobody is to be told why."""


def check_meter(text: str, environ: Mapping[str, str]) -> None:
    """Raise UsageError for a meter that is no program."""
    words = shlex.split(text)
    if text and (not words or not shutil.which(words[0], path=environ.get("PATH"))):
        raise UsageError(
            f"ENERGY_METER={text}: there is no program {words[0] if words else 'in it'} that may be executed; needed a "
            "command that prints readings; see doc/user-guide.md, Energy"
        )


def find_sources(meter: str, idle_s: float, environ: Mapping[str, str], *, cores: int, gpu: bool) -> EnergySources:
    """Return what energy is read from while so many of this machine's cores, or its GPU, are measured.

    A GPU that cannot be read leaves none to tell: the processors' alone would look like all there is.
    """
    command = tuple(shlex.split(meter))
    domains: list[Domain] = []
    missing = ""
    try:
        domains += find_zones()
    except UnreadableError as error:
        missing = str(error)
    note = _note_whole(cores) if domains and not command else ""
    if gpu:
        try:
            domains.append(find_gpu(environ))
        except UnreadableError as error:
            domains, missing = [], str(error)
    if not domains and not command:
        return EnergySources(reason=missing)
    return EnergySources(tuple(domains), command, idle_s, missing=missing, note=note)


def _note_whole(cores: int) -> str:
    """Say how much of what is read the instances are, where they are not all."""
    there = read_host().cores
    if cores >= there:
        return ""
    return (
        f"power and energy are those of whole processors, of whose {there} cores {cores} were measured: what else runs "
        "there counts too"
    )
