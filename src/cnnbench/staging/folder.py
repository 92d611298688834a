"""Take a directory of JPEG images, with the specification's table of their classes, as an image set."""

import csv
import hashlib
from pathlib import Path

from cnnbench.base.cache import install_directory
from cnnbench.base.errors import UsageError
from cnnbench.inputs.image_set import ImageSet, load_image_set, write_image_set
from cnnbench.inputs.networks import CLASSES

TABLE = "val_official_clean.csv"
"""A row for each image: the name of its file, and the number of its class, counted from 0. A first row without a number
is a heading."""
SUFFIXES = (".jpg", ".jpeg")


def read_folder(folder: Path) -> list[tuple[str, int]]:
    """Return the images of a directory and their classes, in the table's order; raise UsageError where they differ."""
    given = f"DATASET={folder}"
    if not folder.is_dir():
        raise UsageError(f"{given}: no such directory; give one, procedural or imagenet")
    if not (folder / TABLE).is_file():
        raise UsageError(f"{given}: has no {TABLE}, a table of the images' names and classes")
    with (folder / TABLE).open(encoding="utf-8-sig", newline="") as file:
        lines = [row for row in csv.reader(file) if row]
    if lines and not lines[0][-1].strip().isdecimal():
        lines = lines[1:]
    rows: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = [word.strip() for word in line]
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) >= CLASSES:
            raise UsageError(
                f"{folder / TABLE} row {number}: {','.join(line)}: needed a file, and a class below {CLASSES}"
            )
        if words[0] in rows:
            raise UsageError(f"{folder / TABLE} row {number}: {words[0]} is there twice")
        rows[words[0]] = int(words[1])
    there = {path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    if missing := sorted(set(rows) - there):
        raise UsageError(f"{folder / TABLE}: names {missing[0]} and {len(missing) - 1} more that are not in {folder}")
    if unlabelled := sorted(there - set(rows)):
        raise UsageError(f"{folder / TABLE}: has no class of {unlabelled[0]} and {len(unlabelled) - 1} more")
    if not rows:
        raise UsageError(f"{given}: has no images ({', '.join(SUFFIXES)})")
    return list(rows.items())


def stage_folder(folder: Path, cache: Path) -> ImageSet:
    """Return a directory's images as a set, whose labels count the background as sets' do; the files stay there."""
    rows = read_folder(folder)
    digest = hashlib.sha256(str(folder).encode())
    for name, label in rows:
        stat = (folder / name).stat()
        digest.update(f"{name} {label} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    destination = cache / "datasets" / f"folder-{digest.hexdigest()[:16]}"

    def make(directory: Path) -> None:
        for name, _ in rows:
            (directory / name).symlink_to((folder / name).resolve())
        write_image_set(directory, [(name, label + 1) for name, label in rows], folder.name)

    install_directory(make, destination)
    return load_image_set(destination)
