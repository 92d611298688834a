"""Fleets on Kubernetes: against a server of our own (kubernetes_server.py says what that can show), from end to end."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from kubernetes_cluster import IMAGE, NODES, PINNED, FakeCluster, KubernetesFleet

from cnnbench.base.errors import UsageError
from cnnbench.cli.main import main
from cnnbench.fleet.folder import FleetFolder
from cnnbench.fleet.kubernetes import KubernetesLauncher
from cnnbench.fleet.launcher import UnavailableError
from cnnbench.fleet.spec import read_fleet
from null_workload import PATIENCE_S, wait_until

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="script/setup.sh test installs it")
pytest.importorskip("kubernetes", reason="no client for Kubernetes here: script/setup.sh kubernetes installs it")
pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: no Pod can have one of its own")

MEASURED = {"valid", "unstable"}
MINUTE = {"STEPS": 100000, "CUSTOMER_ENV": "CNNBENCH_NULL_STEP_MS=5"}
VERSIONS = ("1.29", "1.37")
"""The oldest and the newest version whose schemas the manifests are held against."""


@pytest.fixture
def cluster(tmp_path):
    found = FakeCluster(tmp_path)
    yield found
    found.close()


@pytest.fixture
def fleet(cluster, tmp_path):
    return KubernetesFleet(cluster, tmp_path)


@pytest.fixture
def here(monkeypatch, fleet, capsys):
    """The command in this process: its exit code and what it says."""
    for name in list(os.environ):
        if name.startswith("CNNBENCH_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(fleet.cluster.kubeconfig))

    def call(*options):
        code = main(["fleet", str(fleet.file), *options])
        said = capsys.readouterr()
        return code, f"{said.out}{said.err}"

    return call


def test_the_runs_of_two_nodes_come_back_whatever_breaks_on_the_way(fleet):
    jobs = "/apis/batch/v1/namespaces/lab/jobs"
    fleet.write(machines=2, cases=["*"])
    fleet.cluster.control(
        page=1,
        faults=[
            {"path": f"POST {jobs}", "times": 1, "status": 429, "message": "too many requests"},
            {"path": f"POST {jobs}", "times": 1, "status": "cut"},
            {"path": "GET .*/pods", "times": 2, "status": 500, "message": "etcdserver: request timed out"},
            {"path": "GET .*/pods", "times": 1, "status": "drop"},
            {"path": "GET .*/log", "times": 2, "status": "cut"},
        ],
    )
    controller = fleet.start()
    wait_until(lambda: len(fleet.cluster.control()["jobs"]) == 2, "both Jobs")
    controller.kill()
    controller.communicate()
    done = fleet.call()
    assert done.returncode in (0, 3), f"{done.stdout}{done.stderr}"
    outcomes, seen = fleet.outcomes(), fleet.cluster.control()
    assert len(outcomes) == 4
    assert {one["verdict"] for one in outcomes} <= {*MEASURED, "invalid"}
    assert {one["host"] for one in outcomes} == {"spr-1", "spr-2"}, "never two Pods of ours on a node"
    assert len(seen["jobs"]) == len(seen["pods"]) == 2, "a Job that was asked for twice is there once"
    for run in fleet.results():
        facts = run["facts"]
        assert facts["host name"] in facts["allocation"]
        assert facts["allocation"].startswith("kubernetes pod lab/cnnbench-")
        assert facts["container image"] == PINNED
        assert len(facts["CPUs used"].split(",")) == 1
        assert run["requested"]["STEPS"] == "20"
    (policy, _) = seen["policies"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["metadata"]["ownerReferences"][0]["uid"] in {job["metadata"]["uid"] for job in seen["jobs"]}
    (log, *_) = fleet.folder.glob("results/*/*/case.log")
    assert "*Throughput" in log.read_text() or "*Latency" in log.read_text()
    assert "=== cnnbench logs" not in log.read_text()
    assert "4 of 4 runs done" in fleet.call("--status").stdout
    before = fleet.outcomes()
    assert fleet.call().returncode == done.returncode
    assert fleet.outcomes() == before


def apply(fleet, base):
    """Do what `kubectl apply -k` does: send what kubectl makes of a base."""
    kubectl = Path(sys.executable).with_name("kubectl")
    made = subprocess.run([kubectl, "kustomize", base], capture_output=True, text=True, check=True).stdout
    for manifest in yaml.safe_load_all(made):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        place = {
            "Job": "batch/v1/namespaces/lab/jobs",
            "NetworkPolicy": "networking.k8s.io/v1/namespaces/lab/networkpolicies",
        }
        request = urllib.request.Request(
            f"{fleet.cluster.url}/apis/{place[manifest['kind']]}",
            json.dumps(manifest).encode(),
            {"Authorization": "Bearer let-me-in", "Content-Type": "application/json"},
            method="POST",
        )
        urllib.request.urlopen(request).close()


def test_rendered_manifests_that_somebody_else_applies_are_followed_and_collected_from_a_volume(fleet, tmp_path, here):
    results, base = tmp_path / "share", tmp_path / "base"
    results.mkdir()
    fleet.cluster.control(volumes={"results": str(results)})
    fleet.write(options={"results": {"claim": "results", "here": str(results)}})
    code, said = here("--render", str(base))
    assert code == 0, said
    assert f"kubectl apply -k {base}" in said
    rendered = {path.name: path.read_text() for path in base.iterdir()}
    assert len(rendered) == 3
    assert here("--render", str(base))[0] == 0
    assert {path.name: path.read_text() for path in base.iterdir()} == rendered, "the same again, byte by byte"
    assert list(tmp_path.glob(".base*")) == []
    assert fleet.cluster.control()["asked"] == [], "a cluster need not be reached"
    (base / "mine.yaml").write_text("")
    code, said = here("--render", str(base))
    assert (code, "has mine.yaml, which was not rendered" in said) == (2, True), said
    (base / "mine.yaml").unlink()
    code, said = here("--render", str(results.parent))
    assert (code, "is not empty, and nothing that was rendered before" in said) == (2, True), said
    apply(fleet, base)
    code, said = here()
    assert code == 0, said
    assert len(fleet.cluster.control()["jobs"]) == 1, "the same Job, not another one"
    (run,) = fleet.results()
    assert run["facts"]["host name"] == "spr-1"
    assert len(list(results.glob("*/*/*.tar.gz"))) == 1
    assert not [line for line in fleet.cluster.control()["asked"] if line.endswith("/log")]


def test_cancel_leaves_nothing_of_the_fleet_in_the_cluster(fleet):
    fleet.write(machines=2, parameters=MINUTE, timeout_s=600)
    controller = fleet.start()
    wait_until(lambda: len(fleet.cluster.control()["pods"]) == 2, "the Pods")
    controller.kill()
    controller.communicate()
    done = fleet.call("--cancel")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "2 batches cancelled" in done.stdout
    seen = fleet.cluster.control()
    assert seen["jobs"] == seen["pods"] == seen["policies"] == []
    wait_until(lambda: not _containers(fleet), "the containers to end")


def _containers(fleet):
    """Return the processes that play the fleet's containers."""
    wanted = f"CNNBENCH_WORKLOAD={fleet.cluster.workload}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_node_that_gives_a_pod_other_cpus_refuses_and_one_that_runs_out_of_memory_is_told(fleet, here):
    fleet.cluster.machine(all_cpus=True)
    fleet.write(attempts=2)
    code, said = here()
    assert code == 1, said
    (outcome,) = fleet.outcomes()
    assert outcome["kind"] == "refused"
    assert "refused by spr-" in outcome["reason"]
    assert "1 of its own were requested: the node's kubelet needs the static CPU policy" in outcome["reason"]
    (before,) = fleet.folder.glob("set-aside/*/outcome.json")
    assert {json.loads(before.read_text())["host"], outcome["host"]} == {"spr-1", "spr-2"}, "tried on another node"
    die = [sys.executable, "-c", "import os; print('tired', flush=True); os.kill(os.getpid(), 9)"]
    fleet.cluster.machine(command={"harness-dummy": die})
    code, said = here("--retry-failed")
    assert code == 1, said
    (outcome,) = fleet.outcomes()
    assert outcome["reason"] == "its container ended with OOMKilled, exit code 137; the last it printed: tired"


def launcher_of(fleet, monkeypatch):
    """Return the launcher of a fleet whose Pods stand still, after its batch was submitted, and the jobs."""
    monkeypatch.setenv("KUBECONFIG", str(fleet.cluster.kubeconfig))
    (submitted,) = fleet.folder.glob("batches/*/submitted.json")
    jobs = {submitted.parent.name: json.loads(submitted.read_text())["job"]}
    return KubernetesLauncher(read_fleet(fleet.file).pools[0], FleetFolder(fleet.folder)), jobs


def of_container(name, state, kind="containerStatuses", **more):
    status = {"name": name, "image": PINNED, "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": "Pending", kind: [status], **more}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


def ended(code, reason="Error"):
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}
    return {"terminated": {"exitCode": code, "reason": reason, **times}}


def disrupted(reason, message):
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]


STATES = [
    ("queued", "", lambda _: {"phase": "Pending"}),
    (
        "queued",
        "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
        lambda _: {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/3 nodes are available: 3 Insufficient cpu.",
                }
            ],
        },
    ),
    ("queued", "", lambda name: of_container(name, waiting("ErrImagePull", "no route"))),
    ("failed", "ImagePullBackOff: Back-off", lambda name: of_container(name, waiting("ImagePullBackOff", "Back-off"))),
    (
        "failed",
        "ErrImageNeverPull: not present",
        lambda name: of_container(name, waiting("ErrImageNeverPull", "not present")),
    ),
    ("running", "", lambda name: of_container(name, {"running": {"startedAt": "2026-01-01T00:00:00Z"}})),
    ("ended", "", lambda name: of_container(name, ended(0, "Completed"), phase="Succeeded")),
    ("failed", ": OOMKilled, exit code 137", lambda name: of_container(name, ended(137, "OOMKilled"), phase="Failed")),
    ("failed", ": Error, exit code 1", lambda name: of_container(name, ended(1), phase="Failed")),
    (
        "failed",
        "Evicted: The node was low on memory",
        lambda _: {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"},
    ),
    (
        "failed",
        "DeadlineExceeded: Pod was active",
        lambda _: {"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active"},
    ),
    (
        "failed",
        "PreemptionByScheduler: preempted",
        lambda _: {"phase": "Failed", "conditions": disrupted("PreemptionByScheduler", "preempted")},
    ),
    (
        "lost",
        "NodeLost: node was unresponsive",
        lambda _: {"phase": "Running", "reason": "NodeLost", "message": "node was unresponsive"},
    ),
    ("lost", "does not answer", lambda _: {"phase": "Unknown"}),
]


def test_what_becomes_of_a_pod_is_told_in_the_words_of_kubernetes(fleet, monkeypatch):
    fleet.cluster.control(stands_still=True)
    fleet.write()
    controller = fleet.start()
    wait_until(lambda: list(fleet.folder.glob("batches/*/submitted.json")), "the Job")
    controller.kill()
    controller.communicate()
    launcher, jobs = launcher_of(fleet, monkeypatch)
    (pod,) = fleet.cluster.control()["pods"]
    name = pod["spec"]["containers"][0]["name"]

    def poll():
        (state,) = launcher.poll(jobs).values()
        return state

    for state, reason, make in STATES:
        fleet.cluster.control(pod={"status": make(name)})
        found = poll()
        assert found.state == state, (reason, found)
        assert found.reason.endswith(reason) if reason.startswith((":", "does")) else found.reason == reason, found
        assert found.node in ("spr-1", "")
    long_ago = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    running = of_container(name, {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    taken = disrupted("DeletionByTaintManager", "taint manager: deleting due to NoExecute taint")
    fleet.cluster.control(pod={"status": running | {"phase": "Running", "conditions": taken}, "metadata": long_ago})
    found = poll()
    assert (found.state, found.node) == ("lost", "spr-1")
    assert "node spr-1 does not answer" in found.reason
    assert "DeletionByTaintManager" in found.reason
    fleet.cluster.control(faults=[{"path": "GET .*/pods", "times": 9, "status": 503, "message": "apiserver is away"}])
    with pytest.raises(UnavailableError, match="503: apiserver is away"):
        poll()
    fleet.cluster.control(faults=[])
    fleet.cluster.write_kubeconfig(token="wrong")
    again, _ = launcher_of(fleet, monkeypatch)
    with pytest.raises(UsageError, match="Unauthorized"):
        again.poll(jobs)
    launcher.cancel(jobs)
    launcher.cancel(jobs)  # what is gone is well cancelled
    assert poll().state == "lost"
    assert "somebody has deleted it" in poll().reason


def test_what_a_job_cannot_make_a_pod_for_waits_or_fails(fleet, monkeypatch, here):
    pods = [{"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}]
    fleet.write()
    fleet.cluster.control(quotas=[])
    controller = subprocess.Popen(
        fleet.command(), env=fleet.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    fleet.cluster.control(stands_still=True)
    wait_until(lambda: list(fleet.folder.glob("batches/*/submitted.json")), "the Job")
    controller.kill()
    controller.wait()
    launcher, jobs = launcher_of(fleet, monkeypatch)
    (name,) = jobs.values()
    (job,) = fleet.cluster.control()["jobs"]
    launcher.cancel(jobs)
    for changes, state, words in (
        ({"quotas": pods}, "queued", "exceeded quota: q, requested: pods=1"),
        (
            {"quotas": [], "namespaces": {"lab": {"pod-security.kubernetes.io/enforce": "restricted"}}},
            "failed",
            "violates PodSecurity",
        ),
    ):
        fleet.cluster.control(
            **changes, events=[], job={key: job[key] for key in ("apiVersion", "kind", "metadata", "spec")}
        )
        (found,) = launcher.poll(jobs).values()
        assert (found.state, words in found.reason) == (state, True), found
        launcher.cancel(jobs)
    # A name that is taken by somebody else's Job is not ours.
    job["metadata"]["labels"]["cnnbench.fleet"] = "f" * 32
    fleet.cluster.control(
        namespaces={"lab": {}}, job={key: job[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    )
    for path in fleet.folder.glob("batches/*/submitted.json"):
        path.unlink()
    fleet.write(attempts=1)
    _, said = here("--retry-failed")
    assert f"Job lab/{name} is there already and is not of this fleet" in said


BAD = [
    ({"pool": {"backend": "native"}}, {}, "launcher kubernetes runs cases in images: set backend: container"),
    ({"pool": {"images": {}}}, {}, f"its cases run in {IMAGE}, whose digest is not told"),
    ({"pool": {"images": {IMAGE: "latest"}}}, {}, "images.harness-dummy:latest=latest: string should match pattern"),
    ({"pool": {"cache": "/data"}}, {}, "pool lab: cache has no meaning in a Pod"),
    ({"pool": {"constraint": "SPR"}}, {}, "constraint SPR: must be labels of nodes, name=value"),
    ({"pool": {"constraint": "a b=SPR"}}, {}, "a b: must be the name of a label"),
    ({"pool": {"launcher": "kubernets"}}, {}, "did you mean kubernetes?"),
    ({"options": {"cpus": 1.5}}, {}, "cpus=1.5: input should be a valid integer"),
    ({"options": {"cpus": 0}}, {}, "cpus=0: input should be greater than or equal to 1"),
    ({"options": {"memory": "2G"}}, {}, "memory=2G: value error, must be a whole number of Mi, Gi or Ti"),
    ({"options": {"namespace": "Lab"}}, {}, "namespace=Lab: value error, must be a DNS label"),
    ({"options": {"cache": {}}}, {}, "must have either claim or host_path"),
    ({"options": {"cache": {"claim": "c", "path": "../x"}}}, {}, "must be a path inside the volume"),
    ({"options": {"results": {"claim": "c", "here": "/nowhere"}}}, {}, "results.here=/nowhere: no such directory"),
    ({"options": {"results": {"claim": "c"}}}, {}, "results.here: is missing"),
    ({"options": {"nodes": 3}}, {}, "nodes: no such key; there are namespace, context, cpus"),
    ({"options": {"context": "prod"}}, {}, "kubeconfig: "),
    ({"options": {"namespace": "other"}}, {}, 'pool lab: namespaces "other" not found'),
    ({"pool": {"constraint": "cnnbench.platform=TURIN"}}, {}, "no node has cnnbench.platform=TURIN; of all nodes, "),
    ({"pool": {"constraint": "cnnbench.platform=TURIN"}}, {}, "cnnbench.platform is GENOA, SPR"),
    ({"pool": {"constraint": "zone=a"}}, {}, "no node has a label zone"),
    ({"machines": 3}, {}, "2 of the 2 nodes that have cnnbench.platform=SPR can take a Pod"),
    ({"options": {"cpus": 5}}, {}, "spr-1 has cpu 4 to give, and 5 are needed"),
    ({"machines": 2}, {"nodes": [NODES[0], NODES[1] | {"cordoned": True}]}, "spr-2 is cordoned"),
    ({"machines": 2}, {"nodes": [NODES[0], NODES[1] | {"ready": False}]}, "spr-2 is not ready"),
    (
        {"machines": 2},
        {"nodes": [NODES[0], NODES[1] | {"taints": [{"key": "bench", "value": "yes", "effect": "NoSchedule"}]}]},
        "spr-2 has the taint bench=yes:NoSchedule, which is not tolerated",
    ),
    (
        {"machines": 2},
        {"nodes": [NODES[0], NODES[1] | {"policy": "none"}]},
        "1 nodes have the static CPU policy: spr-2 has none",
    ),
    (
        {},
        {"quotas": [{"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "500m"}}}]},
        "quota q of namespace lab: requests.cpu is limited to 500m, and a Pod of this pool needs 1",
    ),
    (
        {},
        {"denied": [["create", "jobs"], ["get", "pods/log"]]},
        "this user may not create jobs, get pods/log in namespace lab",
    ),
    (
        {},
        {"namespaces": {"lab": {"pod-security.kubernetes.io/enforce": "baseline"}}},
        "forbids the capability SYS_NICE; set sys_nice: false",
    ),
    (
        {"options": {"cache": {"host_path": "/data"}}},
        {"namespaces": {"lab": {"pod-security.kubernetes.io/enforce": "restricted"}}},
        "forbids host_path",
    ),
]


def test_bad_input_is_refused_before_anything_is_submitted(fleet, here):
    for written, cluster, message in BAD:
        clean = {"nodes": NODES, "quotas": [], "denied": [], "namespaces": {"lab": {}}}
        fleet.cluster.control(**clean | cluster)
        fleet.write(**written)
        code, said = here("-o", str(fleet.folder / str(BAD.index((written, cluster, message)))))
        assert (code, message in said) == (2, True), f"{message}:\n{said}"
    assert fleet.cluster.control()["jobs"] == []
    fleet.cluster.control(nodes=NODES, quotas=[], namespaces={"lab": {}})
    fleet.cluster.write_kubeconfig(token="wrong")
    fleet.write()
    code, said = here()
    assert (code, "Unauthorized" in said) == (2, True), said
    fleet.file.write_text(
        fleet.file.read_text()
        .replace("launcher: kubernetes", "launcher: local")
        .replace("backend: container", "backend: native")
    )
    fleet.write(pool={"launcher": "local", "backend": "native", "constraint": "", "images": {}, "options": {}})
    code, said = here("--render", "base")
    assert (code, "--render writes manifests of Kubernetes" in said) == (2, True), said


def test_what_this_user_may_not_ask_is_told_as_not_known(fleet, here, caplog):
    fleet.write(parameters=MINUTE)
    fleet.cluster.control(denied=[["get", "nodes/proxy"]], stands_still=True)
    launcher = KubernetesLauncher(read_fleet(fleet.file).pools[0], FleetFolder(fleet.folder))
    launcher.check(read_fleet(fleet.file).run)
    assert "spr-1: whether the kubelet has the static CPU policy is not known; each Pod checks it" in caplog.text
    caplog.clear()
    fleet.cluster.control(denied=[["list", "nodes"], ["get", "namespaces"]])
    launcher.check(read_fleet(fleet.file).run)
    assert "whether there are 1 of cnnbench.platform=SPR is not known" in caplog.text


def test_without_the_client_it_is_told_how_to_get_it(fleet, tmp_path):
    fleet.write()
    hide = (
        "import sys; sys.modules['kubernetes'] = None; from cnnbench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", hide, "fleet", str(fleet.file)]
    done = subprocess.run(command, env=fleet.environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "needs Kubernetes' own client for Python: run script/setup.sh kubernetes" in done.stderr
    rendered = subprocess.run(
        [*command, "--render", str(tmp_path / "base")], env=fleet.environment(), capture_output=True
    )
    assert rendered.returncode == 0, "manifests need no client"


VARIANTS = {
    "plain": ({}, {}, {}),
    "claims": (
        {
            "cache": {"claim": "cache", "path": "a/b"},
            "dataset": {"claim": "sets"},
            "results": {"claim": "out", "here": "/"},
        },
        {},
        {"DATASET": "/data/imagenet"},
    ),
    "folders": ({"cache": {"host_path": "/srv/cache"}, "dataset": {"host_path": "/srv/sets"}}, {}, {}),
    "cluster": (
        {
            "tolerations": [{"key": "bench", "operator": "Exists"}],
            "pull_secrets": ["mine"],
            "priority_class": "low",
            "sys_nice": False,
            "network_policy": False,
            "platform_label": "example.org/platform",
        },
        {"platform": "SPR", "constraint": ""},
        {},
    ),
    "text": ({}, {}, {"CUSTOMER_ENV": "A='$(NODE)' B='$$' C=\"x y\""}),
}


def test_every_variant_of_a_manifest_fits_the_schemas_strictly(fleet, here, tmp_path):
    (fleet.cluster.workload / "cmake" / "SPR.cmake").write_text("set(PRECISIONS avx_fp32)\n")
    found = {}
    for name, (options, pool, parameters) in VARIANTS.items():
        fleet.write(options=options, pool=pool, parameters=parameters, cases=["*"], hang_after_s=90)
        code, said = here("--render", str(tmp_path / name), "-o", str(tmp_path / f"{name}-runs"))
        assert code == 0, said
        manifests = [yaml.safe_load(path.read_text()) for path in (tmp_path / name).glob("*lab*.yaml")]
        for manifest in manifests:
            for version in VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)
        (found[name],) = (one for one in manifests if one["kind"] == "Job")
        assert len(manifests) == (1 if name == "cluster" else 2)
    for job in found.values():
        spec = job["spec"]["template"]["spec"]
        assert (spec["restartPolicy"], job["spec"]["backoffLimit"]) == ("Never", 0)
        assert spec["automountServiceAccountToken"] is False
        assert spec["activeDeadlineSeconds"] > 900
        for one in (*spec["initContainers"], *spec["containers"]):
            assert one["resources"]["requests"] == one["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
            assert one["securityContext"]["readOnlyRootFilesystem"]
            assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert one["image"] == PINNED
            assert {"name": "CNNBENCH_HANG_AFTER", "value": "90"} in one["env"]
    claims = found["claims"]["spec"]["template"]["spec"]
    mounts = {one["mountPath"]: one for one in claims["containers"][0]["volumeMounts"]}
    assert mounts["/mnt/cache"] == {"name": "cache", "mountPath": "/mnt/cache", "subPath": "a/b", "readOnly": True}
    assert "readOnly" not in mounts["/mnt/results"]
    assert {"name": "DATASET", "value": "/mnt/images"} in claims["containers"][0]["env"]
    assert claims["securityContext"]["fsGroup"] == 10001
    cluster = found["cluster"]["spec"]["template"]["spec"]
    assert cluster["nodeSelector"] == {"example.org/platform": "SPR"}
    assert cluster["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"name": "PLATFORM", "value": "SPR"} in cluster["containers"][0]["env"]
    text = {"name": "CUSTOMER_ENV", "value": "A='$$(NODE)' B='$$$$' C=\"x y\""}
    assert text in found["text"]["spec"]["template"]["spec"]["containers"][0]["env"]


def test_a_file_that_comes_with_no_pod_is_refused(fleet, here, tmp_path):
    model = tmp_path / "m.pb"
    model.write_text("")
    for name, value, needed in (
        ("DATASET", "/data/sets", "the pool's"),
        ("MODEL", str(model), "put it into the image"),
    ):
        fleet.write(parameters={name: value})
        code, said = here("--render", str(tmp_path / "base"), "-o", str(tmp_path / name))
        assert (code, f"{name}={value}: no file of this machine comes with a Pod; {needed}" in said) == (2, True), said
