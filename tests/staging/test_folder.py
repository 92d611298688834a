"""Directories of images with the specification's table of classes."""

import shutil

import pytest

from checkout import ROOT
from cnnbench.base.errors import UsageError
from cnnbench.inputs.image_set import load_image_set
from cnnbench.staging.folder import TABLE, read_folder, stage_folder

DATA = ROOT / "workload" / "ResNet50-FP8-Public" / "data"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DATA, tmp_path / "data")


def test_a_folder_is_a_set_whose_labels_count_the_background(folder, tmp_path):
    found = stage_folder(folder, tmp_path / "cache")
    assert (len(found), list(found.labels)) == (4, [1, 2, 3, 4])
    assert load_image_set(found.root, verify=True).files == found.files
    assert stage_folder(folder, tmp_path / "cache").root == found.root
    (folder / TABLE).write_text("image,label\n" + (folder / TABLE).read_text().replace(",3", ",7"))
    assert list(stage_folder(folder, tmp_path / "cache").labels) == [1, 2, 3, 8]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / TABLE).unlink(), f"has no {TABLE}"),
        (lambda folder: (folder / "00001.jpg").unlink(), "names 00001.jpg and 0 more that are not in"),
        (lambda folder: shutil.copy(folder / "00001.jpg", folder / "9.jpg"), "has no class of 9.jpg and 0 more"),
        (lambda folder: (folder / TABLE).write_text("00000.jpg,1000\n"), "row 1: 00000.jpg,1000: needed a file, and a"),
        (lambda folder: (folder / TABLE).write_text("00000.jpg,1\n00000.jpg,2\n"), "row 2: 00000.jpg is there twice"),
        (lambda folder: (folder / TABLE).write_text("00000.jpg;1\n5,5,5\n"), "row 1: 5,5,5: needed a file"),
        (
            lambda folder: [path.unlink() for path in folder.glob("*.jpg")] and (folder / TABLE).write_text(""),
            "no images",
        ),
    ],
)
def test_labels_that_do_not_match_are_told(folder, change, reason):
    change(folder)
    with pytest.raises(UsageError, match=r"DATASET=|val_official") as caught:
        read_folder(folder)
    assert reason in str(caught.value)
