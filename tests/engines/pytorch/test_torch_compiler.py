"""What Inductor's compiler leaves where it ends well, fails or is killed; run by the Python that has PyTorch."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch._inductor.config as inductor  # noqa: E402

from cnnbench.engines.pytorch.compiler import write_whole_files  # noqa: E402

COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do
    [ "$1" != -o ] || output=$2
    shift
done
[ -n "$output" ] || { echo "version of $0"; exit; }
printf half > "$output"
[ -z "$HANGS" ] || { echo hangs; sleep 600; }
[ -z "$FAILS" ] || exit 5
printf ' and half' >> "$output"
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """What Inductor would call, and the directory that it is to write into."""
    compiler = tmp_path / "a b" / "g++-12"
    compiler.parent.mkdir()
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    (out := tmp_path / "out").mkdir()
    with inductor.patch("cpp.cxx", (None, "g++")):
        write_whole_files(tmp_path / "cache")
        assert inductor.cpp.cxx[1] == os.environ["CXX"] != str(compiler)
        assert Path(os.environ["CXX"]).name == "g++-12"  # by which Inductor knows its options
        yield Path(os.environ["CXX"]), out


def test_a_file_of_the_compilers_is_there_when_it_is_whole(compiler):
    script, out = compiler
    subprocess.run([script, "-c", "a file.cpp", "-o", out / "a file.o"], check=True)
    assert (out / "a file.o").read_text() == "half and half"
    failed = subprocess.run([script, "-o", out / "failed.o"], env=os.environ | {"FAILS": "1"})
    assert failed.returncode == 5
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("version of ")
    assert [path.name for path in out.iterdir()] == ["a file.o"]


def test_a_compiler_that_is_killed_leaves_nothing_that_would_be_loaded(compiler):
    script, out = compiler
    asked = [script, "-o", out / "killed.so"]
    killed = subprocess.Popen(asked, env=os.environ | {"HANGS": "1"}, stdout=subprocess.PIPE, start_new_session=True)
    assert killed.stdout.readline() == b"hangs\n"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (out / "killed.so").exists() is False
    subprocess.run(asked, check=True)
    assert (out / "killed.so").read_text() == "half and half"


def test_a_process_that_another_has_started_so_calls_the_compiler_itself_no_less(compiler, tmp_path):
    script, _ = compiler
    before = script.read_text()
    write_whole_files(tmp_path / "cache")
    assert os.environ["CXX"] == str(script)
    assert script.read_text() == before
