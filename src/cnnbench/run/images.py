"""Plan and make a workload's container images: what each is made of, in which order, and what it says it holds.

The Dockerfiles know how an image is made; here is which one, with which arguments, out of which files. Each build gets
a context of its own with only the files that its Dockerfile copies, so that a data set of gigabytes is sent for one
or two images and not for all, whichever builder the engine has.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

from cnnbench.base.cache import digest_file
from cnnbench.base.checkout import PACKAGE, REPOSITORY
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.progress import bytes_text
from cnnbench.cases.artefacts import load_artefacts
from cnnbench.cases.parameters import SERVING
from cnnbench.cases.workload import Workload
from cnnbench.engines.registry import Steps, engines, find_engine
from cnnbench.inputs import procedural
from cnnbench.inputs.networks import EMBEDDED
from cnnbench.launch.container import run_engine
from cnnbench.staging.environments import LOADGEN, PERF_ANALYZER, TRITON_CLIENT, TRITON_SERVER, lock_path
from cnnbench.staging.inputs import IMAGENET_ARTEFACTS, digest_sources

DATASET_SOURCES = ("embedded", "local", "url")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")

REVISION_LABEL = "org.opencontainers.image.revision"
"""Label of an image: the commit that it was made from."""

SOURCES_LABEL = "cnnbench.sources"
"""Label of an image: a digest of the program in it."""

GRAMINE_LABEL = "cnnbench.gramine"
"""Label of an image that cases run in enclaves in: the version of Gramine that it has, or NO_GRAMINE."""
NO_GRAMINE = "none"

CONTROLLER_LOCKS = ("installer", "controller")
"""The lock files of the environment that every image has, by name."""

IMAGE_PYTHON = {"python_version": "3.11", "python_full_version": "3.11.2"}
"""The Python of Debian 12, which the images have."""

_PACKAGE = ("native", "src", "requirements", "workload/platforms")


@dataclass(frozen=True)
class ImageOptions:
    """How a user wants the images.

    `registry`: what comes before each name, such as `host:5000`; empty for none. `release`: the tag. `base_image`: in
    place of the Dockerfile's own. `dataset_from`: embedded, local or url. `models`: names of artefacts, separated by
    spaces. `gramine`: the version of its Debian package, none to go without. `more_variants`: builds of the engine to
    have besides those that every image has. `engines`: those to have, separated by spaces; where a
    workload runs on none of them, all that it runs on.
    """

    registry: str = ""
    release: str = "latest"
    base_image: str = ""
    dataset_from: str = "embedded"
    models: str = ""
    gramine: str = NO_GRAMINE
    more_variants: str = ""
    engines: str = ""

    def reference(self, name: str) -> str:
        """Return an image's full name."""
        return f"{self.registry}/{name}:{self.release}" if self.registry else f"{name}:{self.release}"

    def choose_environments(self, workload: Workload) -> dict[str, str]:
        """Return where else there are packages of the environments that a workload's images have, by their locks."""
        more = self.more_variants.split()
        chosen = [engine for engine in workload.engines if engine in self.engines.split()]
        builds = (build for engine in chosen or workload.engines for build in find_engine(engine).builds)
        found = {build.lock: build.index for build in builds if build.in_images or build.name in more}
        if "SCENARIO" in workload.parameters:
            found[LOADGEN] = ""
        if workload.function == SERVING:
            found |= dict.fromkeys((TRITON_SERVER, TRITON_CLIENT, PERF_ANALYZER), "")
        return found

    def check(self) -> None:
        """Raise UsageError for what no image could be named or made with."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", self.release):
            raise UsageError(f"RELEASE={self.release}: must be a tag: letters, digits, _ . and -, at most 128 of them")
        if self.registry and not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*", self.registry):
            raise UsageError(
                f"REGISTRY={self.registry}: must be a host, with a port or path if need be: host:5000/team"
            )
        if self.dataset_from not in DATASET_SOURCES:
            raise UsageError(f"DATASET_FROM={self.dataset_from}: must be one of {', '.join(DATASET_SOURCES)}")
        if self.gramine != NO_GRAMINE and not re.fullmatch(r"[0-9][A-Za-z0-9.+~-]*", self.gramine):
            raise UsageError(
                f"GRAMINE={self.gramine}: must be the version of a Debian package, such as 1.7, or {NO_GRAMINE}"
            )
        builds = list(dict.fromkeys(build.name for engine in engines().values() for build in engine.builds))
        if unknown := [name for name in self.more_variants.split() if name not in builds]:
            raise UsageError(
                f"MORE_VARIANTS={self.more_variants}: {unknown[0]} is not known; there are {', '.join(builds)}"
            )
        if unknown := [name for name in self.engines.split() if name not in engines()]:
            raise UsageError(f"ENGINES={self.engines}: {unknown[0]} is not known; there are {', '.join(engines())}")
        known = load_artefacts()
        if unknown := [name for name in self.models.split() if name not in known]:
            raise UsageError(f"MODELS={self.models}: {unknown[0]} is not known; there are {', '.join(known)}")


@dataclass(frozen=True)
class ImageBuild:
    """One image to make. `role`: what it is to its workload. `context`: the files it is made of, relative to
    REPOSITORY."""

    role: str
    reference: str
    dockerfile: str
    target: str
    context: tuple[str, ...]
    arguments: Mapping[str, str]
    needs: tuple[str, ...] = ()


def inference_image(workload: Workload, data_type: str, sgx: bool, options: ImageOptions) -> str:
    """Return the name of the image that a case runs in."""
    if workload.images is None:
        raise UsageError(
            f"{workload.name}: declares no images in its workload.yaml, so it runs with BACKEND=native only"
        )
    role = "sgx" if sgx else "real" if data_type == "real" else "dummy"
    return options.reference(f"{workload.images.inference}-{role}")


def plan_images(directory: Path, workload: Workload, options: ImageOptions) -> dict[str, ImageBuild]:
    """Return the images of a workload by role, each after those it is made of.

    `directory`: the workload's, in REPOSITORY/workload. An engine without models has `benchmark` and `dummy` only.
    Networks are prepared in the containers, so theirs have no `model`; nor do they run in enclaves.
    """
    options.check()
    dummy = inference_image(workload, "dummy", False, options)
    assert workload.images is not None
    engine, own = find_engine(workload.engine), f"workload/{directory.name}"
    name = {
        "benchmark": options.reference(f"{workload.images.parts}-benchmark"),
        "inference-dataset": options.reference(f"{workload.images.parts}-inference-dataset"),
        "model": options.reference(f"{workload.images.parts}-model"),
        "dummy": dummy,
        "real": inference_image(workload, "real", False, options),
        "sgx": inference_image(workload, "real", True, options),
    }
    parts = {
        "BENCHMARK_IMAGE": name["benchmark"],
        "DATASET_IMAGE": name["inference-dataset"],
        "MODEL_IMAGE": name["model"],
    }
    base = {"BASE_IMAGE": options.base_image} if options.base_image else {}
    staging = {"DATASET_FROM": options.dataset_from}
    chosen = options.choose_environments(workload).items()
    environments = [f"{lock}={index}" if index else lock for lock, index in chosen]
    dataset = ("dataset",) if options.dataset_from == "local" else ("dataset/README.md",)
    builds = [
        ImageBuild(
            "benchmark",
            name["benchmark"],
            "Dockerfile.2.benchmark",
            "",
            _PACKAGE,
            base | {"ENVIRONMENTS": " ".join(environments)},
        )
    ]
    of_cases, used = ["dummy"], ["BENCHMARK_IMAGE"]
    if engine.has_model:
        of_cases, used = ["dummy", "real"], ["BENCHMARK_IMAGE", "DATASET_IMAGE"]
        builds.append(
            ImageBuild(
                "inference-dataset",
                name["inference-dataset"],
                "Dockerfile.3.inference-dataset",
                "",
                dataset,
                {"BENCHMARK_IMAGE": name["benchmark"]} | staging,
                needs=("benchmark",),
            )
        )
    if engine.prepares_graphs:
        builds.append(
            ImageBuild(
                "model",
                name["model"],
                "Dockerfile.1.model",
                "",
                dataset,
                {key: parts[key] for key in used} | staging | {"ENGINE": workload.engine, "MODELS": options.models},
                needs=("inference-dataset",),
            )
        )
        of_cases, used = ["dummy", "real", "sgx"], list(parts)
    before = builds[-1].role
    for role in of_cases:
        arguments = {key: parts[key] for key in used}
        if role == "sgx":
            arguments = arguments | {"GRAMINE": options.gramine}
        builds.append(ImageBuild(role, name[role], f"{own}/Dockerfile", role, (own,), arguments, needs=(before,)))
        before = role
    return {build.role: build for build in builds}


def build_command(
    build: ImageBuild, cli: Sequence[str], labels: Mapping[str, str], context: Path, extra: Sequence[str] = ()
) -> list[str]:
    """Return the command that makes an image out of a context directory; `extra` are options of the user's."""
    proxies = [name for name in (*PROXIES, *map(str.lower, PROXIES)) if os.environ.get(name)]
    return [
        *(*cli, "build", "--force-rm", "--file", str(context / build.dockerfile), "--tag", build.reference),
        *(["--target", build.target] if build.target else []),
        *(word for name, value in build.arguments.items() for word in ("--build-arg", f"{name}={value}")),
        *(word for name in proxies for word in ("--build-arg", name)),
        *(word for name, value in labels.items() for word in ("--label", f"{name}={value}")),
        *extra,
        str(context),
    ]


def build_image(
    build: ImageBuild, cli: Sequence[str], labels: Mapping[str, str], log: Path, extra: Sequence[str] = ()
) -> str:
    """Make an image, with the engine's output in a file; return a line about it. Raise CnnbenchError when it fails."""
    run_engine([*cli, "version"])  # which says so when there is none
    began_s = time.monotonic()
    context = log.with_name(f"context-{build.role}")
    shutil.rmtree(context, ignore_errors=True)
    try:
        for path in build.context:
            _place(REPOSITORY / path, context / path)
        if not (context / build.dockerfile).exists():
            _place(REPOSITORY / build.dockerfile, context / build.dockerfile)
        command = build_command(build, cli, labels, context, extra)
        with log.open("w") as output:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    finally:
        shutil.rmtree(context, ignore_errors=True)
    if done.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
        raise CnnbenchError(f"building {build.reference} failed with exit code {done.returncode}:\n{last}\nlog: {log}")
    size = run_engine([*cli, "image", "inspect", "--format", "{{.Size}}", build.reference])
    return f"{build.reference}: {bytes_text(int(size))}, {time.monotonic() - began_s:.0f} s"


def _place(source: Path, destination: Path) -> None:
    """Put a file or directory into a context, by hard links where the file system has them."""

    def link(file: str, copy: str) -> None:
        try:
            os.link(os.path.realpath(file), copy)  # a symbolic link would lead out of the context
        except OSError:  # another file system, or files of another user
            shutil.copy2(file, copy)

    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(
            source, destination, copy_function=link, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    else:
        link(str(source), str(destination))


@dataclass(frozen=True)
class BillOfMaterials:
    """What the images of a workload hold: the base image, Debian's packages, Python's by lock file, and artefacts."""

    base_image: str
    debian: Mapping[str, str]
    python: Mapping[str, Mapping[str, str]]
    artefacts: Mapping[str, str]

    def lines(self) -> list[str]:
        """Return it as text for people."""
        return [
            f"base image: {self.base_image}",
            *(f"debian: {name} {number}" for name, number in self.debian.items()),
            *(
                f"{lock}: {name} {number}"
                for lock, packages in self.python.items()
                for name, number in packages.items()
            ),
            *(f"artefact: {name} {digest}" for name, digest in self.artefacts.items()),
        ]


def bill_of_materials(workload: Workload, options: ImageOptions) -> BillOfMaterials:
    """Collect it from what the Dockerfiles, lock files and artefact manifest pin, as far as the options have it."""
    benchmark = (REPOSITORY / "Dockerfile.2.benchmark").read_text()
    (default,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", benchmark, re.MULTILINE)
    _, _, last_stage = benchmark.rpartition("\nFROM ")  # the one before has a compiler, which the images have not
    (installed,) = re.findall(r"apt-get install (.*)", last_stage)
    gramine = {} if options.gramine == NO_GRAMINE else {"gramine": options.gramine}
    engine = find_engine(workload.engine)
    locks = [lock_path(name) for name in (*CONTROLLER_LOCKS, *options.choose_environments(workload))]
    return BillOfMaterials(
        base_image=options.base_image or default,
        debian=dict(re.findall(r"(\S+)=(\S+)", installed)) | gramine,
        python={lock.name: _pinned(lock) for lock in locks},
        artefacts=_artefacts(options, workload.engine) if engine.has_model else {},
    )


def _artefacts(options: ImageOptions, engine: str) -> dict[str, str]:
    """Return the checksums of what is staged in the images; of what is made there, those of what makes it."""
    made = {procedural.SEED: _made_from(Steps("", ("inputs/procedural.py",)))}
    chosen = [] if options.dataset_from == "embedded" else list(IMAGENET_ARTEFACTS)
    known, of_graphs = load_artefacts(), find_engine(engine)
    if of_graphs.prepares_graphs:
        chosen = options.models.split() + chosen
    if of_graphs.embeds:
        made[f"{EMBEDDED}-embedded"] = _made_from(of_graphs.embeds)
    if of_graphs.quantizes_graphs:
        quantizer = lock_path(of_graphs.quantizes_graphs.lock)
        made["int8 graphs"] = f"made with {quantizer.name} sha256:{digest_file(quantizer)}"
    return made | {
        name: " ".join(f"{kind}:{value}" for kind in ("sha256", "md5") if (value := getattr(known[name], kind)))
        for name in chosen
    }


def _made_from(steps: Steps) -> str:
    return f"made from sources:{digest_sources(steps)}"


def _pinned(lock: Path) -> dict[str, str]:
    """Return the packages that a lock file installs with the images' Python, and their versions."""
    words = [line.removesuffix("\\") for line in lock.read_text().splitlines() if re.match("[A-Za-z0-9]", line)]
    chosen = [one for one in map(Requirement, words) if one.marker is None or one.marker.evaluate(IMAGE_PYTHON)]
    return {one.name: str(one.specifier).removeprefix("==") for one in chosen}


def image_labels(workload: Workload, build: ImageBuild, bill: BillOfMaterials) -> dict[str, str]:
    """Return an image's labels: the standard annotations of OCI, and the bill of materials as JSON."""
    standard = "org.opencontainers.image"
    return {
        f"{standard}.title": f"{workload.title}: {build.role}",
        f"{standard}.version": version("cnnbench"),
        REVISION_LABEL: _revision(),
        SOURCES_LABEL: digest_package(),
        f"{standard}.base.name": bill.base_image,
        "cnnbench.workload": workload.name,
        "cnnbench.bom": json.dumps(vars(bill), separators=(",", ":")),
    }


def digest_package() -> str:
    """Return a digest of this program's sources."""
    package = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml"))
    files = [*package, *(REPOSITORY / "native").glob("*.c")]
    return digest_sources(Steps("", tuple(path.relative_to(REPOSITORY).as_posix() for path in files)), REPOSITORY)


def _revision() -> str:
    """Return the commit, with `-dirty` when files differ from it; `unknown` outside a git checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
