"""The library that samples: found by name, made once where a compiler is, or left out for a reason that is told."""

import os
from pathlib import Path

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.staging.sampler import LIBRARY, Sampler, find_sampler, stage_sampler


def make_compiler(directory: Path, body: str) -> dict[str, str]:
    """Write a compiler of these words, and return the environment that has it alone."""
    directory.mkdir(exist_ok=True)
    (directory / "cc").write_text(f"#!/bin/sh\n[ $1 = --version ] && echo cc 1 && exit\n{body}\n")
    (directory / "cc").chmod(0o755)
    return {"PATH": str(directory)}


MAKES = f"for word; do case $word in */{LIBRARY}) echo made > $word;; esac; done"


def test_a_library_that_is_named_is_taken_and_off_goes_without(tmp_path):
    (tmp_path / "mine.so").touch()
    assert find_sampler({"CNNBENCH_SAMPLER": str(tmp_path / "mine.so")}) == Sampler(tmp_path / "mine.so")
    assert find_sampler({"CNNBENCH_SAMPLER": "off"}) == Sampler(reason="CNNBENCH_SAMPLER=off")
    with pytest.raises(UsageError, match=r"CNNBENCH_SAMPLER=/no/such.so: no such file; leave it out .* or give off"):
        find_sampler({"CNNBENCH_SAMPLER": "/no/such.so"})


def test_without_a_compiler_and_on_other_processors_there_is_none_and_why(tmp_path, monkeypatch):
    assert "no C compiler is here" in find_sampler({"PATH": str(tmp_path)}).reason
    assert "(clang-99)" in find_sampler({"PATH": str(tmp_path), "CC": "clang-99"}).reason
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert find_sampler(dict(os.environ)).reason.endswith("and this is aarch64")
    assert stage_sampler(Sampler(reason="none"), tmp_path) == Sampler(reason="none")


def test_it_is_made_once_for_a_compiler_and_its_source(tmp_path):
    found = find_sampler(make_compiler(tmp_path / "bin", MAKES))
    first = stage_sampler(found, tmp_path / "cache").library
    assert first.read_text() == "made\n"
    assert stage_sampler(found, tmp_path / "cache").library == first
    other = find_sampler(make_compiler(tmp_path / "bin", f"{MAKES} # another"))
    assert stage_sampler(other, tmp_path / "cache").library == first  # it says the same of its version
    (tmp_path / "bin" / "cc").write_text((tmp_path / "bin" / "cc").read_text().replace("cc 1", "cc 2"))
    assert stage_sampler(other, tmp_path / "cache").library != first


def test_a_compiler_that_fails_is_the_reason(tmp_path):
    found = find_sampler(make_compiler(tmp_path / "bin", "echo 'sampler.c:1: error: no such header' >&2; exit 1"))
    staged = stage_sampler(found, tmp_path / "cache")
    assert staged.library is None
    assert staged.reason.endswith("could not make the sampler: sampler.c:1: error: no such header")
    assert not list((tmp_path / "cache").rglob(LIBRARY))
