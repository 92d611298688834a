"""Say which parameters of a network's case go together with its engine, its device and its plan, and which do not."""

from pathlib import Path

from cnnbench.base.errors import SkippedError, UsageError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import FIELDS, Parameters, options_of, parameters_of, told
from cnnbench.cases.precisions import PRECISIONS
from cnnbench.engines.registry import AUTO, Conditions, Engine, engines, engines_that_take
from cnnbench.inputs.model_file import check_checkpoint
from cnnbench.launch.instances import Plan
from cnnbench.staging.networks import chosen_network

STEADY_IN_INT8 = ("resnet18", "resnet34", "resnet50")
"""Networks whose int8 answers, with seeded weights, agreed with the float32 ones as far as the bound asks."""


def check_network_case(case: TestCase, parameters: Parameters) -> list[str]:
    """Raise UsageError for a network that cannot be had, SkippedError for one that knows nothing; return notes."""
    chosen_network(parameters)
    if parameters.weights:
        check_checkpoint(Path(parameters.weights))
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
    return notes


def check_engine(engine: Engine, parameters: Parameters, plan: Plan) -> list[str]:
    """Raise UsageError or SkippedError for what an engine cannot do; return notes of what it does not heed."""
    notes = _check_options(engine, parameters) if engine.takes == "network" else []
    if engine.tells_layers and parameters.onednn_verbose:
        raise UsageError(
            f"ONEDNN_VERBOSE=True: ENGINE={engine.name} does not survive oneDNN's trace, or has none; leave it out"
        )
    precision = PRECISIONS[parameters.precision]
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
