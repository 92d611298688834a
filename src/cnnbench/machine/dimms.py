"""Read which memory modules a machine has, how fast they run and on which channels, without a tool of root's.

Sources: the firmware's SMBIOS table (DMTF DSP0134, structure type 17), which Linux shows to root alone, and the
memory-controller drivers (kernel Documentation/admin-guide/RAS), which know channels and not speeds.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MEMORY_DEVICE, _END_OF_TABLE = 17, 127
_UNKNOWN_SPEEDS = (0, 0xFFFF)


@dataclass(frozen=True)
class Dimm:
    """A slot for a memory module: how large it is (0: empty), its rated and its set speed (MT/s), where it is."""

    size_bytes: int
    rated_mts: int | None
    set_mts: int | None
    place: str


def parse_smbios(table: bytes) -> list[Dimm]:
    """Return the memory slots that an SMBIOS table lists; what is cut off or of another length is left out."""
    return [
        dimm for kind, body, texts in _structures(table) if kind == _MEMORY_DEVICE and (dimm := _read_dimm(body, texts))
    ]


def _structures(table: bytes) -> Iterator[tuple[int, bytes, list[str]]]:
    """Yield the type, the formatted area and the texts of each structure."""
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        end = table.find(b"\0\0", at + length)
        if length < 4 or end < 0 or kind == _END_OF_TABLE:
            return
        texts = table[at + length : end].decode("latin-1").split("\0")
        yield kind, table[at : at + length], texts
        at = end + 2


def _read_dimm(body: bytes, texts: list[str]) -> Dimm | None:
    if len(body) < 0x17:
        return None
    size, rated = struct.unpack_from("<H", body, 0x0C)[0], struct.unpack_from("<H", body, 0x15)[0]
    extended = struct.unpack_from("<I", body, 0x1C)[0] if len(body) >= 0x20 else 0
    current = struct.unpack_from("<H", body, 0x20)[0] if len(body) >= 0x22 else 0
    if size == 0x7FFF:
        size_bytes = (extended & 0x7FFFFFFF) << 20
    elif size == 0xFFFF:  # there is one, of a size that the firmware does not know
        return None
    else:
        size_bytes = (size & 0x7FFF) << (10 if size & 0x8000 else 20)
    words = (texts[number - 1] for number in body[0x10:0x12] if 0 < number <= len(texts))
    return Dimm(size_bytes, _speed(rated), _speed(current), " ".join(word.strip() for word in words))


def _speed(mts: int) -> int | None:
    return None if mts in _UNKNOWN_SPEEDS else mts


def read_channels(sysfs: Path) -> Counter[str]:
    """Return how many modules are on each channel of each memory controller, as its driver tells; empty without one."""
    found: Counter[str] = Counter()
    for path in sorted(sysfs.glob("devices/system/edac/mc/mc[0-9]*/*[0-9]*/dimm_location")):
        channel = re.search(r"channel (\d+)", path.read_text())
        size = path.with_name("size")
        if channel and (not size.exists() or size.read_text().strip() not in ("", "0")):
            found[f"{path.parent.parent.name} channel {channel[1]}"] += 1
    return found
