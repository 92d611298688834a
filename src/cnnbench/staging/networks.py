"""Prepare the networks that engines are handed: weights, the fixed batch in the form they take, reference answers."""

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from cnnbench.backends import Engine, ImageForm
from cnnbench.datasets.index import load_manifest
from cnnbench.errors import CnnbenchError
from cnnbench.models.networks import ARCHITECTURES, DEFAULT_NUM_GROUPS, Network, check_network
from cnnbench.parameters import Parameters
from cnnbench.staging.cache import digest_file, install_directory
from cnnbench.staging.inputs import PreparedModel, digest_sources, run_module

PREPARED_BY = (
    "models/networks.py",
    "models/torch_networks.py",
    "models/torch_weights.py",
    "models/group_norm.py",
    "models/classifier.py",
    "models/prepare_network.py",
    "datasets/jpeg.py",
)
"""The sources that decide what a prepared network is; a change of one makes it anew."""


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

    `images`: the directory of the image set to take the fixed batch from. `python`: one with PyTorch.
    """
    network, form = chosen_network(parameters), image_form(parameters)
    weights = Path(parameters.weights) if parameters.weights else None
    if weights and not weights.is_file():
        raise CnnbenchError(f"WEIGHTS={weights}: no such file; needed a checkpoint, .safetensors or .pth")
    request = {
        "network": asdict(network),
        "form": asdict(form),
        "normalize_inside": parameters.normalization_location == "device",
        "weights": str(weights or ""),
        "export": engine.exported,
        "splits": parameters.pipeline_splits.split(),
    }
    source = digest_file(weights) if weights else ""
    made_from = {
        "weights": source,
        "images": load_manifest(images).sha256,
        "by": str(python),
    }
    named = request | made_from
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    destination = cache / "prepared" / f"{network.name}-{key[:16]}-{digest_sources(PREPARED_BY)}"
    install_directory(partial(_prepare, request, images, python, engine.preparer), destination)
    facts = json.loads((destination / "prepared.json").read_bytes())
    return PreparedModel(
        source=weights or destination,
        source_sha256=source or facts["weights_sha256"],
        graph=destination,
        check_images=destination / "check_images.npy",
        reference=destination / "reference.npy",
        macs_per_image=facts["macs_per_image"],
        form=form,
    )


def _prepare(request: dict[str, object], images: Path, python: Path, preparer: str, destination: Path) -> None:
    (destination / "network.json").write_text(json.dumps(request, indent=1), encoding="utf-8")
    run_module([str(python), "-m", preparer, str(images), str(destination)])
