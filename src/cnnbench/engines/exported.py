"""Know networks as an engine loads them without converting again: files that `cnnbench convert --export` writes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnbench.base.cache import digest_file
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.host import read_cpuinfo

STEM, FACTS = "executable", "executable.json"
BESIDE = ("network.onnx", "network.json", "prepared.json", "check_images.npy", "reference.npy")
"""What an export is checked with, in its directory."""


class Exported(BaseModel):
    """What an export says of itself. `file`: its name; `sha256`: its digest, and those of BESIDE in `beside`.

    `batch_size`: the one that it takes. `versions`: of the engine that wrote it. `cpu_flags_sha256`: stands for the CPU
    that it is for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    file: str
    sha256: str
    beside: dict[str, str]
    batch_size: int
    held_as: str
    source: str
    versions: dict[str, str]
    cpu_flags_sha256: str

    @classmethod
    def read(cls, file: Path) -> "Exported":
        """Read what is said of an export, of which `file` is what the engine loads; raise UsageError for another."""
        if not file.is_file():
            raise UsageError(f"{file}: no such file; `cnnbench convert --export DIR` writes one")
        try:
            found = cls.model_validate_json((file.parent / FACTS).read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                f"{file}: no export of this program's: {file.parent / FACTS} does not describe it"
            ) from error
        if found.file != file.name or found.sha256 != digest_file(file):
            raise UsageError(
                f"{file}: is not the file that {FACTS} beside it describes: it was changed; export it again"
            )
        for name in BESIDE:
            if not (one := file.parent / name).is_file() or digest_file(one) != found.beside.get(name):
                raise UsageError(f"{one}: is not as it was exported with {file.name}; export it again")
        if found.cpu_flags_sha256 != digest_cpu():
            raise UsageError(f"{file}: was made on a CPU with other instructions; export it again on this one")
        return found


def is_export(file: Path) -> bool:
    """Tell whether a file is named as exports are, with what is said of it beside it."""
    return file.stem == STEM and file.name != FACTS and (file.parent / FACTS).is_file()


def find_export(prepared: Path, suffix: str, versions: dict[str, str]) -> Path | None:
    """Return what an engine is to load in place of a prepared network's graph, if there is such a file.

    Raises CnnbenchError where another version of the engine wrote it.
    """
    file = prepared / f"{STEM}{suffix}"
    if not file.is_file():
        return None
    made_with = Exported.read(file).versions
    if made_with != versions:
        raise CnnbenchError(f"{file}: was written by {made_with}, and this is {versions}; export it again")
    return file


def write_export(file: Path, prepared: Path, engine: str, batch_size: int, versions: dict[str, str]) -> None:
    """Write what there is to say of an export of a prepared network."""
    facts: dict[str, Any] = json.loads((prepared / "prepared.json").read_bytes())
    found = Exported(
        engine=engine,
        file=file.name,
        sha256=digest_file(file),
        beside={name: digest_file(file.parent / name) for name in BESIDE},
        batch_size=batch_size,
        held_as=facts["held_as"],
        source=facts["weights_sha256"],
        versions=versions,
        cpu_flags_sha256=digest_cpu(),
    )
    (file.parent / FACTS).write_text(found.model_dump_json(indent=1), encoding="utf-8")


def digest_cpu() -> str:
    """Return what stands for this CPU's instructions."""
    return hashlib.sha256(" ".join(sorted(read_cpuinfo().flags)).encode()).hexdigest()[:16]
