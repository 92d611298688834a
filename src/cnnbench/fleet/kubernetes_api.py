"""Talk to a Kubernetes API by its official client, which is imported only here, and late.

What the API refuses keeps its own words. A request is made again when the server is too busy, fails inside, or the
connection breaks: names of Jobs are decided before, so that a second request to create one makes no second Job.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.fleet.launcher import UnavailableError
from cnnbench.fleet.manifests import Manifest
from cnnbench.fleet.pods import QUOTA

HOW_TO_GET = "run script/setup.sh kubernetes"
RETRIES, BACKOFF_S = 4, 0.25
BUSY = (429, 500, 502, 503, 504)
ANSWER_S = 60.0
PAGE = 100
_EXPIRED = 410
"""What the API answers to a page that it no longer knows: the list is to be begun anew."""


class RefusedByApiError(UsageError):
    """The API refuses what was asked for; `status` is the answer's code."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def load_client() -> ModuleType:
    """Return the official client's module; raise UsageError saying how to get it."""
    try:
        return importlib.import_module("kubernetes")
    except ImportError as error:
        raise UsageError(f"launcher kubernetes: needs Kubernetes' own client for Python: {HOW_TO_GET}") from error


class KubernetesApi:
    """The few calls that a fleet needs, in one namespace; objects are plain data."""

    def __init__(self, context: str, namespace: str) -> None:
        module = load_client()
        self._module, self._namespace = module, namespace
        configuration = module.client.Configuration()
        _configure(module, context, configuration)
        urllib3 = importlib.import_module("urllib3")
        configuration.retries = urllib3.Retry(
            total=RETRIES,
            backoff_factor=BACKOFF_S,
            status_forcelist=BUSY,
            allowed_methods=None,
            raise_on_status=False,  # the answer has the reason
        )
        self._broken: type[Exception] = urllib3.exceptions.HTTPError
        self._client = module.client.ApiClient(configuration)
        self._core, self._batch = module.client.CoreV1Api(self._client), module.client.BatchV1Api(self._client)
        self._network = module.client.NetworkingV1Api(self._client)
        self._access = module.client.AuthorizationV1Api(self._client)

    def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request; return the answer as plain data, whatever fields this version of the client knows."""
        return json.loads(self._raw(call, *arguments, **options))

    def _raw(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> bytes:
        """Return the bytes of an answer; ask again where the connection breaks in the middle of them.

        Raises RefusedByApiError with the API's words, and UnavailableError where nobody answers.
        """
        for left in reversed(range(RETRIES)):
            try:
                response = call(*arguments, _preload_content=False, _request_timeout=ANSWER_S, **options)
                content: bytes = response.data
            except self._module.client.ApiException as error:
                raise _explain(error) from error
            except self._broken as error:
                if not left:
                    raise UnavailableError(f"the Kubernetes API does not answer: {error}") from error
            else:
                return content
        raise AssertionError

    def _list(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Manifest]:
        """Yield all objects of a list, page by page."""
        token: str | None = None
        while True:
            try:
                page = self._call(call, *arguments, limit=PAGE, _continue=token, **options)
            except RefusedByApiError as error:
                if error.status != _EXPIRED or token is None:
                    raise
                token = None  # what was yielded already comes again, with the same names
                continue
            yield from page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return

    def list_pods(self, selector: str) -> Iterator[Manifest]:
        """Yield the Pods that have some labels."""
        return self._list(self._core.list_namespaced_pod, self._namespace, label_selector=selector)

    def list_jobs(self, selector: str) -> Iterator[Manifest]:
        """Yield the Jobs that have some labels."""
        return self._list(self._batch.list_namespaced_job, self._namespace, label_selector=selector)

    def list_events(self, kind: str, name: str) -> list[Manifest]:
        """Return the events about an object, the newest last."""
        fields = f"involvedObject.kind={kind},involvedObject.name={name}"
        found = self._list(self._core.list_namespaced_event, self._namespace, field_selector=fields)
        return sorted(found, key=lambda one: one.get("lastTimestamp") or one["metadata"].get("creationTimestamp") or "")

    def list_nodes(self, selector: str = "") -> list[Manifest]:
        """Return the nodes that have some labels."""
        return list(self._list(self._core.list_node, label_selector=selector))

    def list_quotas(self) -> list[Manifest]:
        """Return the namespace's quotas."""
        return list(self._list(self._core.list_namespaced_resource_quota, self._namespace))

    def read_namespace(self) -> Manifest:
        """Return the namespace itself."""
        found: Manifest = self._call(self._core.read_namespace, self._namespace)
        return found

    def read_job(self, name: str) -> Manifest:
        """Return a Job."""
        found: Manifest = self._call(self._batch.read_namespaced_job, name, self._namespace)
        return found

    def create_job(self, manifest: Manifest) -> Manifest:
        """Create a Job; raise RefusedByApiError, with status 409 where there is one of that name."""
        found: Manifest = self._call(self._batch.create_namespaced_job, self._namespace, manifest)
        return found

    def create_network_policy(self, manifest: Manifest) -> None:
        """Create a network policy; one of that name is left as it is."""
        try:
            self._call(self._network.create_namespaced_network_policy, self._namespace, manifest)
        except RefusedByApiError as error:
            if error.status != 409:
                raise

    def delete_job(self, name: str) -> None:
        """Delete a Job, its Pods and what else it owns; one that is not there is well deleted."""
        try:
            self._call(self._batch.delete_namespaced_job, name, self._namespace, propagation_policy="Background")
        except RefusedByApiError as error:
            if error.status != 404:
                raise

    def read_log(self, pod: str, container: str) -> str:
        """Return what a container has printed."""
        answer = self._raw(self._core.read_namespaced_pod_log, pod, self._namespace, container=container)
        return answer.decode(errors="replace")

    def read_kubelet(self, node: str) -> Manifest:
        """Return a node's kubelet's settings, where this user may ask through the API."""
        found: Manifest = self._call(self._core.connect_get_node_proxy_with_path, node, "configz")["kubeletconfig"]
        return found

    def may(self, verb: str, resource: str, group: str = "", part: str = "") -> bool:
        """Say whether this user may do something in the namespace."""
        attributes = {"namespace": self._namespace, "verb": verb, "resource": resource, "group": group}
        attributes |= {"subresource": part} if part else {}
        review = {"spec": {"resourceAttributes": attributes}}
        answer = self._call(self._access.create_self_subject_access_review, review)
        return bool(answer["status"]["allowed"])


def _configure(module: ModuleType, context: str, configuration: Any) -> None:
    """Read how to reach the API: from KUBECONFIG, ~/.kube/config, or inside of a cluster, what each Pod has."""
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    found = any(Path(part).is_file() for part in path.split(os.pathsep))
    try:
        if found or context:
            module.config.load_kube_config(path, context=context or None, client_configuration=configuration)
        else:
            module.config.load_incluster_config(client_configuration=configuration)
    except (module.config.ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"how to reach the Kubernetes API is not known: {path}{'' if found else ' is not there'}: {error}; set "
            "KUBECONFIG, or `context` in the pool's options"
        ) from error


def _explain(error: Any) -> CnnbenchError:
    """Return an answer that is an error as ours, in the API's words: its Status has a message."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    try:
        said = json.loads(body)
    except ValueError:
        said = {}
    words = said.get("message") if isinstance(said, dict) else None
    words = words or body.strip()[:500] or str(error.reason)
    if error.status in BUSY or QUOTA in words:
        return UnavailableError(f"the Kubernetes API answers {error.status}: {words}")
    return RefusedByApiError(error.status, words)
