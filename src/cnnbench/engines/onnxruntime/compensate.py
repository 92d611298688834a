"""Round weights one input at a time, each making up for what those before it lose (GPTQ).

Frantar et al. 2022, arXiv:2210.17323: what rounding a weight adds to the squares of a layer's error, over what it was
seen to multiply, is least when the weights not yet rounded are moved by what its error correlates with.
"""

import numpy as np
import onnx

from cnnbench.engines.onnxruntime.formats import Format

POSITIONS = 64
"""How many places of each image a convolution's inputs are taken from."""

DAMPING = 0.01
"""Of the mean square of the inputs, added to each one's, so that inputs which were never there decide nothing."""

BLOCK = 128
"""How many weights of an output are rounded before the others are moved together."""


def take_inputs(
    node: onnx.NodeProto, shape: tuple[int, ...], source: np.ndarray, chosen: np.random.Generator
) -> np.ndarray:
    """Return what a product multiplies at some places (places x inputs), in the order of its weights (`shape`).

    Empty for a convolution in groups, whose outputs do not all multiply the same, and for one padded by a rule.
    """
    if node.op_type != "Conv":
        return source.reshape(-1, source.shape[-1])
    told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    padded_so = told.get("auto_pad", b"NOTSET")
    if told.get("group", 1) != 1 or len(shape) != 4 or padded_so != b"NOTSET":
        return np.empty((0, 0), np.float32)
    (high, wide), strides = shape[2:], told.get("strides", [1, 1])
    dilated, pads = told.get("dilations", [1, 1]), told.get("pads", [0, 0, 0, 0])
    padded = np.pad(source, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    rows = (padded.shape[2] - (high - 1) * dilated[0] - 1) // strides[0] + 1
    columns = (padded.shape[3] - (wide - 1) * dilated[1] - 1) // strides[1] + 1
    count = min(POSITIONS, rows * columns)
    taken = []
    for image in padded:
        at = chosen.choice(rows * columns, count, replace=False)
        down = (at // columns * strides[0])[:, None, None] + (np.arange(high) * dilated[0])[None, :, None]
        across = (at % columns * strides[1])[:, None, None] + (np.arange(wide) * dilated[1])[None, None, :]
        taken.append(image[:, down, across].transpose(1, 0, 2, 3).reshape(count, -1))
    return np.concatenate(taken)


def round_compensated(weights: np.ndarray, squares: np.ndarray, form: Format, exponents: np.ndarray) -> np.ndarray:
    """Return weights (outputs x inputs) rounded to a format, in its own numbers.

    `squares`: the sums of products of each two inputs (inputs x inputs). `exponents`: of each output's scale, or one.
    """
    left, count = weights.astype(np.float64), weights.shape[1]
    rounded = np.empty(weights.shape, form.dtype)
    squares = squares.astype(np.float64)
    squares[np.diag_indices(count)] += DAMPING * np.trace(squares) / count + np.finfo(np.float32).tiny
    upper = np.linalg.cholesky(np.linalg.inv(squares)).T  # of the inverse: what is left when the ones before are gone
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        errors = np.empty((len(left), end - begin))
        for at in range(begin, end):
            rounded[:, at] = form.round(left[:, at].astype(np.float32), exponents)
            lost = left[:, at] - form.restore(rounded[:, at], exponents)
            errors[:, at - begin] = lost / upper[at, at]
            left[:, at + 1 : end] -= np.outer(errors[:, at - begin], upper[at, at + 1 : end])
        left[:, end:] -= errors @ upper[begin:end, end:]
    return rounded
