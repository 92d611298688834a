"""Stage what a job reads: the environment of its engine, the images, the model made ready."""

import dataclasses
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cases.artefacts import load_artefacts
from cnnbench.engines.builds import choose_build, network_builder
from cnnbench.engines.exported import Asked, is_export
from cnnbench.engines.registry import AUTO, Engine, find_engine, find_part
from cnnbench.inputs.image_set import ImageSet
from cnnbench.machine.host import CpuInfo
from cnnbench.run.job import Job, given_model, graph_quantizer_obstacle
from cnnbench.staging.environments import (
    LOADGEN,
    RANKS,
    engine_python,
    environment_path,
    locked_python,
    require_environment,
)
from cnnbench.staging.inputs import (
    PreparedModel,
    find_check_set,
    find_image_set,
    imagenet_path,
    predict_images,
    prepare_model,
    quantize_model,
    stage_embedded_model,
)
from cnnbench.staging.networks import (
    Compiler,
    adopt_network,
    chosen_batch,
    chosen_conversion,
    compile_network,
    convert_network,
    predict_adopted,
    predict_network,
    prepare_network,
    quantize_network,
    take_export,
)
from cnnbench.staging.sampler import NO_SAMPLER, Sampler, stage_sampler
from cnnbench.staging.stage import staged_path


@dataclass(frozen=True)
class Inputs:
    """What a job reads: the engine's Python, the images and the model; no images for dummy data, no model for null.

    `ranks_python`: what runs MPI's ranks; None without MPI. `sampler`: what samples the instances. `loadgen`: the
    directory that LoadGen is imported from; None where it sends nothing.
    """

    python: Path
    images: ImageSet | None
    model: PreparedModel | None
    ranks_python: Path | None = None
    sampler: Sampler = NO_SAMPLER
    loadgen: Path | None = None


NOTHING_STAGED = Inputs(Path(), None, None)
"""The inputs of a run that ends before it has any."""


def stage_inputs(job: Job, cache: Path, *, in_image: bool = False) -> Inputs:
    """Make or find everything a job reads; what is there already costs next to nothing.

    `in_image`: whether this is a container, which has the environments that it was made with and can get no others.
    """
    for engine, variant in _list_builds(job) if in_image else ():
        require_environment(engine, variant, cache)
    inputs = _stage_for_engine(job, cache, in_image=in_image)
    ranks_python = locked_python(RANKS, cache) if job.ranks else None
    loadgen = _find_packages(locked_python(LOADGEN, cache)) if job.parameters.scenario else None
    return dataclasses.replace(
        inputs, ranks_python=ranks_python, sampler=stage_sampler(job.sampler, cache), loadgen=loadgen
    )


def _find_packages(python: Path) -> Path:
    """Return the directory of an environment's packages."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    return packages


def _list_builds(job: Job) -> list[tuple[Engine, str]]:
    """Return the builds of engines that a job is staged and measured with."""
    file, maker = job.parameters.network_file, find_part("builds_networks")
    builds = [(job.engine, job.variant)]
    if job.engine.takes == "network" and not file:
        builds.append((maker, network_builder(job.precision.on_gpu).name))
    elif file and not is_export(Path(file)):
        maker = find_part("handles_files")
        builds.append((maker, maker.builds[0].name))
    return builds


def _stage_for_engine(job: Job, cache: Path, *, in_image: bool) -> Inputs:
    engine, variant, python = job.engine, job.variant, engine_python(job.engine, job.variant, cache)
    if not engine.has_model:
        return Inputs(python, None, None)
    images = find_image_set(job.parameters.dataset, cache) if job.parameters.data_type == "real" else None
    check_set = images.root if images else find_check_set(cache)
    if engine.takes == "network":
        builder = network_builder(job.precision.on_gpu).name
        network = _take_network(job, engine, check_set, builder, cache)
        compiled = network.compiled is not None
        compared = network.held_as == "fp32" and not job.precision.is_float32  # a file held otherwise has no other
        if images and job.parameters.mode == "accuracy" and compared:
            if job.parameters.network_file:
                network = predict_adopted(network, images.root, cache)
            else:
                network = predict_network(network, images.root, builder, cache)
        conversion = None if compiled else chosen_conversion(job.parameters, job.precision)
        if conversion and (conversion.pad_channels or network.held_as != conversion.number_type):
            network = convert_network(network, conversion, cache)
        if job.precision.is_int8 and not compiled:
            network = quantize_network(network, cache)
        if not compiled and (engine.ahead_of_time or job.parameters.ahead_of_time):
            network = compile_network(network, _compiler_of(job, cache), _asked_of(job, network), cache)
        return Inputs(python, images, network)
    model = prepare_model(_find_model(job, cache), check_set, engine, variant, cache)
    if job.precision.is_int8 and not model.quantized:
        model = quantize_model(model, engine, variant, cache, in_image=in_image)
    elif model.quantized and not job.precision.is_int8:
        raise UsageError(
            f"MODEL={job.parameters.model}: is quantised to int8 and cannot be measured as {job.precision.name}; give "
            "the float32 graph, or choose an int8 case"
        )
    if images and job.parameters.mode == "accuracy" and not model.quantized and not job.precision.is_float32:
        model = predict_images(model, images.root, engine, variant, cache)
    return Inputs(python, images, model)


def _take_network(job: Job, engine: Engine, check_set: Path, builder: str, cache: Path) -> PreparedModel:
    """Return the network of a case: built, or a user's file; raise UsageError for one that is held otherwise."""
    file = job.parameters.network_file
    if not file:
        return prepare_network(job.parameters, engine, job.options, check_set, builder, cache)
    if is_export(Path(file)):
        network = take_export(Path(file))
        assert network.compiled is not None
        made_by, asked = network.compiled.engine, network.compiled.asked
        if made_by != engine.name:
            raise UsageError(f"NETWORK_FILE={file}: is what {made_by} loads, and not ENGINE={engine.name}")
        if (asked.number_type, asked.held_as) != (job.precision.data_type, _held_as(job, network)):
            raise UsageError(
                f"NETWORK_FILE={file}: was compiled for {asked.number_type}, weights in {asked.held_as}, and cannot be "
                f"measured as {job.precision.name}; choose a case of that precision, or compile it again"
            )
        if job.parameters.pad_conv_channel:
            raise UsageError(f"PAD_CONV_CHANNEL=True: NETWORK_FILE={file} is compiled already; leave it out")
        return network
    network = adopt_network(Path(file), check_set, cache)
    if network.held_as not in ("fp32", job.precision.held_as):
        raise UsageError(
            f"NETWORK_FILE={file}: is held in {network.held_as} and cannot be measured as {job.precision.name}; give "
            "the float32 file, or choose a case of that precision"
        )
    return network


def _held_as(job: Job, network: PreparedModel) -> str:
    """Return what a job's network has its weights in, as it is measured."""
    return job.precision.held_as or ("int8" if job.precision.is_int8 else network.held_as)


def _compiler_of(job: Job, cache: Path) -> Compiler:
    kept = getattr(job.options, "model_cache_path", "") or cache / "compiled"
    own = {
        name: value
        for name, value in job.environment.items()
        if os.environ.get(name) != value and not value.startswith(str(kept))  # where work is kept decides nothing
    }
    return Compiler(job.engine, job.variant, own, Path(kept))


def _asked_of(job: Job, network: PreparedModel) -> Asked:
    """Return how a job has its network compiled ahead of time."""
    p = job.parameters
    return Asked(
        batch=chosen_batch(p),
        number_type=job.precision.data_type,
        held_as=_held_as(job, network),
        threads=max(one.threads for one in job.plan.instances),
        replaceable=p.replaceable_weights,
        tuned=p.max_autotune,
    )


def stage_engine(name: str, cpu: CpuInfo, cache: Path, *, int8: bool = True) -> None:
    """Stage what an engine's cases read unless told otherwise, and prepare its models for every image set staged.

    With `int8` they are quantised for each build that is installed, whatever this CPU has, as an image may run on
    another; where this Python cannot, a line says so. What the float32 model answers to the drawn images is recorded
    with it; to ImageNet's only when it is needed, as that takes long.
    """
    engine = find_engine(name)
    if not engine.has_model:
        return
    if engine.takes == "network":  # networks are prepared when a case is first run, each for itself
        makers = [find_part("builds_networks"), *([find_part("quantizes_networks")] if int8 and engine.int8 else [])]
        makers += [find_part("converts_networks")] if engine.reads_onnx else []
        for one in (engine, *makers):
            engine_python(one, choose_build(one, AUTO, cpu), cache)
        return
    chosen = choose_build(engine, AUTO, cpu)
    engine_python(engine, chosen, cache)
    builds = [one for one in engine.builds if int8 and one.int8 and environment_path(one.lock, cache).is_dir()]
    if builds and (obstacle := graph_quantizer_obstacle(engine)):
        print(f"no int8 graph is made: {obstacle}", file=sys.stderr, flush=True)
        builds = []
    artefacts = (staged_path(artefact, cache) for artefact in load_artefacts().values())
    models = [stage_embedded_model(engine, chosen, cache), *(path for path in artefacts if path.suffix == ".pb")]
    drawn = find_check_set(cache)
    for model, check_set in itertools.product(models, (drawn, imagenet_path(cache))):
        if model.is_file() and check_set.is_dir():
            prepared = prepare_model(model, check_set, engine, chosen, cache)
            if prepared.quantized:
                continue
            for build in builds:
                quantize_model(prepared, engine, build.name, cache)
            if int8 and check_set == drawn:
                predict_images(prepared, check_set, engine, chosen, cache)


def _find_model(job: Job, cache: Path) -> Path:
    given = given_model(job.parameters.model, cache)
    return given or stage_embedded_model(job.engine, job.variant, cache)
