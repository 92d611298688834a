"""Files that are no images are named, with what is wrong, whichever of a batch they are."""

import io

import numpy as np
import pytest
from PIL import Image

from cnnbench.base.errors import CnnbenchError
from cnnbench.inputs.jpeg import read_batches
from cnnbench.inputs.networks import ImageForm

FORM = ImageForm(32, 0.875, "bilinear", as_bytes=True, normalized=False)


def encode(kind):
    stream = io.BytesIO()
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_a_file_that_is_no_image_is_named_with_what_is_wrong_and_a_png_is_one(tmp_path):
    whole = encode("JPEG")
    contents = {
        "truncated": (whole[: len(whole) // 2], "truncated"),
        "empty": (b"", "cannot identify image file"),
        "text": (b"no image at all", "cannot identify image file"),
        "missing": (None, "No such file"),
    }
    (tmp_path / "good").write_bytes(whole)
    (tmp_path / "png").write_bytes(encode("PNG"))
    for name, (content, why) in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        files = [str(tmp_path / one) for one in ("good", "png", "good", name)]
        batches = read_batches(files, 2, 1, repeat=False, form=FORM)
        assert next(batches).shape == (2, 32, 32, 3)
        with pytest.raises(CnnbenchError, match=rf"^{tmp_path}/{name}: cannot be decoded: .*{why}.*stage it again$"):
            next(batches)
