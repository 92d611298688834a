"""Find scales from data, measure which layers lose most by a conversion, and compare layer by layer."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.progress import Progress
from cnnbench.engines.onnxruntime.compensate import take_inputs
from cnnbench.engines.onnxruntime.formats import FORMATS, Format
from cnnbench.engines.onnxruntime.graph import Product, find_products, image_input
from cnnbench.engines.onnxruntime.rounding import ROUNDED, format_of

SAMPLE = 4096
"""Of each tensor, how many numbers of a batch the search looks at, beside its extremes."""

CANDIDATES = 8
"""How many exponents are tried: the least at which nothing saturates, and those below it."""

LEAST_EXPONENT = -100
BINS = 256
"""Of the histograms whose divergence `kld` is, over the numbers' range."""

Feed = dict[str, np.ndarray]


def _kld(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the divergence of each row's distribution from that of the rounded one, in nats."""
    told = []
    for row, rounded in zip(values, found, strict=True):
        edge = float(np.abs(row).max(initial=0)) or 1.0
        wanted, got = (np.histogram(one.clip(-edge, edge), BINS, (-edge, edge))[0] + 1.0 for one in (row, rounded))
        wanted, got = wanted / wanted.sum(), got / got.sum()
        told.append((wanted * np.log(wanted / got)).sum())
    return np.array(told)


def _cos_dist(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(values, axis=1) * np.linalg.norm(found, axis=1)
    product = (values * found).sum(axis=1)
    return 1 - np.divide(product, size, out=np.ones_like(product), where=size > 0)


def _snr(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    signal, noise = np.square(values).sum(axis=1), np.square(values - found).sum(axis=1)
    return np.divide(noise, signal, out=np.zeros_like(noise), where=signal > 0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mse": lambda values, found: np.square(values - found).mean(axis=1),
    "mae": lambda values, found: np.abs(values - found).mean(axis=1),
    "snr": _snr,
    "kld": _kld,
    "cos_dist": _cos_dist,
}
"""How far rounded numbers (rows x numbers) lie from the numbers themselves, by row: the less the better. `snr` is the
noise over the signal."""


def search_exponents(values: np.ndarray, form: Format, metric: str) -> np.ndarray:
    """Return, for each row of numbers, the exponent of the scale at which rounding them loses least."""
    values = values.astype(np.float64)
    largest = np.abs(values).max(axis=1, initial=0)
    highest = np.ceil(np.log2(np.where(largest > 0, largest, form.largest) / form.largest)).astype(int)
    highest = highest.clip(LEAST_EXPONENT + CANDIDATES, None)  # so that scales are normal float32 numbers
    errors = []
    for lower in range(CANDIDATES):
        exponents = (highest - lower)[:, None]
        rounded = form.restore(form.round(values.astype(np.float32), exponents), exponents)
        errors.append(METRICS[metric](values, rounded.astype(np.float64)))
    best: np.ndarray = highest - np.argmin(np.array(errors), axis=0)
    return best


def search_weights(weights: np.ndarray, axis: int, form: Format, metric: str) -> np.ndarray:
    """Return the exponent of each output channel's scale."""
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    return search_exponents(rows, form, metric)


def make_session(model: onnx.ModelProto, *, as_written: bool = False) -> onnxruntime.InferenceSession:
    """Return a session on all cores; `as_written`: with every operation done as it stands in the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own kinds have no class in common
        raise CnnbenchError(f"ONNX Runtime cannot run the graph: {str(error).strip().splitlines()[0]}") from error


def answers_of(session: onnxruntime.InferenceSession, names: Sequence[str], feed: Feed) -> dict[str, np.ndarray]:
    """Return these tensors of an inference, by name; raise CnnbenchError where the graph fails."""
    if not names:
        return {}
    try:
        return dict(zip(names, session.run(list(names), feed), strict=True))
    except Exception as error:  # ONNX Runtime's own kinds have no class in common
        raise CnnbenchError(f"ONNX Runtime cannot run the graph: {str(error).strip().splitlines()[0]}") from error


def expose(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Return a model that gives these float32 tensors too."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    given = {one.name for one in (*model.graph.output, *model.graph.input)}
    for name in dict.fromkeys(tensors):
        if name not in given:
            exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return exposed


@dataclass(frozen=True)
class Seen:
    """What a product was seen to multiply: some numbers (1 x many), their extremes among them, and channels' means.

    `squares`: the sums of products of each two inputs; None where they were not wanted, or it is in groups.
    """

    numbers: np.ndarray
    means: np.ndarray
    squares: np.ndarray | None


def observe(
    model: onnx.ModelProto, products: Sequence[Product], feeds: Sequence[Feed], *, squares: bool
) -> dict[str, Seen]:
    """Return what each of a model's products, by name, multiplies with these images."""
    tensors = [one.source for one in products]
    nodes = {node.name: node for node in model.graph.node}
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    sums: dict[str, np.ndarray] = {}
    session, image = make_session(expose(model, tensors)), image_input(model).name
    wanted = [name for name in dict.fromkeys(tensors) if name != image]
    kept: dict[str, list[np.ndarray]] = {name: [] for name in dict.fromkeys(tensors)}
    means: dict[str, list[np.ndarray]] = {name: [] for name in kept}
    with Progress("calibrating", len(feeds), "batches") as progress:
        for number, feed in enumerate(feeds):
            found = answers_of(session, wanted, feed) | {image: feed[image]}
            chosen = np.random.default_rng(number)
            for name in kept:
                flat = found[name].ravel()
                kept[name] += [flat[chosen.integers(0, flat.size, SAMPLE)], np.array([flat.min(), flat.max()])]
                others = tuple(at for at in range(found[name].ndim) if at != 1)
                means[name].append(found[name].mean(axis=others, dtype=np.float64))
            for one in products if squares else ():
                taken = take_inputs(nodes[one.name], shapes[one.weights], found[one.source], chosen)
                if taken.size:
                    sums[one.name] = sums.get(one.name, 0) + taken.T @ taken
            progress.advance(1)
    numbers = {name: np.concatenate(parts)[None].astype(np.float32) for name, parts in kept.items()}
    return {
        one.name: Seen(numbers[one.source], np.mean(means[one.source], axis=0), sums.get(one.name)) for one in products
    }


@dataclass(frozen=True)
class LayerError:
    """How far a layer's numbers lie from those of the model before it was converted.

    `snr_db`: the signal over the noise in decibels, infinite without noise. `cos_dist`: one less the cosine.
    """

    name: str
    mse: float
    snr_db: float
    cos_dist: float


def compare_layers(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Sequence[Feed]) -> list[LayerError]:
    """Return how far what each product answers lies from what it answered before, over these images."""
    outputs = {node.name: node.output[0] for node in before.graph.node}
    products = [one.name for one in find_products(before.graph)]
    sessions = [make_session(expose(model, (outputs[name] for name in products))) for model in (before, after)]
    wanted = [outputs[name] for name in products]
    sums: dict[str, np.ndarray] = {name: np.zeros(5) for name in products}
    for feed in feeds:
        found = [answers_of(session, wanted, feed) for session in sessions]
        for name in products:
            want, got = (one[outputs[name]].astype(np.float64).ravel() for one in found)
            noise = np.square(want - got).sum()
            sums[name] += [noise, want @ want, got @ got, want @ got, want.size]
    return [_layer_error(name, *sums[name]) for name in products]


def _layer_error(name: str, noise: float, signal: float, found: float, product: float, count: float) -> LayerError:
    size = float(np.sqrt(signal * found))
    with np.errstate(divide="ignore"):
        decibels = float(10 * np.log10(np.float64(signal) / noise)) if noise else float("inf")
    return LayerError(name, noise / count, decibels, 1 - product / size if size else 0.0)


def measure_sensitivity(
    model: onnx.ModelProto,
    convert_only: Callable[[str], onnx.ModelProto],
    products: Sequence[Product],
    feeds: Sequence[Feed],
) -> dict[str, float]:
    """Return how far a model's answers move (mean of squares) when one product alone is rounded, the farthest first."""
    wanted = _answers(model, feeds)
    moved: dict[str, float] = {}
    with Progress("finding the most sensitive layers", len(products), "layers") as progress:
        for one in products:
            moved[one.name] = float(np.square(_answers(convert_only(one.name), feeds) - wanted).mean())
            progress.advance(1)
    return dict(sorted(moved.items(), key=lambda item: -item[1]))


def _answers(model: onnx.ModelProto, feeds: Sequence[Feed]) -> np.ndarray:
    session, name = make_session(model), model.graph.output[0].name
    return np.concatenate([answers_of(session, [name], feed)[name] for feed in feeds]).astype(np.float64)


def check_roundings(model: onnx.ModelProto, feed: Feed, weights: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Return how many numbers a converted model rounds to 8 bits with these images, and how many not as ml_dtypes does.

    Each weight and each number of each tensor that is rounded in an inference is compared, in a graph run as written.
    `weights`: by name, those that were rounded to the nearest; of others, what they stand for is compared.
    """
    graph, forms = model.graph, {form.tensor_type: form for form in FORMATS.values()}
    held: Mapping[str, onnx.TensorProto] = {one.name: one for one in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    ends = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0].endswith(ROUNDED)]
    if not ends:
        return 0, 0
    inputs = [makers[node.input[0]].input[0] for node in ends if node.input[0] in makers]
    tensors = list(dict.fromkeys([*(node.output[0] for node in ends), *inputs]))
    image = image_input(model).name
    wanted = [name for name in tensors if name != image]
    session = make_session(expose(model, wanted), as_written=True)
    values = answers_of(session, wanted, feed) | feed
    compared, wrong = 0, 0
    for node in ends:
        scale = onnx.numpy_helper.to_array(held[node.input[1]])
        got = values[node.output[0]]
        exponents = np.round(np.log2(scale)).astype(int)
        if node.input[0] in makers:
            form = format_of(makers[node.input[0]], held)
            assert form is not None
            source = values[makers[node.input[0]].input[0]]
            rounded = form.round(source, exponents)
        else:
            raw = held[node.input[0]]
            form = forms[raw.data_type]
            rounded = np.frombuffer(raw.raw_data, form.dtype).reshape(tuple(raw.dims))
            axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
            exponents = (
                exponents.reshape([-1 if at == axis else 1 for at in range(got.ndim)]) if scale.ndim else exponents
            )
            original = weights.get(raw.name.removesuffix(f"/{form.name}"))
            if original is not None:
                nearest = form.round(original, exponents)
                compared += got.size
                wrong += int((nearest.view(np.uint8) != rounded.view(np.uint8)).sum())
                continue
        compared += got.size
        wrong += int((form.restore(rounded, exponents) != got).sum())
    return compared, wrong
