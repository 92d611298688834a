"""Know the platform codes, and tell which one a CPU belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.errors import UsageError
from cnnbench.machine.host import CpuInfo
from cnnbench.machine.topology import parse_cpu_list

PLATFORMS_FILE = REPOSITORY / "workload" / "platforms"
GENERIC = "GENERIC"
_ANY = "*"


@dataclass(frozen=True)
class Platform:
    """One line of the table; None matches anything."""

    code: str
    vendor: str | None
    family: frozenset[int] | None
    models: frozenset[int] | None
    steppings: frozenset[int] | None
    description: str

    def matches(self, cpu: CpuInfo) -> bool:
        """Say whether the CPU is one of this platform."""
        return (
            self.vendor in (None, cpu.vendor)
            and (self.family is None or cpu.family in self.family)
            and (self.models is None or cpu.model in self.models)
            and (self.steppings is None or cpu.stepping in self.steppings)
        )


def load_platforms(path: Path = PLATFORMS_FILE) -> tuple[Platform, ...]:
    """Read the table of platforms in its order, which is also the order of matching."""
    if not path.is_file():
        raise UsageError(f"{path}: not found; the table of platforms is part of the repository")
    table: list[Platform] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        columns = text.split(maxsplit=5)
        if len(columns) != 6:
            raise UsageError(f"{path}:{number}: {len(columns)} columns, must be code vendor family model stepping text")
        code, vendor, family, models, steppings, description = columns
        if any(code == known.code for known in table):
            raise UsageError(f"{path}:{number}: {code} is listed twice; give its models on one line, like 106,108")
        try:
            platform = Platform(
                code,
                None if vendor == _ANY else vendor,
                _parse_numbers(family),
                _parse_numbers(models),
                _parse_numbers(steppings),
                description,
            )
        except UsageError as error:
            raise UsageError(f"{path}:{number}: {error}") from error
        table.append(platform)
    return tuple(table)


def detect_platform(cpu: CpuInfo, table: Sequence[Platform] | None = None) -> str:
    """Return the code of the first platform that matches the CPU, GENERIC when none does."""
    platforms = load_platforms() if table is None else table
    return next((platform.code for platform in platforms if platform.matches(cpu)), GENERIC)


def check_platform(name: str, table: Sequence[Platform] | None = None) -> str:
    """Return the code as the table writes it, whatever the case of `name`; an unknown one lists the known."""
    codes = [platform.code for platform in (load_platforms() if table is None else table)]
    if name.upper() not in codes:
        raise UsageError(f"PLATFORM={name}: must be one of {', '.join(codes)}")
    return name.upper()


def _parse_numbers(column: str) -> frozenset[int] | None:
    return None if column == _ANY else frozenset(parse_cpu_list(column))  # the list syntax is the kernel's
