"""Read what a pool of the launcher `kubernetes` says."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from cnnbench.base.errors import UsageError
from cnnbench.fleet.spec import Pool, Strict

PLATFORM_LABEL = "cnnbench.platform"
"""The label of a node that says which platform it is, where a pool names no other."""

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def _dns_label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise ValueError("must be a DNS label: lower-case letters, digits and -, at most 63")
    return text


def _subdomain(text: str) -> str:
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise ValueError("must be a name of Kubernetes: lower-case letters, digits, - and .")
    return text


def _quantity(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*(Mi|Gi|Ti)", text):
        raise ValueError("must be a whole number of Mi, Gi or Ti, such as 64Gi")
    return text


def _inside(text: str) -> str:
    if PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts:
        raise ValueError("must be a path inside the volume, without ..")
    return text


def _absolute(text: str) -> str:
    if not PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts:
        raise ValueError("must be an absolute path, without ..")
    return text


def _label_name(text: str) -> str:
    prefix, slash, last = text.rpartition("/")
    if (slash and not _SUBDOMAIN.fullmatch(prefix)) or not last or not _LABEL_VALUE.fullmatch(last):
        raise ValueError("must be the name of a label, such as example.org/platform")
    return text


class Volume(Strict):
    """A volume that every node reaches: a claim (PersistentVolumeClaim), or a folder of each node; of it `path`."""

    claim: Annotated[str, AfterValidator(_subdomain)] | None = None
    host_path: Annotated[str, AfterValidator(_absolute)] | None = None
    path: Annotated[str, AfterValidator(_inside)] = ""

    @model_validator(mode="after")
    def _check_source(self) -> "Volume":
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("must have either claim or host_path")
        return self


class ResultsVolume(Volume):
    """A volume for results, which this machine has too, at `here`."""

    here: Annotated[str, AfterValidator(_absolute)]


class Toleration(Strict):
    """A taint of nodes that a fleet's Pods tolerate."""

    key: str
    value: str | None = None
    operator: str = Field(default="Equal", pattern="^(Equal|Exists)$")
    effect: str = Field(default="NoSchedule", pattern="^(NoSchedule|NoExecute|PreferNoSchedule)$")


class KubernetesOptions(Strict):
    """What a pool of the launcher `kubernetes` says.

    `context`: of the kubeconfig; empty for the current one. `cpus`, `memory`: of each Pod, on a node of its own.
    `platform_label`: of nodes; what says their platform, where the pool has no `constraint`. `cache`: has more of what
    a cache holds. `dataset`: the folder that DATASET names. `results`: None to take results from what containers
    print. `sys_nice`: whether a Pod may have the capability that binding memory takes. `network_policy`: whether to
    forbid Pods all traffic.
    """

    namespace: Annotated[str, AfterValidator(_dns_label)] = "default"
    context: str = ""
    cpus: int = Field(ge=1, le=4096, strict=True)
    memory: Annotated[str, AfterValidator(_quantity)]
    platform_label: Annotated[str, AfterValidator(_label_name)] = PLATFORM_LABEL
    tolerations: tuple[Toleration, ...] = ()
    pull_secrets: tuple[Annotated[str, AfterValidator(_subdomain)], ...] = ()
    priority_class: Annotated[str, AfterValidator(_subdomain)] | None = None
    cache: Volume | None = None
    dataset: Volume | None = None
    results: ResultsVolume | None = None
    sys_nice: bool = True
    network_policy: bool = True


def read_constraint(pool: Pool, options: KubernetesOptions) -> dict[str, str]:
    """Return the labels that a pool's nodes have: its constraint's, else its platform's."""
    if not pool.constraint:
        return {options.platform_label: pool.platform} if pool.platform else {}
    labels = {}
    for word in pool.constraint.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        try:
            _label_name(name)
        except ValueError as error:
            raise UsageError(f"pool {pool.name}: constraint {pool.constraint}: {name or word}: {error}") from error
        if not equals or not _LABEL_VALUE.fullmatch(value):
            raise UsageError(
                f"pool {pool.name}: constraint {pool.constraint}: must be labels of nodes, name=value, between commas"
            )
        labels[name] = value
    return labels
