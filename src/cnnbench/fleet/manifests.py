"""Write the Kubernetes manifests of a fleet's batches: plain data, from nothing but the plan and a pool's options.

A batch is one Job of one Pod, whose containers run the batch's cases one after the other: all but the last are its init
containers, which a kubelet starts in their order. Each gets what a container of ours gets from docker
(launch/container.py), and whole CPUs with requests equal to limits, so that a kubelet with the static CPU policy gives
it cores that nothing else runs on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cnnbench.base.errors import UsageError
from cnnbench.fleet.kubernetes_options import KubernetesOptions, Volume
from cnnbench.machine.facts import ALLOCATION_VARIABLE
from cnnbench.run.container import FILES
from cnnbench.run.serve import HANG_VARIABLE, MOUNTED_CACHE, PRINT

Manifest = dict[str, Any]

NAME, NAME_LABEL = "cnnbench", "app.kubernetes.io/name"
FLEET_LABEL, BATCH_LABEL, POOL_LABEL = "cnnbench.fleet", "cnnbench.batch", "cnnbench.pool"

RESULTS = PurePosixPath("/mnt/results")
USER = 10001
"""The user of the images, and its group."""

TMP_SIZE, SHM_SIZE = "2Gi", "1Gi"
NODE, POD, POD_UID, NEEDS = "NODE", "POD", "POD_UID", "NEEDS"
"""The environment variables in which Kubernetes tells a container where it is and what for (the downward API)."""
NEEDS_ANNOTATION = "cnnbench.needs"
KEPT_S = 7 * 24 * 3600
"""How long a cluster keeps a Job that has ended, with the logs that a controller may still have to fetch."""
_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class PodRun:
    """A run in a batch. `id`: its own in the fleet. `environment`: what names its case, and its parameters."""

    id: str
    image: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class PodBatch:
    """A batch of runs on one node.

    `fleet`: the token of its folder. `job`: what the Job is called. `needs`: the batch as what runs checks it, JSON.
    `node_labels`: those of nodes that it may be on; `not_on`: nodes that it is not to be on, where its pool has more
    `machines` than these. `limit_s`: for how long it
    may have a node; `timeout_s`: how long each run may take. `hang_s`: None for what a container takes by itself.
    """

    fleet: str
    pool: str
    id: str
    job: str
    runs: Sequence[PodRun]
    needs: str
    node_labels: Mapping[str, str]
    not_on: Sequence[str]
    machines: int
    limit_s: float
    timeout_s: float
    hang_s: float | None = None


def fleet_labels(fleet: str) -> dict[str, str]:
    """Return the labels that all objects of a fleet have."""
    return {NAME_LABEL: NAME, FLEET_LABEL: fleet}


def select(labels: Mapping[str, str]) -> str:
    """Return labels as the API selects objects by them."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def archive_path(fleet: str, batch: str, run: str) -> PurePosixPath:
    """Return where a run's archive is in a volume for results."""
    return PurePosixPath(fleet) / batch / f"{run}.tar.gz"


def container_name(run: str) -> str:
    """Return the name of a run's container, by the run's id."""
    return f"run-{run}"


def identify_pod(environ: Mapping[str, str], namespace: str) -> str:
    """Return which Pod a run is in, by what Kubernetes has told it."""
    return f"kubernetes pod {namespace}/{environ[POD]} {environ[POD_UID]} on node {environ[NODE]}"


def job_manifest(batch: PodBatch, options: KubernetesOptions) -> Manifest:
    """Return the Job of a batch; raise UsageError for what no Pod could be made of."""
    labels = fleet_labels(batch.fleet) | {POOL_LABEL: batch.pool, BATCH_LABEL: batch.id}
    metadata = {"labels": dict(labels), "annotations": {NEEDS_ANNOTATION: batch.needs}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": batch.job, "namespace": options.namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,  # what is to be repeated is the fleet's to say: none is lost, none counted twice
            "completions": 1,
            "parallelism": 1,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": metadata, "spec": _pod_spec(batch, options)},
        },
    }


def network_policy(labels: Mapping[str, str], name: str, namespace: str) -> Manifest:
    """Return what forbids Pods with these labels all traffic, as `--network none` does, where the network heeds it."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {"podSelector": {"matchLabels": dict(labels)}, "policyTypes": ["Ingress", "Egress"]},
    }


def _pod_spec(batch: PodBatch, options: KubernetesOptions) -> Manifest:
    containers = [_container(batch, run, options) for run in batch.runs]
    if not containers:
        raise UsageError(f"{batch.job}: a batch without runs")
    found: Manifest = {
        "restartPolicy": "Never",
        # The Job's own would count from before a node has it, and would take the logs with it.
        "activeDeadlineSeconds": max(1, int(batch.limit_s)),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _affinity(batch),
        "volumes": _volumes(options),
        "initContainers": containers[:-1],
        "containers": containers[-1:],
    }
    if options.results:
        found["securityContext"] |= {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
    optional = {
        "nodeSelector": dict(batch.node_labels),
        "tolerations": [one.model_dump(exclude_none=True) for one in options.tolerations],
        "imagePullSecrets": [{"name": name} for name in options.pull_secrets],
        "priorityClassName": options.priority_class,
    }
    return {key: value for key, value in (found | optional).items() if value or value is False}


def _affinity(batch: PodBatch) -> Manifest:
    """Return what keeps a Pod off the nodes that it must not be on, and off one that has another of ours."""
    apart = {
        "labelSelector": {"matchLabels": {NAME_LABEL: NAME}},
        "namespaceSelector": {},
        "topologyKey": "kubernetes.io/hostname",
    }
    found: Manifest = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    # One name in each: the API takes no more.
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in sorted(set(batch.not_on))]
    if fields and len(fields) < batch.machines:
        terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
        found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    elif fields:  # no other may be left: rather one of these than to wait for ever
        wish = {"weight": 100, "preference": {"matchFields": fields}}
        found["nodeAffinity"] = {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}
    return found


def _mounted(options: KubernetesOptions) -> dict[str, tuple[Volume, str, bool]]:
    """Return a pool's volumes by name: which, where it is inside, and whether that is to be written to."""
    found: dict[str, tuple[Volume | None, str, bool]] = {
        "cache": (options.cache, str(MOUNTED_CACHE), False),
        "dataset": (options.dataset, FILES["DATASET"], False),
        "results": (options.results, str(RESULTS), True),
    }
    return {name: (volume, at, write) for name, (volume, at, write) in found.items() if volume}


def _volumes(options: KubernetesOptions) -> list[Manifest]:
    found: list[Manifest] = [
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": TMP_SIZE}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHM_SIZE}},
    ]
    for name, (volume, _, write) in _mounted(options).items():
        if volume.claim:
            claim: Manifest = {"claimName": volume.claim}
            found.append({"name": name, "persistentVolumeClaim": claim if write else claim | {"readOnly": True}})
        else:
            found.append({"name": name, "hostPath": {"path": volume.host_path, "type": "Directory"}})
    return found


def _container(batch: PodBatch, run: PodRun, options: KubernetesOptions) -> Manifest:
    if not _DIGEST.fullmatch(run.image):
        raise UsageError(
            f"{run.image or 'no image'}: a tag may be another image on another node or tomorrow; "
            "pin it by its digest: NAME@sha256:... (`docker inspect --format '{{index .RepoDigests 0}}' NAME`)"
        )
    resources = {"cpu": str(options.cpus), "memory": options.memory}
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    for name, (volume, at, write) in _mounted(options).items():
        part = {"subPath": volume.path} if volume.path else {}
        mounts.append({"name": name, "mountPath": at, **part, **({} if write else {"readOnly": True})})
    export = str(RESULTS / archive_path(batch.fleet, batch.id, run.id)) if options.results else PRINT
    args = ["--export", export, "--own-cpus", str(options.cpus), "--timeout", f"{batch.timeout_s:g}"]
    return {
        "name": container_name(run.id),
        "image": run.image,
        "imagePullPolicy": "IfNotPresent",  # a digest is the same bytes wherever it comes from
        "args": [*map(_literal, args), "--batch", f"$({NEEDS})"],
        "env": [*_identity(options), *_environment(batch, run, options)],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]} | ({"add": ["SYS_NICE"]} if options.sys_nice else {}),
        },
        "volumeMounts": mounts,
    }


def _identity(options: KubernetesOptions) -> list[Manifest]:
    """Return what tells a run where it is: Kubernetes fills in the names of node and Pod."""
    fields = {NODE: "spec.nodeName", POD: "metadata.name", POD_UID: "metadata.uid"}
    told = identify_pod({name: f"$({name})" for name in fields}, options.namespace)
    given = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    needs = {"fieldRef": {"fieldPath": f"metadata.annotations['{NEEDS_ANNOTATION}']"}}  # once for all containers
    return [*given, {"name": NEEDS, "valueFrom": needs}, {"name": ALLOCATION_VARIABLE, "value": told}]


def _environment(batch: PodBatch, run: PodRun, options: KubernetesOptions) -> list[Manifest]:
    """Return a run's parameters; of files that they name, only the dataset comes with a Pod."""
    found = dict(run.environment) | ({HANG_VARIABLE: f"{batch.hang_s:g}"} if batch.hang_s is not None else {})
    for name in FILES:
        value = found.get(name, "")
        if not PurePosixPath(value).is_absolute():
            continue
        if name != "DATASET" or options.dataset is None:
            needed = (
                "the pool's options need a `dataset`" if name == "DATASET" else "put it into the image or the cache"
            )
            raise UsageError(f"{name}={value}: no file of this machine comes with a Pod; {needed}")
        found[name] = FILES[name]
    return [{"name": name, "value": _literal(value)} for name, value in sorted(found.items())]


def _literal(text: str) -> str:
    """Return a text in which Kubernetes takes no $(NAME) for a variable's value."""
    return text.replace("$", "$$")
