"""Lock files, the choice among engine builds, and environments made from locks of a small wheel made here."""

import hashlib
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from checkout import ROOT
from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.engines.builds import choose_build
from cnnbench.engines.pytorch import OWN_PYTHON
from cnnbench.engines.registry import Build, Engine, engines, find_engine
from cnnbench.machine.host import CpuInfo
from cnnbench.run.job import graph_quantizer_obstacle
from cnnbench.staging import environments
from cnnbench.staging.environments import (
    RANKS,
    engine_python,
    environment_path,
    lock_path,
    require_environment,
    steps_python,
)

TENSORFLOW, PYTORCH, NULL = (find_engine(name) for name in ("tensorflow", "pytorch", "null"))
TINY = Engine("tiny", "tiny:Backend", builds=(Build("wheel", "tiny-wheel"),))
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
AVX2_CPU = CpuInfo(vendor="GenuineIntel", flags=frozenset({"avx2", "fma"}))
AMD_CPU = CpuInfo(vendor="AuthenticAMD", flags=frozenset({"avx2", "fma", "avx512_bf16"}))
OLD_CPU = CpuInfo(vendor="GenuineIntel", flags=frozenset({"sse4_2"}))


def requirements_of(lock):
    """Return the requirements of a lock file, each with its continuation lines."""
    text = lock.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_every_environment_has_a_lock_file():
    locks = {build.lock for engine in engines().values() for build in engine.builds}
    locks |= {engine.quantizes_graphs.lock for engine in engines().values() if engine.quantizes_graphs}
    assert {lock_path(lock) for lock in (*locks, RANKS)} <= set(LOCKS)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_pinned_with_its_hash(lock):
    requirements = requirements_of(lock)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+(\[[^]]*\])?==[^ ]+ ", requirement), requirement
        assert re.search(r" --hash=sha256:[0-9a-f]{64}\b", requirement), requirement


@pytest.mark.parametrize(
    ("requested", "python", "cpu", "chosen"),
    [
        ("auto", (3, 10), AVX2_CPU, "itex"),
        ("auto", (3, 11), AVX2_CPU, "itex"),
        ("auto", (3, 12), AVX2_CPU, "stock"),
        ("auto", (3, 13), AVX2_CPU, "stock"),
        ("auto", (3, 11), OLD_CPU, "stock"),
        ("itex", (3, 10), AVX2_CPU, "itex"),
        ("itex", (3, 11), AVX2_CPU, "itex"),
        ("stock", (3, 10), AVX2_CPU, "stock"),
        ("stock", (3, 13), OLD_CPU, "stock"),
        ("zentf", (3, 10), AVX2_CPU, "zentf"),
        ("zentf", (3, 13), AVX2_CPU, "zentf"),
        ("auto", (3, 12), AMD_CPU, "stock"),
    ],
)
def test_the_build_that_runs(requested, python, cpu, chosen):
    assert choose_build(TENSORFLOW, requested, cpu, python=python) == chosen


@pytest.mark.parametrize(
    ("requested", "python", "cpu", "reason"),
    [
        ("itex", (3, 12), AVX2_CPU, "VARIANT=itex: has no wheels for Python 3.12, only for 3.10 and 3.11"),
        ("itex", (3, 13), AVX2_CPU, "VARIANT=itex: has no wheels for Python 3.13, only for 3.10 and 3.11"),
        ("itex", (3, 11), OLD_CPU, "VARIANT=itex: needs a CPU with AVX2"),
        ("zentf", (3, 11), OLD_CPU, "VARIANT=zentf: needs a CPU with AVX2"),
        ("fast", (3, 11), AVX2_CPU, "VARIANT=fast: is no build of the engine tensorflow; there are itex, stock, zentf"),
    ],
)
def test_a_build_that_cannot_run_is_skipped_with_its_reason(requested, python, cpu, reason):
    with pytest.raises(SkippedError) as raised:
        choose_build(TENSORFLOW, requested, cpu, python=python)
    assert str(raised.value) == reason
    assert raised.value.exit_code == 77


def test_a_build_that_an_image_was_made_without_is_named_with_those_it_has(tmp_path):
    with pytest.raises(
        SkippedError, match=r"^this image was made without tensorflow, which is needed: configure with "
    ):
        require_environment(TENSORFLOW, "zentf", tmp_path)
    for variant in ("itex", "stock"):
        environment_path(f"tensorflow-{variant}", tmp_path).mkdir(parents=True)
        require_environment(TENSORFLOW, variant, tmp_path)
    with pytest.raises(SkippedError) as raised:
        require_environment(TENSORFLOW, "zentf", tmp_path)
    assert str(raised.value) == (
        "VARIANT=zentf: this image was made without it and has itex, stock: configure with -DMORE_VARIANTS=zentf "
        "and make it anew (doc/containers.md)"
    )
    require_environment(NULL, "", tmp_path)


def test_int8_takes_a_build_that_has_its_kernels():
    engine = replace(TENSORFLOW, builds=tuple(replace(one, int8=one.name == "stock") for one in TENSORFLOW.builds))
    assert choose_build(engine, "auto", AVX2_CPU, int8=True, python=(3, 11)) == "stock"
    with pytest.raises(SkippedError, match=r"^VARIANT=itex: has no int8 convolutions; choose stock$"):
        choose_build(engine, "itex", AVX2_CPU, int8=True, python=(3, 11))


@pytest.mark.parametrize("python", [(3, 12), (3, 13)])
def test_no_model_is_quantised_where_the_quantiser_has_no_wheels(python):
    assert (
        f"for Python 3.10 and 3.11 only, and this is 3.{python[1]}; run with"
        in TENSORFLOW.quantizes_graphs.obstacle(python)
    )


def test_an_unsupported_python_makes_no_quantising_environment(tmp_path, unsupported_python):
    with pytest.raises(SkippedError, match=r"quantising a model to int8 needs TensorFlow 2\.15"):
        steps_python(TENSORFLOW, "itex", TENSORFLOW.quantizes_graphs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_without_builds_has_none_to_choose(tmp_path):
    assert choose_build(NULL, "auto", AVX2_CPU) == ""
    assert graph_quantizer_obstacle(NULL) == ""
    assert engine_python(NULL, "", tmp_path).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def wheel(tmp_path):
    """A package of one module, as a wheel."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def write_lock(tmp_path, monkeypatch):
    """Write the lock file of the build `wheel` of the engine `tiny`."""
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    monkeypatch.setattr(environments, "REQUIREMENTS", requirements)

    def write(wheel, digest):
        (requirements / "tiny-wheel.lock").write_text(f"tiny @ {wheel.as_uri()} \\\n    --hash=sha256:{digest}\n")

    return write


def test_an_environment_is_made_once_from_its_lock(tmp_path, wheel, write_lock, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_USER", "1")
    write_lock(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    python = engine_python(TINY, "wheel", tmp_path / "cache")
    assert python == environment_path("tiny-wheel", tmp_path / "cache") / "bin" / "python"
    answer = subprocess.run([python, "-I", "-c", "import tiny; print(tiny.ANSWER)"], capture_output=True, check=True)
    assert answer.stdout == b"42\n"
    (python.parent / "mark").touch()
    wheel.unlink()  # nothing can be installed any more
    assert engine_python(TINY, "wheel", tmp_path / "cache") == python
    assert (python.parent / "mark").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path, wheel, write_lock, capsys):
    write_lock(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    python = engine_python(TINY, "wheel", tmp_path / "cache")
    for link in python.parent.glob("python*"):
        link.unlink()
        link.symlink_to(tmp_path / "uninstalled" / link.name)
    assert engine_python(TINY, "wheel", tmp_path / "cache") == python
    assert subprocess.run([python, "-I", "-c", "import tiny"], check=False).returncode == 0
    assert f"{python.parents[1]}: the Python that it was made with is gone" in capsys.readouterr().err


def test_a_failing_install_says_uvs_last_words_and_leaves_nothing(tmp_path, wheel, write_lock):
    write_lock(wheel, "0" * 64)
    with pytest.raises(CnnbenchError) as raised:
        engine_python(TINY, "wheel", tmp_path / "cache")
    message = str(raised.value)
    assert message.startswith("making the environment of tiny-wheel.lock failed at `")
    assert "--require-hashes" in message
    assert "Hash mismatch" in message
    assert "0" * 64 in message
    left = [path.name for path in (tmp_path / "cache" / "environments").iterdir() if not path.name.endswith(".lock")]
    assert left == []


def test_another_lock_is_another_environment(tmp_path, wheel, write_lock):
    write_lock(wheel, "0" * 64)
    first = environment_path("tiny-wheel", tmp_path)
    write_lock(wheel, "1" * 64)
    second = environment_path("tiny-wheel", tmp_path)
    assert first != second
    assert first.name.startswith("tiny-wheel-cp3")


@pytest.mark.parametrize("engine", [PYTORCH, find_engine("inductor")], ids=lambda engine: engine.name)
def test_the_device_decides_the_build_of_pytorch(engine):
    assert choose_build(engine, "auto", AVX2_CPU, python=(3, 11)) == "cpu"
    for python in ((3, 10), (3, 11), (3, 13)):
        assert choose_build(engine, "auto", AVX2_CPU, gpu=True, python=python) == "cuda"
    assert engine.build("cuda").lock == "pytorch-cuda"
    with pytest.raises(SkippedError, match=r"only for 3\.11; \w+ cuda: is for cuda_ precisions$"):
        choose_build(engine, "auto", AVX2_CPU, python=(3, 12))


def test_a_network_is_run_only_where_it_can_be_built():
    engine = find_engine("onnxruntime")
    with pytest.raises(SkippedError, match=r"^onnxruntime cpu: runs on CPUs only$"):
        choose_build(engine, "auto", AVX2_CPU, gpu=True, python=(3, 11))
    with pytest.raises(SkippedError, match=r"^onnxruntime cpu: its lock file has no PyTorch for Python 3\.12, only"):
        choose_build(engine, "auto", AVX2_CPU, python=(3, 12))


def test_a_python_with_pytorch_for_gpus_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv(OWN_PYTHON, sys.executable)
    assert engine_python(PYTORCH, "cuda", tmp_path / "cache") == Path(sys.executable)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(OWN_PYTHON, str(tmp_path / "python3"))
    with pytest.raises(UsageError, match=rf"^{OWN_PYTHON}={tmp_path}/python3: no program; needed is a Python with"):
        engine_python(PYTORCH, "cuda", tmp_path / "cache")


def test_the_builds_for_cpus_and_gpus_are_of_one_release():
    cpu, gpu = (lock_path(f"pytorch-{variant}").read_text() for variant in ("cpu", "cuda"))
    for package in ("torch", "torchvision", "timm"):
        versions = [re.search(rf"^{package}==([0-9.]+)", text, re.MULTILINE)[1] for text in (cpu, gpu)]
        assert versions[0] == versions[1]
