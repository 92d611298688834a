"""TensorFlow, stock or with Intel's (ITEX) or AMD's extension (zentf): frozen graphs.

The order of the builds is the measured one (doc/performance.md): ITEX was as fast as stock TensorFlow or faster
wherever it could run, on Intel's and on AMD's processors. It locks every operation while it runs, though, so that
instances on one set of weights would take turns. zentf is AMD's and comes last, as nothing measured so far shows it
ahead of stock TensorFlow; stock runs everywhere.
"""

from typing import Literal

from pydantic import Field

from cnnbench.engines.interface import EngineOptions
from cnnbench.engines.registry import Build, Engine, PythonVersion, Setting, Steps
from cnnbench.machine.host import CpuInfo

ITEX_PYTHONS: tuple[PythonVersion, ...] = ((3, 10), (3, 11))
"""The Pythons that the last ITEX with CPU wheels has wheels for, and TensorFlow 2.15, which quantises."""

ONEDNN, ZENDNN = "TF_ENABLE_ONEDNN_OPTS", "TF_ENABLE_ZENDNN_OPTS"
ITEX_BFLOAT16_MATH = {"ITEX_FP32_MATH_MODE": "BF32"}
"""What has ITEX compute float32 in bfloat16, where it would else say otherwise to oneDNN."""
BLOCKED_LAYOUT = {"ITEX_ONEDNN_LAYOUT_OPT": "1"}
"""What has ITEX keep features in oneDNN's blocked layouts: measured ahead with float32 graphs and more than one image
at a time, behind with one image and with bfloat16 graphs (doc/performance.md)."""

_PREPARED_BY = tuple(f"engines/tensorflow/{name}.py" for name in ("fold", "graph", "prepare", "reader"))


class TensorFlowOptions(EngineOptions):
    """Which build runs the graph."""

    variant: Literal["auto", "itex", "stock", "zentf"] = Field(
        "auto",
        description="TensorFlow build; auto: itex where this Python and CPU can run it, else stock; zentf is AMD's and "
        "not for avx_int8 and amx_int8",
    )


def _itex_obstacle(cpu: CpuInfo, python: PythonVersion) -> str:
    if python not in ITEX_PYTHONS:
        return f"has no wheels for Python {python[0]}.{python[1]}, only for 3.10 and 3.11"
    return _avx2_obstacle(cpu, python)


def _avx2_obstacle(cpu: CpuInfo, _python: PythonVersion) -> str:
    return "" if "avx2" in cpu.flags else "needs a CPU with AVX2"


def _quantizer_obstacle(python: PythonVersion) -> str:
    if python in ITEX_PYTHONS:
        return ""
    return (
        "quantising a model to int8 needs TensorFlow 2.15, which has wheels for Python 3.10 and 3.11 only, and this "
        f"is {python[0]}.{python[1]}; run with one of those, or give a graph that is int8 already by MODEL"
    )


def _environment(setting: Setting) -> dict[str, str]:
    """Turn the build's kernels on, and have ITEX compute and lay features out as the graph's numbers want."""
    of_float32 = setting.number_type in ("fp32", "bfloat32")
    return {
        **({ZENDNN: "1", ONEDNN: "0"} if setting.build == "zentf" else {ONEDNN: "1"}),
        **(ITEX_BFLOAT16_MATH if setting.number_type == "bfloat32" else {}),
        **(BLOCKED_LAYOUT if setting.build == "itex" and of_float32 and setting.batch_size > 1 else {}),
    }


ENGINES = (
    Engine(
        name="tensorflow",
        backend="cnnbench.engines.tensorflow.backend:TensorFlowBackend",
        summary="TensorFlow",
        reader="cnnbench.engines.tensorflow.reader:read_batches",
        builds=(
            Build("itex", "tensorflow-itex", _itex_obstacle, int8=True, shares_weights=False, in_images=True),
            Build("stock", "tensorflow-stock", int8=True),
            Build("zentf", "tensorflow-zentf", _avx2_obstacle),
        ),
        options=TensorFlowOptions,
        heeds=frozenset({"VERBOSE"}),
        environment=_environment,
        embeds=Steps(
            "cnnbench.engines.tensorflow.prepare",
            (*_PREPARED_BY, "engines/tensorflow/resnet50.py", "engines/tensorflow/fitted.npz"),
        ),
        prepares_graphs=Steps("cnnbench.engines.tensorflow.prepare", _PREPARED_BY),
        quantizes_graphs=Steps(
            "cnnbench.engines.tensorflow.quantize",
            (*_PREPARED_BY, "engines/tensorflow/quantize.py"),
            "tensorflow-quantizer",
            _quantizer_obstacle,
        ),
        reads_shards=Steps("cnnbench.engines.tensorflow.shards", ()),
    ),
)
