"""`cnnbench convert` on a small network: what it writes, every rounding, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from checkout import ROOT
from cnnbench.base.cache import digest_file
from cnnbench.engines.registry import find_engine
from cnnbench.inputs.model_file import digest_onnx
from cnnbench.staging.environments import engine_python
from null_workload import clean_environment

pytestmark = pytest.mark.engine

MAKE = """
import sys
import numpy as np, onnx
from onnx import TensorProto as T, helper, numpy_helper
directory = sys.argv[1]
rng = np.random.default_rng(1)
held = {
    "w0": rng.normal(size=(8, 3, 3, 3)) / 4, "b0": rng.normal(size=8), "w1": rng.normal(size=(8, 8, 3, 3)) / 6,
    "w2": rng.normal(size=(16, 8, 1, 1)) / 3, "w3": rng.normal(size=(1000, 16)) / 4, "b3": rng.normal(size=1000),
}
initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in held.items()]
nodes = [
    helper.make_node("Conv", ["input", "w0", "b0"], ["c0"], name="first", pads=[1] * 4, strides=[2, 2]),
    helper.make_node("Relu", ["c0"], ["r0"], name="r"),
    helper.make_node("Conv", ["r0", "w1"], ["c1"], name="second", pads=[1] * 4),
    helper.make_node("Conv", ["c1", "w2"], ["c2"], name="third"),
    helper.make_node("GlobalAveragePool", ["c2"], ["p"], name="p"),
    helper.make_node("Flatten", ["p"], ["f"], name="f"),
    helper.make_node("Gemm", ["f", "w3", "b3"], ["output"], name="last", transB=1),
]
def write(name, nodes, **kind):
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("input", T.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("output", T.FLOAT, ["batch", 1000])], initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, f"{directory}/{name}", **kind)
write("small.onnx", nodes)
write("unsupported.onnx", [*nodes[:-1], helper.make_node("Levitate", ["f"], ["output"], name="last")])
write("external.onnx", nodes, save_as_external_data=True, location="weights.bin", size_threshold=0)
"""

ROUND = """
import json
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper
from cnnbench.engines.onnxruntime.formats import FORMATS, rounding_nodes
low = np.r_[0:4, 0x7FFE:0x8003, 0xFFFD:0x10000, np.random.default_rng(1).integers(0, 1 << 16, 20)].astype(np.uint32)
values = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | low).ravel().view(np.float32)
values = values[np.isfinite(values)]
told = {}
for form in FORMATS.values():
    for exponent in (0, -3, 5):
        for positive in (False, True):
            given = np.abs(values) if positive else values
            nodes, constants = rounding_nodes("x", "y", form, exponent, positive=positive)
            shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
            graph = helper.make_graph(nodes, "rounding", shape[:1], shape[1:], constants)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            (got,) = session.run(None, {"x": given})
            want = form.restore(form.round(given, exponent), exponent)
            told[f"{form.name} {exponent} {positive}"] = [len(given), int((got != want).sum()), len(np.unique(want))]
print(json.dumps(told))
"""

ANSWER = """
import json, sys
import numpy as np, onnx, onnxruntime
from cnnbench.engines.onnxruntime.graph import load_model
from cnnbench.engines.onnxruntime.rounding import emulate
before, after = (load_model(__import__("pathlib").Path(path)) for path in sys.argv[1:])
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
images = np.random.default_rng(2).normal(size=(1, 3, 32, 32)).astype(np.float32)
def answer(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]
plain = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
plainly = plain.run(None, {"input": images})[0]
wanted, found, emulated = answer(before), answer(after), answer(emulate(after))
onnx.checker.check_model(after)
types = [one.data_type for one in after.graph.initializer if one.dims]
left = sorted({node.op_type for node in emulate(after).graph.node})
print(json.dumps([
    float(np.abs(wanted - found).max() / np.abs(wanted).max()), bool((found == emulated).all()), types, left,
    float(np.abs(plainly - found).max() / np.abs(wanted).max()),
]))
"""


@pytest.fixture(scope="module")
def python(engine_cache):
    return engine_python(find_engine("onnxruntime"), "cpu", engine_cache)


def run_program(python, program, *arguments):
    done = subprocess.run(
        [python, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


@pytest.fixture(scope="module")
def small(python, tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx")
    run_program(python, MAKE, directory)
    return directory


@pytest.fixture
def convert(small, engine_cache, tmp_path):
    def run(*words, source="small.onnx", target="out.onnx", shape=("--input_shape", "input=1,3,32,32")):
        command = ["--input_model", str(small / source), "--output_model", str(tmp_path / target), *shape, *words]
        done = subprocess.run(
            [sys.executable, "-m", "cnnbench", "convert", *command],
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
            capture_output=True,
            text=True,
            check=False,
        )
        done.stdout, done.table = " ".join(done.stdout.split()), done.stdout
        return done, tmp_path / target

    return run


def test_rounding_by_float32_operations_is_that_of_ml_dtypes_for_every_kind_of_number(python):
    told = run_program(python, ROUND)
    assert len(told) == 12
    assert {wrong for _, wrong, _ in told.values()} == {0}
    assert min(count for count, _, _ in told.values()) > 2_000_000
    assert min(different for *_, different in told.values()) > 100


FLOAT, E4M3, E5M2, FLOAT16, BFLOAT16 = 1, 17, 19, 10, 16


@pytest.mark.parametrize(
    ("words", "weights", "error"),
    [
        (["--precision", "fp8"], E4M3, 0.1),
        (["--precision", "fp8", "--weight_rounding", "compensated"], E4M3, 0.1),
        (["--precision", "fp8", "--fp8_params", "F152,F152,auto,auto"], E5M2, 0.2),
        (["--precision", "fp8", "--fp8_params", "F143,F143,-3,-3", "--convert_version", "11"], E4M3, 0.1),
        (["--precision", "fp8_weight"], E4M3, 0.1),
        (["--precision", "fp16"], FLOAT16, 1e-3),
        (["--precision", "bf16"], BFLOAT16, 1e-2),
        (["--precision", "fp32", "--compiler_options", "custom_patterns=PadConvChannel"], FLOAT, 0),
    ],
    ids=lambda value: "-".join(value[1:]) if isinstance(value, list) else "",
)
def test_what_is_written_is_valid_and_near_and_emulated_bit_for_bit(python, small, convert, words, weights, error):
    done, output = convert(*words)
    assert done.returncode == 0, done.stderr
    found, same, types, left, plainly = run_program(python, ANSWER, small / "small.onnx", output)
    assert plainly <= 0.02  # by ONNX Runtime as it comes, whose sums reorder, and few roundings with them
    assert found <= error
    assert found > 0 or error == 0
    assert same
    assert types.count(weights) >= 4
    assert "QuantizeLinear" not in left
    in_fp8 = words[1].startswith("fp8")
    assert ("numbers compared with ml_dtypes, 0 differ" in done.stdout) is in_fp8
    assert ("need opset 21, as written" in done.stdout) is ("11" in words)


def test_layers_are_kept_by_their_names_or_the_documents_numbers_or_as_the_most_sensitive(convert):
    done, _ = convert("--precision", "fp8", "--fp8_skip_op_names", "first,Conv_2,Gemm_11")
    assert "1 of 4 layers, 3 kept in fp16" in done.stdout, done.stderr
    assert "kept in fp16: Conv_0, Conv_2, Gemm_11" in done.stdout
    done, _ = convert("--precision", "fp8_weight", "--num_of_layers_keep_fp16", "2", "--precision_compare", "--force")
    assert "2 of 4 layers, 2 kept in fp16" in done.stdout, done.stderr
    rows = [line.split() for line in done.table.splitlines() if line.startswith(("Conv_", "Gemm_"))]
    assert len(rows) == 4
    assert sum("(kept)" in row for row in rows) == 2
    assert any("#" in row[-1] for row in rows)


def test_padded_channels_change_no_answer(python, small, convert):
    done, output = convert("--precision", "fp32", "--compiler_options", "custom_patterns=PadConvChannel")
    assert "channels padded: Conv_0" in done.stdout, done.stderr
    assert run_program(python, ANSWER, small / "small.onnx", output)[0] == 0


REFUSED = [
    (["--precision", "fp4"], {}, "invalid choice: 'fp4'"),
    (["--precision", "fp8", "--fp8_params", "F143,F143,-3"], {}, "F143,F143,-3: needed four words"),
    (["--precision", "fp8", "--fp8_params", "F144,F143,-3,-3"], {}, "F144: no such format; there are F143"),
    (["--precision", "fp8", "--fp8_params", "F143,F143,-99,0"], {}, "-99: a scale is a power of two, its exponent -32"),
    (["--precision", "fp8", "--num_of_layers_keep_fp16", "-1"], {}, "--num_of_layers_keep_fp16 -1: must be 0 or more"),
    (["--precision", "fp8", "--num_of_layers_keep_fp16", "5"], {}, "keep_fp16 5: the graph has 4 layers"),
    (["--precision", "fp16", "--fp8_skip_op_names", "first"], {}, "only fp8 and fp8_weight leave any"),
    (["--precision", "fp8", "--fp8_skip_op_names", "Conv_9"], {}, "Conv_9: no such operation; the nearest are Conv_"),
    (["--precision", "fp8", "--fp8_skip_op_names", "r"], {}, "r: it multiplies by no weights"),
    (["--precision", "fp8"], {"shape": ("--input_shape", "input=1,3,64,64")}, "the graph takes ?,3,32,32"),
    (["--precision", "fp8"], {"shape": ("--input_shape", "picture=1,3,32,32")}, "no such input; its input is input"),
    (["--precision", "fp8"], {"shape": ("--input_shape", "input=1,3,x")}, "input=1,3,x: needed a name and sizes"),
    (["--precision", "fp8"], {"shape": ()}, "give what is open, such as --input_shape input=1,3,32,32"),
    (["--precision", "fp8", "--convert_version", "99"], {}, "--convert_version 99: needed 1 to 21"),
    (
        ["--precision", "fp8", "--compiler_options", "custom_patterns=Fly"],
        {},
        "there is custom_patterns=PadConvChannel",
    ),
    (["--precision", "fp8", "--calibration", "{empty}"], {}, "has no image, needed .jpg or .jpeg files"),
    (["--precision", "fp8", "--calibration", "{missing}"], {}, "no such directory; give one with JPEG images"),
    (["--precision", "fp8"], {"source": "missing.onnx"}, "missing.onnx: no such file"),
    (["--precision", "fp8"], {"source": "text.onnx"}, "text.onnx: no ONNX model, or cut off"),
    (["--precision", "fp8"], {"source": "cut.onnx"}, "cut.onnx: no ONNX model, or cut off"),
    (["--precision", "fp8"], {"source": "moved.onnx"}, "moved.onnx: its external data cannot be read"),
    (["--precision", "fp8"], {"source": "unsupported.onnx"}, "No Op registered for Levitate"),
    (["--precision", "fp8"], {"target": "there.onnx"}, "there.onnx: is there already; give another --output_model"),
    (["--precision", "fp8"], {"target": "no/such/directory.onnx"}, "there is no directory"),
]


def test_a_file_is_known_by_its_external_data_too(small, tmp_path):
    directory = tmp_path / "there"
    directory.mkdir()
    shutil.copy(small / "external.onnx", directory)
    alone = digest_onnx(directory / "external.onnx")
    shutil.copy(small / "weights.bin", directory)
    whole = digest_onnx(directory / "external.onnx")
    with (directory / "weights.bin").open("r+b") as file:
        file.write(b"\x01")
    assert len({alone, whole, digest_onnx(directory / "external.onnx")}) == 3
    assert digest_onnx(small / "small.onnx") == digest_file(small / "small.onnx")


def test_what_cannot_be_converted_is_refused_with_the_reason(small, convert, tmp_path, subtests):
    (small / "text.onnx").write_text("this is a letter, and no network\n")
    (small / "cut.onnx").write_bytes((small / "small.onnx").read_bytes()[:5000])
    (tmp_path / "moved").mkdir()
    shutil.copy(small / "external.onnx", tmp_path / "moved")
    shutil.copy(tmp_path / "moved" / "external.onnx", small / "moved.onnx")
    (small / "weights.bin").unlink()
    (tmp_path / "there.onnx").touch()
    (tmp_path / "empty").mkdir()
    places = {"{empty}": str(tmp_path / "empty"), "{missing}": str(tmp_path / "missing")}
    for words, where, reason in REFUSED:
        with subtests.test(reason):
            done, output = convert(*(places.get(word, word) for word in words), **where)
            assert done.returncode in (1, 2), done.stdout + done.stderr
            assert reason in done.stderr
            assert "Traceback" not in done.stderr
            assert not output.exists() or output.stat().st_size == 0


def run_exported(file, engine_cache, root, *words):
    return subprocess.run(
        [sys.executable, "-m", "cnnbench", "run-exported", *map(str, words or [file]), "--logs-root", str(root)],
        env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("engine", "name"), [("openvino", "executable.blob"), ("onnxruntime", "executable.onnx")])
def test_what_an_engine_loads_is_exported_and_measured_and_refused_where_it_is_not_for_it(
    convert, engine_cache, tmp_path, engine, name
):
    directory = tmp_path / "small"
    done, _ = convert("--precision", "fp8", "--export", str(directory), "--engine", engine)
    assert done.returncode == 0, done.stderr
    assert f"{directory / name}: 0." in done.stdout
    words = ("--popef", directory / "executable.popef", "--batches_per_step", "50", "--runs", "6")
    done = run_exported(None, engine_cache, tmp_path, *words)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"executable.popef: is {directory / name} here" in done.stdout
    assert "precision: unproven by samples" in done.stdout  # which a network so small leaves none of
    assert "run#" not in done.stdout
    facts = json.loads((directory / "executable.json").read_bytes())
    for change, code, reason in (
        ({"cpu_flags_sha256": "0"}, 2, "was made on a CPU with other instructions"),
        ({"sha256": "0"}, 2, "it was changed or cut off; export it again"),
        ({"versions": {"It": "0.1"}}, 3, "was written by {'It': '0.1'}, and this is"),
    ):
        (directory / "executable.json").write_text(json.dumps(facts | change))
        done = run_exported(directory / name, engine_cache, tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        assert reason in " ".join((done.stdout + done.stderr).split())
    (directory / "executable.json").write_text(json.dumps(facts))
    (directory / "reference.npy").write_bytes((directory / "reference.npy").read_bytes() + b"\0")
    done = run_exported(directory / name, engine_cache, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"reference.npy: is not as it was exported with {name}; export it again" in done.stderr


def test_what_is_no_export_is_refused(small, engine_cache, tmp_path):
    for words, reason in (
        ((small / "small.onnx",), "no export of this program's"),
        (
            (tmp_path / "missing.blob",),
            "no such file; `cnnbench compile` and `cnnbench convert --export DIR` write one",
        ),
        (("--popef", tmp_path / "x.popef", "--runs", "5"), "no such file"),
        ((small / "small.onnx", "--runs", "0"), "--runs 0: must be 1 to 10000"),
    ):
        done = run_exported(None, engine_cache, tmp_path, *words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert reason in done.stderr
