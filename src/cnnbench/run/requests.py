"""Plan who asks for what is inferred: a server's clients, or LoadGen's queue; refuse settings that contradict."""

import dataclasses
from pathlib import Path

from cnnbench.base.errors import UsageError
from cnnbench.cases.parameters import Parameters
from cnnbench.engines.registry import AUTO
from cnnbench.launch.instances import Plan
from cnnbench.launch.plan import plan_clients, reserve_cores
from cnnbench.machine.topology import Topology
from cnnbench.worker.loadgen import MULTI_STREAM, TOGETHER


def plan_queue(parameters: Parameters, plan: Plan) -> Plan:
    """Return a plan with all instances in one process, where LoadGen's queries wait; raise UsageError for no scenario.

    Whose clients they are, where a network is served, are in one process in any case.
    """
    p = parameters
    allowed: dict[str, tuple[str, ...]] = {"throughput": ("Offline", "Server"), "latency": TOGETHER}
    allowed["accuracy"] = TOGETHER + allowed["throughput"]
    if p.scenario not in allowed.get(p.mode, ()):
        modes = "; ".join(f"MODE={mode}: {', '.join(names)}" for mode, names in allowed.items())
        raise UsageError(f"SCENARIO={p.scenario}: is none of a case of {p.mode}; there are {modes}")
    if p.mpi:
        raise UsageError(f"SCENARIO={p.scenario}: its queries wait in one process, which MPI has not; leave out MPI")
    if p.mode == "accuracy" and p.accuracy_time != "all":
        raise UsageError(
            f"ACCURACY_TIME={p.accuracy_time:g}: LoadGen asks for every image, however long that takes; leave it out"
        )
    if p.mode == "accuracy" and p.audit:
        raise UsageError(f"AUDIT={p.audit}: repeats a run for throughput or latency; leave it out for accuracy")
    if p.mode != "accuracy" and p.data_type != "dummy":
        raise UsageError(
            f"SCENARIO={p.scenario}: LoadGen chooses the images, so DATA_TYPE={p.data_type} has no meaning"
        )
    if p.user_conf and not Path(p.user_conf).is_file():
        raise UsageError(f"USER_CONF={p.user_conf}: no such file")
    if p.engine == AUTO:
        raise UsageError(f"SCENARIO={p.scenario}: needs an ENGINE by name; each trial of auto would be a whole run")
    if p.device_iterations > 1:
        raise UsageError(f"SCENARIO={p.scenario}: not with DEVICE_ITERATIONS; leave it out")
    if p.request_rate != "":
        raise UsageError(f"SCENARIO={p.scenario}: LoadGen decides when requests are sent; leave out REQUEST_RATE")
    return dataclasses.replace(plan, instances=tuple(dataclasses.replace(one, process=0) for one in plan.instances))


def plan_requests(parameters: Parameters, plan: Plan, topology: Topology) -> Plan:
    """Return the clients of a case of serving; raise UsageError for settings that contradict each other."""
    p = parameters
    if p.max_batch_size != "auto" and p.max_batch_size < p.batch_size:
        raise UsageError(f"MAX_BATCH_SIZE={p.max_batch_size}: requests are of BATCH_SIZE={p.batch_size} images")
    if p.request_rate != "" and p.concurrency != "auto":
        raise UsageError(f"REQUEST_RATE={p.request_rate:g}: decides when requests are sent; leave out CONCURRENCY")
    if p.mode == "capacity":
        decided = {"REQUEST_RATE": "", "CONCURRENCY": "auto", "STEPS": "auto"}
        for name, open_value in decided.items():
            if (value := getattr(p, name.lower())) != open_value:
                shown = f"{value:g}" if isinstance(value, float) else value
                raise UsageError(f"{name}={shown}: a case of capacity finds what it takes; leave it out")
    if p.engine == AUTO and p.mode == "capacity":
        raise UsageError("ENGINE=auto: trials of 5 s cannot tell, as whole runs would be needed; name the engine")
    if p.scenario == "MultiStream" and p.images_per_execution < MULTI_STREAM:
        raise UsageError(f"SCENARIO=MultiStream: needs MAX_BATCH_SIZE={MULTI_STREAM} or more, the images of a query")
    if p.protocol == "http" and (p.request_rate != "" or p.mode == "capacity"):
        raise UsageError("PROTOCOL=http: has one request under way on a connection, and waits for it; give grpc")
    if p.mode == "accuracy" and p.request_rate != "":
        raise UsageError(f"REQUEST_RATE={p.request_rate:g}: accuracy has every image answered; leave it out")
    if p.data_type == "real" and p.mode != "accuracy":
        raise UsageError("DATA_TYPE=real: a client sends images that are decoded already; give dummy or generated")
    if p.shared_memory and p.data_type != "dummy" and (p.request_rate != "" or p.mode == "capacity"):
        raise UsageError(
            "SHARED_MEMORY=True: images that are read until a request is answered cannot be changed for the next one, "
            "which does not wait for that; give DATA_TYPE=dummy, or leave out REQUEST_RATE"
        )
    if p.perf_analyzer and p.scenario:
        raise UsageError("PERF_ANALYZER=True: sends as our clients do, and LoadGen does not; leave out SCENARIO")
    if p.perf_analyzer and p.mode == "capacity":
        raise UsageError("PERF_ANALYZER=True: not with a case of capacity; give a case of latency the REQUEST_RATE")
    if p.perf_analyzer and p.mode == "accuracy":
        raise UsageError("PERF_ANALYZER=True: not with a case of accuracy, which measures no speed; leave it out")
    sizes = [
        size
        for size in p.preferred_batch_size.split()
        if not size.isdecimal() or not 0 < int(size) <= p.images_per_execution
    ]
    if sizes:
        raise UsageError(
            f"PREFERRED_BATCH_SIZE={p.preferred_batch_size}: {sizes[0]} must be 1 to {p.images_per_execution} images"
        )
    cores, _ = reserve_cores(topology, p.client_cores)
    count = 1
    if p.request_rate == "" and p.mode != "capacity":
        auto = 1 if p.mode == "latency" else 2 * count_held(p, plan)
        count = auto if p.concurrency == "auto" else p.concurrency
    return plan_clients(cores, count)


def note_unused(parameters: Parameters) -> list[str]:
    """Return a note for each setting of a server that has no effect with the others."""
    p, notes = parameters, []
    if not p.dynamic_batching:
        unused = {"MAX_BATCH_SIZE": "auto", "PREFERRED_BATCH_SIZE": "", "MAX_QUEUE_DELAY_US": 0}
        for name, default in unused.items():
            if (value := getattr(p, name.lower())) != default:
                notes.append(f"{name}={value} has no effect with DYNAMIC_BATCHING=False")
    if p.scenario in ("SingleStream", "MultiStream") and p.target_qps != "":
        notes.append(f"TARGET_QPS={p.target_qps:g} has no effect with SCENARIO={p.scenario}")
    return notes


def count_held(parameters: Parameters, plan: Plan) -> int:
    """Return how many requests a server's instances compute at once."""
    return len(plan.instances) * max(1, parameters.images_per_execution // parameters.batch_size)
