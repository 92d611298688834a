"""Benchmark specs: what they expand to, what is refused, and what becomes of their runs."""

import csv
import itertools
import subprocess
import sys

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.cli.main import main
from cnnbench.harness.line import DIRECTORY
from cnnbench.harness.spec import choose_variants, read_spec
from gpu_driver import NO_DEVICE, write_gpu_driver
from null_workload import clean_environment

SHIPPED = DIRECTORY / "benchmarks.yml"
AVX2 = frozenset({"avx2", "fma"})


@pytest.fixture
def write(tmp_path):
    """Write a spec file."""

    def write(text):
        path = tmp_path / "spec.yml"
        path.write_text(text)
        return path

    return write


def test_each_combination_is_a_run_and_the_first_name_changes_slowest(write):
    spec = read_spec(
        write("a:\n  parameters: {model: [resnet18, resnet34], n: [1, 8]}\n  cmd: cnnbench run {model} {n}\n")
    )
    assert [(variant.key, variant.line) for variant in choose_variants(spec, [], gated=False)] == [
        ("a-model=resnet18-n=1", "cnnbench run resnet18 1"),
        ("a-model=resnet18-n=8", "cnnbench run resnet18 8"),
        ("a-model=resnet34-n=1", "cnnbench run resnet34 1"),
        ("a-model=resnet34-n=8", "cnnbench run resnet34 8"),
    ]


def test_benchmarks_are_chosen_by_name_and_by_being_gated():
    spec = read_spec(SHIPPED)
    assert {variant.name for variant in choose_variants(spec, ["engines", "resnet50"], gated=False)} == {
        "engines",
        "resnet50",
    }
    assert {variant.name for variant in choose_variants(spec, [], gated=True)} == {"gated"}
    assert {variant.name for variant in choose_variants(spec, [], gated=False)} == set(spec)


def test_every_line_that_is_shipped_is_one_of_the_harness():
    for variant in choose_variants(read_spec(SHIPPED), [], gated=False):
        assert len(variant.read(AVX2).runs) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {cmd: cnnbench run, speed: 1}", "a.speed: Extra inputs are not permitted"),
        ("a: {parameters: {n: [1]}}", "a.cmd: Field required"),
        ("a: {cmd: x, parameters: {n: []}}", "a.parameters.n: List should have at least 1 item"),
        ("a: [", "not yaml"),
    ],
)
def test_a_bad_spec_is_refused_with_its_place(write, text, reason):
    with pytest.raises(UsageError, match=reason):
        read_spec(write(text))


def test_a_missing_spec_an_unknown_benchmark_and_a_value_that_there_is_not_are_refused(write, tmp_path):
    with pytest.raises(UsageError, match=r"--spec .*none.yml: no such file"):
        read_spec(tmp_path / "none.yml")
    spec = read_spec(write("a:\n  parameters: {n: [1]}\n  cmd: cnnbench run {m}\n"))
    with pytest.raises(UsageError, match="--benchmark b: not in the spec; there are a"):
        choose_variants(spec, ["b"], gated=False)
    with pytest.raises(UsageError, match="a: cmd wants 'm', which is no parameter; there are n"):
        choose_variants(spec, [], gated=False)
    with pytest.raises(UsageError, match="--gated: none of these"):
        choose_variants(spec, [], gated=True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("python run_benchmark.py", "a: cmd must begin with `cnnbench run` or `cnnbench launch`"),
        ("cnnbench run --model resnet18 --batch-size 1 2", "is 2 runs; give the values as parameters"),
        ("cnnbench run --model vgg16", "--model vgg16: no such network"),
    ],
)
def test_a_line_that_is_not_one_run_ends_the_command_before_any_is_run(write, tmp_path, capsys, line, reason):
    path = write(f"a: {{cmd: {line}}}")
    assert main(["benchmark", "--spec", str(path), "--output", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_runs(capsys):
    assert main(["benchmark", "--spec", str(SHIPPED), "--gated", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("gated-model=resnet18-engine=pytorch: cnnbench run --model resnet18 ")


def test_a_dry_run_names_every_line_that_makes_no_sense_and_what_is_skipped(write, tmp_path, capsys):
    line = "cnnbench run --model resnet18 --precision 32.32"
    path = write(
        f"a: {{cmd: {line}}}\nb: {{cmd: {line} --weights none.pth}}\nc: {{cmd: {line} --norm-num-groups 7}}\n"
        f"d: {{cmd: {line} --engine openvino --profile}}\n"
        "e: {cmd: cnnbench run --model resnet18 --engine pytorch --precision 8.8}\n"
    )
    options = ["benchmark", "--spec", str(path), "--dry-run"]
    assert main(options) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    for error, beginning in zip(
        errors, ("cnnbench: b: WEIGHTS=", "c: NORM_NUM_GROUPS=7", "d: PROFILE=True"), strict=True
    ):
        assert error.startswith(beginning)
    assert main([*options, "--benchmark", "a", "--benchmark", "e"]) == 0
    assert [text.split(":")[0] for text in capsys.readouterr().out.splitlines()] == ["a", "e", "  skipped"]
    for more in (["--output", str(path / "out")], ["--timeout", "0"]):
        assert main([*options, "--benchmark", "a", *more]) == 2
        assert capsys.readouterr().err.startswith(f"cnnbench: {' '.join(more)}: ")


@pytest.mark.engine
@pytest.mark.usefixtures("pytorch_python")
def test_a_spec_goes_on_after_a_failing_run_and_does_not_repeat_what_is_done(write, tmp_path, engine_cache):
    line = "cnnbench run --model mobilenet-v3-small --precision 32.32 --batch-size 16 --iterations 8"
    path = write(
        f"bad:\n  cmd: {line} --weights {tmp_path}/none.pth\n"
        f"good:\n  parameters: {{engine: [pytorch]}}\n  cmd: {line} --engine {{engine}}\n"
        "  output: [[img/s, Throughput], [nothing, None such], [version, PyTorch]]\n  env: {A: two words}\n"
    )
    output = tmp_path / "out"

    def run():
        return subprocess.run(
            [sys.executable, "-m", "cnnbench", "benchmark", "--spec", str(path), "--output", str(output)],
            env=clean_environment(CNNBENCH_CACHE=str(engine_cache)),
            capture_output=True,
            text=True,
        )

    first = run()
    assert first.returncode == 1, first.stderr
    bad, good = csv.DictReader((output / "results.csv").open())
    assert (bad["benchmark"], bad["img/s"]) == ("bad", "")
    assert bad["verdict"] == "FAILED"
    assert bad["reason"].startswith("WEIGHTS=")
    assert "FAILED [1]" in first.stdout
    assert float(good["img/s"]) > 0
    assert good["engine"] == "pytorch"
    assert good["nothing"] == ""
    assert good["version"].startswith("2.")  # a fact, not a KPI
    assert good["img/s"] in first.stdout
    again = run()
    assert again.returncode == 1
    assert again.stderr.count("done already") == 1
    assert list(csv.DictReader((output / "results.csv").open())) == [bad, good]


def test_the_gpus_benchmark_is_float16_eager_compiled_and_in_graphs_at_each_batch_size():
    variants = choose_variants(read_spec(SHIPPED), ["gpu"], gated=False)
    runs = [variant.read(AVX2).runs[0] for variant in variants]
    assert {case.partition("_cuda_float16_")[2] for case, _ in runs} == {"resnet50", "efficientnet_b4"}
    ways = {(settings["ENGINE"], settings["CUDA_GRAPHS"]) for _, settings in runs}
    assert ways == set(itertools.product(("pytorch", "inductor"), ("True", "False")))
    assert sorted({int(settings["BATCH_SIZE"]) for _, settings in runs}) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert len(runs) == len({variant.key for variant in variants}) == 2 * 4 * 9
    assert {settings["DATA_TYPE"] for _, settings in runs} == {"dummy"}


def test_without_a_gpu_each_run_of_its_benchmark_is_skipped_with_the_reason(tmp_path):
    driver = write_gpu_driver(tmp_path, NO_DEVICE)
    command = ["benchmark", "--spec", str(SHIPPED), "--benchmark", "gpu", "--output", str(tmp_path / "out")]
    environment = clean_environment(LD_LIBRARY_PATH=str(driver.parent))
    done = subprocess.run([sys.executable, "-m", "cnnbench", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert len(rows) == 72
    assert {row["verdict"] for row in rows} == {"skipped"}
    assert {row["reason"].partition(" (")[0] for row in rows} == {
        "cuda_float16: needs an NVIDIA GPU, but the driver's libcuda.so.1 finds none that may be used"
    }
    assert {row["images/s"] + row["GPU"] for row in rows} == {""}
