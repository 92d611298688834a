"""Know the peer engines: where each one's parts are, what it cannot do, and what it is measured with."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cnnbench.base.cache import digest_file, install_directory
from cnnbench.base.errors import CnnbenchError
from cnnbench.engines.registry import ENGINES
from cnnbench.launch.local import split_environment
from cnnbench.staging.environments import engine_python, lock_file
from cnnbench.staging.inputs import PreparedModel, find_check_set, prepare_model, stage_embedded_model, stage_procedural

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
PRODUCT = "cnnbench"
BATCH_SIZES = (1, 8, 16, 32)
"""The batch sizes that are tried with a peer."""


@dataclass(frozen=True)
class PeerEngine:
    """One engine to compare with.

    `environment`: engine and variant, as in the names of the lock files. `converts`: whether its module makes files of
    its own from the exported network, when run. `per_core`: whether throughput is measured with one process of one
    thread on each core; else one process has all cores and divides them itself. `refused`: why it has no such data
    type.
    """

    module: str
    environment: tuple[str, str]
    converts: bool
    per_core: bool
    refused: Mapping[str, str] = field(default_factory=dict)

    def python(self, cache: Path) -> Path:
        """Return its Python, making the environment on first use."""
        return engine_python(*self.environment, cache)


PEERS = {
    "openvino": PeerEngine(
        module="peer_openvino",
        environment=("peers", "openvino"),
        converts=True,
        per_core=False,
    ),
    "onnxruntime": PeerEngine(
        module="peer_onnxruntime",
        environment=("peers", "onnxruntime"),
        converts=True,
        per_core=True,
        refused={
            "bfloat16": "its CPU execution provider has no bfloat16 convolution",
            "bfloat32": "its CPU execution provider computes no float32 convolution in bfloat16 on x86",
        },
    ),
    "inductor": PeerEngine(
        module="peer_pytorch",
        environment=("peers", "pytorch"),
        converts=False,
        per_core=True,
    ),
    "tensorflow": PeerEngine(
        module="peer_tensorflow",
        environment=("tensorflow", "stock"),
        converts=False,
        per_core=True,
        refused={"int8": "TensorFlow as shipped has no quantiser that makes an int8 graph for CPUs"},
    ),
}


def stage_network(cache: Path) -> tuple[PreparedModel, Path]:
    """Return the embedded network with its reference answers, and the directory of what the peers are made from."""
    tensorflow = PEERS["tensorflow"]
    python, preparer = tensorflow.python(cache), ENGINES["tensorflow"].preparer
    model = stage_embedded_model(python, preparer, cache)
    calibration = stage_procedural("calibration", cache)
    prepared = prepare_model(model, find_check_set(cache), python, preparer, cache)
    key = f"{prepared.source_sha256} {calibration.sha256}"
    return prepared, _make(tensorflow, "exported", key, cache, model, calibration.root)


def stage_peer(engine: PeerEngine, exported: Path, cache: Path) -> Path:
    """Return the directory of what an engine reads, converting and quantising the network on first use."""
    if not engine.converts:
        return exported
    inputs = (exported / "model.pb", exported / "calibration.npy")
    return _make(engine, engine.module.removeprefix("peer_"), exported.name, cache, *inputs)


def _make(engine: PeerEngine, name: str, key: str, cache: Path, *inputs: Path) -> Path:
    """Have an engine's module fill a directory whose name tells from what, by which source and which versions."""
    script, lock = HERE / f"{engine.module}.py", lock_file(*engine.environment)
    digest = hashlib.sha256(f"{key} {digest_file(script)} {digest_file(lock)}".encode()).hexdigest()[:16]
    command = [str(engine.python(cache)), str(script), *(str(path) for path in inputs)]
    return install_directory(partial(_run, command), cache / "peers" / f"{name}-{digest}")


def _run(command: list[str], destination: Path) -> None:
    log = destination / "log.txt"
    with log.open("w") as output:
        words = [*command, str(destination)]
        done = subprocess.run(words, env=peer_environment(), stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise CnnbenchError(f"`{' '.join(words)}` failed with exit code {done.returncode}:\n{last}")


def peer_environment(data_type: str = "") -> dict[str, str]:
    """Return the caller's environment without what would change the measurement, and where our own modules are.

    With bfloat32, oneDNN is told to compute float32 numbers in bfloat16.
    """
    environment, _ = split_environment(os.environ)
    mode = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"} if data_type == "bfloat32" else {}
    return environment | {"PYTHONPATH": str(SOURCES), "PYTHONNOUSERSITE": "1"} | mode


def fairness_notes(mode: str) -> list[str]:
    """Say what each engine was given and what not, for the reader to judge how fair the comparison is."""
    sizes = ", ".join(map(str, BATCH_SIZES))
    single = ", ".join(name for name, engine in PEERS.items() if engine.per_core)
    given = {
        "throughput": [
            f"Batch sizes: the fastest of a pre-pass for the peers (tried: {sizes}); {PRODUCT}'s is a setting.",
            f"Instances: {single} as one process of one thread on each core; openvino as one process whose streams "
            f"and requests its THROUGHPUT hint chooses (in the version column); {PRODUCT} as set.",
        ],
        "latency": [f"Batch size 1, one process with all of the measured cores; {PRODUCT} as set."],
    }[mode]
    lines = [
        "All have the same cores, network, and float32 batch kept in memory; all answers were held against the fp32 "
        f"reference within the bounds of {PRODUCT}'s own precisions.",
        *given,
        f"Processes: the peers' stay loaded, stopped between their turns; {PRODUCT}'s are started anew for each block, "
        "as its cases are. All warm up before a block; loading is not measured.",
        f"Memory: {PRODUCT} sets its workers' glibc tunables (huge pages, freed memory kept), as it does by default; "
        "the peers have the C library's defaults. The caller's variables that tune either are not passed on.",
        "AMX: for avx_* a seccomp filter has the kernel refuse it to the peers' processes (arch_prctl answers EPERM); "
        f"{PRODUCT} caps oneDNN with ONEDNN_MAX_CPU_ISA. For amx_* each engine takes AMX where it chooses to.",
        "int8: each engine's own quantiser after training (NNCF, ONNX Runtime's static one, PT2E), on images of "
        f"the same calibration part: {PRODUCT} and Inductor on 100, the others on all 200; what OpenVINO's leaves "
        "unquantised runs in f32.",
        "amx_bfloat32: oneDNN's bfloat16 math mode on the fp32 graph; OpenVINO's is its bf16 hint, as amx_bfloat16's.",
    ]
    return ["How they were compared:", "", *(f"- {line}" for line in lines)]
