"""Say which parameters of a network's case go together with its engine, its device and its plan, and which do not."""

from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import Parameters
from cnnbench.cases.precisions import PRECISIONS, Precision
from cnnbench.engines.registry import ENGINES
from cnnbench.launch.plan import Plan
from cnnbench.staging.networks import chosen_network

AUTO = "auto"
"""The ENGINE that is chosen by a trial."""

STEADY_IN_INT8 = ("resnet18", "resnet34", "resnet50")
"""Networks whose int8 answers, with seeded weights, agreed with the float32 ones as far as the bound asks."""


def check_network_case(case: TestCase, parameters: Parameters) -> list[str]:
    """Raise UsageError for a network that cannot be had, SkippedError for one that knows nothing; return notes."""
    chosen_network(parameters)
    accuracy, notes = parameters.mode == "accuracy", []
    if accuracy and not parameters.weights and parameters.dataset != "procedural":
        raise SkippedError(
            f"{case.name}: accuracy on DATASET={parameters.dataset} needs a trained network: give WEIGHTS; without, "
            "only what the drawn images show is known to it"
        )
    precision = PRECISIONS[parameters.precision]
    if precision.is_int8 and not parameters.weights and parameters.topology not in STEADY_IN_INT8:
        raise SkippedError(
            f"{case.name}: with seeded weights the answers of {parameters.topology} hang on differences that int8 does "
            "not keep, so that they could not be judged; give WEIGHTS"
        )
    if parameters.engine == AUTO and accuracy:
        raise UsageError(f"ENGINE={AUTO}: chooses by speed, which {case.name} does not measure; name an engine")
    if case.sgx:
        raise UsageError(f"{case.name}: networks run in no enclave; leave out sgx_")
    if parameters.num_io_threads != "auto" and parameters.data_type != "real":
        notes.append(f"NUM_IO_THREADS={parameters.num_io_threads} has no effect with DATA_TYPE={parameters.data_type}")
    if not parameters.numa_aware:
        notes.append("NUMA_AWARE=False: instances' memory is bound to no NUMA node")
    if not parameters.weights and accuracy:
        notes.append(
            "the weights are seeded, and a last layer was fitted to the drawn training images: the accuracy tells what "
            "a precision costs, and nothing of the network"
        )
    elif not parameters.weights:
        notes.append("the weights are random: the network is as fast as with any others, but its answers mean nothing")
    if parameters.half_partial:
        notes.append(_note_half_partial(precision))
    return notes


def check_engine(name: str, parameters: Parameters) -> list[str]:
    """Raise UsageError or SkippedError for what an engine cannot do; return notes of what it does not heed."""
    engine = ENGINES[name]
    for option in ("PROFILE", "PIPELINE_SPLITS"):
        if (value := getattr(parameters, option.lower())) and not engine.stages:
            able = ", ".join(one for one in ENGINES if ENGINES[one].stages)
            raise UsageError(f"{option}={value}: ENGINE={name} cannot; choose {able}, or leave it out")
    if engine.exported and parameters.onednn_verbose:
        raise UsageError(
            f"ONEDNN_VERBOSE=True: ENGINE={name} does not survive oneDNN's trace, or has none; leave it out"
        )
    precision = PRECISIONS[parameters.precision]
    if precision.on_gpu and not engine.gpu:
        able = ", ".join(one for one in ENGINES if ENGINES[one].gpu)
        raise SkippedError(f"ENGINE={name}: runs on CPUs only here, and {precision.name} on a GPU; choose {able}")
    if precision.data_type in engine.refused:
        raise SkippedError(
            f"ENGINE={name}: {engine.refused[precision.data_type]}; choose another ENGINE, or another precision"
        )
    without_effect = {
        "VERBOSE": parameters.verbose and name != "onnxruntime",
        "ENABLE_FAST_GROUPNORM": parameters.enable_fast_groupnorm and name != "inductor",
        "MODEL_CACHE_PATH": bool(parameters.model_cache_path) and name != "inductor",
    }
    return [
        f"{option}={getattr(parameters, option.lower())} has no effect with ENGINE={name}"
        for option, vain in without_effect.items()
        if vain
    ]


def _note_half_partial(precision: Precision) -> str:
    if not precision.on_gpu:
        return "HALF_PARTIAL=True has no effect: CPUs sum up the products of bfloat16 numbers in float32"
    if precision.is_float32:
        return f"HALF_PARTIAL=True has no effect: {precision.name} has no 16-bit numbers to sum up in 16 bits"
    return (
        f"HALF_PARTIAL=True: cuBLAS may sum up {precision.data_type} matrix products in 16 bits; cuDNN's convolutions, "
        "nearly all of these networks, are summed up in float32 all the same"
    )


def check_stages(parameters: Parameters, plan: Plan) -> None:
    """Raise UsageError where an instance lacks a core for each stage of its network."""
    stages = len(parameters.pipeline_splits.split()) + 1
    splits = f"PIPELINE_SPLITS={parameters.pipeline_splits}"
    if parameters.profile:
        raise UsageError(f"{splits}: PROFILE=True sees one thread alone, and stages have their own; leave one out")
    if parameters.replicas > 1:
        raise UsageError(f"{splits}: takes all cores of a process, but REPLICAS={parameters.replicas}; leave one out")
    if stages > (cores := min(instance.threads for instance in plan.instances)):
        raise UsageError(
            f"{splits}: {stages} stages, but an instance has {cores} core{'' if cores == 1 else 's'}; raise "
            "CORES_PER_INSTANCE, or split at fewer layers"
        )
