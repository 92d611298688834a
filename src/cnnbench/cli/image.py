"""`cnnbench image`: a workload's container images."""

import argparse
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.cli.options import add_container_options, container_cli, split_words
from cnnbench.launch.container import run_engine
from cnnbench.run.images import ImageOptions, bill_of_materials, build_image, image_labels, plan_images


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("action", choices=["list", "build", "push", "bom"])
    parser.add_argument("role", nargs="?", help="for build: which image; `list` has them")
    parser.add_argument("--workload", type=Path, required=True, help="the workload's directory")
    parser.add_argument("--log", type=Path, help="for build: the file for the engine's output")
    parser.add_argument("--base-image", default="", help="in place of the public one of the Dockerfile")
    parser.add_argument("--dataset-from", default="embedded", help="embedded, local (dataset/) or url")
    parser.add_argument("--models", default="", help="artefacts to have besides the embedded model")
    parser.add_argument("--build-options", default="", help="more options of the engine's build command")
    parser.add_argument("--gramine", default="none", help="version of the -sgx image's Gramine, such as 1.7")
    parser.add_argument("--more-variants", default="", help="builds of the engines besides those of every image")
    parser.add_argument("--engines", default="", help="the engines to have, not all that the cases may run on")
    add_container_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """List, make or push the images, or print their bill of materials."""
    workload, cli = load_workload(arguments.workload), container_cli(arguments)
    options = ImageOptions(
        registry=arguments.registry,
        release=arguments.release,
        base_image=arguments.base_image,
        dataset_from=arguments.dataset_from,
        models=arguments.models,
        gramine=arguments.gramine,
        more_variants=arguments.more_variants,
        engines=arguments.engines,
    )
    extra = split_words("--build-options", arguments.build_options)
    builds = plan_images(arguments.workload.absolute(), workload, options)
    if arguments.action == "list":
        for build in builds.values():
            print(" ".join([build.role, *build.needs]))
    elif arguments.action == "push":
        for build in builds.values():
            run_engine([*cli, "push", build.reference], timeout_s=None)
            print(f"pushed {build.reference}")
    elif arguments.action == "bom":
        print("\n".join([f"# {workload.name}", *bill_of_materials(workload, options).lines()]))
    else:
        if arguments.role not in builds or arguments.log is None:
            raise UsageError(f"image build {arguments.role}: needs a ROLE out of {', '.join(builds)}, and --log FILE")
        build = builds[arguments.role]
        labels = image_labels(workload, build, bill_of_materials(workload, options))
        print(build_image(build, cli, labels, arguments.log.absolute(), extra))
    return 0
