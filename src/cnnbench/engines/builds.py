"""Choose which of an engine's builds is to run."""

import sys

from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.engines.registry import AUTO, Build, Engine, PythonVersion, find_part
from cnnbench.machine.host import CpuInfo


def choose_build(
    engine: Engine,
    requested: str,
    cpu: CpuInfo,
    *,
    weight_sharing: bool = False,
    int8: bool = False,
    gpu: bool = False,
    python: PythonVersion = sys.version_info[:2],
) -> str:
    """Return the name of the build to use: the requested one, or the first that can run; empty if there are none.

    Raises SkippedError when this Python or CPU cannot run the requested one or it has no kernels for `int8`, UsageError
    when it cannot share weights. On a `gpu` it is the build for GPUs that runs, and nowhere else. A network can only be
    run where it can be built.
    """
    if not engine.builds:
        return ""
    if requested != AUTO:
        build = _named(engine, requested)
        if weight_sharing and not build.shares_weights:
            able = " or ".join(one.name for one in engine.builds if one.shares_weights)
            raise UsageError(
                f"VARIANT={requested}: cannot share weights between instances that run at once; choose {able} or {AUTO}"
            )
    obstacles = {
        build.name: _obstacle(engine, build, cpu, python, weight_sharing=weight_sharing, int8=int8, gpu=gpu)
        for build in engine.builds
    }
    if requested != AUTO:
        if obstacles[requested]:
            raise SkippedError(f"VARIANT={requested}: {obstacles[requested]}")
        return requested
    if runnable := [name for name, obstacle in obstacles.items() if not obstacle]:
        return runnable[0]
    raise SkippedError("; ".join(f"{engine.name} {name}: {obstacle}" for name, obstacle in obstacles.items()))


def _named(engine: Engine, name: str) -> Build:
    try:
        return engine.build(name)
    except UsageError as error:
        raise SkippedError(str(error)) from error


def _obstacle(
    engine: Engine,
    build: Build,
    cpu: CpuInfo,
    python: PythonVersion,
    *,
    weight_sharing: bool,
    int8: bool,
    gpu: bool,
) -> str:
    """Say why a build cannot run a case here; empty when it can."""
    if gpu != build.gpu:
        return "runs on CPUs only" if gpu else "is for cuda_ precisions"
    if int8 and not build.int8:
        able = [one.name for one in engine.builds if one.int8]
        return "has no int8 convolutions" + (f"; choose {' or '.join(able)}" if able else "")
    if weight_sharing and not build.shares_weights:
        return "cannot share weights"
    if found := build.obstacle(cpu, python):
        return found
    return network_builder(gpu).obstacle(cpu, python) if engine.takes == "network" else ""


def network_builder(gpu: bool) -> Build:
    """Return the build of the engine that builds networks which does so for a GPU, or for CPUs."""
    return next(build for build in find_part("builds_networks").builds if build.gpu == gpu)
