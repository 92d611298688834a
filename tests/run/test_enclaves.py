"""SGX cases from the plan to the result, with scripts in place of Gramine and files in place of the host's SGX."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from checkout import WORKLOAD
from cnnbench.launch.trusted import tomllib
from cnnbench.results.record import load_run
from cnnbench.run.serve import ATTENDED_VARIABLE, GRAMINE_VARIABLE, HANG_VARIABLE, WORKLOAD_VARIABLE
from fake_gramine import FakeGramine
from null_workload import CORES, PATIENCE_S, SLUG, NullWorkload, clean_environment, step_of
from sgx_host import SgxHost

TEMPLATE = "gramine.manifest.template"
SERVE = """
import os, sys
from pathlib import Path
from cnnbench.machine import host
from cnnbench.run import job
job.read_cpuinfo = lambda: host.read_cpuinfo(Path(sys.argv[4]) / "cpuinfo")
from cnnbench.run.serve import serve_case
from cnnbench.machine.sgx import SgxRoots
sys.exit(serve_case(os.environ, Path(sys.argv[1]), SgxRoots(*map(Path, sys.argv[2:]))))
"""


class Image:
    """What a container of an -sgx image is: its environment, its tools and the FIFO that its logs come out of."""

    def __init__(self, root, workload, cache):
        self._root, self.host, self.gramine = root, SgxHost(root), FakeGramine(root / "usr")
        self.logs = root / "logs"
        os.mkfifo(root / "fifo")
        self._environment = {
            WORKLOAD_VARIABLE: str(workload),
            GRAMINE_VARIABLE: "1.7",
            ATTENDED_VARIABLE: "1",
            HANG_VARIABLE: "60",
            "CNNBENCH_CACHE": str(cache),
            "PATH": f"{sys.prefix}/bin:{self.gramine.bin}:{os.environ['PATH']}",
            "CALLERS": "own",
        }

    def serve(self, patience_s=PATIENCE_S, **environment):
        """Run the case that the environment describes; return the exit code and what `error` says."""
        roots = self.host.roots
        command = [sys.executable, "-c", SERVE, *map(str, (self._root / "fifo", roots.dev, roots.sysfs, roots.proc))]
        environment = clean_environment(**self._environment | environment)
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as container:
            with (self._root / "fifo").open("rb") as fifo, tarfile.open(fileobj=fifo, mode="r|") as archive:
                archive.extractall(self.logs)  # our own archive
                fifo.read()  # what pads it: who is still writing that would wait for another reader
            code = container.wait(patience_s)
        assert (self.logs / "status").read_text() == f"{code}\n"
        error = self.logs / "error"
        return code, error.read_text() if error.exists() else ""

    def manifest(self, process="process-0"):
        """Return a worker's manifest."""
        return tomllib.loads((self.logs / process / "worker.manifest").read_text())


def make_null_image(root):
    workload = NullWorkload(root)
    shutil.copy(WORKLOAD / TEMPLATE, workload.directory)
    return Image(root, workload.directory, root / "cache")


@pytest.fixture
def null_image(tmp_path):
    return make_null_image(tmp_path)


QUICK = {"MODE": "throughput", "PRECISION": "avx_fp32", "STEPS": "40", "CORES_PER_INSTANCE": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The image after a run with an instance on each core, on a host whose EPC is of unknown size."""
    image = make_null_image(tmp_path_factory.mktemp("finished"))
    image.host.set_flags("avx2 fma sgx sgx_lc")
    image.host.add_device()
    code, error = image.serve(**QUICK, CUSTOMER_ENV=step_of(5).partition("=")[2])
    assert (code, error) == (0, ""), [path.read_text() for path in image.logs.glob("*/output.log")]
    return image


def test_a_case_runs_in_enclaves_from_plan_to_result(finished):
    run = load_run(finished.logs)
    assert run.case == f"test_{SLUG}_sgx_inference_throughput_avx_fp32"
    assert len(run.instances) == CORES
    assert {result["versions"]["null step (ms)"] for result in run.instances} == {"5"}
    assert all(result["resident_bytes"] is None for result in run.instances)
    assert [kpi.key for kpi in run.kpis if kpi.primary] == ["Throughput"]


def test_the_result_says_what_an_enclave_means_for_it(finished):
    notes = load_run(finished.logs).notes
    assert f"every process, the tracing one too, ran in an SGX enclave of its own: {CORES} of 4 GiB" in notes
    assert any("nothing is confidential" in note for note in notes)
    assert any(note.startswith("EPC size: not shown") for note in notes)


def test_an_enclave_gets_nothing_of_the_callers_environment(finished):
    environment = finished.manifest()["loader"]["env"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert not {"CALLERS", "PATH", "CNNBENCH_CACHE"} & set(environment)
    outside = (finished.logs / "process-0" / "worker.outside").read_text().split()
    assert set(outside) <= {"HOME", "PATH", "PWD", "SHLVL", "_", "LC_CTYPE"}


def test_the_manifest_is_of_the_run(finished):
    manifest, spec = finished.manifest(), json.loads((finished.logs / "process-0" / "spec.json").read_text())
    assert spec["enclave"] is True
    assert manifest["loader"]["entrypoint"]["uri"] == f"file:{finished.gramine.libraries}/libsysdb.so"
    assert f"file:{spec['logs']}/instance-0" in manifest["sgx"]["allowed_files"]
    assert f"dev:{spec['shared']}/control" in manifest["sgx"]["allowed_files"]
    trusted = {file["uri"] for file in manifest["sgx"]["trusted_files"]}
    assert f"file:{spec['logs']}/process-0/spec.json" in trusted
    assert f"file:{finished.gramine.libraries}/runtime/glibc/libc.so.6" in trusted
    assert any(uri.endswith("cnnbench/worker/__main__.py") for uri in trusted)


def test_everything_that_is_missing_is_told_at_once(null_image):
    for tool in null_image.gramine.bin.iterdir():
        tool.unlink()
    code, error = null_image.serve(MODE="throughput", PRECISION="amx_bfloat16")
    assert code == 77
    for missing in (
        "amx_bfloat16: ",
        "CPU flags sgx and sgx_lc: not in ",
        "sgx_enclave: not there",
        "gramine-sgx: not on PATH",
        "gramine-sgx-sign: not on PATH",
        "gramine-sgx-gen-private-key: not on PATH",
    ):
        assert missing in error
    assert not list(null_image.logs.glob("process-*"))


def test_enclaves_that_do_not_fit_together_are_not_started(null_image):
    null_image.host.set_flags("avx2 fma sgx sgx_lc")
    null_image.host.add_device()
    null_image.host.add_epc(0, (4 << 30) * CORES - 1)
    code, error = null_image.serve(**QUICK)
    assert code == 77
    assert f"EPC: found {4 * CORES:.1f} GiB, needed {4 * CORES:.1f} GiB" in error


@pytest.mark.parametrize("tool", ["gramine-sgx-sign", "gramine-sgx-gen-private-key"])
def test_a_tool_that_fails_is_quoted(null_image, tool):
    null_image.host.add_everything()
    null_image.gramine.replace(tool, "#!/bin/sh\necho no such luck >&2\nexit 3\n")
    code, error = null_image.serve(**QUICK)
    assert code == 1
    assert error.startswith(f"`{tool} ")
    assert error.endswith("failed with exit code 3: no such luck")


def test_an_enclave_that_does_not_start_makes_the_run_invalid(null_image):
    null_image.host.add_everything()
    null_image.gramine.replace("gramine-sgx", "#!/bin/sh\necho error: enclave_init failed\nexit 1\n")
    code, error = null_image.serve(**QUICK)
    assert (code, error) == (3, "")
    assert "enclave_init failed" in load_run(null_image.logs).facts["what was seen"]


def test_a_workload_without_a_template_says_so(null_image, tmp_path):
    null_image.host.add_everything()
    (tmp_path / "Harness" / TEMPLATE).unlink()
    code, error = null_image.serve(**QUICK)
    assert code == 1
    assert f"{TEMPLATE}: not there" in error


@pytest.mark.engine
def test_tensorflow_is_traced_and_reads_an_encrypted_model(tmp_path, engine_cache, tensorflow_python):
    image = Image(tmp_path, WORKLOAD, engine_cache)
    image.host.add_everything()
    key = tmp_path / "wrap.key"
    key.write_bytes(b"0123456789abcdef")
    quick = {"MODE": "throughput", "PRECISION": "avx_fp32", "CASE_TYPE": "gated", "WARMUP_STEPS": "1", "STEPS": "8"}
    code, error = image.serve(patience_s=600, **quick, WRAP_KEY=str(key))
    assert (code, error) == (0, ""), [path.read_text() for path in image.logs.glob("*/output.log")]
    run = load_run(image.logs)
    assert {criterion.name for criterion in run.criteria if criterion.passed} >= {"precision", "outputs", "pinning"}
    for process in ("process-0", "trace"):
        manifest, spec = image.manifest(process), json.loads((image.logs / process / "spec.json").read_text())
        assert spec["model"].endswith("model.encrypted")
        encrypted = [mount for mount in manifest["fs"]["mounts"] if mount.get("type") == "encrypted"]
        assert [mount["path"] for mount in encrypted] == [spec["model"]]
        assert f"file:{spec['model']}" not in {file["uri"] for file in manifest["sgx"]["trusted_files"]}
    assert image.manifest("trace")["loader"]["env"]["ONEDNN_VERBOSE"] == "1"
    assert image.manifest()["loader"]["env"]["ONEDNN_VERBOSE"] == "0"
