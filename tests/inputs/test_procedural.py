"""The embedded images: the same bytes everywhere, balanced, and no image in two parts."""

import hashlib
import io
import re
import subprocess
import sys

import numpy as np
import PIL
import pytest
from PIL import Image

from checkout import ROOT
from cnnbench.inputs.procedural import CLASSES, IMAGES_PER_CLASS, SIZES, Drawing, draw, draw_part, drawings

PINNED = {
    ("calibration", 0): "ab6264b60f4f5113786a65c415cc98bbb5d767c4004381c2a2b339ac736725c1",
    ("training", 57): "7baf050824ac9fa751d315e870580655d63a4585e7cd3e70db2ea7aed5e4a393",
    ("training", 1199): "8c132c06954e6d2c1ea46b12a7835be7084471c297429ff038814b9edf6435f1",
    ("validation", 0): "2d921fc67259150350c1843bcda65ec6d5146c9fc6281092d0b2ad409c347c9d",
    ("validation", 999): "47cc998fc6c8baca1d345178ec105ff806520ad41c5088783882aabefa91dd1c",
}
SAMPLED_CLASSES = (0, 37, 99)


def find_drawing(part, number):
    return list(drawings(part))[number]


def sha256_of(drawing):
    return hashlib.sha256(draw(drawing)).hexdigest()


def locked_pillow():
    return re.search(r"^pillow==(\S+)", (ROOT / "requirements" / "controller.lock").read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize(("part", "number"), PINNED)
def test_the_bytes_are_the_ones_of_every_other_machine(part, number):
    if PIL.__version__ != locked_pillow():
        pytest.fail(
            f"Pillow {PIL.__version__} may write other JPEG bytes than the locked {locked_pillow()}: "
            "install requirements/controller.lock (./test.sh does)"
        )
    assert sha256_of(find_drawing(part, number)) == PINNED[part, number]


def test_another_process_draws_the_same_bytes():
    program = """
import hashlib
from cnnbench.inputs.procedural import Drawing, draw
for number in range(3):
    print(hashlib.sha256(draw(Drawing("validation", number, number))).hexdigest())
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [sha256_of(Drawing("validation", number, number)) for number in range(3)]


def test_the_parts_are_as_large_as_they_are_said_to_be():
    assert {part: len(list(drawings(part))) for part in IMAGES_PER_CLASS} == {
        "calibration": 200,
        "training": 1200,
        "validation": 1000,
    }


@pytest.mark.parametrize("part", IMAGES_PER_CLASS)
def test_the_classes_take_turns_so_that_any_prefix_is_balanced(part):
    todo = list(drawings(part))
    assert [drawing.number for drawing in todo] == list(range(len(todo)))
    assert [drawing.class_index for drawing in todo] == list(range(100)) * IMAGES_PER_CLASS[part]
    assert todo[0].file == "images/00000.jpg"
    assert len({drawing.file for drawing in todo}) == len(todo)


def test_labels_leave_zero_to_the_background():
    assert len(CLASSES) == len(set(CLASSES)) == 100
    assert CLASSES[0] == "red plain"
    assert CLASSES[11] == "orange rows"
    assert CLASSES[99] == "grey zigzags"
    assert [drawing.label for drawing in drawings("validation")][:101] == [*range(1, 101), 1]


def test_no_image_is_in_two_parts_or_twice_in_one():
    digests = [
        sha256_of(drawing)
        for part in IMAGES_PER_CLASS
        for drawing in drawings(part)
        if drawing.class_index in SAMPLED_CLASSES
    ]
    assert len(digests) == len(SAMPLED_CLASSES) * sum(IMAGES_PER_CLASS.values())
    assert len(set(digests)) == len(digests)


def test_images_are_colour_jpegs_of_common_sizes():
    for number in range(20):
        image = Image.open(io.BytesIO(draw(find_drawing("validation", number))))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.size in SIZES
        assert np.asarray(image).std() > 5


def test_a_part_is_drawn_to_files_whatever_the_number_of_processes(tmp_path):
    rows = draw_part("calibration", tmp_path, processes=2)
    todo = list(drawings("calibration"))
    assert rows == [(drawing.file, drawing.label) for drawing in todo]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{n:05d}.jpg" for n in range(200)]
    for drawing in todo[::50]:
        assert (tmp_path / drawing.file).read_bytes() == draw(drawing)
