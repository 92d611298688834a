"""`cnnbench hotspots`, over samples made by hand, whose every place is known."""

import csv
import io
import json

import numpy as np
import pytest

from cnnbench.cli.main import main
from cnnbench.proof.instructions import describe_place
from cnnbench.report.hotspots import show_hotspots
from cnnbench.results.samples import RECORD, SAMPLES, Samples

FMA_LOOP = "c4e26db8cb" * 3 + "75e0"
SPIN = "f390" + "ebfc"  # pause; jmp back to it
COPY = "c5fc1006" + "c5fc1107" + "4883c620" + "75f0"  # vmovups ymm0,[rsi]; vmovups [rdi],ymm0; add rsi,32; jnz
CLEAR = "f3aa"  # rep stosb
MAXIMUM = "c5fc5fc1" + "75f0"  # vmaxps ymm0,ymm0,ymm1: what a ReLU does
PYTHON = "4889c3" + "4801d8" + "c3"  # mov rbx,rax; add rax,rbx; ret
MAPS = """\
555500000000-555500100000 r-xp 00002000 fe:00 7   /usr/bin/python
7f0000000000-7f0000100000 rwxp 00000000 00:00 0
7f1000000000-7f1000100000 r-xp 00010000 fe:00 9   /opt/lib/libkernels.so
"""
LIBRARY, MADE, PROGRAM = 0x7F1000000000, 0x7F0000000000, 0x555500000000


def sample(time_ns, address, code, in_kernel=False):
    made = np.zeros((), RECORD)
    code = bytes.fromhex(code)
    made["time_ns"], made["address"], made["thread"], made["length"] = time_ns, address, 1, len(code)
    made["in_kernel"] = in_kernel
    made["code"] = np.frombuffer(code.ljust(RECORD["code"].itemsize, b"\0"), RECORD["code"])[0]
    return made


@pytest.fixture
def logs(tmp_path):
    """A run whose window is from 100 to 200 ns, with ten samples in it and one before."""
    instance = tmp_path / "logs-x" / "itr-1" / "worker-0" / "instance-0"
    instance.mkdir(parents=True)
    np.save(instance / "steps.npy", np.array([[100, 101, 150], [150, 151, 200]]))
    records = [
        sample(50, LIBRARY, FMA_LOOP),
        *(sample(110, LIBRARY + 8 * number, FMA_LOOP) for number in range(4)),
        sample(120, MADE, MAXIMUM),
        sample(130, MADE + 4096, COPY),
        sample(140, LIBRARY + 0x5000, SPIN),
        *(sample(150, PROGRAM + 16, PYTHON) for _ in range(2)),
        sample(160, PROGRAM + 64, PYTHON, in_kernel=True),
    ]
    Samples(np.array(records), 4_000_000, len(records), 44_000_000, MAPS).save(instance / SAMPLES)
    return tmp_path / "logs-x"


@pytest.mark.parametrize(
    ("code", "in_kernel", "kind"),
    [
        (FMA_LOOP, False, "multiply-accumulate kernels"),
        (FMA_LOOP, True, "the operating system"),
        (SPIN, False, "waiting at barriers"),
        (COPY, False, "memory copies and zeroing"),
        (CLEAR, False, "memory copies and zeroing"),
        (MAXIMUM, False, "other kernels"),
        (PYTHON, False, "framework and Python"),
        ("", False, "framework and Python"),
    ],
)
def test_kinds_of_work(code, in_kernel, kind):
    assert describe_place(bytes.fromhex(code), 0x1000, in_kernel).kind == kind


def test_time_by_kind_by_file_and_by_place(logs):
    records = json.loads(show_hotspots(logs, "json"))
    kinds = {one["kind"]: one["share"] for one in records if one["record"] == "kind"}
    assert kinds == pytest.approx(
        {
            "multiply-accumulate kernels": 0.4,
            "framework and Python": 0.2,
            "other kernels": 0.1,
            "memory copies and zeroing": 0.1,
            "waiting at barriers": 0.1,
            "the operating system": 0.1,
        }
    )
    objects = {one["object"]: one["samples"] for one in records if one["record"] == "object"}
    assert objects == {"libkernels.so": 5, "python": 3, "made at run time": 2}
    hottest = next(one for one in records if one["record"] == "place")
    assert (hottest["object"], hottest["instructions"], hottest["samples"]) == ("libkernels.so", "FMA f32 256", 4)
    assert hottest["offset"] == "0x10000"
    assert hottest["code"].startswith("vfmadd231ps ymm1,ymm2,ymm3; ")


def test_the_table_fits_a_terminal_and_csv_has_the_same_records(logs, capsys):
    assert main(["hotspots", str(logs / "itr-1")]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].endswith("10 samples of the processor time of 0.00 s")
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert "1. 40.0 %: FMA f32 256, libkernels.so at 0x10000\n     vfmadd231ps ymm1,ymm2,ymm3\n" in shown
    rows = list(csv.DictReader(io.StringIO(show_hotspots(logs, "csv"))))
    assert [row["record"] for row in rows] == [one["record"] for one in json.loads(show_hotspots(logs, "json"))]


def test_what_has_no_samples_is_told(logs, tmp_path, capsys):
    instance = logs / "itr-1" / "worker-0" / "instance-0"
    (instance / SAMPLES).write_bytes(b"no archive")
    assert main(["hotspots", str(logs)]) == 1
    assert "its samples and step times cannot be read" in capsys.readouterr().err
    (instance / SAMPLES).unlink()
    assert main(["hotspots", str(logs)]) == 1
    assert "has no samples (instance-*/samples.npz)" in capsys.readouterr().err
    assert main(["hotspots", str(tmp_path / "none")]) == 1
    assert "no such directory" in capsys.readouterr().err
    (tmp_path / "logs-y").mkdir()
    assert main(["hotspots", str(tmp_path / "logs-y")]) == 1
    assert "no itr-N there" in capsys.readouterr().err
