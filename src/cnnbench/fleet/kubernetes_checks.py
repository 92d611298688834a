"""Refuse, before anything is submitted, what a cluster could not run as a pool is declared, in the API's words."""

import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TypeVar

from cnnbench.base.errors import UsageError
from cnnbench.fleet.kubernetes_api import KubernetesApi, RefusedByApiError
from cnnbench.fleet.kubernetes_options import KubernetesOptions, Toleration
from cnnbench.fleet.launcher import UnavailableError
from cnnbench.fleet.manifests import Manifest, select

_log = logging.getLogger(__name__)

_NEEDED = (
    ("create", "jobs", "batch", ""),
    ("list", "jobs", "batch", ""),
    ("delete", "jobs", "batch", ""),
    ("list", "pods", "", ""),
    ("list", "events", "", ""),
)
_ENFORCED = "pod-security.kubernetes.io/enforce"
_FORBIDDEN = 403
_BINARY = {f"{letter}i": Decimal(2) ** (10 * power) for power, letter in enumerate("KMGTPE", 1)}
_DECIMAL = {"m": Decimal("0.001")} | {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)}

_T = TypeVar("_T")


def check_cluster(
    api: KubernetesApi, where: str, options: KubernetesOptions, labels: Mapping[str, str], machines: int
) -> None:
    """Raise UsageError where a pool's batches could not be run, UnavailableError where too few nodes are up.

    `where`: how errors begin. `labels`: those of the pool's nodes.
    """
    try:
        _check_permissions(api, options)
        _check_namespace(api, options)
        _check_quotas(api, options)
        _check_nodes(api, options, labels, machines)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except UnavailableError as error:
        raise UnavailableError(f"{where}: {error}") from error


def quantity(text: str) -> Decimal:
    """Return a quantity of Kubernetes' as a number: 500m, 64Gi, 1e3."""
    for units in (_BINARY, _DECIMAL):
        for suffix, factor in units.items():
            if text.endswith(suffix):
                return Decimal(text[: -len(suffix)]) * factor
    return Decimal(text)


def _check_permissions(api: KubernetesApi, options: KubernetesOptions) -> None:
    needed = [*_NEEDED, *([("create", "networkpolicies", "networking.k8s.io", "")] if options.network_policy else [])]
    needed += [] if options.results else [("get", "pods", "", "log")]
    if denied := [one for one in needed if not api.may(*one)]:
        words = ", ".join(f"{verb} {resource}{f'/{part}' if part else ''}" for verb, resource, _, part in denied)
        raise UsageError(f"this user may not {words} in namespace {options.namespace}; ask for a Role with that")


def _check_namespace(api: KubernetesApi, options: KubernetesOptions) -> None:
    """Refuse a namespace that is not there, or whose Pods may not have what ours need."""
    found = _unless_forbidden(api.read_namespace)
    level = (found["metadata"].get("labels") or {}).get(_ENFORCED, "privileged") if found else "privileged"
    if level == "privileged":
        return
    if any(volume and volume.host_path for volume in (options.cache, options.dataset, options.results)):
        raise UsageError(
            f"namespace {options.namespace} enforces the Pod Security Standard {level}, which forbids host_path; "
            "use claims, or another namespace"
        )
    if options.sys_nice:
        raise UsageError(
            f"namespace {options.namespace} enforces the Pod Security Standard {level}, which forbids the capability "
            "SYS_NICE; set sys_nice: false (memory is not bound to nodes then, and runs say so), or use another one"
        )


def _check_quotas(api: KubernetesApi, options: KubernetesOptions) -> None:
    """Refuse what would never fit; what is used up for now is waited for."""
    one = {"cpu": str(options.cpus), "memory": options.memory}
    needed = {"pods": "1", "count/jobs.batch": "1"} | {
        f"{prefix}{name}": value for prefix in ("", "requests.", "limits.") for name, value in one.items()
    }
    for quota in _unless_forbidden(api.list_quotas) or ():
        for name, limit in (quota["spec"].get("hard") or {}).items():
            if name in needed and quantity(needed[name]) > quantity(limit):
                raise UsageError(
                    f"quota {quota['metadata']['name']} of namespace {options.namespace}: {name} is limited to "
                    f"{limit}, and a Pod of this pool needs {needed[name]}"
                )


def _check_nodes(api: KubernetesApi, options: KubernetesOptions, labels: Mapping[str, str], machines: int) -> None:
    nodes = _unless_forbidden(lambda: api.list_nodes(select(labels)))
    if nodes is None:
        _log.warning("this user may not list nodes: whether there are %d of %s is not known", machines, select(labels))
        return
    if not nodes:
        raise UsageError(f"no node has {select(labels)}; {_tell_labels(api, labels)}")
    reasons = {node["metadata"]["name"]: _obstacle(node, options) for node in nodes}
    fit = [name for name, reason in reasons.items() if not reason]
    if len(fit) < machines:
        why = "; ".join(f"{name} {reason}" for name, reason in reasons.items() if reason)
        raise UnavailableError(
            f"{machines} machines are asked for, and {len(fit)} of the {len(nodes)} nodes that have "
            f"{select(labels) or 'any label'} can take a Pod{f': {why}' if why else ''}"
        )
    _check_kubelets(api, fit, machines)


def _tell_labels(api: KubernetesApi, labels: Mapping[str, str]) -> str:
    """Say what the nodes have instead."""
    told = []
    for name in labels:
        values = sorted({(node["metadata"].get("labels") or {}).get(name, "") for node in api.list_nodes()} - {""})
        told.append(f"{name} is {', '.join(values)}" if values else f"no node has a label {name}")
    return f"of all nodes, {'; '.join(told)}; set it with `kubectl label node NAME LABEL=VALUE`"


def _obstacle(node: Manifest, options: KubernetesOptions) -> str:
    """Say why a node cannot take a Pod of a pool, now or ever; empty where it can."""
    if node["spec"].get("unschedulable"):
        return "is cordoned"
    ready = next((one for one in node["status"].get("conditions") or () if one["type"] == "Ready"), None)
    if ready is None or ready["status"] != "True":
        return "is not ready" + (f" ({ready['message']})" if ready and ready.get("message") else "")
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(one, taint) for one in options.tolerations):
            return f"has the taint {taint['key']}={taint.get('value', '')}:{taint['effect']}, which is not tolerated"
    have = node["status"].get("allocatable") or {}
    for name, needed in (("cpu", str(options.cpus)), ("memory", options.memory)):
        if quantity(have.get(name, "0")) < quantity(needed):
            return f"has {name} {have.get(name, '0')} to give, and {needed} are needed"
    return ""


def _tolerates(one: Toleration, taint: Manifest) -> bool:
    if one.key != taint["key"] or one.effect != taint["effect"]:
        return False
    return one.operator == "Exists" or (one.value or "") == taint.get("value", "")


def _check_kubelets(api: KubernetesApi, nodes: Sequence[str], machines: int) -> None:
    """Refuse where too few kubelets have the static CPU policy; where that cannot be told, say so."""
    policies = {node: _read_policy(api, node) for node in nodes}
    without = {node: policy for node, policy in policies.items() if policy not in ("static", None)}
    if len(nodes) - len(without) < machines:
        told = ", ".join(f"{node} has {policy}" for node, policy in without.items())
        raise UsageError(
            f"{machines} machines are asked for, and {len(nodes) - len(without)} nodes have the static CPU policy: "
            f"{told}; set `cpuManagerPolicy: static` and reservedSystemCPUs for their kubelets"
        )
    if unknown := [node for node, policy in policies.items() if policy is None]:
        _log.warning("%s: whether the kubelet has the static CPU policy is not known; each Pod checks it", unknown[0])


def _read_policy(api: KubernetesApi, node: str) -> str | None:
    """Return a kubelet's CPU manager policy; None where this user, or anybody, cannot ask it."""
    try:
        policy: str = api.read_kubelet(node).get("cpuManagerPolicy", "none")
    except (RefusedByApiError, UnavailableError):
        return None
    return policy


def _unless_forbidden(ask: Callable[[], _T]) -> _T | None:
    """Return what the API answers; None where this user may not ask that."""
    try:
        return ask()
    except RefusedByApiError as error:
        if error.status != _FORBIDDEN:
            raise
        return None
