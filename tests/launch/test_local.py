"""The directory of shared files: one for each run, and none left by killed ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnbench.cases.precisions import PRECISIONS
from cnnbench.engines.registry import Setting, find_engine
from cnnbench.launch.instances import InstancePlan, Plan
from cnnbench.launch.local import SHARED_PREFIX, STALE_S, engine_environment, shared_directory, split_environment

MEMORY = Path("/dev/shm")


@pytest.fixture
def old_entry():
    """A way to make something in /dev/shm that looks as if a run of long ago had left it."""
    made = []

    def make(name, directory=True):
        path = MEMORY / f"{name}-{os.getpid()}"
        if directory:
            path.mkdir()
            (path / "control").touch()
        else:
            path.touch()
        os.utime(path, (time.time() - 2 * STALE_S,) * 2)
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["rm", "-rf", str(path)], check=True)


def test_the_directory_goes_with_its_run():
    with shared_directory() as directory:
        (directory / "control").touch()
        assert directory.is_dir()
    assert not directory.exists()


def test_a_killed_runs_directory_is_removed(old_entry):
    stale = old_entry(f"{SHARED_PREFIX}stale")
    with shared_directory():
        assert not stale.exists()


@pytest.mark.parametrize(("name", "directory"), [("cnnbench-results", True), (f"{SHARED_PREFIX}file", False)])
def test_what_no_run_made_stays(old_entry, name, directory):
    entry = old_entry(name, directory)
    with shared_directory():
        assert entry.exists()


def test_a_living_runs_directory_stays():
    script = (
        "import os, sys, time\n"
        "from cnnbench.launch.local import STALE_S, shared_directory\n"
        "with shared_directory() as directory:\n"
        "    os.utime(directory, (time.time() - 2 * STALE_S,) * 2)\n"
        "    print(directory, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as run:
        other = Path(run.stdout.readline().strip())
        with shared_directory():
            assert other.is_dir()
        run.stdin.close()
        run.wait()
    assert not other.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "LD_PRELOAD", "ONEDNN_VERBOSE", "ZENDNNL_MATMUL_ALGO", "GLIBC_TUNABLES", "PYTHONPATH"),
        *("NVIDIA_TF32_OVERRIDE", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"),
    ],
)
def test_what_would_change_the_measurement_is_not_passed_on(name):
    assert split_environment({name: "1", "HOME": "/root"}) == ({"HOME": "/root"}, [name])


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"])
def test_which_gpu_is_used_is_passed_on(name):
    assert split_environment({name: "1"}) == ({name: "1"}, [])


ONE_CORE = Plan((InstancePlan(0, 0, (0,), sockets=(0,), nodes=(0,), memory_node=0),), idle_cores=0)


def environment_of(name, variant="itex", batch_size=1, **customer_env):
    of = PRECISIONS[name]
    setting = Setting(variant, of.data_type, batch_size, None, Path("/compiled"))
    of_engine = find_engine("tensorflow").environment(setting)
    return engine_environment(ONE_CORE, of, onednn_verbose=False, of_engine=of_engine, customer_env=customer_env)


@pytest.mark.parametrize("name", PRECISIONS)
def test_only_bfloat32_computes_float32_in_bfloat16_and_nothing_is_traced(name):
    environment = environment_of(name)
    modes = {key: environment.get(key) for key in ("ONEDNN_DEFAULT_FPMATH_MODE", "ITEX_FP32_MATH_MODE")}
    expected = ("BF16", "BF32") if name.endswith("bfloat32") else (None, None)
    assert tuple(modes.values()) == expected
    caps = {"amx": "AVX512_CORE_AMX", "bfloat16": "AVX512_CORE_AMX", "cuda": "ALL"}
    assert environment["ONEDNN_MAX_CPU_ISA"] == caps.get(name.partition("_")[0], "AVX512_CORE_BF16")
    assert environment["ONEDNN_VERBOSE"] == "0"
    assert "ONEDNN_VERBOSE_TIMESTAMP" not in environment


@pytest.mark.parametrize(
    ("name", "variant", "batch_size", "blocked"),
    [
        ("avx_fp32", "itex", 2, True),
        ("amx_bfloat32", "itex", 2, True),
        ("avx_fp32", "itex", 1, False),
        ("avx_fp32", "stock", 2, False),
        ("avx_bfloat16", "itex", 2, False),
        ("avx_int8", "itex", 2, False),
    ],
)
def test_blocked_layouts_are_asked_for_where_they_were_measured_to_be_ahead(name, variant, batch_size, blocked):
    environment = environment_of(name, variant, batch_size)
    assert (environment.get("ITEX_ONEDNN_LAYOUT_OPT") == "1") is blocked


def test_a_customers_variable_has_the_last_word():
    environment = environment_of("avx_fp32", ONEDNN_MAX_CPU_ISA="AVX2", TF_ENABLE_ONEDNN_OPTS="0")
    assert environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
