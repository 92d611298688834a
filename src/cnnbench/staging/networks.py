"""Prepare the networks that engines are handed: weights, the fixed batch in the form they take, reference answers."""

import hashlib
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from cnnbench.base.cache import digest_file, install_directory
from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.parameters import Parameters
from cnnbench.engines.registry import Engine
from cnnbench.inputs.image_set import load_manifest
from cnnbench.inputs.networks import ARCHITECTURES, DEFAULT_NUM_GROUPS, ImageForm, Network, check_network
from cnnbench.staging.environments import lock_file
from cnnbench.staging.inputs import PreparedModel, digest_sources, run_module, stage_procedural

PREPARED_BY = (
    "inputs/networks.py",
    "engines/pytorch/networks.py",
    "engines/pytorch/weights.py",
    "engines/pytorch/group_norm.py",
    "engines/pytorch/classifier.py",
    "engines/pytorch/prepare.py",
    "inputs/head.py",
    "inputs/jpeg.py",
)
"""The sources that decide what a prepared network is; a change of one makes it anew."""

QUANTIZED_BY = ("engines/onnxruntime/quantize.py", "inputs/jpeg.py")
"""The sources that decide what a quantised network is, beyond the prepared one, whose name tells its own."""

NETWORK_QUANTIZER = "onnxruntime"
"""The engine whose environment quantises networks, for itself and for the others that have int8."""


def chosen_network(parameters: Parameters) -> Network:
    """Return the network that a case's parameters describe; raise UsageError where they contradict each other."""
    p = parameters
    network = Network(
        name=p.topology,
        norm_type=p.norm_type,
        norm_num_groups=DEFAULT_NUM_GROUPS if p.norm_num_groups == "auto" else p.norm_num_groups,
        fast_groupnorm=p.enable_fast_groupnorm,
        expand_ratio=None if p.efficientnet_expand_ratio == "auto" else p.efficientnet_expand_ratio,
        group_dim=None if p.efficientnet_group_dim == "auto" else p.efficientnet_group_dim,
    )
    check_network(network)
    return network


def image_form(parameters: Parameters) -> ImageForm:
    """Return what a case's network is handed of an image."""
    architecture = ARCHITECTURES[parameters.topology]
    return ImageForm(
        size=architecture.image_size,
        crop_share=architecture.crop_share,
        interpolation=architecture.interpolation,
        as_bytes=parameters.eight_bit_io,
        normalized=parameters.normalization_location == "host",
    )


def prepare_network(parameters: Parameters, engine: Engine, images: Path, python: Path, cache: Path) -> PreparedModel:
    """Return a case's network made ready for an engine: built, given its weights and asked for its answers, once.

    Without WEIGHTS they are seeded; where accuracy is measured, with a last layer fitted to the drawn training images.
    `images`: the directory of the image set to take the fixed batch from. `python`: one with PyTorch.
    """
    form, built = image_form(parameters), _describe(parameters)
    weights = Path(parameters.weights) if parameters.weights else None
    if weights and not weights.is_file():
        raise CnnbenchError(f"WEIGHTS={weights}: no such file; needed a checkpoint, .safetensors or .pth")
    if not weights and parameters.mode == "accuracy":
        weights = _fit_weights(built, python, engine.preparer, cache)
    request = built | {
        "weights": str(weights or ""),
        "export": engine.exported,
        "splits": parameters.pipeline_splits.split(),
    }
    source = digest_file(weights) if weights else ""
    named = request | {"weights": source, "images": load_manifest(images).sha256, "by": str(python)}
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    destination = cache / "prepared" / f"{parameters.topology}-{key[:16]}-{digest_sources(PREPARED_BY)}"
    install_directory(partial(_run_step, request, python, engine.preparer, "network", images), destination)
    facts = json.loads((destination / "prepared.json").read_bytes())
    return PreparedModel(
        source=weights or destination,
        source_sha256=source or facts["weights_sha256"],
        graph=destination,
        check_images=destination / "check_images.npy",
        reference=destination / "reference.npy",
        macs_per_image=facts["macs_per_image"],
        form=form,
        label_offset=-1,
    )


def quantize_network(model: PreparedModel, python: Path, cache: Path) -> PreparedModel:
    """Return an exported network in int8, quantising it when that is not done yet.

    The ranges come from the drawn set's calibration part, whatever is measured: images that a network is judged by must
    not have shaped it. `python`: that of `NETWORK_QUANTIZER`'s environment.
    """
    images = stage_procedural("calibration", cache)
    made_by = f"{digest_sources(QUANTIZED_BY)}-{digest_file(lock_file(NETWORK_QUANTIZER, 'cpu'))[:12]}"
    destination = cache / "prepared" / f"{model.graph.name}-{images.sha256[:16]}-int8-{made_by}"

    def build(directory: Path) -> None:
        module = "cnnbench.engines.onnxruntime.quantize"
        run_module([str(python), "-m", module, str(model.graph), str(images.root), str(directory)])

    install_directory(build, destination)
    facts = json.loads((destination / "int8.json").read_bytes())
    return replace(
        model,
        graph=destination,
        int8_sha256=digest_file(destination / "network.onnx"),
        calibration=facts["calibration"],
    )


def predict_network(model: PreparedModel, engine: Engine, images: Path, python: Path, cache: Path) -> PreparedModel:
    """Return a network prepared from a checkpoint with what that answers, in float32, to every image of a set."""
    destination = cache / "prepared" / f"{model.graph.name}-{load_manifest(images).sha256[:16]}-predictions"
    paths = (model.graph, model.source, images)
    install_directory(partial(_run_step, {}, python, engine.preparer, "predict", *paths), destination)
    return replace(model, predictions=destination / "predictions.npy")


def _describe(parameters: Parameters) -> dict[str, object]:
    """Return what decides a case's network beside its weights and the engine."""
    return {
        "network": asdict(chosen_network(parameters)),
        "form": asdict(image_form(parameters)),
        "normalize_inside": parameters.normalization_location == "device",
    }


def _fit_weights(built: dict[str, object], python: Path, preparer: str, cache: Path) -> Path:
    """Return a checkpoint of seeded weights with a fitted last layer, made once."""
    sets = [stage_procedural(part, cache) for part in ("calibration", "training")]
    named = [built, [one.sha256 for one in sets], str(python)]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    destination = cache / "models" / f"network-fitted-{key[:16]}-{digest_sources(PREPARED_BY)}"
    roots = [one.root for one in sets]
    install_directory(partial(_run_step, built, python, preparer, "fit", *roots), destination)
    return destination / "weights.safetensors"


def _run_step(request: dict[str, object], python: Path, preparer: str, step: str, *paths: Path) -> None:
    """Run a step of preparing in its destination, the last path, beside what it is asked for."""
    (paths[-1] / "network.json").write_text(json.dumps(request, indent=1), encoding="utf-8")
    run_module([str(python), "-m", preparer, step, *map(str, paths)])
