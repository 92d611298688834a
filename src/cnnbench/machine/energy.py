"""Read what parts of this machine have used of energy so far: processors and their memory by RAPL's counters.

The kernel shows them as files below powercap, of AMD's processors as of Intel's (Documentation/power/powercap). Since
CVE-2020-8694 root alone may read them. A counter's bits run over: it begins again at 0 past its range.
"""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from cnnbench.base.errors import CnnbenchError

HOST_POWERCAP = Path("/sys/class/powercap")
"""Where the kernel shows what it knows of power."""
HOW_TO_ALLOW = "only root may read it; doc/user-guide.md, Energy, says how to allow it"

Unit = Literal["uJ", "mJ", "J", "mW", "W"]

READ_S = 0.1
"""How often the counters are read; all of them together take some 0.1 ms of a core that is not measured."""
MOST_READINGS = 16_384
"""How many readings are kept of each: of longer runs every other one, and they are read half as often from then on.

So they lie some ten-thousandth of a long run apart, and 6.4 s in the longest there can be, of a day: less than the 16 s
in which 2000 W would take the smallest range in use (65.7 kJ, of server memory) halfway round.
"""


class UnreadableError(CnnbenchError):
    """Energy cannot be told; the message says why."""


@dataclass(frozen=True)
class Series:
    """The raw readings of one domain: `values` in `unit` at `times_ns` (CLOCK_MONOTONIC).

    `wraps_at`: what its counter begins again after; None for one that does not. `failure`: why it was read no more.
    """

    name: str
    unit: Unit
    wraps_at: int | None
    times_ns: tuple[int, ...]
    values: tuple[float, ...]
    failure: str = ""


class Domain(Protocol):
    """Something whose energy or power can be read at any time; `read` raises UnreadableError where it no longer can."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def unit(self) -> Unit:
        """What the numbers are: energy used so far, or the power at this moment."""

    @property
    def wraps_at(self) -> int | None:
        """What its counter begins again after; None for one that does not."""

    def read(self) -> int:
        """Return its number now."""


@dataclass(frozen=True)
class Zone:
    """A domain of RAPL's: a package, its memory, or the platform as a whole."""

    name: str
    path: Path
    wraps_at: int
    unit: Unit = "uJ"

    def read(self) -> int:
        """Return the energy used so far (uJ)."""
        return _read_number(self.path / "energy_uj")


def find_zones(powercap: Path = HOST_POWERCAP) -> list[Zone]:
    """Return the packages and their memory; the platform where there is no package; raise UnreadableError for none.

    Cores and uncore are parts of a package, and a package is one of the platform: no energy is counted twice.
    """
    tops = sorted(powercap.glob("intel-rapl:*"), key=lambda path: [int(part) for part in path.name.split(":")[1:]])
    packages: list[Zone] = []
    platforms: list[Path] = []
    for top in (path for path in tops if path.name.count(":") == 1):
        name = _read_text(top / "name")
        if name == "psys":
            platforms.append(top)
        elif package := re.fullmatch(r"package-(\d+)(?:-die-(\d+))?", name):
            number = package[1] + (f" die {package[2]}" if package[2] else "")
            parts = sorted(top.glob(f"{top.name}:*"))
            memory = [_zone(f"DRAM {number}", part) for part in parts if _read_text(part / "name") == "dram"]
            packages += [_zone(f"package {number}", top), *memory]
    found = packages or [_zone("platform", top) for top in platforms[:1]]
    if not found:
        raise UnreadableError(
            f"{powercap} has no RAPL counters: a virtual machine or container has none, and others need the kernel's "
            "intel_rapl_msr"
        )
    return found


def _zone(name: str, path: Path) -> Zone:
    zone = Zone(name, path, _read_number(path / "max_energy_range_uj"))
    zone.read()
    return zone


def _read_number(path: Path) -> int:
    text = _read_text(path)
    if not (text.isascii() and text.isdigit()):
        raise UnreadableError(f"{path}: {text[:40]!r} is no number")
    return int(text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except PermissionError as error:
        raise UnreadableError(f"{path}: {HOW_TO_ALLOW}") from error
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error


class Reader:
    """Reads domains again and again, from when it is entered until it is left, in a thread of its own."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self._domains, self._interval_s = domains, READ_S
        self._readings: list[list[tuple[int, int]]] = [[] for _ in domains]
        self._failures = [""] * len(domains)
        self._whole = [0] * len(domains)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_reading, name="energy", daemon=True)

    def __enter__(self) -> "Reader":
        """Read once, and begin to read on."""
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, after a last reading."""
        self._ended.set()
        self._thread.join()
        self._read()

    def keep(self) -> None:
        """Keep what has been read so far whole, however long the run is."""
        self._whole = list(map(len, self._readings))

    def series(self) -> list[Series]:
        """Return what was read, once it has been left."""
        return [
            Series(
                domain.name,
                domain.unit,
                domain.wraps_at,
                tuple(time_ns for time_ns, _ in readings),
                tuple(value for _, value in readings),
                failure,
            )
            for domain, readings, failure in zip(self._domains, self._readings, self._failures, strict=True)
        ]

    def _keep_reading(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._read()
            if max(map(len, self._readings), default=0) >= MOST_READINGS:
                self._interval_s *= 2
                for readings, whole in zip(self._readings, self._whole, strict=True):
                    del readings[max(1, whole) :: 2]

    def _read(self) -> None:
        for number, domain in enumerate(self._domains):
            if not self._failures[number]:
                try:
                    before_ns, value, after_ns = time.monotonic_ns(), domain.read(), time.monotonic_ns()
                except UnreadableError as error:
                    self._failures[number] = str(error)
                else:
                    self._readings[number].append(((before_ns + after_ns) // 2, value))
