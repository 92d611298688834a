"""Start a worker in an SGX enclave of its own with Gramine: size the enclave, render its manifest, name the commands.

Gramine's examples are Jinja2 templates. Ours only has values to fill in, for which the standard library's Template
does; `_quote` makes a TOML string of each, so that no file's name can break out of it.
"""

import json
import re
import shutil
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from cnnbench.base.checkout import SOURCES
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.precisions import Precision
from cnnbench.launch.local import worker_command
from cnnbench.launch.trusted import TrustedFile
from cnnbench.results.steps import StepTimes
from cnnbench.worker.spec import WorkerSpec

GRAMINE = Path("/usr/lib/x86_64-linux-gnu/gramine")
"""Where Gramine's packages put its libraries."""
LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/local/lib"))
"""Where the dynamic linker finds the image's shared libraries."""

GIB, MIB = 1 << 30, 1 << 20
STACK_BYTES = 8 * MIB

GRAMINE_THREADS = 4
"""Gramine's own: inter-process communication, timers, the TLS handshakes of pipes, and one in reserve."""
FRAMEWORK_THREADS = 12
"""The main thread and TensorFlow's helpers; 3 (stock) and 4 (ITEX) were counted."""

MODEL_KEY = "model"
WRAP_KEY_BYTES = 16

ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - the enclave's own, in its memory
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "4",  # each arena of glibc's takes 64 to 128 MiB of an enclave's address space
}


@dataclass(frozen=True)
class Enclave:
    """How large an enclave is and how many threads it can hold at a time, Gramine's own included."""

    size_bytes: int
    max_threads: int


@dataclass(frozen=True)
class EnclaveWorker:
    """One worker that is to run in an enclave.

    `environment`: what the engine needs, and nothing of the caller's. `roots`: the directories that it runs on.
    `trusted`: the files of these, the shared libraries and `inputs`. `wrap_key`: the file of the key that the spec's
    model is encrypted with; None for a plain model. The directories `instance-<index>` of its logs must be there
    before it starts.
    """

    spec: WorkerSpec
    spec_file: Path
    python: Path
    environment: Mapping[str, str]
    precision: Precision
    roots: Sequence[Path]
    trusted: Sequence[TrustedFile] = field(repr=False)
    wrap_key: Path | None = None

    @property
    def inputs(self) -> list[Path]:
        """The files that it trusts besides its roots: its spec, the images to check and a plain model."""
        model = "" if self.wrap_key else self.spec.model
        return [self.spec_file, *(Path(path) for path in (self.spec.check_images, model) if path)]


def plan_enclave(cores: Sequence[int], batch_size: int, model_bytes: int) -> Enclave:
    """Return the enclave that a worker needs whose instances have so many cores each.

    Threads: Gramine's, the framework's, one for each instance, and for each core one of the intra-op pool, one of
    OpenMP's or ITEX's, and one that decodes. Size, rounded up to a power of two as SGX demands: 2 GiB (Python and the
    framework, whose libraries are read in whole: 0.7 GiB; glibc's arenas; Gramine) + 12 times the model (the copies
    that loading makes) + 16 MiB for an image of every instance's batch + a stack for every thread. Measured outside an
    enclave with ResNet50 (98 MiB), stock TensorFlow 2.21 and ITEX 2.15: mappings of 2.4 GiB at batch size 1 on
    one core, 12 MiB for each further image; 4 and 5 threads on one core, 19 and 36 on sixteen.
    """
    threads = GRAMINE_THREADS + FRAMEWORK_THREADS + len(cores) + 3 * sum(cores)
    images = batch_size * len(cores)
    needed = 2 * GIB + 12 * model_bytes + 16 * MIB * images + STACK_BYTES * threads
    return Enclave(1 << (needed - 1).bit_length(), threads)


def find_gramine() -> Path | None:
    """Return the directory of Gramine's libraries, beside that of the `gramine-sgx` on PATH; None without."""
    tool = shutil.which("gramine-sgx")
    return Path(tool).parents[1] / GRAMINE.relative_to("/usr") if tool else None


def worker_roots(python: Path, gramine: Path | None) -> list[Path]:
    """Return the directories that a worker runs on: its engine, the standard library, cnnbench, Gramine if it is here.

    The environment was made with this very interpreter, so its standard library is the engine's as well.
    """
    roots = [python.parents[1], Path(sysconfig.get_path("stdlib")), SOURCES]
    return roots if gramine is None else [*roots, gramine]


def unread_packages(python: Path) -> list[Path]:
    """Return the packages beside the standard library, which a Python of a virtual environment does not see."""
    packages = Path(sysconfig.get_path("stdlib"), "site-packages")
    return [] if python.parents[1] in packages.parents else [packages]


def render_manifest(
    template: str,
    worker: EnclaveWorker,
    enclave: Enclave,
    libraries: Sequence[Path] = LIBRARIES,
    gramine: Path = GRAMINE,
) -> str:
    """Return the manifest (TOML) of a worker; `gramine-sgx-sign` makes of it what runs.

    Raises UsageError for a wrap key that is none, and CnnbenchError for a path that TOML cannot hold.
    """
    spec = worker.spec
    search_path = ":".join(["/lib", *map(str, libraries)])
    environment = {"LD_LIBRARY_PATH": search_path, **ENVIRONMENT, **worker.environment}
    images = sorted({Path(file).parent for instance in spec.instances for file in instance.files})
    results = [Path(spec.logs, f"instance-{instance.index}") for instance in spec.instances]
    visible = [*worker.roots, *libraries, *worker.inputs, *images, Path(spec.logs)]
    mounts = [_mount(path) for path in _outermost(visible)]
    keys = ""
    if worker.wrap_key is not None:
        mounts.append(_mount(Path(spec.model), type="encrypted", key_name=MODEL_KEY))
        keys = f"\nfs.insecure__keys.{MODEL_KEY} = {_quote(read_wrap_key(worker.wrap_key))}\n"
    allowed = [*map(_uri, [*images, *results]), *(_uri(file, "dev") for file in _shared_files(spec))]
    trusted = [_table({"uri": f"file:{file.path}", "sha256": file.sha256}) for file in worker.trusted]
    return Template(template).substitute(
        libos=_uri(gramine / "libsysdb.so"),
        runtime=_uri(gramine / "runtime" / "glibc"),
        python=_quote(str(worker.python)),
        argv=f"[{', '.join(map(_quote, worker_command(worker.python, worker.spec_file)))}]",
        environment=_table(environment),
        stack_size=_quote(_size(STACK_BYTES)),
        mounts=_items(mounts),
        shared=_quote(spec.shared),
        shared_uri=_uri(Path(spec.shared), "dev"),
        keys=keys,
        enclave_size=_quote(_size(enclave.size_bytes)),
        max_threads=enclave.max_threads,
        cpu_features=_table(dict.fromkeys(_required_features(worker.precision), "required")),
        allowed_files=_items(allowed),
        trusted_files=_items(trusted),
    )


def read_wrap_key(path: Path) -> str:
    """Return the key in a wrap key file, in hexadecimal; raise UsageError when it is not one."""
    key = path.read_bytes() if path.is_file() else b""
    if len(key) != WRAP_KEY_BYTES:
        raise UsageError(
            f"WRAP_KEY={path}: found {len(key)} bytes, needed {WRAP_KEY_BYTES}: make a key with "
            "`gramine-sgx-pf-crypt gen-key`"
        )
    return key.hex()


def enclave_command(application: Path, cpus: Iterable[int]) -> list[str]:
    """Return the command that starts the enclave whose signed manifest is `<application>.manifest.sgx`.

    What a worker does for itself elsewhere is done for it from outside: it is killed when its parent dies, and all its
    threads, Gramine's included, belong to its CPUs from the beginning.
    """
    places = ",".join(map(str, sorted(cpus)))
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("taskset", "--cpu-list", places),
        *("gramine-sgx", str(application)),
    ]


def key_command(key: Path) -> list[str]:
    """Return the command that makes a key to sign enclaves with."""
    return ["gramine-sgx-gen-private-key", str(key)]


def sign_command(application: Path, key: Path) -> list[str]:
    """Return the command that signs `<application>.manifest`, making `.manifest.sgx` and `.sig` beside it."""
    manifest = f"{application}.manifest"
    outputs = ["--output", f"{manifest}.sgx", "--sigfile", f"{application}.sig"]
    return ["gramine-sgx-sign", "--quiet", "--key", str(key), "--manifest", manifest, *outputs]


def encrypt_command(wrap_key: Path, plain: Path, encrypted: Path) -> list[str]:
    """Return the command that encrypts a file; its new path goes into it, and it opens under no other."""
    paths = ["--wrap-key", str(wrap_key), "--input", str(plain), "--output", str(encrypted)]
    return ["gramine-sgx-pf-crypt", "encrypt", *paths]


def _required_features(precision: Precision) -> list[str]:
    """Return the CPU features without which the enclave must not start, as the precision cannot do without."""
    return [
        feature
        for feature in ("avx512", "amx")
        if all(any(flag.startswith(feature) for flag in flags) for flags in precision.flags)
    ]


def _shared_files(spec: WorkerSpec) -> list[Path]:
    """Return the files that controller and worker share: Gramine wants each one named."""
    shared = Path(spec.shared)
    return [shared / "control", *(StepTimes.path(shared, instance.index) for instance in spec.instances)]


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that lie below none of the others, each once."""
    distinct = list(dict.fromkeys(paths))
    return [path for path in distinct if not any(other in path.parents for other in distinct)]


def _mount(path: Path, **options: str) -> str:
    """Return the mount of a path of the host at the same path in the enclave."""
    return _table({**options, "path": str(path), "uri": f"file:{path}"})


def _uri(path: Path, kind: str = "file") -> str:
    return _quote(f"{kind}:{path}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB}M"


def _items(values: Iterable[str]) -> str:
    return "\n  ".join(f"{value}," for value in values)


def _table(values: Mapping[str, str]) -> str:
    """Return an inline table of strings."""
    keys = [name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quote(name) for name in values]
    pairs = [f"{key} = {_quote(value)}" for key, value in zip(keys, values.values(), strict=True)]
    return f"{{ {', '.join(pairs)} }}" if pairs else "{}"


def _quote(text: str) -> str:
    """Return a TOML string: JSON's, but that TOML knows no surrogates and wants the delete character escaped."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CnnbenchError(f"{text!r}: not UTF-8, which a Gramine manifest must be; rename the file") from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
