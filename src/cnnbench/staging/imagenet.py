"""Make the ImageNet 2012 validation set from its official archives: the flat tar of images and the devkit."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cnnbench.base.cache import install_directory
from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import Progress
from cnnbench.inputs.image_set import IMAGENET, IMAGENET_IMAGES, MAX_LABEL, ImageSet, load_image_set, write_image_set
from cnnbench.staging.archive import read_archived_file, unpack

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"


def stage_imagenet(
    val_tar: Path,
    devkit_tar: Path,
    destination: Path,
    *,
    images: int = IMAGENET_IMAGES,
    classes: int = MAX_LABEL,
    progress: Callable[..., Progress] = Progress,
) -> ImageSet:
    """Extract and label the validation set into the new directory `destination`; load it if it is already there.

    Raises CnnbenchError, and leaves no `destination`, unless there are exactly `images` images and as many labels.
    """

    def build(directory: Path) -> None:
        labels = _read_labels(devkit_tar, classes)
        if len(labels) != images:
            raise CnnbenchError(f"{devkit_tar}: {GROUND_TRUTH} has {len(labels)} labels, needed {images}")
        unpack(val_tar, directory, progress=progress)
        files = _list_images(directory, val_tar, images)
        write_image_set(directory, zip(files, labels, strict=True), IMAGENET, progress=progress)

    return load_image_set(install_directory(build, destination))


def class_numbers(wnids: dict[int, str]) -> dict[int, int]:
    """Map ILSVRC2012 ids to the model's class numbers, given each id's WordNet id.

    The public resnet50_v1.pb numbers its classes 1 to 1000 in the order of the sorted WordNet ids; 0 is background.
    """
    rank = {wnid: position + 1 for position, wnid in enumerate(sorted(wnids.values()))}
    return {ilsvrc_id: rank[wnid] for ilsvrc_id, wnid in wnids.items()}


def _read_labels(devkit_tar: Path, classes: int) -> list[int]:
    """Return the class number of every validation image, in the order of the images' numbers."""
    numbers = class_numbers(_read_wnids(devkit_tar, classes))
    lines = read_archived_file(devkit_tar, GROUND_TRUTH).decode("ascii", errors="replace").split()
    unknown = [line for line in lines if not (line.isdigit() and int(line) in numbers)]
    if unknown:
        raise CnnbenchError(
            f"{devkit_tar}: {GROUND_TRUTH} has {unknown[0]!r}, needed the id of one of {classes} classes"
        )
    return [numbers[int(line)] for line in lines]


def _read_wnids(devkit_tar: Path, classes: int) -> dict[int, str]:
    """Return the WordNet id of each ILSVRC2012 id that images are labelled with: the synsets without children."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    contents = io.BytesIO(read_archived_file(devkit_tar, META))
    try:
        synsets = np.atleast_1d(loadmat(contents, squeeze_me=True)["synsets"])
        wnids = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets if int(synset["num_children"]) == 0
        }
    except (MatReadError, KeyError, ValueError, TypeError) as error:
        raise CnnbenchError(f"{devkit_tar}: {META} is not the devkit's table of synsets ({error})") from error
    if len(wnids) != classes or len(set(wnids.values())) != classes:
        raise CnnbenchError(f"{devkit_tar}: {META} has {len(wnids)} leaf synsets, needed {classes} different ones")
    return wnids


def _list_images(directory: Path, val_tar: Path, images: int) -> list[str]:
    """Return the images' names in the order of their numbers, which must be 1 to `images` without a gap."""
    found = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    for file in found:
        if not re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", file):
            raise CnnbenchError(f"{val_tar}: has {file!r}, needed only files like ILSVRC2012_val_00000001.JPEG")
    if len(found) != images:
        raise CnnbenchError(f"{val_tar}: has {len(found)} images, needed {images}, one for each label")
    for number, file in enumerate(found, start=1):
        if file != f"ILSVRC2012_val_{number:08d}.JPEG":
            raise CnnbenchError(f"{val_tar}: image ILSVRC2012_val_{number:08d}.JPEG is missing")
    return found
