import hashlib
import json

import numpy as np
import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.inputs.image_set import load_image_set, write_image_set

ROWS = [("b/2.jpeg", 1000), ("a.jpeg", 1), ("c.jpeg", 7)]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "b").mkdir()
    for file, label in ROWS:
        (tmp_path / file).write_bytes(f"image of {label}".encode())
    write_image_set(tmp_path, ROWS, "drawn", "training")
    return tmp_path


def test_a_set_is_read_as_it_was_written(root):
    images = load_image_set(root, verify=True)
    assert images.files == ("b/2.jpeg", "a.jpeg", "c.jpeg")
    assert images.labels.tolist() == [1000, 1, 7]
    assert images.labels.dtype == np.int64
    assert (images.name, images.split, len(images)) == ("drawn", "training", 3)
    assert images.paths()[1] == str(root / "a.jpeg")
    assert (root / "index.csv").read_bytes() == b"file,label\nb/2.jpeg,1000\na.jpeg,1\nc.jpeg,7\n"


def test_the_digest_is_that_of_sha256sum_and_sort(root):
    lines = [
        f"{hashlib.sha256((root / file).read_bytes()).hexdigest()}  {file}\n"
        for file in ("a.jpeg", "b/2.jpeg", "c.jpeg", "index.csv")
    ]
    assert load_image_set(root).sha256 == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_another_label_is_another_digest(root):
    before = load_image_set(root).sha256
    assert write_image_set(root, [*ROWS[:2], ("c.jpeg", 8)], "drawn").sha256 != before


def test_a_missing_or_empty_image_is_refused(root):
    (root / "c.jpeg").write_bytes(b"")
    with pytest.raises(CnnbenchError, match=r"c\.jpeg: missing or empty"):
        load_image_set(root)
    (root / "c.jpeg").unlink()
    with pytest.raises(CnnbenchError, match=r"c\.jpeg: missing or empty"):
        load_image_set(root)


def test_a_changed_index_is_refused(root):
    index = root / "index.csv"
    index.write_text(index.read_text().replace("c.jpeg,7", "c.jpeg,8"))
    with pytest.raises(CnnbenchError, match=r"index\.csv: SHA-256 is .*, needed "):
        load_image_set(root)


def test_verify_sees_a_changed_image(root):
    (root / "c.jpeg").write_bytes(b"image of 8")
    load_image_set(root)
    with pytest.raises(CnnbenchError, match="images changed"):
        load_image_set(root, verify=True)


def test_an_image_of_another_size_is_seen_each_time(root):
    (root / "c.jpeg").write_bytes(b"image of 77")
    with pytest.raises(CnnbenchError, match="images have 34 bytes, needed 33: images changed"):
        load_image_set(root)


@pytest.mark.parametrize("lost", ["manifest.json", "index.csv"])
def test_a_set_without_its_manifest_or_index_is_none(root, lost):
    (root / lost).unlink()
    with pytest.raises(CnnbenchError, match=f"not an image set.*{lost} is missing"):
        load_image_set(root)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 2},
        {"schema_version": 2},
        {"extra": 1},
        {"sha256": "abc"},
        {"images": None},
        {"bytes": 0},
        {"bytes": None},
    ],
)
def test_a_faulty_manifest_is_refused(root, change):
    manifest = root / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(CnnbenchError, match="remove the set's directory and stage it again"):
        load_image_set(root)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("a.jpeg", 0)], "label '0' must be 1 to 1000"),
        ([("a.jpeg", 1001)], "label '1001' must be"),
        ([("a.jpeg", "cat")], "label 'cat' must be"),
        ([("../a.jpeg", 1)], "must be a path inside the set"),
        ([("/etc/hostname", 1)], "must be a path inside the set"),
        ([("a.jpeg", 1), ("a.jpeg", 1)], "occurs twice"),
        ([("z.jpeg", 1)], r"z\.jpeg: missing"),
        ([], "no images"),
    ],
)
def test_faulty_rows_are_refused(root, rows, reason):
    with pytest.raises(CnnbenchError, match=reason):
        write_image_set(root, rows, "drawn")
