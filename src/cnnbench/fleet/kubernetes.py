"""The launcher for Kubernetes: each batch is a Job of one Pod, in whose containers the images run its cases.

What a Pod leaves comes out of what its containers print, or over a volume that this machine has too. All that is known
of a batch is in the cluster, by the name of its Job, and in the fleet's folder.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from cnnbench.base.errors import UsageError
from cnnbench.cases.workload import Sources, load_workload
from cnnbench.fleet.batch import BatchFile, Ended, Node, Now, TaskFile
from cnnbench.fleet.folder import ENDED, NODE, NOW, FleetFolder, read_file, write_file
from cnnbench.fleet.kubernetes_api import KubernetesApi, RefusedByApiError
from cnnbench.fleet.kubernetes_checks import check_cluster
from cnnbench.fleet.kubernetes_options import KubernetesOptions, read_constraint
from cnnbench.fleet.launcher import Batch, JobState, UnavailableError
from cnnbench.fleet.manifests import (
    BATCH_LABEL,
    FLEET_LABEL,
    POOL_LABEL,
    Manifest,
    PodBatch,
    PodRun,
    archive_path,
    container_name,
    fleet_labels,
    identify_pod,
    job_manifest,
    network_policy,
    select,
)
from cnnbench.fleet.pod_results import PodRunEnd, install_run, refuse_run
from cnnbench.fleet.pods import (
    ContainerEnd,
    find_ends,
    find_running,
    find_task,
    is_own_end,
    judge_job,
    judge_pod,
    read_time,
)
from cnnbench.fleet.spec import Pool, Runs, read_options
from cnnbench.run.handover import NotWholeError, read_printed
from cnnbench.run.images import ImageOptions, inference_image
from cnnbench.run.job import PLATFORM_VARIABLE

LARGEST_BYTES = 1_000_000
"""How large a Job may be: etcd keeps no object of more than 1.5 MiB, and the status grows with the containers."""
FETCHES = 3
"""How often a log is fetched that is not whole."""
SETTLE_S = 90.0
"""How long a shared file system may take to show here what was written on a node."""
END_S, LOOK_S = 90.0, 0.5
"""How long Pods may take to be gone that were cancelled, and how often to look."""
_CONFLICT, _NOT_FOUND = 409, 404


class KubernetesLauncher:
    """Brings batches of one pool to the nodes of a cluster."""

    Options: ClassVar[type[BaseModel]] = KubernetesOptions
    chooses_nodes: ClassVar[bool] = True

    def __init__(self, pool: Pool, folder: FleetFolder) -> None:
        self._pool, self._folder = pool, folder
        self._options = read_options(KubernetesOptions, pool)
        self._labels = read_constraint(pool, self._options)

    @property
    def machines(self) -> int:
        """How many nodes the pool asks for."""
        pool = self._pool
        if pool.backend != "container":
            raise UsageError(f"pool {pool.name}: launcher kubernetes runs cases in images: set backend: container")
        for name in ("checkout", "python", "cache", "folder", "docker_options"):
            if getattr(pool, name):
                raise UsageError(
                    f"pool {pool.name}: {name} has no meaning in a Pod, which has its image and the volumes of "
                    "`options`; leave it out"
                )
        return pool.machines or 1

    @cached_property
    def _api(self) -> KubernetesApi:
        return KubernetesApi(self._options.context, self._options.namespace)

    @property
    def _where(self) -> str:
        return f"pool {self._pool.name}"

    def _selector(self, **more: str) -> dict[str, str]:
        return {**fleet_labels(self._folder.token), POOL_LABEL: self._pool.name, **more}

    def check(self, run: Runs) -> None:  # noqa: ARG002 - as every launcher
        """Ask the cluster for all that its Pods will need."""
        if self._options.results and not Path(self._options.results.here).is_dir():
            raise UsageError(
                f"{self._where}: results.here={self._options.results.here}: no such directory; needed is where this "
                "machine has the volume that the Pods write results to"
            )
        check_cluster(self._api, self._where, self._options, self._labels, self.machines)

    def render(self, batches: Sequence[Batch]) -> list[Manifest]:
        """Return the manifests of batches, without asking the cluster."""
        labels, namespace = self._selector(), self._options.namespace
        found = [job_manifest(self._plan(batch), self._options) for batch in batches]
        if found and self._options.network_policy:
            found.append(network_policy(labels, f"cnnbench-{self._pool.name}-{self._folder.token[:12]}", namespace))
        return found

    def _plan(self, batch: Batch) -> PodBatch:
        file = batch.file
        # A Pod has no fleet's folder, and the digest of its image has pinned program and workloads.
        needs = file.model_copy(update={"tasks": [], "workloads": {}, "sources": "", "images": {}, "token": ""})
        return PodBatch(
            fleet=self._folder.token,
            pool=self._pool.name,
            id=file.id,
            job=file.name,
            runs=[self._plan_run(task) for task in file.tasks],
            needs=needs.model_dump_json(),
            node_labels=self._labels,
            not_on=batch.avoid,
            machines=self.machines,
            limit_s=batch.limit_s,
            timeout_s=file.timeout_s,
            hang_s=file.hang_after_s,
        )

    def _plan_run(self, task: TaskFile) -> PodRun:
        pool, workload = self._pool, load_workload(Path(task.workload))
        case = workload.parse_case(task.case)
        sources = Sources.read(workload, {PLATFORM_VARIABLE: pool.platform})
        parameters = sources.resolve(case, {"run.parameters": task.parameters})
        image = inference_image(workload, parameters.data_type, case.sgx, ImageOptions(pool.registry, pool.release))
        if image not in pool.images:
            raise UsageError(f"{self._where}: {task.case} runs in {image}, whose digest is not told in `images`")
        named = {"WORKLOAD": workload.slug, **{name: text for name, text in case.fixed.items() if text}}
        platform = {PLATFORM_VARIABLE: pool.platform.upper()} if pool.platform else {}
        pinned = f"{image.rpartition(':')[0]}@{pool.images[image]}"
        return PodRun(task.id, pinned, {**named, **platform, **task.parameters})

    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Create a Job for each batch; one that is there already, of this fleet, is the batch's."""
        jobs: dict[str, str] = {}
        for batch in batches:
            manifest = job_manifest(self._plan(batch), self._options)
            size = len(json.dumps(manifest))
            if size > LARGEST_BYTES:
                raise UsageError(
                    f"{self._where}: the Job of {len(batch.file.tasks)} runs would have {size} bytes, and the API "
                    f"takes {LARGEST_BYTES}; have fewer runs a machine: fewer cases, sets or trials, or more machines"
                )
            try:
                created = self._api.create_job(manifest)
            except RefusedByApiError as error:
                if error.status != _CONFLICT:
                    raise
                created = self._require_ours(batch.file.name)
            except UnavailableError:
                if not jobs:
                    raise
                return jobs  # the others are asked for again
            if self._options.network_policy:
                self._api.create_network_policy(self._policy(created))
            jobs[batch.id] = batch.file.name
        return jobs

    def _require_ours(self, job: str) -> Manifest:
        found = self._api.read_job(job)
        label = (found["metadata"].get("labels") or {}).get(FLEET_LABEL)
        if label != self._folder.token:
            raise UsageError(
                f"{self._where}: Job {self._options.namespace}/{job} is there already and is not of this fleet "
                f"(label {FLEET_LABEL} is {label}, needed {self._folder.token}); delete it, or use another namespace"
            )
        return found

    def _policy(self, job: Manifest) -> Manifest:
        """Return what forbids a Job's Pod all traffic, and goes with the Job."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        labels = self._selector(**{BATCH_LABEL: job["metadata"]["labels"][BATCH_LABEL]})
        policy = network_policy(labels, name, self._options.namespace)
        policy["metadata"]["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}]
        return policy

    def poll(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Look at the Pods of the pool, and at the Jobs that have none."""
        found, now_s = {}, time.time()
        for pod in self._api.list_pods(select(self._selector())):
            batch = pod["metadata"]["labels"].get(BATCH_LABEL)
            if batch in jobs:
                found[batch] = judge_pod(pod, now_s)
                self._note(batch, pod)
        if without := {batch: name for batch, name in jobs.items() if batch not in found}:
            there = {job["metadata"]["name"]: job for job in self._api.list_jobs(select(self._selector()))}
            for batch, name in without.items():
                events = self._api.list_events("Job", name) if name in there else []
                found[batch] = judge_job(there.get(name), name, events)
        return found

    def _note(self, batch: str, pod: Manifest) -> None:
        """Write down for --status where a batch is and what it does."""
        began_s, node = read_time(pod["status"].get("startTime")), pod["spec"].get("nodeName")
        if not node or not began_s:
            return
        directory = self._folder.batches / batch
        tasks = [task.id for task in self._folder.read_batch(batch)[0].tasks]
        container, since_s = find_running(pod)
        now = Now(task=find_task(container, tasks), since_s=since_s or began_s, done=len(find_ends(pod)))
        identity = self._identify(pod)
        wanted = ((NODE, Node(host=node, allocation=identity, pid=0, began_s=began_s)), (NOW, now))
        for name, content in wanted:
            if read_file(directory / name, type(content)) != content:
                write_file(directory / name, content)

    def _identify(self, pod: Manifest) -> str:
        about = pod["metadata"]
        return self.identify(
            {"NAMESPACE": about["namespace"], "NODE": pod["spec"].get("nodeName") or "none", "POD": about["name"],
             "POD_UID": about["uid"]}
        )  # fmt: skip

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """Delete the Jobs, after what their runs have left is here, and wait until their Pods are gone."""
        for batch, job in jobs.items():
            self.collect(self._folder.read_batch(batch)[0])
            self._api.delete_job(job)
        deadline_s = time.monotonic() + END_S
        while left := [name for batch, name in jobs.items() if self._has_running_pod(batch)]:
            if time.monotonic() > deadline_s:
                raise UnavailableError(f"Jobs {', '.join(left)} are deleted, and their Pods are there still")
            time.sleep(LOOK_S)

    def _has_running_pod(self, batch: str) -> bool:
        pods = self._api.list_pods(select(self._selector(**{BATCH_LABEL: batch})))
        return any(pod["status"].get("phase") not in ("Succeeded", "Failed") for pod in pods)

    def collect(self, batch: BatchFile) -> None:
        """Bring the runs of a batch here whose containers have ended, and end a Pod that will not end by itself."""
        for pod in self._api.list_pods(select(self._selector(**{BATCH_LABEL: batch.id}))):
            ends = find_ends(pod)
            for task in batch.tasks:
                end = ends.get(container_name(task.id))
                if end is not None and not (self._folder.results / task.place).exists():
                    self._collect_run(batch, task, pod, end)
            state = judge_pod(pod, time.time())
            if state.state in ("failed", "lost") and pod["status"].get("phase") != "Failed":
                self._api.delete_job(batch.name)
            if state.state in ("ended", "failed") and ends:
                last_s = max(end.ended_s for end in ends.values())
                write_file(self._folder.batches / batch.id / ENDED, Ended(reason=state.reason, ended_s=last_s))

    def _collect_run(self, batch: BatchFile, task: TaskFile, pod: Manifest, end: ContainerEnd) -> None:
        """Bring one run here; one whose Pod was ended as a whole is to be made again, so it gets no outcome."""
        container = next(
            one
            for kind in ("initContainers", "containers")
            for one in pod["spec"].get(kind) or ()
            if one["name"] == container_name(task.id)
        )
        run = PodRunEnd(
            batch=batch.id,
            host=pod["spec"]["nodeName"],
            allocation=self._identify(pod),
            image=container["image"],
            memory=self._options.memory,
            began_s=end.began_s,
            ended_s=end.ended_s,
        )
        if end.exit_code and not is_own_end(pod):
            return
        try:
            archive, printed = self._fetch(batch, task, pod["metadata"]["name"], end)
        except RefusedByApiError as error:
            if error.status != _NOT_FOUND:
                raise
            return  # the Pod, or its node, has just gone
        except NotWholeError as error:
            refuse_run(self._folder, task, run, str(error))
            return
        install_run(self._folder, task, run, archive, printed)

    def _fetch(self, batch: BatchFile, task: TaskFile, pod: str, end: ContainerEnd) -> tuple[bytes, str]:
        """Return a run's archive, and what its container has printed; raise NotWholeError where it has left none."""
        if self._options.results:
            path = Path(self._options.results.here) / archive_path(self._folder.token, batch.id, task.id)
            if path.is_file():
                return path.read_bytes(), ""
            if not end.exit_code and time.time() - end.ended_s < SETTLE_S:
                raise UnavailableError(f"{path}: not there yet")
        failure = ""
        for _ in range(FETCHES):
            text = self._api.read_log(pod, container_name(task.id))
            try:
                return read_printed(text.splitlines()), text
            except NotWholeError as error:
                failure = str(error)
        if end.exit_code:
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            failure = f"its container ended with {end.words}{f'; the last it printed: {last}' if last else ''}"
        raise NotWholeError(failure)

    @staticmethod
    def identify(environ: Mapping[str, str]) -> str:
        """Return which Pod this is, by what Kubernetes has put into its environment."""
        return identify_pod(environ, environ["NAMESPACE"])
