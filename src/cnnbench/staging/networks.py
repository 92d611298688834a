"""Prepare the networks that engines are handed: weights, the fixed batch in the form they take, reference answers."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from cnnbench.base.cache import digest_file, install_directory
from cnnbench.base.disk import make_directory
from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import SERVING, Parameters
from cnnbench.cases.precisions import PRECISIONS, Precision
from cnnbench.engines.conversion import NETWORK, Conversion, parse_fp8_params
from cnnbench.engines.exported import ASKED, BESIDE, FACTS, STEM, Asked, Exported, digest_cpu
from cnnbench.engines.interface import EngineOptions
from cnnbench.engines.registry import Engine, find_part
from cnnbench.inputs.image_set import load_manifest
from cnnbench.inputs.model_file import digest_onnx
from cnnbench.inputs.networks import ARCHITECTURES, DEFAULT_NUM_GROUPS, ImageForm, Network, check_network
from cnnbench.staging.environments import lock_path, planned_python
from cnnbench.staging.inputs import (
    PreparedModel,
    digest_sources,
    draw_part,
    find_check_set,
    run_steps,
    stage_procedural,
)

NONE = "none"
"""The value of FP8_SKIP_OP_NAMES that keeps no operation where a workload keeps some."""


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


def prepare_network(
    parameters: Parameters, engine: Engine, options: EngineOptions, images: Path, variant: str, cache: Path
) -> PreparedModel:
    """Return a case's network made ready for an engine: built, given its weights and asked for its answers, once.

    Without WEIGHTS they are seeded; where accuracy is measured, and in fp8, which would not keep the differences that
    answers hang on then, with a last layer fitted to the drawn training images.
    `images`: the directory of the image set to take the fixed batch from. `variant`: the build that builds networks.
    """
    form, built = image_form(parameters), _describe(parameters)
    weights = Path(parameters.weights) if parameters.weights else None
    if not weights and (parameters.mode == "accuracy" or PRECISIONS[parameters.precision].in_fp8):
        weights = _fit_weights(built, variant, cache)
    request = built | {"weights": str(weights or ""), "export": engine.reads_onnx, "splits": []}
    request |= engine.of_network(options)
    source = digest_file(weights) if weights else ""
    named = request | {"weights": source, "images": load_manifest(images).sha256, "by": _python_of(variant, cache)}
    destination = cache / "prepared" / f"{parameters.topology}-{_digest(named)}-{_made_by()}"
    install_directory(partial(_run_step, request, variant, cache, "network", images), destination)
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


def adopt_network(file: Path, images: Path, cache: Path) -> PreparedModel:
    """Return a user's ONNX file as a prepared network, made once."""
    engine, part = find_part("handles_files"), "handles_files"
    assert engine.handles_files is not None
    source, build = digest_onnx(file), engine.builds[0]
    made_by = f"{digest_sources(engine.handles_files)}-{digest_file(lock_path(build.lock))[:12]}"
    named = _digest([source, load_manifest(images).sha256])
    destination = cache / "prepared" / f"{file.stem}-{named}-{made_by}"
    install_directory(lambda made: run_steps(engine, build.name, part, cache, "adopt", file, images, made), destination)
    return _adopted(destination, file, source)


def _adopted(destination: Path, file: Path, source: str) -> PreparedModel:
    facts = json.loads((destination / "prepared.json").read_bytes())
    form = json.loads((destination / "network.json").read_bytes())["form"]
    return PreparedModel(
        source=file,
        source_sha256=source,
        graph=destination,
        check_images=destination / "check_images.npy",
        reference=destination / "reference.npy",
        macs_per_image=facts["macs_per_image"],
        form=ImageForm(**form),
        label_offset=-1,
        held_as=facts.get("held_as", "fp32"),
    )


def chosen_batch(parameters: Parameters) -> str:
    """Return the batches that a case's network is compiled for: of the images that its instances are handed."""
    p = parameters
    if p.compiled_batch != "auto":
        return p.compiled_batch
    if p.function == SERVING and p.images_per_execution > 1:  # what waits is put together
        return f"1-{p.images_per_execution}"
    most = p.images_per_part
    return f"1-{most}" if p.mode == "accuracy" and most > 1 else str(most)


@dataclass(frozen=True)
class Compiler:
    """What compiles: a build of an engine. `environment`: what instances have too, such as a bound of instructions.

    `kept`: a directory for what it keeps of its work.
    """

    engine: Engine
    variant: str
    environment: Mapping[str, str]
    kept: Path


def compile_network(model: PreparedModel, compiler: Compiler, asked: Asked, cache: Path) -> PreparedModel:
    """Return a prepared network with what an engine makes of it ahead of time, compiling it when not done yet.

    It is for this CPU, this version of the engine and its environment; for any other it is compiled anew.
    """
    engine, steps = compiler.engine, compiler.engine.exports_networks
    assert steps is not None
    made_by = f"{digest_sources(steps)}-{digest_file(lock_path(engine.build(compiler.variant).lock))[:12]}"
    named = _digest([engine.name, asked.model_dump_json(), digest_cpu(), sorted(compiler.environment.items())])
    destination = cache / "prepared" / f"{model.graph.name}-{named}-{engine.name}-{made_by}"
    install_directory(lambda made: _compile(model, compiler, asked, made, cache), destination)
    return replace(model, graph=destination, compiled=Exported.find(destination))


def _compile(model: PreparedModel, compiler: Compiler, asked: Asked, destination: Path, cache: Path) -> None:
    for name in BESIDE:  # a network that was converted has what it is checked with where it was prepared
        found = [path for path in (model.graph / name, model.check_images.parent / name) if path.is_file()]
        if found:
            _place(found[0], destination / name)
    (destination / ASKED).write_text(asked.model_dump_json(indent=1), encoding="utf-8")
    words = ("network", model.graph, destination, compiler.kept)
    run_steps(compiler.engine, compiler.variant, "exports_networks", cache, *words, environment=compiler.environment)


def _place(source: Path, destination: Path) -> None:
    """Put a file of the cache into another directory of it, whose files never change either."""
    try:
        os.link(source, destination)
    except OSError:  # another file system, or another user's file
        shutil.copyfile(source, destination)


def export_network(file: Path, destination: Path, engine: Engine, asked: Asked, cache: Path) -> Path:
    """Write an ONNX file as an engine loads it, with what it is checked with, into a directory; return its file."""
    network = adopt_network(file, find_check_set(cache), cache)
    build = next(one for one in engine.builds if not one.gpu)
    asked = asked.model_copy(update={"held_as": network.held_as})
    compiler = Compiler(engine, build.name, {}, cache / "compiled")
    return give_export(compile_network(network, compiler, asked, cache), destination)


def give_export(model: PreparedModel, destination: Path) -> Path:
    """Write what was compiled, with what it is checked with, into a directory of a user's; return its file."""
    assert model.compiled is not None
    if destination.is_dir() and any(destination.iterdir()) and not (destination / FACTS).is_file():
        raise UsageError(f"{destination}: has other files in it; give an empty directory, or an export's")
    make_directory(destination, "give another directory")
    for old in (*destination.glob(f"{STEM}.*"), *(destination / name for name in (ASKED, *BESIDE))):
        old.unlink(missing_ok=True)
    for path in sorted(model.graph.iterdir(), key=lambda path: path.name == FACTS):  # last what says that all is there
        shutil.copyfile(path, destination / path.name)
    return destination / model.compiled.file


def take_export(file: Path) -> PreparedModel:
    """Return an export as a prepared network; raise UsageError unless it is whole and for this CPU."""
    found = Exported.read(file)
    return replace(_adopted(file.parent, file, found.sha256), compiled=found)


def predict_adopted(model: PreparedModel, images: Path, cache: Path) -> PreparedModel:
    """Return a user's network with what it answers to every image of a set."""
    engine = find_part("handles_files")
    if not (model.graph / NETWORK).is_file():
        raise UsageError(
            f"NETWORK_FILE={model.source}: was compiled without its float32 network, which the loss of accuracy is "
            "counted against: leave it out, or measure throughput or latency"
        )
    digests = f"{model.source_sha256[:16]}-{load_manifest(images).sha256[:16]}"
    destination = cache / "prepared" / f"{digests}-predictions"

    def make(directory: Path) -> None:
        run_steps(engine, engine.builds[0].name, "handles_files", cache, "predict", model.graph, images, directory)

    install_directory(make, destination)
    return replace(model, predictions=destination / "predictions.npy")


def give_network(model: PreparedModel, file: Path, cache: Path) -> None:
    """Write a prepared network as an ONNX file such as the usual exporters make."""
    engine = find_part("handles_files")
    run_steps(engine, engine.builds[0].name, "handles_files", cache, "give", model.graph, file)


def quantize_network(model: PreparedModel, cache: Path) -> PreparedModel:
    """Return an exported network in int8, quantising it when that is not done yet.

    The ranges come from the drawn set's calibration part, whatever is measured: images that a network is judged by must
    not have shaped it.
    """
    images, engine, part = stage_procedural("calibration", cache), find_part("quantizes_networks"), "quantizes_networks"
    build = next(build for build in engine.builds if build.int8)
    assert engine.quantizes_networks is not None
    made_by = f"{digest_sources(engine.quantizes_networks)}-{digest_file(lock_path(build.lock))[:12]}"
    destination = cache / "prepared" / f"{model.graph.name}-{images.sha256[:16]}-int8-{made_by}"

    def make(directory: Path) -> None:
        run_steps(engine, build.name, part, cache, model.graph, images.root, directory)

    install_directory(make, destination)
    facts = json.loads((destination / "int8.json").read_bytes())
    return replace(
        model,
        graph=destination,
        int8_sha256=digest_file(destination / "network.onnx"),
        calibration=facts["calibration"],
    )


def chosen_conversion(parameters: Parameters, precision: Precision) -> Conversion | None:
    """Return how a case's network is to be converted; None where it is not."""
    p = parameters
    if not precision.held_as and not p.pad_conv_channel:
        return None
    return Conversion(
        number_type=precision.held_as or "fp32",
        kept=() if p.fp8_skip_op_names in ("", NONE) or not precision.in_fp8 else tuple(p.fp8_skip_op_names.split(",")),
        keep_most_sensitive=p.num_of_layers_keep_fp16 if precision.in_fp8 else 0,
        metric=p.fp8_metric,
        weight_rounding=p.fp8_weight_rounding,
        pad_channels=p.pad_conv_channel,
        **(parse_fp8_params(p.fp8_params) if precision.in_fp8 else {}),
    )


def convert_network(model: PreparedModel, conversion: Conversion, cache: Path) -> PreparedModel:
    """Return an exported network in another type of number, converting it when that is not done yet.

    Scales come from the drawn set's calibration part, as the ranges of int8 do.
    """
    images, part = stage_procedural("calibration", cache), "converts_networks"
    engine = find_part(part)
    assert engine.converts_networks is not None
    build = engine.builds[0]
    asked = conversion.model_dump_json(indent=1)
    made_by = f"{digest_sources(engine.converts_networks)}-{digest_file(lock_path(build.lock))[:12]}"
    named = _digest([asked, images.sha256])
    destination = cache / "prepared" / f"{model.graph.name}-{named}-{conversion.number_type}-{made_by}"

    def make(directory: Path) -> None:
        (directory / "conversion.json").write_text(asked, encoding="utf-8")
        run_steps(engine, build.name, part, cache, "network", model.graph, images.root, directory)

    install_directory(make, destination)
    facts = json.loads((destination / "converted.json").read_bytes())
    return replace(
        model,
        graph=destination,
        converted_sha256=digest_file(destination / NETWORK),
        calibration=facts["calibration"],
    )


def predict_network(model: PreparedModel, images: Path, variant: str, cache: Path) -> PreparedModel:
    """Return a network prepared from a checkpoint with what that answers, in float32, to every image of a set."""
    destination = cache / "prepared" / f"{model.graph.name}-{load_manifest(images).sha256[:16]}-predictions"
    paths = (model.graph, model.source, images)
    install_directory(partial(_run_step, {}, variant, cache, "predict", *paths), destination)
    return replace(model, predictions=destination / "predictions.npy")


def _describe(parameters: Parameters) -> dict[str, object]:
    """Return what decides a case's network beside its weights and the engine."""
    return {
        "network": asdict(chosen_network(parameters)),
        "form": asdict(image_form(parameters)),
        "normalize_inside": parameters.normalization_location == "device",
    }


def _python_of(variant: str, cache: Path) -> str:
    """Return what names the Python that builds networks, wherever the cache is: images have theirs in another place."""
    python = planned_python(find_part("builds_networks"), variant, cache)
    return str(python.relative_to(cache) if python.is_relative_to(cache) else python)


def _made_by() -> str:
    steps = find_part("builds_networks").builds_networks
    assert steps is not None
    return digest_sources(steps)


def _digest(named: object) -> str:
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def _fit_weights(built: dict[str, object], variant: str, cache: Path) -> Path:
    """Return a checkpoint of seeded weights with a fitted last layer, made once."""
    roots = [draw_part(part, cache) for part in ("calibration", "training")]
    named = [built, [load_manifest(one).sha256 for one in roots], _python_of(variant, cache)]
    destination = cache / "models" / f"network-fitted-{_digest(named)}-{_made_by()}"
    install_directory(partial(_run_step, built, variant, cache, "fit", *roots), destination)
    return destination / "weights.safetensors"


def _run_step(request: dict[str, object], variant: str, cache: Path, step: str, *paths: Path) -> None:
    """Run a step of preparing in its destination, the last path, beside what it is asked for."""
    (paths[-1] / "network.json").write_text(json.dumps(request, indent=1), encoding="utf-8")
    run_steps(find_part("builds_networks"), variant, "builds_networks", cache, step, *paths)
