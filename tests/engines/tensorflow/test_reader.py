"""TensorFlow's reader on images that cannot be decoded: it names the file and what is wrong, whichever it is."""

import io
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from cnnbench.base.checkout import SOURCES
from null_workload import clean_environment

pytestmark = pytest.mark.engine

READ = """
import json, sys
from cnnbench.engines.tensorflow.reader import read_batches
from cnnbench.base.errors import CnnbenchError
found = []
for files in json.loads(sys.argv[1]):
    for repeat, batch in ((False, 2), (True, 4)):
        read = 0
        try:
            for images in read_batches(files, batch, 2, repeat=repeat):
                read += len(images)
                if read > 12:
                    break
            found.append((read, ""))
        except CnnbenchError as error:
            found.append((read, str(error)))
print(json.dumps(found))
"""


def encode(form):
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def test_an_image_that_cannot_be_decoded_is_named_in_any_pass_and_a_png_is_one(tensorflow_python, tmp_path):
    jpeg, png = encode("JPEG"), encode("PNG")
    contents = {"good": jpeg, "png": png, "truncated": jpeg[: len(jpeg) // 2], "empty": b"", "text": b"no image at all"}
    for name, content in contents.items():
        (tmp_path / f"{name}.JPEG").write_bytes(content)
    wrong = {"truncated": "Invalid JPEG data", "empty": "Input is empty", "text": "Unknown image", "missing": "No such"}
    lists = [
        [str(tmp_path / f"{name}.JPEG") for name in ("good", "good", "png", one, "good", "good")]
        for one in ("good", *wrong)
    ]
    done = subprocess.run(
        [tensorflow_python, "-c", READ, json.dumps(lists)],
        env=clean_environment(TF_CPP_MIN_LOG_LEVEL="3", PYTHONPATH=str(SOURCES)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    good, again, *found = json.loads(done.stdout.splitlines()[-1])
    assert (good, again) == ([6, ""], [16, ""])
    for number, (name, why) in enumerate(wrong.items()):
        for (read, message), before in zip(found[2 * number : 2 * number + 2], (2, 0), strict=True):
            assert read == before
            assert re.fullmatch(
                rf"{tmp_path}/{name}\.JPEG: cannot be decoded: [^{{\[\n]*{why}[^{{\[\n]*stage it again", message
            )
