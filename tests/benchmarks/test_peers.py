"""The comparison with other engines: its settings, its table, and processes that rest between their turns."""

import importlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cnnbench.run.job
from checkout import ROOT
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.host import read_cpuinfo
from cnnbench.staging.inputs import PreparedModel
from null_workload import PATIENCE_S

BENCHMARKS = ROOT / "benchmarks"

FAKE = """
import threading, time
import numpy as np

def spin():
    while True:
        pass

class Fake:
    def infer(self, batch):
        time.sleep(0.005)
        return np.zeros((len(batch), 1001), np.float32)

    def executed(self):
        return {"nothing": 1.0}

    def versions(self):
        return "Fake 1"

def load(spec):
    if spec.data_type == "int8":
        raise ValueError("no int8 here")
    threading.Thread(target=spin, daemon=True).start()
    return Fake()
"""


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name):
    return importlib.import_module(name)


def fake_python(tmp_path):
    """Return a Python that finds an engine module which only sleeps, with a thread that never rests."""
    (tmp_path / "fake_peer.py").write_text(FAKE)
    np.save(tmp_path / "images.npy", np.zeros((4, 2, 2, 3), np.float32))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def spec_of(tmp_path, data_type="fp32", amx=True):
    return module("peer_worker").PeerSpec(
        module="fake_peer",
        artefacts=str(tmp_path),
        data_type=data_type,
        amx=amx,
        mode="throughput",
        batch_size=2,
        cpus=sorted(os.sched_getaffinity(0))[:1],
        check_images=str(tmp_path / "images.npy"),
        outputs=str(tmp_path / "outputs.npy"),
    )


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_block_has_the_steps_of_its_time_and_idle_processes_take_no_cpu(tmp_path):
    with module("peer_process").Peer(fake_python(tmp_path), [spec_of(tmp_path)], tmp_path / "run") as peer:
        (steps,) = peer.block(0.3).steps
        assert len(steps) > 1
        assert (np.diff(steps[:, 2]) > 0).all()
        assert np.load(tmp_path / "outputs.npy").shape == (4, 1001)
        (process,) = peer._processes
        before = cpu_ticks(process.pid)
        time.sleep(0.5)
        assert cpu_ticks(process.pid) == before
        assert len(peer.block(0.1).steps[0])
    assert not Path(f"/proc/{process.pid}").exists()


def test_an_engine_that_fails_says_why(tmp_path):
    with pytest.raises(CnnbenchError, match="no int8 here"):
        module("peer_process").Peer(fake_python(tmp_path), [spec_of(tmp_path, "int8")], tmp_path / "run")


@pytest.mark.skipif("amx_tile" not in Path("/proc/cpuinfo").read_text(), reason="this CPU has no AMX")
@pytest.mark.parametrize(("refuse", "answer"), [("", "0 True"), ("peer_worker.refuse_amx();", "-1 False")])
def test_amx_is_refused_by_the_kernel(refuse, answer):
    code = (
        f"import ctypes, peer_worker; {refuse} "
        "print(ctypes.CDLL(None).syscall(158, 0x1023, 18), peer_worker.amx_permitted())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer


@pytest.mark.parametrize("word", ["BATCH_SIZE", "avx_fp64:BATCH_SIZE=1", "SIZE=1"])
def test_a_setting_that_is_none_is_refused(word):
    with pytest.raises(UsageError, match=word.rpartition(":")[2].partition("=")[0]):
        module("peers").read_settings([word])


def test_settings_are_for_all_precisions_or_one():
    found = module("peers").read_settings(["STEPS=5", "amx_int8:CUSTOMER_ENV=A=1"])
    assert found == {"": {"STEPS": "5"}, "amx_int8": {"CUSTOMER_ENV": "A=1"}}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--rounds", "5"], "--rounds 5: 6 or more are needed"),
        (["--seconds", "0"], "--seconds 0: must be above 0"),
        (["--pre-pass-seconds", "nan"], "--pre-pass-seconds nan: must be above 0"),
        (["--choices", "/no/such/choices.json"], "--choices /no/such/choices.json: there is no directory /no/such"),
        (["--output", "/no/such/table.md"], "--output /no/such/table.md: there is no directory /no/such"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_staged(words, complaint):
    command = [sys.executable, str(BENCHMARKS / "peers.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(complaint)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"openvino avx_fp32": 0}', '{"openvino avx_fp32": "large"}'])
def test_a_file_of_choices_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "choices.json"
    assert module("peers").read_choices(path) == {}
    path.write_text('{"openvino avx_fp32": 8}')
    assert module("peers").read_choices(path) == {"openvino avx_fp32": 8}
    path.write_text(text)
    with pytest.raises(UsageError, match=r"choices\.json: "):
        module("peers").read_choices(path)


def blocks(step_ms, rounds=6, **fields):
    ends = np.arange(1, 801, dtype=np.int64) * int(step_ms * 1e6)
    starts = ends - int(step_ms * 1e6)
    steps = np.column_stack([starts, starts, ends])
    return [module("peer_process").Block([steps], 0.01, **fields) for _ in range(rounds)]


def rows_of(utilization=0.5, complaint="", **fields):
    row = module("peer_table").Row
    return [
        row("avx_fp32", "cnnbench", "TF", 1, 2, "brgconv", blocks(10, utilization=utilization, complaint=complaint)),
        row("avx_fp32", "openvino", "OV", 1, 4, "brgconv", blocks(25)),
        row("avx_fp32", "inductor", **fields),
    ]


def test_the_table_pairs_ratios_and_says_what_was_not_measured():
    rows = rows_of(reason="no torch")
    text = "\n".join([*module("peer_table").table(rows, "throughput"), *module("peer_table").notes(rows)])
    assert "| avx_fp32 | cnnbench | TF | 1 x 2 | 200.00 [200.00, 200.00] | 1 | 50.0 [50.0, 50.0] |" in text
    assert "| avx_fp32 | openvino | OV | 1 x 4 | 160.00 [160.00, 160.00] | 1.250 [1.250, 1.250] | - |" in text
    assert "| avx_fp32 | inductor | - | - | NOT MEASURED | - | - |" in text
    assert "- avx_fp32, inductor: no torch" in text


def test_the_table_says_which_blocks_were_not_valid_and_how_utilization_is_measured():
    rows = rows_of(None, "unstable: contention", reason="no torch")
    text = "\n".join([*module("peer_table").table(rows, "throughput"), *module("peer_table").notes(rows)])
    assert "| avx_fp32 | cnnbench | TF | 1 x 2 | 200.00 [200.00, 200.00] | 1 | NOT MEASURED |" in text
    assert "compute utilization: NOT MEASURED: CNNBENCH_PEAK names no program; where there is a C compiler" in text
    assert "- avx_fp32, cnnbench: 6 of 6 blocks not valid; the last: unstable: contention" in text


@pytest.mark.parametrize(
    ("settings", "section", "expected"),
    [
        ({}, None, (16, 1, "dummy", "auto", 2.0)),
        ({}, "{BATCH_SIZE: 4, STEPS: 5}", (4, 1, "dummy", "auto", 2.0)),
        ({"BATCH_SIZE": "8", "DATA_TYPE": "real"}, "{BATCH_SIZE: 4}", (8, 1, "dummy", "auto", 2.0)),
    ],
)
def test_the_product_takes_no_settings_from_the_environment(monkeypatch, tmp_path, settings, section, expected):
    for name, value in {"DATA_TYPE": "real", "BATCH_SIZE": "3", "STEPS": "7", "CNNBENCH_DEFAULTS": "/none"}.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "bkm.yaml" if section else None
    if config:
        config.write_text(f"'*_throughput_avx_fp32': {section}\n'*': {{CORES_PER_INSTANCE: 1}}\n")
    job = module("peer_product").product_job("throughput", "avx_fp32", settings, config, 2.0)
    p = job.parameters
    assert (p.batch_size, p.cores_per_instance, p.data_type, p.steps, p.max_time) == expected
    assert p.min_time == p.max_time


def test_p99_needs_samples_enough():
    rows = rows_of(reason="no torch")
    rows[1].blocks = [module("peer_process").Block([block.steps[0][:100]], None) for block in rows[1].blocks]
    text = "\n".join(module("peer_table").table(rows, "latency"))
    assert "10.00 [10.00, 10.00] | 10.00 (of 4800) | 1 | 50.0 [50.0, 50.0] |" in text
    assert "25.00 [25.00, 25.00] | too few samples: 600 of 662 | 0.400 [0.400, 0.400] | - |" in text


def comparison(tmp_path, monkeypatch, **engines):
    """Return a comparison of engines, by name and module, whose processes are fakes, on a network that answers 0."""
    peers, python = module("peers"), fake_python(tmp_path)

    class FakeEngine(module("peer_engines").PeerEngine):
        def python(self, cache):
            return python

    for name, source in engines.items():
        monkeypatch.setitem(peers.PEERS, name, FakeEngine(source, ("", ""), False, True))
    monkeypatch.setattr(peers, "BATCH_SIZES", (1, 2))
    np.save(tmp_path / "reference.npy", np.zeros((4, 1001), np.float32))
    reference, images = tmp_path / "reference.npy", tmp_path / "images.npy"
    (tmp_path / "scratch").mkdir()
    return peers.Comparison(
        mode="throughput",
        rounds=6,
        seconds=0.2,
        pre_pass_s=0.2,
        engines=list(engines),
        settings={},
        config=None,
        choices={},
        model=PreparedModel(tmp_path, "", tmp_path, images, reference, 1, 0, 0, False),
        exported=tmp_path,
        cache=tmp_path,
        scratch=tmp_path / "scratch",
    )


@pytest.mark.skipif(not {"avx2", "fma"} <= read_cpuinfo().flags, reason="this CPU cannot run avx_fp32")
def test_a_precision_is_measured_in_rounds_and_an_engine_that_fails_is_left_out(tmp_path, monkeypatch):
    run = comparison(tmp_path, monkeypatch, fake="fake_peer", broken="no_such_module")
    fake, broken = module("peers").compare_precision(run, "avx_fp32")
    assert [len(fake.blocks), fake.failed, fake.reason] == [6, False, ""]
    assert fake.versions == "Fake 1"
    assert fake.ran == "nothing 100%; the process has no AMX"
    assert run.choices == {"fake avx_fp32": fake.batch_size}
    assert len(fake.figures("throughput")) == 6
    assert broken.failed
    assert "no_such_module" in broken.reason
    assert not broken.blocks


def test_a_precision_that_the_cpu_lacks_is_skipped(tmp_path, monkeypatch, cpu_flags):
    cpu_flags("avx2 fma")
    monkeypatch.setattr(module("peers"), "read_cpuinfo", cnnbench.run.job.read_cpuinfo)
    (row,) = module("peers").compare_precision(comparison(tmp_path, monkeypatch, fake="fake_peer"), "amx_int8")
    assert (row.reason, row.failed) == ("amx_int8: this CPU lacks amx_int8 and amx_tile", False)


def test_the_product_failing_between_precisions_counts_as_a_failure(tmp_path, monkeypatch):
    run = replace(comparison(tmp_path, monkeypatch), settings={"": {"BATCH_SIZE": "0"}})
    rows = module("peers").compare_precisions(run, ["avx_fp32", "avx_int8"])
    assert [row.failed for row in rows] == [True, True]
    assert "| avx_int8 over avx_fp32 | NOT MEASURED: BATCH_SIZE=0 (argument)" in "\n".join(
        module("peer_table").speed_up_table(rows, "throughput", "avx_fp32")
    )


def test_processes_that_do_not_answer_are_stopped_all_the_same(tmp_path, monkeypatch):
    with module("peer_process").Peer(fake_python(tmp_path), [spec_of(tmp_path)], tmp_path / "run") as peer:
        (process,) = peer._processes
        monkeypatch.setattr(process, "ask", lambda *_: None)
        monkeypatch.setattr(module("peer_process"), "HANG_S", -9)
        with pytest.raises(CnnbenchError, match="did not answer within"):
            peer.block(0.0)
        stat = Path(f"/proc/{process.pid}/stat")
        deadline = time.monotonic() + PATIENCE_S
        while stat.read_text().rpartition(")")[2].split()[0] != "T":  # the signal takes its moment to arrive
            assert time.monotonic() < deadline
            time.sleep(0.01)
