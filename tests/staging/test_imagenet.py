"""ImageNet as its owners pack it, but of ten images and four classes."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import cnnbench
from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.tensorflow.shards import find_tfrecord_shards
from cnnbench.inputs.image_set import load_image_set
from cnnbench.staging.imagenet import stage_imagenet

# id, WordNet id, number of children: ids are not in the order of WordNet ids, and the parent comes last.
SYNSETS = [(1, "n02119789", 0), (2, "n02100735", 0), (3, "n01440764", 0), (4, "n03000000", 0), (5, "n00001740", 4)]
CLASS_OF_ID = {1: 3, 2: 2, 3: 1, 4: 4}
GROUND_TRUTH = [3, 1, 4, 1, 2, 2, 3, 4, 1, 3]
SMALL = {"images": 10, "classes": 4}


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number * 20, 100, 200 - number * 20)).save(buffer, "JPEG")
    return buffer.getvalue()


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def meta_mat(synsets: list[tuple[int, str, int]]) -> bytes:
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    table = np.zeros((len(synsets), 1), dtype=[(field, "O") for field in [*fields, "num_train_images"]])
    for row, (number, wnid, children) in enumerate(synsets):
        ids = np.arange(1.0, children + 1)
        table[row, 0] = (float(number), wnid, "words", "gloss", float(children), ids, float(children > 0), 1300.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table})
    return buffer.getvalue()


def write_tar(path: Path, contents: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_images(directory: Path, numbers=range(1, 11), **extra: bytes) -> Path:
    return write_tar(directory / "val.tar", {image_name(n): jpeg(n) for n in numbers} | extra)


def write_devkit(directory: Path, ids=GROUND_TRUTH, synsets=SYNSETS) -> Path:
    data = "ILSVRC2012_devkit_t12/data"
    contents = {
        "ILSVRC2012_devkit_t12/readme.txt": b"read me",
        f"{data}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in ids).encode(),
        f"{data}/meta.mat": meta_mat(synsets),
    }
    return write_tar(directory / "devkit.tar.gz", contents, "w:gz")


def test_every_image_gets_the_number_of_its_class(tmp_path):
    staged = stage_imagenet(write_images(tmp_path), write_devkit(tmp_path), tmp_path / "set", **SMALL)
    assert staged.files == tuple(image_name(number) for number in range(1, 11))
    assert staged.labels.tolist() == [CLASS_OF_ID[ilsvrc_id] for ilsvrc_id in GROUND_TRUTH]
    assert (staged.name, staged.split) == ("imagenet2012", "validation")
    assert (tmp_path / "set" / image_name(3)).read_bytes() == jpeg(3)
    again = stage_imagenet(tmp_path / "gone.tar", tmp_path / "gone.tar.gz", tmp_path / "set", **SMALL)
    assert again.sha256 == staged.sha256


@pytest.mark.parametrize(
    ("images", "devkit", "reason"),
    [
        ({}, {"ids": GROUND_TRUTH[:-1]}, "has 9 labels, needed 10"),
        ({}, {"ids": [*GROUND_TRUTH[:-1], 5]}, "has '5', needed the id of one of 4 classes"),
        ({}, {"ids": [*GROUND_TRUTH[:-1], "x"]}, "has 'x', needed the id"),
        ({}, {"synsets": SYNSETS[1:]}, "has 3 leaf synsets, needed 4"),
        ({}, {"synsets": [(1, "n02100735", 0), *SYNSETS[1:]]}, "needed 4 different ones"),
        ({"numbers": range(1, 10)}, {}, "has 9 images, needed 10"),
        ({"numbers": range(2, 12)}, {}, "ILSVRC2012_val_00000001.JPEG is missing"),
        ({"numbers": range(1, 10), "readme.txt": b"x"}, {}, r"has 'readme\.txt', needed only"),
        ({"numbers": range(1, 10), "../x": b"x"}, {}, "refused at"),
    ],
)
def test_archives_that_do_not_fit_leave_nothing(tmp_path, images, devkit, reason):
    archives = write_images(tmp_path, **images), write_devkit(tmp_path, **devkit)
    with pytest.raises(CnnbenchError, match=reason):
        stage_imagenet(*archives, tmp_path / "set", **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "devkit.tar.gz", "val.tar"]


def test_the_real_set_needs_fifty_thousand_images(tmp_path):
    with pytest.raises(CnnbenchError, match="needed 50000"):
        stage_imagenet(write_images(tmp_path), write_devkit(tmp_path), tmp_path / "set", classes=4)


def test_a_devkit_without_its_table_is_refused(tmp_path):
    devkit = write_tar(tmp_path / "devkit.tar.gz", {"data/meta.mat": b"not matlab" * 100}, "w:gz")
    with pytest.raises(CnnbenchError, match=r"meta\.mat is not the devkit's table"):
        stage_imagenet(write_images(tmp_path), devkit, tmp_path / "set", **SMALL)


def touch_shards(directory: Path, numbers, count: int = 4) -> None:
    for number in numbers:
        (directory / f"validation-{number:05d}-of-{count:05d}").touch()


def test_shards_are_found_in_their_order(tmp_path):
    touch_shards(tmp_path, [2, 0, 3, 1])
    (tmp_path / "train-00000-of-01024").touch()
    assert [shard.name[11:16] for shard in find_tfrecord_shards(tmp_path)] == ["00000", "00001", "00002", "00003"]


def test_incomplete_shards_are_named(tmp_path):
    with pytest.raises(CnnbenchError, match="no shards in it"):
        find_tfrecord_shards(tmp_path)
    touch_shards(tmp_path, [0, 2])
    with pytest.raises(CnnbenchError, match="2 of 4 shards missing: validation-00001-of-00004, validation-00003-of"):
        find_tfrecord_shards(tmp_path)
    touch_shards(tmp_path, [1, 3, 4])
    with pytest.raises(CnnbenchError, match="has 5 shards, needed 4"):
        find_tfrecord_shards(tmp_path)
    touch_shards(tmp_path, [0], count=8)
    with pytest.raises(CnnbenchError, match=r"shards of several sets in it \(of 4, 8\)"):
        find_tfrecord_shards(tmp_path)
    with pytest.raises(CnnbenchError, match="not a directory"):
        find_tfrecord_shards(tmp_path / "absent")


# Writes the images of a staged set as two shards, in the form of TensorFlow's own ImageNet scripts.
SHARD_WRITER = """
import sys
from pathlib import Path
import tensorflow as tf
from cnnbench.inputs.image_set import load_image_set

images = load_image_set(Path(sys.argv[1]))
def of_bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

def of_number(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

for shard in range(2):
    with tf.io.TFRecordWriter(f"{sys.argv[2]}/validation-{shard:05d}-of-00002") as writer:
        for i in range(shard, len(images), 2):
            features = {
                "image/encoded": of_bytes(Path(images.paths()[i]).read_bytes()),
                "image/filename": of_bytes(images.files[i].encode()),
                "image/class/label": of_number(int(images.labels[i])),
                "image/class/synset": of_bytes(b"n00000000"),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
"""


@pytest.mark.engine
def test_tfrecord_shards_become_the_same_set_as_the_tar(tmp_path, tensorflow_python):
    staged = stage_imagenet(write_images(tmp_path), write_devkit(tmp_path), tmp_path / "set", **SMALL)
    environment = os.environ | {"PYTHONPATH": str(Path(cnnbench.__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "2"}

    def run(*arguments) -> subprocess.CompletedProcess:
        command = [str(argument) for argument in (tensorflow_python, *arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    shards = tmp_path / "shards"
    shards.mkdir()
    written = run("-c", SHARD_WRITER, tmp_path / "set", shards)
    assert written.returncode == 0, written.stderr

    converted = run("-m", "cnnbench.engines.tensorflow.shards", shards, tmp_path / "converted", "--images", "10")
    assert converted.returncode == 0, converted.stderr
    assert load_image_set(tmp_path / "converted", verify=True).sha256 == staged.sha256

    last = shards / "validation-00001-of-00002"
    last.write_bytes(last.read_bytes()[:-7])
    damaged = run("-m", "cnnbench.engines.tensorflow.shards", shards, tmp_path / "damaged", "--images", "10")
    assert damaged.returncode == 1
    assert "validation-00001-of-00002: damaged" in damaged.stderr
    assert not (tmp_path / "damaged").exists()
