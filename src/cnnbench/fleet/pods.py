"""Tell from what the Kubernetes API says of a Job and its Pod how far a batch is. Plain data; nothing is asked here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from cnnbench.fleet.launcher import JobState
from cnnbench.fleet.manifests import container_name

Object = Mapping[str, Any]

STUCK = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "RunContainerError",
}
"""Why a container waits that will not start by waiting."""
QUOTA = "exceeded quota"
"""What the API says where a namespace has as much as it may have."""
GONE_S = 60.0
"""How long after its time a Pod that is being deleted may still be there, before its node counts as lost."""


@dataclass(frozen=True)
class ContainerEnd:
    """How a run's container ended; `words`: the reason and exit code."""

    exit_code: int
    words: str
    began_s: float
    ended_s: float


def read_time(text: str | None) -> float:
    """Return a time of the API's in seconds; 0 for none."""
    if not text:
        return 0.0
    return datetime.fromisoformat(text.replace("Z", "+00:00")).replace(tzinfo=timezone.utc).timestamp()


def find_statuses(pod: Object) -> Iterator[Object]:
    """Yield the status of each container of a Pod, in the order in which they run."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        order = [one["name"] for one in pod["spec"].get(kind.replace("Statuses", "s"), ())]
        yield from sorted(pod["status"].get(kind) or (), key=lambda one: order.index(one["name"]))


def find_ends(pod: Object) -> dict[str, ContainerEnd]:
    """Return how the containers of a Pod that have ended did, by name."""
    found = {}
    for status in find_statuses(pod):
        if (end := status["state"].get("terminated")) is not None:
            said = f": {end['message'].strip()}" if end.get("message") else ""
            words = f"{end.get('reason') or 'Error'}, exit code {end['exitCode']}{said}"
            times = read_time(end.get("startedAt")), read_time(end.get("finishedAt"))
            found[status["name"]] = ContainerEnd(end["exitCode"], words, *times)
    return found


def find_running(pod: Object) -> tuple[str, float]:
    """Return the name of the container that runs, and since when; empty and 0 where none does."""
    for status in find_statuses(pod):
        if (running := status["state"].get("running")) is not None:
            return status["name"], read_time(running.get("startedAt"))
    return "", 0.0


def judge_pod(pod: Object, now_s: float) -> JobState:
    """Return how far the Pod of a batch is."""
    status, node = pod["status"], pod["spec"].get("nodeName") or ""
    phase, reason = status.get("phase", "Pending"), _explain(status)
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    if phase == "Succeeded":
        return JobState("ended", node)
    if phase == "Failed":
        ends = (f"{name}: {end.words}" for name, end in find_ends(pod).items() if end.exit_code)
        return JobState("failed", node, reason or next(ends, "") or _disruption(conditions) or "the Pod failed")
    if phase == "Unknown" or status.get("reason") == "NodeLost":
        return JobState("lost", node, reason or f"node {node} does not answer")
    deleted = pod["metadata"].get("deletionTimestamp")
    if deleted and now_s > read_time(deleted) + GONE_S:
        why = _disruption(conditions) or "it is being deleted"
        return JobState("lost", node, f"node {node} does not answer, and the Pod is still there: {why}")
    for one in find_statuses(pod):
        waiting = one["state"].get("waiting") or {}
        if waiting.get("reason") in STUCK:
            said = f": {waiting['message'].strip()}" if waiting.get("message") else ""
            return JobState("failed", node, f"{waiting['reason']}{said}")
    if find_running(pod)[0] or find_ends(pod):
        return JobState("running", node)
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return JobState("queued", "", f"{scheduled.get('reason', '')}: {scheduled.get('message', '')}".strip(": "))
    return JobState("queued", node)


def judge_job(job: Object | None, name: str, events: Sequence[Object]) -> JobState:
    """Return how far a Job is that has no Pod; `events`: those about it, the newest last."""
    if job is None:
        return JobState("lost", "", f"Job {name} is gone: somebody has deleted it")
    for one in job["status"].get("conditions") or ():
        if one["type"] == "Failed" and one["status"] == "True":
            return JobState("failed", "", f"{one.get('reason', 'Failed')}: {one.get('message', '')}".strip(": "))
    refused = [one["message"] for one in events if one.get("reason") == "FailedCreate"]
    if not refused:
        return JobState("queued")
    return JobState("queued" if QUOTA in refused[-1] else "failed", "", f"FailedCreate: {refused[-1]}")


def is_own_end(pod: Object) -> bool:
    """Say whether a container of a Pod that ended badly did so by itself: nothing ended the Pod as a whole."""
    conditions = {one["type"]: one for one in pod["status"].get("conditions") or ()}
    ended = pod["status"].get("reason") or pod["metadata"].get("deletionTimestamp") or _disruption(conditions)
    return not ended


def find_task(container: str, tasks: Sequence[str]) -> str:
    """Return the id of the run that a container is; empty where it is none of these."""
    return next((task for task in tasks if container_name(task) == container), "")


def _explain(status: Object) -> str:
    """Return why a Pod as a whole is as it is, in the API's words: Evicted, DeadlineExceeded, NodeLost and others."""
    return ": ".join(text for text in (status.get("reason"), status.get("message")) if text)


def _disruption(conditions: Mapping[str, Object]) -> str:
    one = conditions.get("DisruptionTarget", {})
    if one.get("status") != "True":
        return ""
    return f"{one.get('reason', '')}: {one.get('message', '')}".strip(": ")
