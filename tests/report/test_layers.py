"""`cnnbench isa` on logs directories with a recorded trace."""

import csv
import io
import json
from dataclasses import replace

import pytest

from checkout import ROOT
from cnnbench.cli.main import main
from cnnbench.engines.layers import UNTOLD, Primitive, write_layers
from cnnbench.run.measurement import new_logs_directory
from worker_spec import SPEC

TRACES = ROOT / "tests" / "traces"
CASE = "test_x_inference_throughput_avx_int8"


@pytest.fixture
def logs(tmp_path):
    """Write a logs directory with a trace; return its worker directory."""

    def write(trace, precision, **changes):
        worker = new_logs_directory(tmp_path, CASE)
        (worker / "trace").mkdir()
        replace(SPEC, precision=precision, batch_size=1, **changes).write(worker / "trace" / "spec.json")
        (worker / "trace" / "output.log").write_text((TRACES / trace).read_text() if trace else "Killed\n")
        return worker

    return write


@pytest.fixture
def isa(capsys):
    """Run the command; return its exit code, standard output and standard error."""

    def run(*words):
        return main(["isa", *map(str, words)]), *capsys.readouterr()

    return run


def records(output, kind):
    return [record for record in json.loads(output) if record["record"] == kind]


def test_each_layer_has_a_row_and_each_implementation_a_total(logs, isa):
    code, output, _ = isa(logs("itex-int8-vnni.log", "avx_int8"))
    assert code == 0
    head, layers, totals, others = output.split("\n\n")
    assert ": avx_int8, one step of 1 images, " in head
    rows = [line.split() for line in layers.splitlines() if line.strip()[0].isdigit()]
    assert [row[0] for row in rows] == [str(number + 1) for number in range(len(rows))]
    assert rows[0][1:7] == [
        "convolution", "mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3", "brgconv:avx512_core_vnni",
        "s8", "s8", "u8",
    ]  # fmt: skip
    assert rows[-1][1:3] == ["matmul", "1x2048:2048x1001"]
    assert {row[-1] for row in rows} == {"yes"}
    assert "brgconv_1x1:avx512_core_vnni" in totals
    assert "reorder" in others
    assert "softmax" in others


def test_shares_add_up(logs, isa):
    worker = logs("itex-int8-vnni.log", "avx_int8")
    _, output, _ = isa(worker, "--format", "json")
    layers, totals, others = (records(output, kind) for kind in ("layer", "implementation", "other"))
    for group in (layers, totals):
        assert sum(one["macs_share"] for one in group) == pytest.approx(1)
        assert sum(one["time_share"] for one in [*group, *others]) == pytest.approx(1)
    assert sum(total["count"] for total in totals) == len(layers)
    assert {layer["partition"] for layer in layers} >= {"quantized_convolution_post_ops"}


def test_layers_that_fell_back_are_marked(logs, isa):
    _, output, _ = isa(logs("itex-int8-avx2.log", "avx_int8"), "--format", "json")
    assert {layer["as_required"] for layer in records(output, "layer")} == {False}
    _, output, _ = isa(logs("itex-int8-avx2.log", "avx_int8"))
    assert " NO\n" in output


def test_csv_has_the_same_records(logs, isa):
    worker = logs("stock-int8-vnni.log", "avx_int8")
    _, text, _ = isa(worker, "--format", "csv")
    _, output, _ = isa(worker, "--format", "json")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["record"] for row in rows] == [record["record"] for record in json.loads(output)]
    assert float(rows[0]["gmacs"]) == json.loads(output)[0]["gmacs"]


def test_of_a_cases_runs_the_last_is_shown(logs, isa, tmp_path):
    logs("itex-int8-avx2.log", "avx_int8")
    last = logs("itex-int8-vnni.log", "avx_int8")
    shown = [isa(directory)[1] for directory in (tmp_path / f"logs-{CASE}", last.parent, last)]
    assert str(last) in shown[0]
    assert "avx512_core_vnni" in shown[0]
    assert shown[1:] == shown[:1] * 2


@pytest.mark.parametrize("directory", ["nowhere", ""])
def test_a_directory_without_a_trace_says_what_is_needed(isa, tmp_path, directory):
    code, output, errors = isa(tmp_path / directory)
    assert (code, output) == (1, "")
    assert str(tmp_path / directory) in errors
    assert ("no such directory" if directory else "has no trace (trace/spec.json, and trace/output.log or") in errors


def test_a_case_that_has_not_run_says_so(isa, tmp_path):
    (tmp_path / f"logs-{CASE}").mkdir()
    assert "no itr-N there" in isa(tmp_path / f"logs-{CASE}")[2]


def test_a_trace_that_broke_off_says_so(logs, isa):
    code, output, errors = isa(logs("", "avx_int8"))
    assert (code, output) == (1, "")
    assert "shows no layer of a step" in errors


def test_what_a_process_told_itself_needs_no_output_and_has_no_times(logs, isa):
    worker = logs("", "cuda_float16")
    (worker / "trace" / "output.log").unlink()
    assert "has no trace" in isa(worker)[2]
    write_layers([Primitive("matmul", UNTOLD, "f16", "f16", "f16", "", "1x2:2x3", 6, 0.0)], worker / "trace")
    code, output, errors = isa(worker, "--format", "json")
    assert (code, errors) == (0, "")
    (layer,) = records(output, "layer")
    assert (layer["shape"], layer["as_required"]) == ("1x2:2x3", True)
    assert not layer.get("time_ms")


def test_an_unknown_format_is_refused(isa, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        isa(tmp_path, "--format", "xml")
    assert ended.value.code == 2
    assert "invalid choice: 'xml'" in capsys.readouterr().err
