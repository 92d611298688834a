"""Stage what cases read: image sets, the embedded model, and any model made ready to be measured.

Everything here is made once, kept in the cache under a name that tells what made it, and whole or absent.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cnnbench.base.cache import digest_file, install_directory
from cnnbench.base.checkout import PACKAGE
from cnnbench.base.disk import make_directory
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.base.start import START
from cnnbench.cases.artefacts import load_artefacts
from cnnbench.cases.parameters import IMAGENET, PROCEDURAL
from cnnbench.engines.exported import Exported
from cnnbench.engines.registry import Engine, Steps, find_part
from cnnbench.inputs import procedural
from cnnbench.inputs.image_set import MANIFEST, ImageSet, load_image_set, load_manifest, write_image_set
from cnnbench.inputs.networks import EMBEDDED, ImageForm
from cnnbench.launch.local import split_environment
from cnnbench.staging.environments import lock_path, steps_python
from cnnbench.staging.folder import read_folder, stage_folder
from cnnbench.staging.imagenet import stage_imagenet
from cnnbench.staging.stage import require_staged, stage_artefact

IMAGENET_ARTEFACTS = ("imagenet2012-val", "imagenet2012-devkit")


@dataclass(frozen=True)
class PreparedModel:
    """A model ready to be measured: its graph or network, the fixed batch with its reference answers, and its size.

    `form`: what a network wants images to be like; None for a graph, whose form is fixed. `quantized`: whether the
    model came as an int8 graph. Of a graph that was quantised here, `int8_sha256`: its digest; `calibration`: which
    images its ranges or scales come from. `converted_sha256`: the digest of a network converted to other numbers;
    `held_as`: what a user's file has its weights in. `compiled`: what there is to know of a file made ahead of time.
    `predictions`: the float32 model's best class of every measured image, where wanted. `label_offset`: what to add to
    a set's label, which counts the background, for the number of the model's output.
    """

    source: Path
    source_sha256: str
    graph: Path
    check_images: Path
    reference: Path
    macs_per_image: int
    quantized: bool = False
    form: ImageForm | None = None
    int8_sha256: str = ""
    calibration: str = ""
    converted_sha256: str = ""
    held_as: str = "fp32"
    compiled: Exported | None = None
    predictions: Path | None = None
    label_offset: int = 0


def stage_procedural(part: str, cache: Path) -> ImageSet:
    """Return one part of the drawn data set, drawing it when it is not there yet."""
    return load_image_set(draw_part(part, cache))


def verify_procedural(part: str, cache: Path) -> ImageSet:
    """Return one part of the drawn set, all its images digested again; raise CnnbenchError when it is not there."""
    path = _part_path(part, cache)
    require_staged(path, "procedural")
    return load_image_set(path, verify=True)


def _part_path(part: str, cache: Path) -> Path:
    return cache / "datasets" / f"{procedural.SEED}-{part}"


def draw_part(part: str, cache: Path) -> Path:
    """Return where one part of the drawn set is, drawing it when it is not there yet; a manifest alone is left so."""
    path = _part_path(part, cache)

    def build(directory: Path) -> None:
        rows = procedural.draw_part(part, directory, len(os.sched_getaffinity(0)))
        write_image_set(directory, rows, path.name, part)

    return install_directory(build, path)


def find_check_set(cache: Path) -> Path:
    """Return the set that check images are taken from when no images are measured: drawn on first use.

    Where the model has been prepared with it, its manifest is enough: container images for dummy data have no more.
    """
    return draw_part("validation", cache)


def imagenet_path(cache: Path) -> Path:
    """Return where the ImageNet validation set is, once it is staged."""
    return cache / "datasets" / "imagenet2012-validation"


def find_image_set(dataset: str, cache: Path) -> ImageSet:
    """Return the images that DATASET names: drawn, ImageNet's as `cnnbench stage` left them, or a directory's."""
    if dataset == PROCEDURAL:
        return stage_procedural("validation", cache)
    require_image_set(dataset, cache)
    return load_image_set(imagenet_path(cache)) if dataset == IMAGENET else stage_folder(Path(dataset), cache)


def require_image_set(dataset: str, cache: Path) -> None:
    """Raise UsageError where DATASET names images that are neither staged nor drawn on first use."""
    if dataset not in (PROCEDURAL, IMAGENET):
        read_folder(Path(dataset))
    elif dataset == IMAGENET and not imagenet_path(cache).is_dir():
        raise UsageError(
            f"DATASET={dataset}: not staged; run `cnnbench stage imagenet`, which needs the validation tar and the "
            "devkit (see doc/staging.md), or choose procedural"
        )


def stage_imagenet_set(cache: Path, source: Path | None, variant: str) -> ImageSet:
    """Return the ImageNet set, making it from the staged tar and devkit, or from those or TFRecord shards in `source`.

    `variant`: the build of the engine that reads shards. What a set that is there was made from may be gone by then.
    """
    destination = imagenet_path(cache)
    if not (destination / MANIFEST).is_file():
        artefacts = [load_artefacts()[name] for name in IMAGENET_ARTEFACTS]
        archives = [None if source is None else source / artefact.file_name for artefact in artefacts]
        if source is not None and not any(archive.exists() for archive in archives if archive):
            run_steps(find_part("reads_shards"), variant, "reads_shards", cache, source.absolute(), destination)
        else:
            tar, devkit = (
                stage_artefact(artefact, cache, archive) for artefact, archive in zip(artefacts, archives, strict=True)
            )
            stage_imagenet(tar, devkit, destination)
    return load_image_set(destination)


def verify_imagenet_set(cache: Path) -> ImageSet:
    """Return the ImageNet set, all its images digested again; raise CnnbenchError when it is not there."""
    require_staged(imagenet_path(cache), "imagenet")
    return load_image_set(imagenet_path(cache), verify=True)


def embedded_model_path(engine: Engine, cache: Path) -> Path:
    """Return where the embedded model's frozen graph is, once it is made."""
    return cache / "models" / f"{EMBEDDED}-embedded-{digest_sources(_steps(engine, 'embeds'))}" / "model.pb"


def stage_embedded_model(engine: Engine, variant: str, cache: Path) -> Path:
    """Return the embedded model's frozen graph, making it with an engine's build when it is not there yet.

    Its digest is compared with that of its making each time: that takes a fraction of a second.
    """
    path = embedded_model_path(engine, cache)

    def build(directory: Path) -> None:
        run_steps(engine, variant, "embeds", cache, "embedded", directory)

    install_directory(build, path.parent)
    return _check_embedded_model(path)


def fit_embedded_model(engine: Engine, variant: str, cache: Path, destination: Path) -> Path:
    """Find again, from the drawn images, what is kept of the embedded model among the sources; return `destination`."""
    calibration, training = (stage_procedural(part, cache).root for part in ("calibration", "training"))
    make_directory(destination, "give another directory")
    run_steps(engine, variant, "embeds", cache, "fit", calibration, training, destination.absolute())
    return destination


def verify_embedded_model(engine: Engine, cache: Path) -> Path:
    """Return the embedded model's frozen graph, digested again; raise CnnbenchError when it is not there."""
    path = embedded_model_path(engine, cache)
    require_staged(path, EMBEDDED)
    return _check_embedded_model(path)


def _check_embedded_model(path: Path) -> Path:
    needed = json.loads((path.parent / "model.json").read_bytes())["sha256"]
    if (found := digest_file(path)) != needed:
        raise CnnbenchError(
            f"{path}: SHA-256 is {found}, needed {needed}: it was changed; remove {path.parent} and stage it again"
        )
    return path


def prepare_model(model: Path, images: Path, engine: Engine, variant: str, cache: Path) -> PreparedModel:
    """Return a model made ready, folding it and recording its reference answers when that is not done yet.

    `images`: the directory of the image set to take the fixed batch from.
    """
    sha256 = digest_file(model)
    made_by = digest_sources(_steps(engine, "prepares_graphs"))
    destination = cache / "prepared" / f"{sha256[:16]}-{load_manifest(images).sha256[:16]}-{made_by}"

    def build(directory: Path) -> None:
        run_steps(engine, variant, "prepares_graphs", cache, "graph", model.absolute(), images, directory)

    install_directory(build, destination)
    facts = json.loads((destination / "prepared.json").read_bytes())
    return PreparedModel(
        source=model,
        source_sha256=sha256,
        graph=destination / "folded.pb",
        check_images=destination / "check_images.npy",
        reference=destination / "reference.npy",
        macs_per_image=facts["macs_per_image"],
        quantized=facts["quantized"],
    )


def quantize_model(
    model: PreparedModel, engine: Engine, variant: str, cache: Path, *, in_image: bool = False
) -> PreparedModel:
    """Return a prepared model with its graph in int8 for one of an engine's builds, quantising it when not done yet.

    The ranges come from the drawn set's calibration part, whatever is measured: images that a model is judged by must
    not have shaped it. `in_image`: whether this is a container, where what quantises is not there and cannot be made.
    """
    images, steps = draw_part("calibration", cache), _steps(engine, "quantizes_graphs")
    made_by = f"{digest_sources(steps)}-{digest_file(lock_path(steps.lock))[:12]}"
    python_tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    name = f"{model.source_sha256[:16]}-{load_manifest(images).sha256[:16]}-int8-{variant}-{python_tag}-{made_by}"

    def build(directory: Path) -> None:
        if in_image:
            raise SkippedError(
                f"MODEL={model.source}: this image has no int8 graph of it for VARIANT={variant}, and nothing that "
                "could make one: configure with -DMODELS=NAME and make it anew (doc/containers.md), give a graph that "
                "is int8 already, or take BACKEND=native"
            )
        run_steps(engine, variant, "quantizes_graphs", cache, variant, model.graph, images, directory)

    destination = install_directory(build, cache / "prepared" / name)
    facts, graph = json.loads((destination / "int8.json").read_bytes()), destination / "int8.pb"
    return replace(model, graph=graph, int8_sha256=digest_file(graph), calibration=facts["calibration"])


def predict_images(model: PreparedModel, images: Path, engine: Engine, variant: str, cache: Path) -> PreparedModel:
    """Return a prepared model with what it answers, in float32, to every image of the set in the directory `images`."""
    digests = f"{model.source_sha256[:16]}-{load_manifest(images).sha256[:16]}"
    made_by = digest_sources(_steps(engine, "prepares_graphs"))

    def build(directory: Path) -> None:
        run_steps(engine, variant, "prepares_graphs", cache, "predict", model.source.absolute(), images, directory)

    destination = install_directory(build, cache / "prepared" / f"{digests}-predictions-{made_by}")
    return replace(model, predictions=destination / "predictions.npy")


def _steps(engine: Engine, part: str) -> Steps:
    steps: Steps | None = getattr(engine, part)
    if steps is None:
        raise CnnbenchError(f"the engine {engine.name} has no part that {part.replace('_', ' ')}")
    return steps


def digest_sources(steps: Steps, root: Path = PACKAGE) -> str:
    """Return a short digest of the sources of some steps, for the name of what they make."""
    digest = hashlib.sha256()
    for file in sorted(steps.sources):
        digest.update(f"{file} {digest_file(root / file)}\n".encode())
    return digest.hexdigest()[:12]


def run_steps(
    engine: Engine,
    variant: str,
    part: str,
    cache: Path,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a part of an engine's with the Python of its environment.

    Its progress goes to this process's standard error. `environment`: what it has beyond the caller's. Names in sets
    decide the order of what is made: with hashes that differ each time, so would that.
    """
    code = call_steps(engine, variant, part, cache, *arguments, environment=environment)
    if code != 0:
        command = f"{_steps(engine, part).module} {' '.join(map(str, arguments))}"
        raise CnnbenchError(f"failed with exit code {code}: `{command}`; it says why above")


def call_steps(
    engine: Engine,
    variant: str,
    part: str,
    cache: Path,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a part of an engine's as `run_steps` does, and return its exit code; it has said why it is not 0."""
    steps = _steps(engine, part)
    python = steps_python(engine, variant, steps, cache)
    command = [str(python), START, steps.module, *map(str, arguments)]
    inherited, _ = split_environment(os.environ)
    whole = inherited | {"PYTHONNOUSERSITE": "1", "PYTHONHASHSEED": "0"} | dict(environment or {})
    return subprocess.run(command, env=whole, stdout=subprocess.DEVNULL, check=False).returncode
