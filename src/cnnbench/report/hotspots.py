"""Tell where a run's processor time went, by the samples of its instances: kinds of work, files, and hottest places."""

import bisect
import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.base.errors import CnnbenchError
from cnnbench.proof.instructions import Place, describe_place, disassemble
from cnnbench.report.table import Format
from cnnbench.report.text import align
from cnnbench.results.record import find_last_run
from cnnbench.results.samples import SAMPLES, Samples
from cnnbench.results.stats import Window, common_window

PLACES = 10
"""How many of the hottest places are shown."""
PLACE_BYTES = 1024
"""How much code is one place: the loops of a kernel."""
LINES = 4
"""How many instructions of each."""
COMPILED_CODE = "made at run time"
COLUMNS = ("record", "kind", "object", "offset", "instructions", "samples", "share", "code")


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    offset: int
    path: str


class _Memory:
    """What was mapped where in a process, of /proc/self/maps."""

    def __init__(self, maps: str) -> None:
        self._mappings = [_parse_mapping(line) for line in maps.splitlines()]
        self._starts = [one.start for one in self._mappings]

    def locate(self, address: int) -> tuple[str, int]:
        """Return the name of the file that an address is of and its offset there; without a file, the address."""
        at = bisect.bisect_right(self._starts, address) - 1
        found = self._mappings[at] if at >= 0 else None
        if found is None or address >= found.end or not found.path:
            return COMPILED_CODE, address
        return Path(found.path).name, address - found.start + found.offset


def _parse_mapping(line: str) -> _Mapping:
    fields = line.split(maxsplit=5)
    start, end = (int(bound, 16) for bound in fields[0].split("-"))
    return _Mapping(start, end, int(fields[2], 16), fields[5] if len(fields) > 5 else "")


@dataclass(frozen=True)
class _Met:
    """Where a sample was; `offset`: in its file."""

    place: Place
    code: bytes
    address: int
    offset: int


@dataclass(frozen=True)
class _Hot:
    """A place: PLACE_BYTES of code. `offset`, `code`, `address`: of the sample met most often."""

    kind: str
    instructions: str
    object: str
    offset: int
    samples: int
    code: bytes
    address: int


def load_samples(directory: Path) -> tuple[Path, list[Samples], Window]:
    """Return the last run in a logs-<case>, itr-N or worker directory, its samples, and the window that counts."""
    run = find_last_run(directory)
    paths = sorted(run.glob(f"instance-*/{SAMPLES}"))
    if not paths:
        raise CnnbenchError(
            f"{run}: has no samples (instance-*/{SAMPLES}); a run leaves them that was sampled and came to its end: on "
            "a GPU, in an enclave and where there is no C compiler nothing is, and the run's notes say so"
        )
    try:
        timed = sorted(run.glob("instance-*/steps.npy")) or sorted(run.glob("client/instance-*/steps.npy"))
        steps = [np.load(path) for path in timed]
        return run, [Samples.load(path) for path in paths], common_window(steps)
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise CnnbenchError(f"{run}: its samples and step times cannot be read: {error}") from error


def show_hotspots(directory: Path, output_format: Format) -> str:
    """Return where the processor time of a run's window went: by kind of work, by file, and the hottest places."""
    run, processes, window = load_samples(directory)
    places, total = _gather(processes, window)
    if not total:
        raise CnnbenchError(f"{run}: no sample lies in the {window.seconds:.2f} s that all instances measured")
    records = _records(places, total)
    if output_format == "json":
        return json.dumps(records, indent=2)
    if output_format == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return stream.getvalue().rstrip("\n")
    return _format_tables(run, records, total, window)


def _gather(processes: list[Samples], window: Window) -> tuple[list[_Hot], int]:
    """Return the places where samples of the window were, the hottest first, and how many samples there are."""
    found: dict[tuple[str, str, int], Counter[_Met]] = {}
    total = 0
    for process in processes:
        memory = _Memory(process.maps)
        for code, address, in_kernel in process.within(window.start_ns, window.end_ns):
            place = describe_place(code, address, in_kernel)
            name, offset = memory.locate(address)
            found.setdefault((place.kind, name, offset // PLACE_BYTES), Counter())[
                _Met(place, code, address, offset)
            ] += 1
            total += 1
    hot = []
    for (kind, name, _), samples in found.items():
        instructions: Counter[str] = Counter()
        for met, count in samples.items():
            instructions[met.place.instructions] += count
        often = samples.most_common(1)[0][0]
        named = instructions.most_common(1)[0][0]
        hot.append(_Hot(kind, named, name, often.offset, sum(samples.values()), often.code, often.address))
    return sorted(hot, key=lambda one: -one.samples), total


def _records(places: list[_Hot], total: int) -> list[dict[str, Any]]:
    """Return a record for each kind, each file and each of the hottest places."""
    kinds: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    for one in places:
        kinds[one.kind] += one.samples
        objects[one.object] += one.samples
    records: list[dict[str, Any]] = [
        *({"record": "kind", "kind": name, "samples": count} for name, count in kinds.most_common()),
        *({"record": "object", "object": name, "samples": count} for name, count in objects.most_common()),
        *(
            {
                "record": "place",
                "kind": one.kind,
                "object": one.object,
                "offset": f"{one.offset:#x}",
                "instructions": one.instructions,
                "samples": one.samples,
                "code": "; ".join(disassemble(one.code, one.address, LINES)),
            }
            for one in places[:PLACES]
        ),
    ]
    return [record | {"share": record["samples"] / total} for record in records]


def _format_tables(run: Path, records: list[dict[str, Any]], total: int, window: Window) -> str:
    kinds, objects, places = (
        [record for record in records if record["record"] == name] for name in ("kind", "object", "place")
    )

    def rows(some: list[dict[str, Any]], name: str) -> list[list[str]]:
        return [[one[name], str(one["samples"]), f"{100 * one['share']:.1f}"] for one in some]

    parts = [
        f"{run}: {total} samples of the processor time of {window.seconds:.2f} s",
        align(["kind of work", "samples", "time (%)"], rows(kinds, "kind")),
        align(["in", "samples", "time (%)"], rows(objects, "object")),
    ]
    for number, one in enumerate(places, start=1):
        what = one["instructions"] or one["kind"]
        parts.append(
            f"{number}. {100 * one['share']:.1f} %: {what}, {one['object']} at {one['offset']}\n"
            + "\n".join(f"     {line}" for line in one["code"].split("; "))
        )
    return "\n\n".join(parts)
