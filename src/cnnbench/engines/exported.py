"""Know networks as an engine loads them without converting or compiling again: files written ahead of time.

`cnnbench compile` and `cnnbench convert --export` write them; cases with AHEAD_OF_TIME have them in the cache.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cnnbench.base.cache import digest_file
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.host import read_cpuinfo

STEM, FACTS, ASKED = "executable", "executable.json", "asked.json"
WEIGHTS = "weights.npz"
"""The weights of an export that has them apart, as NumPy saves arrays by name."""
BESIDE = ("network.onnx", "network.json", "prepared.json", "check_images.npy", "reference.npy", WEIGHTS)
"""What an export is checked with, in its directory; each as far as the prepared network has it."""
MOST_IMAGES = 4096


def check_batch(text: str) -> str:
    """Return `8` or `1-64` as it is; raise ValueError for what no batch can be."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= MOST_IMAGES:
        raise ValueError(f"{text}: needed a number of images, such as 8, or a range, such as 1-64, up to {MOST_IMAGES}")
    return text


class Asked(BaseModel):
    """How a network is to be compiled.

    `batch`: the images of a call, or a range of them. `number_type`: what is computed in; `held_as`: what the weights
    are held in. `threads`: of each instance. `replaceable`: whether the weights stay apart, to be replaced without
    compiling again, and so are not folded into what is compiled. `tuned`: whether kernels are chosen by trying them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: Annotated[str, AfterValidator(check_batch)]
    number_type: str
    held_as: str
    threads: int
    replaceable: bool = False
    tuned: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """The least and the most images of a call."""
        least, _, most = self.batch.partition("-")
        return int(least), int(most or least)

    @classmethod
    def read(cls, directory: Path) -> "Asked":
        """Read what an engine's step is asked for."""
        return cls.model_validate_json((directory / ASKED).read_bytes())


class Tuning(BaseModel):
    """How kernels were chosen: for how many operations, and for how many of them by trying, not from earlier trials."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chosen: int
    tried: int


class Exported(BaseModel):
    """What an export says of itself. `file`: its name; `sha256`: its digest, and those of BESIDE in `beside`.

    `versions`: of the engine that wrote it. `source`: the digest of the weights. `cpu_flags_sha256`: stands for the CPU
    that it is for. `weights`: the names and shapes of those that can be replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    file: str
    sha256: str
    beside: dict[str, str]
    asked: Asked
    source: str
    versions: dict[str, str]
    cpu_flags_sha256: str
    tuning: Tuning | None = None
    weights: dict[str, tuple[int, ...]] = {}

    @classmethod
    def read(cls, file: Path) -> "Exported":
        """Read what is said of an export, of which `file` is what the engine loads; raise UsageError for another."""
        if not file.is_file():
            raise UsageError(f"{file}: no such file; `cnnbench compile` and `cnnbench convert --export DIR` write one")
        try:
            found = cls.model_validate_json((file.parent / FACTS).read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                f"{file}: no export of this program's: {file.parent / FACTS} does not describe it"
            ) from error
        if found.file != file.name or found.sha256 != digest_file(file):
            raise UsageError(
                f"{file}: is not the file that {FACTS} beside it describes: it was changed or cut off; export it again"
            )
        beside = digest_beside(file.parent)
        if other := [name for name in BESIDE if found.beside.get(name) != beside.get(name)]:
            raise UsageError(f"{file.parent / other[0]}: is not as it was exported with {file.name}; export it again")
        if found.cpu_flags_sha256 != digest_cpu():
            raise UsageError(f"{file}: was made on a CPU with other instructions; export it again on this one")
        return found

    @classmethod
    def find(cls, directory: Path) -> "Exported":
        """Read what is said of the export in a directory of the cache."""
        return cls.read(directory / json.loads((directory / FACTS).read_bytes())["file"])

    def describe(self) -> str:
        """Return in words what it is for."""
        words = [f"batches of {self.asked.batch}", f"{self.asked.threads} threads"]
        words += ["replaceable weights"] if self.asked.replaceable else []
        if self.tuning:
            found = self.tuning.chosen - self.tuning.tried
            words.append(f"kernels of {self.tuning.chosen} operations by trial, {found} of them found in the cache")
        return ", ".join(words)

    def require_weights(self, given: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CnnbenchError naming weights that are missing among these names and shapes, surplus or misshapen."""
        if not self.weights:
            raise CnnbenchError(f"{self.file}: its weights are folded into it; compile it with --replaceable-weights")
        problems = {
            "missing": [name for name in self.weights if name not in given],
            "surplus": [name for name in given if name not in self.weights],
            "misshapen": [
                f"{name} {given[name]}, needed {shape}"
                for name, shape in self.weights.items()
                if name in given and tuple(given[name]) != shape
            ],
        }
        if told := [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names]:
            raise CnnbenchError(f"not the weights that {self.file} has: {'; '.join(told)}")

    def require_batch(self, size: int) -> None:
        """Raise CnnbenchError for a number of images that it was not made for."""
        least, most = self.asked.sizes
        if not least <= size <= most:
            raise CnnbenchError(f"{self.file}: is for batches of {self.asked.batch}, and is handed {size} images")


def is_export(file: Path) -> bool:
    """Tell whether a file is named as exports are, with what is said of it beside it."""
    return file.stem == STEM and file.name != FACTS and (file.parent / FACTS).is_file()


def find_export(prepared: Path, suffix: str, versions: Mapping[str, str]) -> tuple[Path, Exported] | None:
    """Return what an engine is to load in place of a prepared network's graph, if there is such a file.

    Raises CnnbenchError where another version of the engine wrote it.
    """
    file = prepared / f"{STEM}{suffix}"
    if not file.is_file():
        return None
    found = Exported.read(file)
    if found.versions != versions:
        raise CnnbenchError(f"{file}: was written by {found.versions}, and this is {dict(versions)}; export it again")
    return file, found


def write_export(
    file: Path,
    engine: str,
    asked: Asked,
    versions: dict[str, str],
    tuning: Tuning | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write what there is to say of an export; `weights`: those that can be replaced."""
    if weights:
        np.savez(file.parent / WEIGHTS, **weights)  # type: ignore[arg-type]  # arrays go by any name
    facts = json.loads((file.parent / "prepared.json").read_bytes())
    found = Exported(
        engine=engine,
        file=file.name,
        sha256=digest_file(file),
        beside=digest_beside(file.parent),
        asked=asked,
        source=facts["weights_sha256"],
        versions=versions,
        cpu_flags_sha256=digest_cpu(),
        tuning=tuning,
        weights={name: values.shape for name, values in (weights or {}).items()},
    )
    (file.parent / FACTS).write_text(found.model_dump_json(indent=1), encoding="utf-8")


def digest_beside(directory: Path) -> dict[str, str]:
    """Return the digests of what an export is checked with."""
    return {name: digest_file(directory / name) for name in BESIDE if (directory / name).is_file()}


def digest_cpu() -> str:
    """Return what stands for this CPU's instructions."""
    return hashlib.sha256(" ".join(sorted(read_cpuinfo().flags)).encode()).hexdigest()[:16]
