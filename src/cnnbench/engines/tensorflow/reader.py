"""Decode and preprocess JPEG files with tf.data, as the public ResNet50 v1.5 expects its images.

Resize the shorter side to 256 (bilinear), crop the centre 224 x 224, subtract the ImageNet means: the preprocessing
of the model's own evaluation script.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.tensorflow.graph import IMAGE_SIZE
from cnnbench.inputs.image_set import explain_undecodable
from cnnbench.inputs.networks import ImageForm

SHORTER_SIDE = 256
MEANS = (123.68, 116.78, 103.94)
PREFETCHED_BATCHES = 2


def _decode(file: Any) -> Any:
    import tensorflow as tf

    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3, dct_method="INTEGER_ACCURATE")
    size = tf.shape(image)[:2]
    scaled = (size * SHORTER_SIDE + tf.reduce_min(size) // 2) // tf.reduce_min(size)
    image = tf.image.resize(image, scaled)
    top, left = (scaled[0] - IMAGE_SIZE) // 2, (scaled[1] - IMAGE_SIZE) // 2
    image = tf.image.crop_to_bounding_box(image, top, left, IMAGE_SIZE, IMAGE_SIZE)
    return image - tf.constant(MEANS)


def read_batches(
    files: Sequence[str], batch_size: int, threads: int, repeat: bool, form: ImageForm | None = None
) -> Iterator[np.ndarray]:
    """Yield preprocessed batches (float32, N x 224 x 224 x 3) in the files' order; see `backends.Reader`.

    Decoding runs ahead in `threads` threads, which inherit the caller's pinning. `repeat`: go on from the first file
    for ever, every batch full. `form`: None, as these graphs take images in this form only. Raises CnnbenchError naming
    a file that cannot be decoded.
    """
    assert form is None
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(list(files))
    if repeat:
        dataset = dataset.repeat()
    dataset = dataset.map(_decode, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=repeat).prefetch(PREFETCHED_BATCHES)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    read = dataset.with_options(options).as_numpy_iterator()
    for number in itertools.count():
        try:
            batch = next(read, None)
        except tf.errors.OpError as error:
            begin = number * batch_size
            raise CnnbenchError(
                _explain(itertools.islice(itertools.cycle(files), begin, begin + batch_size))
            ) from error
        if batch is None:
            return
        yield batch


def _explain(files: Iterable[str]) -> str:
    """Say which of the files cannot be decoded, by decoding them one by one: tf.data's error does not tell."""
    import tensorflow as tf

    for file in files:
        try:
            _decode(tf.constant(file))
        except tf.errors.OpError as error:
            said = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message or type(error).__name__, flags=re.DOTALL)
            return explain_undecodable(file, " ".join(said.split()))
    return "a batch of images could not be read, and now all of its files can: were they being changed?"
