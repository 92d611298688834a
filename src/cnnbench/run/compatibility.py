"""Say which parameters of a network's case go together with its engine, its device and its plan, and which do not."""

from collections.abc import Iterable
from pathlib import Path

from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import FIELDS, PROCEDURAL, Parameters, options_of, parameters_of, told
from cnnbench.cases.precisions import Precision, chosen_precision
from cnnbench.engines.exported import FACTS, is_export
from cnnbench.engines.registry import AUTO, Conditions, Engine, engines, engines_that_take
from cnnbench.inputs.model_file import check_checkpoint
from cnnbench.launch.instances import Plan
from cnnbench.staging.networks import chosen_network

STEADY_IN_8_BITS = ("resnet18", "resnet34", "resnet50")
"""Networks whose answers in 8 bits, with seeded weights, agreed with the float32 ones as far as the bound asks."""

ONLY_IN_FP8 = (
    "FP8_ARITHMETIC", "FP8_PARAMS", "FP8_SKIP_OP_NAMES", "NUM_OF_LAYERS_KEEP_FP16", "FP8_METRIC", "FP8_WEIGHT_ROUNDING",
)  # fmt: skip
"""Parameters that other precisions do not use."""

ONLY_AHEAD_OF_TIME = ("COMPILED_BATCH", "REPLACEABLE_WEIGHTS", "MAX_AUTOTUNE")
"""Parameters of what is compiled before."""


def check_network_case(case: TestCase, parameters: Parameters) -> list[str]:
    """Raise UsageError for a network that cannot be had, SkippedError for one that knows nothing; return notes."""
    chosen_network(parameters)
    if parameters.weights:
        check_checkpoint(Path(parameters.weights))
    accuracy, notes = parameters.mode == "accuracy", []
    own = bool(parameters.weights or parameters.network_file)
    if parameters.network_file and not Path(parameters.network_file).is_file():
        raise UsageError(
            f"NETWORK_FILE={parameters.network_file}: no such file; needed an ONNX file, or a compiled one"
        )
    if parameters.network_file and parameters.weights:
        raise UsageError(f"NETWORK_FILE={parameters.network_file}: has its weights in it, so leave out WEIGHTS")
    if accuracy and not own and parameters.dataset != PROCEDURAL:
        raise SkippedError(
            f"{case.name}: accuracy on DATASET={parameters.dataset} needs a trained network: give WEIGHTS; without, "
            "only what the drawn images show is known to it"
        )
    precision = chosen_precision(parameters.precision, fp8_arithmetic=parameters.fp8_arithmetic)
    in_8_bits = "int8" if precision.is_int8 else "fp8" if precision.in_fp8 else ""
    if in_8_bits and not own and parameters.topology not in STEADY_IN_8_BITS:
        raise SkippedError(
            f"{case.name}: with seeded weights the answers of {parameters.topology} hang on differences that "
            f"{in_8_bits} does not keep, so that they could not be judged; give WEIGHTS"
        )
    if precision.is_int8 and parameters.pad_conv_channel:
        raise UsageError(f"PAD_CONV_CHANNEL=True: {precision.name} is quantised as the network is; leave it out")
    notes += _note_numbers(parameters, precision)
    if parameters.engine == AUTO and accuracy:
        raise UsageError(f"ENGINE={AUTO}: chooses by speed, which {case.name} does not measure; name an engine")
    if case.sgx:
        raise UsageError(f"{case.name}: networks run in no enclave; leave out sgx_")
    if parameters.num_io_threads != "auto" and parameters.data_type != "real":
        notes.append(f"NUM_IO_THREADS={parameters.num_io_threads} has no effect with DATA_TYPE={parameters.data_type}")
    if not parameters.numa_aware:
        notes.append("NUMA_AWARE=False: instances' memory is bound to no NUMA node")
    if parameters.network_file:
        notes.append(f"TOPOLOGY={parameters.topology} has no effect: the network is that of NETWORK_FILE")
    elif not parameters.weights and (accuracy or precision.in_fp8):
        notes.append(
            "the weights are seeded, and a last layer was fitted to the drawn training images: the accuracy tells what "
            "a precision costs, and nothing of the network"
        )
    elif not parameters.weights:
        notes.append("the weights are random: the network is as fast as with any others, but its answers mean nothing")
    return notes


def _note_numbers(parameters: Parameters, precision: Precision) -> list[str]:
    """Return notes of what numbers are held and multiplied in, and of parameters that other numbers have."""
    notes = []
    if precision.held_as:
        held = "the weights" if precision.held_as != "fp8" else "weights and what they are multiplied by"
        notes.append(
            f"{precision.name} is emulated: {held} are held in {precision.held_as.partition('_')[0]}, and multiplied "
            f"in {precision.computes}, which has all these numbers"
        )
    return notes + _note_unused(() if precision.in_fp8 else ONLY_IN_FP8, parameters, f"PRECISION={precision.name}")


def _note_unused(names: Iterable[str], parameters: Parameters, condition: str) -> list[str]:
    """Return notes of parameters that were given, and have no effect with a condition."""
    values = {name: getattr(parameters, name.lower()) for name in names}
    return [
        f"{name}={value} has no effect with {condition}"
        for name, value in values.items()
        if value != FIELDS[name].get_default()
    ]


def check_engine(engine: Engine, parameters: Parameters, plan: Plan) -> list[str]:
    """Raise UsageError or SkippedError for what an engine cannot do; return notes of what it does not heed."""
    notes = _check_options(engine, parameters) if engine.takes == "network" else []
    if engine.tells_layers and parameters.onednn_verbose:
        raise UsageError(
            f"ONEDNN_VERBOSE=True: ENGINE={engine.name} does not survive oneDNN's trace, or has none; leave it out"
        )
    precision = chosen_precision(parameters.precision, fp8_arithmetic=parameters.fp8_arithmetic)
    file = Path(parameters.network_file)
    given = parameters.network_file and not (engine.exports_networks and is_export(file))
    if given and engine.exports_networks and file.suffix not in ("", ".onnx"):
        raise UsageError(
            f"NETWORK_FILE={file}: is no ONNX file, and {FACTS}, which tells of one compiled, is not beside it"
        )
    if (precision.held_as or parameters.pad_conv_channel or given) and not engine.reads_onnx:
        able = ", ".join(one.name for one in engines().values() if one.reads_onnx)
        raise SkippedError(
            f"ENGINE={engine.name}: reads no ONNX, in which networks are converted; choose one of {able}"
        )
    if parameters.ahead_of_time and not engine.exports_networks:
        able = ", ".join(one.name for one in engines().values() if one.exports_networks)
        raise UsageError(f"AHEAD_OF_TIME=True: ENGINE={engine.name} compiles nothing into a file; choose one of {able}")
    compiled_already = bool(parameters.network_file) and is_export(Path(parameters.network_file))
    if compiled_already:
        notes += _note_unused(ONLY_AHEAD_OF_TIME, parameters, "a NETWORK_FILE that is compiled already")
    elif parameters.ahead_of_time or engine.ahead_of_time:
        _check_compiling(engine, parameters)
    else:
        notes += _note_unused(ONLY_AHEAD_OF_TIME, parameters, "AHEAD_OF_TIME=False")
    if precision.on_gpu and not engine.gpu:
        able = ", ".join(one.name for one in engines().values() if one.gpu)
        raise SkippedError(f"ENGINE={engine.name}: runs on CPUs only, and {precision.name} on a GPU; choose {able}")
    if precision.data_type in engine.refused:
        others = [one for one in engines_that_take(engine.takes) if precision.data_type not in engines()[one].refused]
        raise SkippedError(
            f"ENGINE={engine.name}: {engine.refused[precision.data_type]}; choose another ENGINE "
            f"({', '.join(others) or 'none can'}), or another precision"
        )
    conditions = Conditions(
        precision=precision.name,
        number_type=precision.data_type,
        on_gpu=precision.on_gpu,
        replicas=parameters.replicas,
        threads=min(instance.threads for instance in plan.instances),
        network=parameters.topology,
    )
    return notes + engine.check(options_of(parameters, engine), conditions)


def _check_compiling(engine: Engine, parameters: Parameters) -> None:
    """Raise UsageError for what an engine cannot be asked to compile."""
    for name, able in (("REPLACEABLE_WEIGHTS", "parts_weights"), ("MAX_AUTOTUNE", "tries_kernels")):
        if getattr(parameters, name.lower()) and not getattr(engine, able):
            others = ", ".join(one.name for one in engines().values() if getattr(one, able))
            raise UsageError(f"{name}=True: ENGINE={engine.name} cannot; choose {others}, or leave it out")
    part = parameters.images_per_part
    least, _, most = parameters.compiled_batch.partition("-")
    if parameters.compiled_batch != "auto" and not int(least) <= part <= int(most or least):
        raise UsageError(f"COMPILED_BATCH={parameters.compiled_batch}: the case hands over {part} images at once")


def _check_options(engine: Engine, parameters: Parameters) -> list[str]:
    """Raise UsageError for an option that is another engine's; return notes of those without effect."""
    notes = []
    for name in parameters_of(engine.takes):
        value = getattr(parameters, name.lower())
        if value == FIELDS[name].get_default(call_default_factory=True):
            continue
        owners = [one.name for one in engines().values() if name.lower() in one.options.model_fields]
        heeded = not owners or engine.name in owners
        heeders = [one.name for one in engines().values() if name in one.heeds]
        if not heeded and not told(name, "harmless"):
            raise UsageError(
                f"{name}={value}: ENGINE={engine.name} cannot; choose {', '.join(owners)}, or leave it out"
            )
        if not heeded or (heeders and engine.name not in heeders):
            notes.append(f"{name}={value} has no effect with ENGINE={engine.name}")
    return notes
