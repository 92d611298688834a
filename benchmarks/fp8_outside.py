"""Open networks in fp8 outside this project: accuracy in plain ONNX Runtime and OpenVINO, beside NNCF's own FP8.

    python3 -m venv outside
    outside/bin/pip install nncf==3.4.0 onnxruntime==1.32.0 openvino==2026.4.1 pillow scipy
    outside/bin/python benchmarks/fp8_outside.py [--nncf] FP32.onnx FP8.onnx ...

Each file takes N x 3 x 224 x 224 and is loaded as its engine does by default. It answers the validation images that
`cnnbench stage procedural` has drawn; losses are against FP32.onnx in the same engine, on the same images, with a
paired 95 % interval. `--nncf` has NNCF quantise FP32.onnx with the first 100 drawn calibration images, which
`cnnbench convert` calibrates with too. Of this project only those intervals are used.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from cnnbench.results.stats import paired_difference

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIZE, SCALED = 224, 256
BATCH = 1  # as many files are written for
CALIBRATION_IMAGES = 100
Network = Callable[[np.ndarray], np.ndarray]


def read_images(directory: Path) -> tuple[list[Path], np.ndarray]:
    """Return the images of a drawn set, and their classes counted from 0."""
    with (directory / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [directory / row["file"] for row in rows], np.array([int(row["label"]) - 1 for row in rows])


def decode(paths: Iterable[Path]) -> np.ndarray:
    """Return images as ResNet50 is evaluated on ImageNet: N x 3 x SIZE x SIZE, float32."""
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = SCALED / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = ((side - SIZE) // 2 for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
        images.append(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1))
    return np.stack(images)


def load_in_onnxruntime(file: Path) -> Network:
    """Load a file as ONNX Runtime does unless told otherwise."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def load_in_openvino(file: Path | Any) -> Network:
    """Load a file, or a model in memory, as OpenVINO does unless told otherwise, but multiply in float32."""
    import openvino as ov

    compiled = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled([images])[0]


def quantize_by_nncf(file: Path, calibration: Path) -> Any:
    """Return a network as NNCF quantises it to FP8_E4M3."""
    import nncf
    import openvino as ov

    paths, _ = read_images(calibration)
    images: Iterator[np.ndarray] = (decode([path]) for path in paths[:CALIBRATION_IMAGES])
    mode = nncf.QuantizationMode.FP8_E4M3
    return nncf.quantize(ov.Core().read_model(file), nncf.Dataset(images), mode=mode, subset_size=CALIBRATION_IMAGES)


def main() -> int:
    """Print a line for each network and engine; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.onnx", help="the first: what losses are against")
    parser.add_argument("--nncf", action="store_true", help="quantise the first by NNCF too")
    parser.add_argument("--datasets", type=Path, default=Path.home() / ".cache/cnnbench/datasets", metavar="DIR")
    arguments = parser.parse_args()
    validation, calibration = (
        arguments.datasets / f"cnnbench-procedural-1-{part}" for part in ("validation", "calibration")
    )
    paths, labels = read_images(validation)
    batches = [decode(paths[at : at + BATCH]) for at in range(0, len(paths), BATCH)]
    print(f"{len(labels)} images; losses against {arguments.files[0].name} in the same engine, in points, 95 % paired")
    networks: list[tuple[str, str, Callable[[], Network]]] = [
        (engine, file.name, partial(load, file))
        for engine, load in (("onnxruntime", load_in_onnxruntime), ("openvino", load_in_openvino))
        for file in arguments.files
    ]
    if arguments.nncf:
        first = arguments.files[0]
        networks.append(
            ("openvino", f"{first.name} by NNCF", lambda: load_in_openvino(quantize_by_nncf(first, calibration)))
        )
    reference: dict[str, np.ndarray] = {}
    for engine, name, load in networks:
        network = load()
        hits = np.concatenate([network(images).argmax(1) for images in batches]) == labels
        loss, low, high = (100 * share for share in paired_difference(reference.setdefault(engine, hits), hits))
        told = "" if hits is reference[engine] else f"  loss {loss:+.1f} [{low:+.1f}, {high:+.1f}]"
        print(f"{engine:<12} {name:<44} top-1 {100 * hits.mean():.1f} %{told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
