"""`cnnbench stage`: models and images brought into the cache, or what is there verified."""

import argparse
import os
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import UsageError
from cnnbench.cases.artefacts import find_artefact, load_artefacts
from cnnbench.engines.builds import choose_build
from cnnbench.engines.registry import AUTO, Engine, find_part
from cnnbench.inputs import procedural
from cnnbench.inputs.networks import EMBEDDED
from cnnbench.machine.host import read_cpuinfo
from cnnbench.run.inputs import stage_engine, stage_inputs
from cnnbench.run.job import plan_case, prepare_job
from cnnbench.staging.inputs import (
    fit_embedded_model,
    stage_embedded_model,
    stage_imagenet_set,
    stage_procedural,
    verify_embedded_model,
    verify_imagenet_set,
    verify_procedural,
)
from cnnbench.staging.stage import stage_artefact, verify_artefact

MADE_HERE = ("procedural", EMBEDDED)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: what the embedded workload needs")
    parser.add_argument("--list", action="store_true", help="list what can be staged")
    parser.add_argument("--from", dest="source", type=Path, help="take this file, or the one in this directory")
    parser.add_argument("--sha256", help="the digest to expect, for an artefact whose manifest has none")
    parser.add_argument(
        "--verify", action="store_true", help="stage nothing, but read every byte of what is staged again"
    )
    parser.add_argument(
        "--fit",
        type=Path,
        metavar="DIRECTORY",
        help=f"fit the embedded {EMBEDDED} to the drawn images again, which takes minutes; for maintainers",
    )
    parser.add_argument("--engine", help="besides, prepare the models of this engine for the image sets staged")
    parser.add_argument("--workload", type=Path, metavar="DIRECTORY", help="whose the cases are")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="besides, make all that it reads")


def run(arguments: argparse.Namespace) -> int:
    """Stage or verify what is named, and print where it is."""
    cache, artefacts = cache_root(os.environ), load_artefacts()
    if arguments.list:
        for name in (*MADE_HERE, "imagenet"):
            print(f"{name}: made on this machine")
        for name, artefact in artefacts.items():
            print(f"{name}: {artefact.url}")
        return 0
    if arguments.verify and (arguments.source or arguments.engine or arguments.case):
        raise UsageError("--verify reads what is staged and stages nothing: leave --from, --engine and --case out")
    if bool(arguments.case) != bool(arguments.workload):
        raise UsageError("--case NAME is of a --workload DIRECTORY: give both")
    if arguments.fit:
        if arguments.names or arguments.verify or arguments.engine:
            raise UsageError(
                f"--fit {arguments.fit}: makes what the sources keep and stages nothing; leave names, --verify and "
                "--engine out"
            )
        engine = find_part("embeds")
        print(fit_embedded_model(engine, _build_of(engine), cache, arguments.fit))
        return 0
    names = arguments.names or ([] if arguments.engine or arguments.case else list(MADE_HERE))
    if (arguments.source or arguments.sha256) and len(names) != 1:
        raise UsageError("--from and --sha256 are for one NAME at a time")
    for name in names:
        if arguments.source and name in MADE_HERE:
            raise UsageError(f"--from {arguments.source}: {name} is made on this machine and takes no file")
        if arguments.verify:
            print(f"{name}: {_verify(name, arguments.sha256, cache)}")
        else:
            print(f"{name}: {_stage(name, arguments.source, arguments.sha256, cache)}")
    if arguments.engine:
        stage_engine(arguments.engine, read_cpuinfo(), cache)
    for case in arguments.case:
        job = prepare_job(plan_case(arguments.workload.absolute(), case, os.environ, {}), os.environ)
        model = stage_inputs(job, cache).model
        print(f"{case}: {model.graph if model else 'reads no model'}")
    return 0


def _stage(name: str, source: Path | None, sha256: str | None, cache: Path) -> Path:
    if name == "procedural":
        return [stage_procedural(part, cache).root for part in procedural.IMAGES_PER_CLASS][-1]
    if name == EMBEDDED:
        engine = find_part("embeds")
        return stage_embedded_model(engine, _build_of(engine), cache)
    if name == "imagenet":
        variant = _build_of(find_part("reads_shards")) if source else ""
        return stage_imagenet_set(cache, source, variant).root
    artefact = find_artefact(name)
    if source and source.is_dir():
        source = source / artefact.file_name
    return stage_artefact(artefact, cache, source, sha256)


def _verify(name: str, sha256: str | None, cache: Path) -> Path:
    if name == "procedural":
        return [verify_procedural(part, cache).root for part in procedural.IMAGES_PER_CLASS][-1]
    if name == EMBEDDED:
        return verify_embedded_model(find_part("embeds"), cache)
    if name == "imagenet":
        return verify_imagenet_set(cache).root
    return verify_artefact(find_artefact(name), cache, sha256)


def _build_of(engine: Engine) -> str:
    return choose_build(engine, AUTO, read_cpuinfo())
