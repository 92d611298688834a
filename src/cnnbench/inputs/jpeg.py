"""Decode and preprocess JPEG files with Pillow, as timm's evaluation of a network does.

Scale the shorter side to the network's size divided by its crop share, crop the centre, and take off ImageNet's mean
and deviation where the network does not.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from cnnbench.base.errors import CnnbenchError
from cnnbench.inputs.image_set import explain_undecodable
from cnnbench.inputs.networks import IMAGENET_MEAN, IMAGENET_STD, ImageForm

PREFETCHED_BATCHES = 2
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_image(file: str, form: ImageForm) -> np.ndarray:
    """Return one image (size x size x 3) in the form that a network takes; raise CnnbenchError naming a bad file."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # each of Pillow's decoders has kinds of its own, and a header may ask for any memory
        raise CnnbenchError(explain_undecodable(file, str(error) or type(error).__name__)) from error
    scale = int(form.size / form.crop_share) / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], _RESAMPLING[form.interpolation])
    left, top = ((side - form.size) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + form.size, top + form.size)))
    if form.as_bytes:
        return pixels
    if not form.normalized:
        return pixels.astype(np.float32)
    mean, deviation = (np.array(values, np.float32) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / deviation


def read_batches(
    files: Sequence[str], batch_size: int, threads: int, repeat: bool, form: ImageForm | None
) -> Iterator[np.ndarray]:
    """Yield preprocessed batches (N x size x size x 3) in the files' order; see `backends.Reader`.

    Decoding runs ahead in `threads` threads, which inherit the caller's pinning. `repeat`: go on from the first file
    for ever, every batch full.
    """
    assert form is not None
    endless = itertools.cycle(files) if repeat else iter(files)
    with ThreadPoolExecutor(threads) as pool:

        def submit() -> list[Future[np.ndarray]]:
            return [pool.submit(read_image, file, form) for file in itertools.islice(endless, batch_size)]

        ahead = [submit() for _ in range(PREFETCHED_BATCHES)]
        while ahead[0]:
            images = [future.result() for future in ahead.pop(0)]
            ahead.append(submit())
            yield np.stack(images)
