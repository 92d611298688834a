"""PyTorch, eager or compiled by Inductor, on CPUs and GPUs; builds the networks of all engines that take them."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from cnnbench.base.disk import check_directory, require_loadable
from cnnbench.base.errors import UsageError
from cnnbench.engines.interface import EngineOptions
from cnnbench.engines.pytorch.layer_names import check_splits
from cnnbench.engines.registry import Build, Conditions, Engine, PythonVersion, Setting, Steps
from cnnbench.machine.host import CpuInfo

PYTHON: PythonVersion = (3, 11)
"""The Python that PyTorch is locked for (requirements/pytorch-cpu.in)."""

OWN_PYTHON = "CNNBENCH_PYTORCH_CUDA"
"""Environment variable: a Python that has PyTorch for GPUs (2.7 or newer), torchvision, timm, pydantic and safetensors
already, to be used as it is in place of the environment of requirements/pytorch-cuda.lock, which is several
gigabytes to fetch."""

INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch's builds for CPUs are."""


class PyTorchOptions(EngineOptions):
    """What PyTorch does beside running the network."""

    half_partial: bool = Field(
        False,
        description="let a GPU's 16-bit matrix products be summed up in 16 bits; its convolutions and CPUs never are",
        json_schema_extra={"harmless": True},
    )
    cuda_graphs: bool = Field(
        False, description="cuda_ precisions: record the network's call once in a CUDA graph, and replay that"
    )
    profile: bool = Field(
        False, description="have PyTorch profile a step beside the measured ones, into trace/profile.json of the logs"
    )
    pipeline_splits: str = Field(
        "",
        description="layers, separated by spaces, at which the network is cut into stages that work at once, each on "
        "its share of an instance's cores",
    )


class CompilingOptions(EngineOptions):
    """What an engine does that compiles."""

    model_cache_path: str = Field(
        "",
        description="a directory for what engines compile; empty: below the cache",
        json_schema_extra={"harmless": True, "path": True},
    )


class InductorOptions(CompilingOptions, PyTorchOptions):
    """What torch.compile does beside."""


def check(options: PyTorchOptions, conditions: Conditions) -> list[str]:
    """Raise UsageError for options that do not go together or with a case; return notes of what has no effect."""
    splits = f"PIPELINE_SPLITS={options.pipeline_splits}"
    if options.cuda_graphs and not conditions.on_gpu:
        raise UsageError(
            f"CUDA_GRAPHS=True: {conditions.precision} runs on the CPU; choose a case of a cuda_ precision "
            "(--device cuda), or leave it out"
        )
    if options.pipeline_splits and conditions.on_gpu:
        raise UsageError(
            f"{splits}: stages work on cores of their own, and {conditions.precision} runs on one GPU; leave it out"
        )
    if options.pipeline_splits:
        check_splits(conditions.network, options.pipeline_splits.split())
        _check_stages(splits, options, conditions)
    return [_note_half_partial(conditions)] if options.half_partial else []


def check_inductor(options: InductorOptions, conditions: Conditions) -> list[str]:
    """Do the same for options of Inductor's."""
    check_compiling(options, conditions)
    return check(options, conditions)


def check_compiling(options: CompilingOptions, _conditions: Conditions) -> list[str]:
    """Do the same for where what is compiled goes."""
    if options.model_cache_path:
        check_directory(f"MODEL_CACHE_PATH={options.model_cache_path}", Path(options.model_cache_path))
        require_loadable(Path(options.model_cache_path), "name another directory with MODEL_CACHE_PATH")
    return []


def _check_stages(splits: str, options: PyTorchOptions, conditions: Conditions) -> None:
    """Raise UsageError where an instance lacks a core for each stage of its network."""
    stages = len(options.pipeline_splits.split()) + 1
    if options.profile:
        raise UsageError(f"{splits}: PROFILE=True sees one thread alone, and stages have their own; leave one out")
    if conditions.replicas > 1:
        raise UsageError(f"{splits}: takes all cores of a process, but REPLICAS={conditions.replicas}; leave one out")
    if stages > (cores := conditions.threads):
        raise UsageError(
            f"{splits}: {stages} stages, but an instance has {cores} core{'' if cores == 1 else 's'}; raise "
            "CORES_PER_INSTANCE, or split at fewer layers"
        )


def _note_half_partial(conditions: Conditions) -> str:
    if not conditions.on_gpu:
        return "HALF_PARTIAL=True has no effect: CPUs sum up the products of bfloat16 numbers in float32"
    if conditions.number_type == "fp32":
        return f"HALF_PARTIAL=True has no effect: {conditions.precision} has no 16-bit numbers to sum up in 16 bits"
    return (
        f"HALF_PARTIAL=True: cuBLAS may sum up {conditions.number_type} matrix products in 16 bits; cuDNN's "
        "convolutions, nearly all of these networks, are summed up in float32 all the same"
    )


def _cpu_obstacle(_cpu: CpuInfo, python: PythonVersion) -> str:
    if python == PYTHON:
        return ""
    return f"its lock file has no PyTorch for Python {python[0]}.{python[1]}, only for 3.11"


def _zentorch_obstacle(cpu: CpuInfo, python: PythonVersion) -> str:
    if cpu.vendor != "AuthenticAMD":
        return "zentorch is AMD's, for its own processors"
    return _cpu_obstacle(cpu, python)


def _compiler_obstacle(environ: Mapping[str, str], on_gpu: bool) -> str:
    """Say that the compiler is missing that Inductor calls: of C++, or of C for what Triton has on GPUs."""
    variable, default = ("CC", "gcc") if on_gpu else ("CXX", "g++")
    if shutil.which(compiler := environ.get(variable) or default):
        return ""
    return f"compiles with {compiler}, which is not here; install it, or set {variable}"


def _compiled_into(setting: Setting) -> dict[str, str]:
    return {"TORCHINDUCTOR_CACHE_DIR": setting.options.model_cache_path or str(setting.cache)}


_EAGER = Engine(
    name="pytorch",
    backend="cnnbench.engines.pytorch.backend:EagerBackend",
    takes="network",
    summary="PyTorch's eager mode",
    reader="cnnbench.inputs.jpeg:read_batches",
    builds=(
        Build("cpu", "pytorch-cpu", _cpu_obstacle, in_images=True, index=INDEX),
        Build("cuda", "pytorch-cuda", gpu=True, own_python=OWN_PYTHON),
    ),
    options=PyTorchOptions,
    refused={"int8": "its networks are not quantised"},
    check=check,
    whole_steps=lambda options: bool(options.pipeline_splits),
    of_network=lambda options: {"splits": options.pipeline_splits.split()},
    builds_networks=Steps(
        "cnnbench.engines.pytorch.prepare",
        (
            "inputs/networks.py",
            "inputs/head.py",
            "inputs/jpeg.py",
            *(f"engines/pytorch/{name}.py" for name in ("networks", "weights", "group_norm", "classifier", "prepare")),
        ),
    ),
)

ENGINES = (
    _EAGER,
    replace(
        _EAGER,
        name="inductor",
        backend="cnnbench.engines.pytorch.backend:InductorBackend",
        summary="torch.compile with frozen weights",
        options=InductorOptions,
        heeds=frozenset({"ENABLE_FAST_GROUPNORM"}),
        check=check_inductor,
        environment=_compiled_into,
        obstacle=_compiler_obstacle,
        builds_networks=None,
    ),
    replace(
        _EAGER,
        name="zentorch",
        backend="cnnbench.engines.pytorch.backend:ZentorchBackend",
        summary="torch.compile with AMD's zentorch",
        builds=(Build("cpu", "pytorch-zentorch", _zentorch_obstacle, index=INDEX),),
        options=InductorOptions,
        check=check_inductor,
        environment=_compiled_into,
        obstacle=_compiler_obstacle,
        builds_networks=None,
    ),
    Engine(
        name="aotinductor",
        backend="cnnbench.engines.pytorch.compiled:AotInductorBackend",
        takes="network",
        summary="PyTorch's AOTInductor",
        reader="cnnbench.inputs.jpeg:read_batches",
        builds=(Build("cpu", "pytorch-cpu", _cpu_obstacle, in_images=True, index=INDEX),),
        options=CompilingOptions,
        heeds=frozenset({"ENABLE_FAST_GROUPNORM"}),
        refused={"int8": "its networks are not quantised"},
        check=check_compiling,
        environment=_compiled_into,
        obstacle=_compiler_obstacle,
        exports_networks=Steps(
            "cnnbench.engines.pytorch.export",
            (
                "engines/exported.py",
                *(f"engines/pytorch/{name}.py" for name in ("networks", "weights", "group_norm", "classifier")),
                *(f"engines/pytorch/{name}.py" for name in ("compiled", "export")),
            ),
        ),
        ahead_of_time=True,
        parts_weights=True,
        tries_kernels=True,
    ),
)
