"""Write down what a run is and all that is seen of it, as it is seen; read it again to judge the run.

`record.json` says what is to be measured and on what, before anything is started. Each line of `seen.jsonl` is
something seen since then, how the run ended among them: without that line the run was cut off. What the outputs are
held against is copied beside them, into `reference/`. Where a run was in a container, `outside.json` says what only its
host knows of it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError
from cnnbench.cases.parameters import Mode, PrecisionName
from cnnbench.launch.instances import Plan
from cnnbench.machine.ceiling import Ceiling
from cnnbench.machine.cgroup import CpuQuota
from cnnbench.machine.contention import CpuSample
from cnnbench.machine.energy import Series
from cnnbench.results.record import RUN_FILE, Criterion
from cnnbench.run.compatibility import ONLY_IN_FP8
from cnnbench.run.facts import input_facts
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import PlannedCase
from cnnbench.worker.spec import count_proof

RECORD, SEEN_FILE, OUTSIDE = "record.json", "seen.jsonl", "outside.json"
CHECK_REFERENCE, LABELS, EXPECTED = "reference/check.npy", "reference/labels.npy", "reference/predictions.npy"
"""What the outputs of the check images, and the best class of every image, are held against."""


_M = TypeVar("_M", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(_Model):
    """What a run was to be, written before anything of it was started.

    `plan`: where MPI places the instances it is what was asked for; its ranks report what they got. `images_per_step`:
    of each instance; `traced_images`: of a traced step. `reads_images`: whether they are decoded while measuring.
    `max_time_s`: how long to measure at the most where STEPS=auto leaves the number of steps open; None where it is
    given. `macs_per_image`: None without a model. `predicts`: whether there are the float32 model's predictions to
    compare with. `sampled`: whether the instances' instructions were, while measuring.
    `accuracy_time_s`: how long accuracy takes images at the most; None for as long as there are any. `clients`: of a
    server whose instances the plan has; None where nothing is served. `arrivals`: whether they send at moments of their
    own, without waiting for answers. `held_requests`: how many a server's instances compute at once.
    `latency_bound_ms`: of the 99th percentile, where that is judged. `scenario`: of LoadGen; empty where it sends
    nothing. `audit`: the name of the one that repeats it; empty for none. `host`, `inputs`: facts.
    """

    schema_version: Literal[1] = 1
    run_id: str
    started: str
    workload: str
    case: str
    mode: Mode
    precision: PrecisionName
    requested: dict[str, str]
    effective: dict[str, str]
    notes: tuple[str, ...]
    plan: Plan
    mpi: bool
    weight_sharing: bool
    images_per_step: int
    traced_images: int
    reads_images: bool
    max_time_s: float | None
    macs_per_image: int | None
    predicts: bool
    sampled: bool = False
    accuracy_time_s: float | None = None
    clients: Plan | None = None
    arrivals: bool = False
    held_requests: int = 0
    latency_bound_ms: float | None = None
    scenario: str = ""
    audit: str = ""
    host: dict[str, str]
    inputs: dict[str, str]


class CeilingSeen(_Model):
    """The peak of the cores, measured once; or why that failed after the instances had measured."""

    event: Literal["ceiling"] = "ceiling"
    ceiling: Ceiling | None = None
    failure: str = ""


class ServiceCount(_Model):
    """What a server has counted so far of its model; times are sums over requests (ns).

    `batches`: how often the network was handed so many images at once. `own_bytes`: what the server and the
    processes of its models have in memory at that moment that is not shared, nor a file's.
    """

    requests: int
    failures: int
    executions: int
    images: int
    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int
    batches: dict[int, int]
    own_bytes: int = 0


class Look(_Model):
    """The conditions at one moment under load: monotonic time, the cores' time, quotas, and the clock if it is told."""

    event: Literal["look"] = "look"
    time_s: float
    cpu_time: CpuSample
    quotas: tuple[CpuQuota, ...]
    frequency_mhz: float | None
    served: ServiceCount | None = None


class CapacitySeen(_Model):
    """The requests a second that were tried, each with the 99th percentile of latency (ms), and the one to measure.

    Where that is done again, at a lower rate, the last of these counts, with what was seen after it.
    `trials`: rate, percentile (None where it could not be told), and whether it was within the bound.
    """

    event: Literal["capacity"] = "capacity"
    rate_per_s: float
    trials: tuple[tuple[float, float | None, bool], ...]


class SecondClientSeen(_Model):
    """What another client than ours has measured of the same server, after ours; or why it has not.

    `windows_per_s`: the requests a second of each of its windows. `delayed_share`: of the requests, where it says so
    itself.
    """

    event: Literal["second client"] = "second client"
    version: str
    requests: int = 0
    requests_per_s: float = 0.0
    windows_per_s: tuple[float, ...] = ()
    p50_ms: float | None = None
    p99_ms: float | None = None
    delayed_share: float = 0.0
    failure: str = ""


class EnergySeen(_Model):
    """What was read of energy, from before anything was started until all had ended.

    `of`: the series that add up to what is told. `idle_ns`: the span in which nothing had been started yet; None where
    that was not measured. `note`: what a reader of the figures should know.
    """

    event: Literal["energy"] = "energy"
    of: tuple[str, ...]
    series: tuple[Series, ...]
    idle_ns: tuple[int, int] | None
    note: str = ""


class End(_Model):
    """How the run ended: with all that it was to measure, or by a failure; `seen`: what was seen of that."""

    event: Literal["end"] = "end"
    failure: Criterion | None = None
    seen: str = ""


AnyEvent = CeilingSeen | Look | CapacitySeen | SecondClientSeen | EnergySeen | End
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="event")])


class Outside(_Model):
    """What the host of a container knows of the run in it, beyond what that judged by itself.

    `record`: of a run whose container has given no result, or not yet; what it has left is not judged then.
    `requested`, `effective`: parameters that the container was given otherwise. `failure`: what makes the run invalid.
    `energy`: what was read of it; the container reads none.
    """

    schema_version: Literal[1] = 1
    record: Record | None = None
    requested: dict[str, str] = {}
    effective: dict[str, str] = {}
    facts: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    failure: Criterion | None = None
    energy: EnergySeen | None = None


@dataclass(frozen=True)
class Seen:
    """What was seen of a run, in order; `end` is None when it was cut off."""

    ceilings: tuple[CeilingSeen, ...]
    looks: tuple[Look, ...]
    end: End | None
    capacity: CapacitySeen | None = None
    second_client: SecondClientSeen | None = None
    energy: EnergySeen | None = None


def describe_run(planned: PlannedCase, inputs: Inputs, run_id: str, started: str, host: dict[str, str]) -> Record:
    """Return the record of a run that is about to begin."""
    p, model, notes = planned.parameters, inputs.model, planned.notes
    part = p.images_per_part
    if planned.engine.whole_steps(planned.options):
        part = p.images_per_step
    traced = count_proof(p.mode, p.images_per_step, part, planned.precision.on_gpu)
    if model and traced < min(part, p.images_per_step):
        notes += (
            f"instructions and outputs were checked with {traced} images at a time, not {part}: where accuracy is "
            "measured, no batch is timed; what the larger ones answered to the checked images was compared too",
        )
    if model and p.network_file and planned.precision.in_fp8 and model.held_as == planned.precision.held_as:
        parts = ", ".join(name for name in ONLY_IN_FP8 if name != "FP8_ARITHMETIC")
        notes += (f"NETWORK_FILE={p.network_file} is in {model.held_as} as it stands: {parts} have no effect",)
    sampled = inputs.sampler.library is not None
    if model and not sampled and not planned.precision.on_gpu:
        notes += (
            "the instructions are those of steps traced in a process of their own, as the measured instances were not "
            f"sampled: {inputs.sampler.reason}",
        )
    return Record(
        run_id=run_id,
        started=started,
        workload=planned.workload.name,
        case=planned.case.name,
        mode=p.mode,
        precision=p.precision,
        requested=planned.requested,
        effective=planned.effective,
        notes=notes,
        plan=planned.plan,
        mpi=planned.ranks is not None,
        weight_sharing=p.weight_sharing,
        images_per_step=p.images_per_step,
        traced_images=traced,
        reads_images=inputs.images is not None,
        max_time_s=p.max_time if p.steps == "auto" else None,
        macs_per_image=model.macs_per_image if model else None,
        predicts=model is not None and model.predictions is not None,
        sampled=sampled,
        accuracy_time_s=None if p.accuracy_time == "all" else p.accuracy_time,
        clients=planned.clients,
        arrivals=planned.sends_freely,
        held_requests=planned.held_requests,
        scenario=p.scenario,
        audit=p.audit,
        latency_bound_ms=p.latency_bound_ms if p.mode == "capacity" else None,
        host=host,
        inputs=input_facts(inputs),
    )


class RunWriter:
    """Writes a run's record into its logs, and then each thing seen, so that it is there whatever happens next."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def begun(self) -> bool:
        """Whether the record is written, whole."""
        return (self._directory / RECORD).exists()

    def begin(self, record: Record, inputs: Inputs) -> None:
        """Write the record, and copy what the outputs will be held against."""
        model, images = inputs.model, inputs.images
        if model is not None:
            (self._directory / CHECK_REFERENCE).parent.mkdir(exist_ok=True)
            shutil.copyfile(model.reference, self._directory / CHECK_REFERENCE)
        if model is not None and images is not None and record.mode == "accuracy":
            np.save(self._directory / LABELS, images.labels + model.label_offset)
            if model.predictions is not None:
                shutil.copyfile(model.predictions, self._directory / EXPECTED)
        _write_whole(self._directory / RECORD, record)

    def add(self, event: AnyEvent) -> None:
        """Append what was just seen."""
        with (self._directory / SEEN_FILE).open("a", encoding="utf-8") as file:
            file.write(event.model_dump_json() + "\n")


def write_outside(directory: Path, outside: Outside) -> None:
    """Write what the host of a container knows of its run."""
    _write_whole(directory / OUTSIDE, outside)


def _write_whole(path: Path, model: BaseModel) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(model.model_dump_json(indent=1), encoding="utf-8")
    partial.replace(path)


def read_record(directory: Path) -> Record:
    """Read what a run was to be; raise CnnbenchError for a directory that has no record, or another schema's."""
    path = directory / RECORD
    if not path.is_file():
        raise CnnbenchError(
            f"{directory}: no {RECORD} there to judge by: no run of this program's, or one from before runs left it, "
            f"of which {RUN_FILE} and its KPI text are all there is"
        )
    return _parse(Record, path)


def read_outside(directory: Path) -> Outside | None:
    """Read what the host of a container knows of its run; None for a run in no container."""
    path = directory / OUTSIDE
    return _parse(Outside, path) if path.is_file() else None


def _parse(model: type[_M], path: Path) -> _M:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CnnbenchError(f"{path}: {_explain(error)}; needed what schema 1 of a run's record has") from error


def read_seen(directory: Path) -> Seen:
    """Read what was seen of a run, leaving out a last line that is cut off; raise CnnbenchError for any other."""
    path = directory / SEEN_FILE
    *lines, _ = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError as error:
            raise CnnbenchError(f"{path} line {number}: {_explain(error)}; needed one event of schema 1") from error
    last = max((at for at, event in enumerate(events) if isinstance(event, CapacitySeen)), default=0)
    return Seen(
        ceilings=tuple(event for event in events if isinstance(event, CeilingSeen)),
        looks=tuple(event for event in events[last:] if isinstance(event, Look)),
        capacity=next((event for event in events[last:] if isinstance(event, CapacitySeen)), None),
        second_client=next((event for event in events if isinstance(event, SecondClientSeen)), None),
        energy=next((event for event in events if isinstance(event, EnergySeen)), None),
        end=next((event for event in reversed(events) if isinstance(event, End)), None),
    )


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading a damaged or missing file raises into InvalidMeasurementError that names it."""
    try:
        yield
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        what = getattr(error, "strerror", None) or str(error) or "it is empty"
        raise InvalidMeasurementError(f"{path.parent.name}/{path.name}: not what a run leaves there: {what}") from error


def read_array(path: Path, columns: int | None = None) -> np.ndarray:
    """Read an array, of so many columns if given; raise InvalidMeasurementError when it is not whole."""
    with reading(path):
        array: np.ndarray = np.load(path)
        if columns is not None and (array.ndim != 2 or array.shape[1] != columns):
            raise ValueError(f"shape {array.shape}, needed rows of {columns}")
        return array


def read_results(directory: Path, plan: Plan) -> list[dict[str, Any]]:
    """Read what each instance that finished has reported, in their order."""
    found = []
    for one in plan.instances:
        path = directory / f"instance-{one.index}" / "result.json"
        if path.is_file():
            with reading(path):
                result = json.loads(path.read_bytes())
                if missing := {"index", "pid", "affinities", "memory", "resident_bytes", "versions"} - set(result):
                    raise ValueError(f"no {', '.join(sorted(missing))} in it")
                found.append(result)
    return found
