"""Turn ImageNet in TFRecord shards (`validation-00000-of-00128`) into the common form of image set.

Run with the Python of a TensorFlow environment:
`start.py cnnbench.engines.tensorflow.shards SHARD_DIRECTORY DESTINATION`.
TensorFlow itself reads the records, so that there is no second parser here to trust.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cnnbench.base.cache import install_directory
from cnnbench.base.errors import CnnbenchError, exit_code_of
from cnnbench.base.progress import Progress
from cnnbench.inputs.image_set import IMAGENET, IMAGENET_IMAGES, ImageSet, load_image_set, write_image_set

SPLIT = "validation"
JPEG_MAGIC = b"\xff\xd8\xff"


def find_tfrecord_shards(directory: Path) -> list[Path]:
    """Return the shards `validation-00000-of-00128` to `...-00127-of-00128`, for whatever count; all must be there."""
    if not directory.is_dir():
        raise CnnbenchError(f"{directory}: not a directory; needed one with shards like {SPLIT}-00000-of-00128")
    shards: dict[int, dict[int, Path]] = {}
    for path in sorted(directory.iterdir()):
        if found := re.fullmatch(rf"{SPLIT}-(\d{{5}})-of-(\d{{5}})", path.name):
            shards.setdefault(int(found[2]), {})[int(found[1])] = path
    if not shards:
        raise CnnbenchError(f"{directory}: no shards in it; needed files like {SPLIT}-00000-of-00128")
    if len(shards) > 1:
        counts = ", ".join(str(count) for count in sorted(shards))
        raise CnnbenchError(f"{directory}: shards of several sets in it (of {counts}); needed those of one set")
    ((count, by_number),) = shards.items()
    missing = [f"{SPLIT}-{number:05d}-of-{count:05d}" for number in range(count) if number not in by_number]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise CnnbenchError(f"{directory}: {len(missing)} of {count} shards missing: {shown}")
    if len(by_number) != count:
        raise CnnbenchError(f"{directory}: has {len(by_number)} shards, needed {count}, as their names say")
    return [by_number[number] for number in range(count)]


def convert_shards(
    shard_directory: Path,
    destination: Path,
    *,
    images: int = IMAGENET_IMAGES,
    progress: Callable[..., Progress] = Progress,
) -> ImageSet:
    """Write the shards' images and labels to the new directory `destination`; load it if it is already there.

    Images keep their original names and order, so the same set made from the official tar has the same digest. Needs
    TensorFlow.
    """

    def build(directory: Path) -> None:
        rows = _write_images(find_tfrecord_shards(shard_directory), directory, images, progress)
        if len(rows) != images:
            raise CnnbenchError(f"{shard_directory}: has {len(rows)} images, needed {images}")
        write_image_set(directory, sorted(rows), IMAGENET, SPLIT, progress=progress)

    return load_image_set(install_directory(build, destination))


def _write_images(
    shards: list[Path], directory: Path, images: int, progress: Callable[..., Progress]
) -> list[tuple[str, int]]:
    import tensorflow as tf

    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        "image/filename": tf.io.FixedLenFeature([], tf.string),
    }
    rows = []
    with progress("reading TFRecords", images, "images") as bar:
        for shard in shards:
            try:
                for record in tf.data.TFRecordDataset(str(shard)):
                    example = tf.io.parse_single_example(record, features)
                    name = example["image/filename"].numpy().decode("utf-8", errors="replace")
                    contents = example["image/encoded"].numpy()
                    _require_image(shard, directory, name, contents)
                    (directory / name).write_bytes(contents)
                    rows.append((name, int(example["image/class/label"])))
                    bar.advance()
            except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
                raise CnnbenchError(f"{shard}: damaged, or not ImageNet in TFRecords: {error.message}") from error
    return rows


def _require_image(shard: Path, directory: Path, name: str, contents: bytes) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise CnnbenchError(f"{shard}: image/filename is {name!r}, needed a plain file name")
    if (directory / name).exists():
        raise CnnbenchError(f"{shard}: image {name} occurs twice in this set")
    if not contents.startswith(JPEG_MAGIC):
        raise CnnbenchError(f"{shard}: image {name} is not a JPEG file")


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="cnnbench.engines.tensorflow.shards", description=convert_shards.__doc__)
    parser.add_argument("shard_directory", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES, help="how many there must be (%(default)s)")
    chosen = parser.parse_args(arguments)
    return exit_code_of(lambda: convert_shards(chosen.shard_directory, chosen.destination, images=chosen.images))


if __name__ == "__main__":
    sys.exit(main())
