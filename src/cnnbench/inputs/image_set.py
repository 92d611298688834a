"""The one form in which every labelled image set lies on disk: image files, `index.csv` and `manifest.json`.

`index.csv` has the columns `file` (relative path) and `label` (the class number among the model's 1001 outputs: 1 to
1000, where 0 is background). The controller reads it, and in an engine's environment what prepares the models;
instances are given lists of files. Standard library, numpy and pydantic only.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import Progress

INDEX = "index.csv"
MANIFEST = "manifest.json"
COLUMNS = ["file", "label"]
IMAGENET = "imagenet2012"
IMAGENET_IMAGES = 50_000
"""The name of ImageNet 2012's validation set, and how many images it has."""

CHECK_IMAGES = 32
"""How many images of a set the outputs of a measured graph are compared on with the reference."""

MAX_LABEL = 1000
REMEDY = "remove the set's directory and stage it again"

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def explain_undecodable(file: str, why: str) -> str:
    """Say which file of an image set is no image, and what to do."""
    return f"{file}: cannot be decoded: {why}; needed a whole JPEG file: {REMEDY}"


class ImageSetManifest(BaseModel):
    """What `manifest.json` holds. `sha256` stands for every byte of the set, labels included.

    `bytes`: the size of all images together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    name: str
    split: str
    images: PositiveInt
    bytes: PositiveInt
    index_sha256: _Sha256
    sha256: _Sha256


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled image set: `labels[i]` (int64, 1 to 1000) belongs to `files[i]`, a path relative to `root`."""

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    name: str
    split: str
    sha256: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def paths(self) -> list[str]:
        """Return the full path of every image, in the order of the labels."""
        return [str(self.root / file) for file in self.files]


def write_image_set(
    root: Path,
    rows: Iterable[tuple[str, int]],
    name: str,
    split: str = "validation",
    *,
    progress: Callable[..., Progress] = Progress,
) -> ImageSet:
    """Write the index and manifest of the images that already lie under `root`; return the set, in the order of `rows`.

    `rows` are (path relative to `root`, label). The manifest is written last: without it the set does not load.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    index = text.getvalue().encode("utf-8")
    files, _ = _parse_index(index, root)
    image_bytes = _measure_files(root, files)
    (root / INDEX).write_bytes(index)
    manifest = ImageSetManifest(
        name=name,
        split=split,
        images=len(files),
        bytes=image_bytes,
        index_sha256=hashlib.sha256(index).hexdigest(),
        sha256=_digest_content(root, files, name, progress),
    )
    (root / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return load_image_set(root)


def load_image_set(root: Path, *, verify: bool = False, progress: Callable[..., Progress] = Progress) -> ImageSet:
    """Read the set in `root`, checking its index and the images' total size; `verify` digests all images again.

    Raises CnnbenchError for a set that is incomplete or has been changed.
    """
    manifest = load_manifest(root)
    if not (root / INDEX).is_file():
        raise CnnbenchError(
            f"{root}: not an image set, {INDEX} is missing: {REMEDY}; in a container for DATA_TYPE=dummy there is "
            "none: take the image for real data"
        )
    index = (root / INDEX).read_bytes()
    found = hashlib.sha256(index).hexdigest()
    if found != manifest.index_sha256:
        raise CnnbenchError(
            f"{root / INDEX}: SHA-256 is {found}, needed {manifest.index_sha256}: it was changed; {REMEDY}"
        )
    files, labels = _parse_index(index, root)
    if len(files) != manifest.images:
        raise CnnbenchError(f"{root / INDEX}: has {len(files)} images, needed {manifest.images}: {REMEDY}")
    image_bytes = _measure_files(root, files)
    if manifest.bytes != image_bytes:
        raise CnnbenchError(
            f"{root}: images have {image_bytes} bytes, needed {manifest.bytes}: images changed; {REMEDY}"
        )
    if verify and (content := _digest_content(root, files, manifest.name, progress)) != manifest.sha256:
        raise CnnbenchError(f"{root}: SHA-256 is {content}, needed {manifest.sha256}: images changed; {REMEDY}")
    return ImageSet(root, files, labels, manifest.name, manifest.split, manifest.sha256)


def load_manifest(root: Path) -> ImageSetManifest:
    """Read what the set in `root` is, whether or not its images are there; raise CnnbenchError when it is not one."""
    try:
        return ImageSetManifest.model_validate_json((root / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise CnnbenchError(f"{root}: not an image set, {error.filename} is missing: {REMEDY}") from error
    except ValidationError as error:
        raise CnnbenchError(f"{root / MANIFEST}: {error}; {REMEDY}") from error


def _parse_index(index: bytes, root: Path) -> tuple[tuple[str, ...], np.ndarray]:
    header, *rows = csv.reader(io.StringIO(index.decode("utf-8"), newline=""))
    if header != COLUMNS:
        raise CnnbenchError(f"{root / INDEX}: columns are {header}, needed {COLUMNS}: {REMEDY}")
    if not rows:
        raise CnnbenchError(f"{root}: no images in this set, needed at least one")
    seen: set[str] = set()
    labels = np.empty(len(rows), dtype=np.int64)
    for position, row in enumerate(rows):
        where = f"{root / INDEX} line {position + 2}"
        if len(row) != len(COLUMNS):
            raise CnnbenchError(f"{where}: has {len(row)} columns, needed {COLUMNS}")
        file, label = row
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise CnnbenchError(f"{where}: file {file!r} must be a path inside the set")
        if file in seen:
            raise CnnbenchError(f"{where}: file {file!r} occurs twice")
        seen.add(file)
        if not (label.isascii() and label.isdigit() and 1 <= int(label) <= MAX_LABEL):
            raise CnnbenchError(f"{where}: label {label!r} must be 1 to {MAX_LABEL}")
        labels[position] = int(label)
    labels.setflags(write=False)
    return tuple(file for file, _ in rows), labels


def _measure_files(root: Path, files: Iterable[str]) -> int:
    """Return the size of all images together; raise for one that is missing or empty (as a crash may leave it)."""
    total = 0
    for file in files:
        path = root / file
        size = path.stat().st_size if path.is_file() else 0
        if not size:
            raise CnnbenchError(f"{path}: missing or empty, but it is in {INDEX}: {REMEDY}")
        total += size
    return total


def _digest_content(root: Path, files: tuple[str, ...], name: str, progress: Callable[..., Progress]) -> str:
    """Digest all images and the index: SHA-256 over the sorted lines that `sha256sum` would print for them."""

    def line(file: str) -> str:
        return f"{hashlib.sha256((root / file).read_bytes()).hexdigest()}  {file}\n"

    lines = [line(INDEX)]
    with progress(f"digesting {name}", len(files), "images") as bar:
        for file in files:
            lines.append(line(file))
            bar.advance()
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8")).hexdigest()
