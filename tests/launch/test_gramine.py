import os
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.start import START
from cnnbench.cases.precisions import PRECISIONS
from cnnbench.launch.gramine import (
    Enclave,
    EnclaveWorker,
    enclave_command,
    encrypt_command,
    key_command,
    plan_enclave,
    render_manifest,
    sign_command,
    unread_packages,
    worker_roots,
)
from cnnbench.launch.trusted import check_manifest, hash_files, tomllib
from cnnbench.worker.spec import InstanceSpec, WorkerSpec

TEMPLATES = sorted(Path(__file__).parents[2].glob("workload/*/gramine.manifest.template"))
ODD = 'it\'s a "b" \\ $c {{ d }}\n\x7fé😀.py'
GIB, MIB = 1 << 30, 1 << 20


def make_spec(root, instances, **changes):
    spec = WorkerSpec(
        run_id="20250101T000000Z-0123abcd",
        controller=1,
        engine="tensorflow",
        backend="cnnbench.engines.null.backend:NullBackend",
        reader="",
        options_type="cnnbench.engines.interface:EngineOptions",
        model=str(root / "folded.pb"),
        precision="amx_bfloat16",
        number_type="fp32",
        on_gpu=False,
        form=None,
        batch_size=1,
        micro_batch_size=1,
        mode="throughput",
        whole_steps=False,
        options={},
        data_type="dummy",
        io_threads=1,
        steps=None,
        warmup_steps=5,
        trace_steps=None,
        instances=instances,
        memory_node=None,
        check_images=str(root / "check_images.npy"),
        shared="/dev/shm/.cnnbench-run-x",
        logs=str(root / "logs"),
        verbose=False,
        enclave=True,
    )
    return replace(spec, **changes)


@pytest.fixture
def worker(tmp_path):
    """A worker whose engine has files with ordinary and with odd names."""
    for name in (
        "env/bin/python",
        f"env/lib/{ODD}",
        "src/cnnbench/worker/spec.py",
        "folded.pb",
        "check_images.npy",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    instances = [InstanceSpec(2, [4, 5], [str(tmp_path / "images/1.jpg"), str(tmp_path / "images/2.jpg")])]
    spec = make_spec(tmp_path, instances)
    spec_file = tmp_path / "logs/process-1/spec.json"
    spec_file.parent.mkdir(parents=True)
    spec.write(spec_file)
    worker = EnclaveWorker(
        spec=spec,
        spec_file=spec_file,
        python=tmp_path / "env/bin/python",
        environment={"OMP_NUM_THREADS": "2", "A.B": ODD},
        precision=PRECISIONS["amx_bfloat16"],
        roots=[tmp_path / "env", tmp_path / "env/lib", tmp_path / "src"],
        trusted=[],
    )
    return replace(worker, trusted=hash_files([*worker.roots, *worker.inputs]))


def render(worker, enclave=None, template=TEMPLATES[0]):
    enclave = enclave or plan_enclave([2], worker.spec.batch_size, 100 * MIB)
    return render_manifest(template.read_text(), worker, enclave, libraries=[Path("/usr/lib/x")])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parent.name)
def test_the_manifest_starts_this_worker_and_no_other(worker, tmp_path, template):
    manifest = tomllib.loads(render(worker, Enclave(8 * GIB, 23), template))
    assert manifest["libos"]["entrypoint"] == str(tmp_path / "env/bin/python")
    assert manifest["loader"]["argv"] == [str(worker.python), START, "cnnbench.worker", str(worker.spec_file)]
    assert manifest["loader"]["entrypoint"]["uri"].startswith("file:/")
    environment = manifest["loader"]["env"]
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["A.B"] == ODD
    assert environment["LD_LIBRARY_PATH"] == "/lib:/usr/lib/x"
    assert manifest["sgx"]["enclave_size"] == "8192M"
    assert manifest["sgx"]["max_threads"] == 23
    assert manifest["sgx"]["cpu_features"] == {"amx": "required"}


def test_nothing_of_the_manifest_is_left_to_the_host(worker):
    text = render(worker)
    assert "insecure__" not in text
    assert "passthrough" not in text
    manifest = tomllib.loads(text)
    assert manifest["sgx"]["debug"] is False
    assert "file_check_policy" not in manifest["sgx"]


def test_what_the_worker_sets_has_the_last_word(worker):
    changed = replace(worker, environment={"MALLOC_ARENA_MAX": "1"})
    assert tomllib.loads(render(changed))["loader"]["env"]["MALLOC_ARENA_MAX"] == "1"


def test_every_trusted_file_is_there_with_its_hash(worker, tmp_path):
    text = render(worker)
    uris = {file["uri"] for file in tomllib.loads(text)["sgx"]["trusted_files"]}
    assert uris == {
        f"file:{tmp_path / name}"
        for name in (
            "env/bin/python",
            f"env/lib/{ODD}",
            "src/cnnbench/worker/spec.py",
            "folded.pb",
            "check_images.npy",
            "logs/process-1/spec.json",
        )
    }
    assert check_manifest(text) == []


def test_a_changed_file_is_found(worker, tmp_path):
    text = render(worker)
    (tmp_path / f"env/lib/{ODD}").write_text("changed")
    assert [problem.partition(": SHA-256")[0] for problem in check_manifest(text)] == [f"{tmp_path}/env/lib/{ODD}"]


def test_only_images_results_and_shared_files_are_allowed_unhashed(worker, tmp_path):
    assert tomllib.loads(render(worker))["sgx"]["allowed_files"] == [
        f"file:{tmp_path}/images",
        f"file:{tmp_path}/logs/instance-2",
        "dev:/dev/shm/.cnnbench-run-x/control",
        "dev:/dev/shm/.cnnbench-run-x/steps-2",
    ]


def test_mounts_are_the_outermost_directories_after_tmp_and_the_shared_memory(worker, tmp_path):
    first, tmp, *middle, shm = tomllib.loads(render(worker))["fs"]["mounts"]
    assert first["path"] == "/lib"
    ours = [f"{tmp_path}/{name}" for name in ("check_images.npy", "folded.pb", "images", "logs")]
    paths = [f"{tmp_path}/env", f"{tmp_path}/src", "/usr/lib/x", *ours]
    assert middle == [{"path": path, "uri": f"file:{path}"} for path in paths]
    assert tmp == {"type": "tmpfs", "path": "/tmp"}
    shared = "/dev/shm/.cnnbench-run-x"
    assert shm == {"type": "untrusted_shm", "path": shared, "uri": f"dev:{shared}"}


def test_an_encrypted_model_is_mounted_with_its_key_and_not_hashed(worker, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(16)))
    encrypted = replace(worker, wrap_key=key)
    assert worker.spec.model not in map(str, encrypted.inputs)
    manifest = tomllib.loads(render(replace(encrypted, trusted=hash_files(encrypted.inputs))))
    assert manifest["fs"]["insecure__keys"] == {"model": "000102030405060708090a0b0c0d0e0f"}
    model = worker.spec.model
    mounts = [mount for mount in manifest["fs"]["mounts"] if mount["path"] == model]
    assert mounts == [{"type": "encrypted", "key_name": "model", "path": model, "uri": f"file:{model}"}]


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_key_that_is_none_is_refused(worker, tmp_path, content):
    if content:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match=r"key: found [05] bytes, needed 16"):
        render(replace(worker, wrap_key=tmp_path / "key"))


def test_a_name_that_is_not_utf8_is_refused(worker, tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path / "env") + b"/\xff.py")).write_text("")
    with pytest.raises(CnnbenchError, match="not UTF-8"):
        render(replace(worker, trusted=hash_files(worker.roots)))


def test_an_engine_without_a_model_trusts_its_spec_alone(worker):
    bare = replace(worker, spec=replace(worker.spec, model="", check_images=""))
    assert bare.inputs == [worker.spec_file]


@pytest.mark.parametrize(
    ("precision", "features"),
    [("avx_fp32", {}), ("avx_bfloat16", {"avx512": "required"}), ("amx_int8", {"amx": "required"})],
)
def test_an_enclave_does_not_start_without_what_the_precision_needs(worker, precision, features):
    manifest = tomllib.loads(render(replace(worker, precision=PRECISIONS[precision])))
    assert manifest["sgx"]["cpu_features"] == features


@pytest.mark.parametrize(
    ("cores", "batch_size", "expected"),
    [
        ([1], 1, Enclave(4 * GIB, 20)),
        ([2], 64, Enclave(8 * GIB, 23)),
        ([1] * 4, 1, Enclave(4 * GIB, 32)),
        ([1] * 56, 64, Enclave(64 * GIB, 240)),
        ([56], 128, Enclave(8 * GIB, 185)),
    ],
)
def test_size_and_threads_follow_the_plan(cores, batch_size, expected):
    assert plan_enclave(cores, batch_size, 98 * MIB) == expected


def test_the_roots_hold_what_this_interpreter_runs_on(tmp_path):
    roots = worker_roots(Path(sys.executable), gramine=tmp_path)
    assert Path(os.__file__).parent in roots
    assert any((root / "cnnbench/worker/__main__.py").is_file() for root in roots)
    assert Path(sys.executable).parents[1] in roots
    assert tmp_path in roots
    assert worker_roots(Path(sys.executable), gramine=None) == roots[:-1]


def test_commands():
    application = Path("/logs/process-0/worker")
    assert sign_command(application, Path("/k.pem")) == [
        *("gramine-sgx-sign", "--quiet", "--key", "/k.pem", "--manifest", f"{application}.manifest"),
        *("--output", f"{application}.manifest.sgx", "--sigfile", f"{application}.sig"),
    ]
    assert key_command(Path("/k.pem")) == ["gramine-sgx-gen-private-key", "/k.pem"]
    assert enclave_command(application, [2, 0])[-4:] == ["--cpu-list", "0,2", "gramine-sgx", str(application)]
    assert encrypt_command(Path("/k"), Path("/a"), Path("/b"))[-4:] == ["--input", "/a", "--output", "/b"]


def test_an_enclave_is_pinned_and_dies_with_its_controller(tmp_path):
    tool = tmp_path / "gramine-sgx"
    tool.write_text('#!/bin/sh\ntaskset -cp $$ > "$1.part"; echo $$ >> "$1.part"; mv "$1.part" "$1"; exec sleep 600\n')
    tool.chmod(0o755)
    cpu = max(os.sched_getaffinity(0))
    command = enclave_command(tmp_path / "seen", [cpu])
    code = f"import subprocess; subprocess.run({command!r})"
    path = f"{tmp_path}:{os.environ['PATH']}"
    controller = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PATH": path})
    wait_until((tmp_path / "seen").exists)
    affinity, enclave = (tmp_path / "seen").read_text().splitlines()
    assert affinity.endswith(f": {cpu}")
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    wait_until(lambda: not is_running(int(enclave)))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(reached):
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_packages_of_the_interpreter_are_unread_in_a_virtual_environment_only():
    packages = Path(sysconfig.get_path("stdlib"), "site-packages")
    assert unread_packages(Path(sys.executable)) == [packages]
    assert unread_packages(Path(sys.base_prefix, "bin", "python3")) == []
