"""The reference harness's command line: what each option becomes, and what is refused."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from checkout import NETWORKS_SLUG as SLUG
from checkout import ROOT
from cnnbench.base.errors import UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.cli.main import main
from cnnbench.harness.line import (
    CONFIGS,
    DIRECTORY,
    SWITCHES,
    VALUES,
    make_parser,
    read_config,
    read_launch_line,
    read_request,
)
from cnnbench.inputs.networks import ARCHITECTURES
from gpu_driver import FOUND, NO_DEVICE, write_gpu_driver
from model_files import write_checkpoint
from null_workload import clean_environment

AVX2 = frozenset({"avx2", "fma"})
AVX512_BF16 = AVX2 | {"avx512f", "avx512_bf16"}
AMX = AVX512_BF16 | {"amx_tile", "amx_bf16"}
DOCUMENTED = """
    config micro-batch-size model data pipeline-splits replicas device-iterations precision iterations half-partial
    norm-type norm-num-groups enable-fast-groupnorm efficientnet-expand-ratio efficientnet-group-dim profile
    eight-bit-io normalization-location model-cache-path random-weights batch-size num-instances numa-aware
    num-io-threads device engine weights half-type cuda-graphs min-time max-time
"""


def runs(*words, flags=AVX2):
    return read_request(words, flags).runs


def settings(*words):
    ((_, found),) = runs("--model", "resnet18", *words)
    return found


def test_the_documented_options_are_there():
    known = {option.removeprefix("--") for action in make_parser()._actions for option in action.option_strings}
    assert set(DOCUMENTED.split()) <= known


@pytest.mark.parametrize(("option", "parameter"), VALUES.items())
def test_an_option_with_a_value_is_a_parameter(option, parameter):
    assert settings(f"--{option}", "x7") == {parameter: "x7"}


@pytest.mark.parametrize("option", ["--min-time", "--max-time"])
def test_how_long_to_measure_is_no_matter_where_the_steps_are_counted(option):
    assert settings(option, "5", "--iterations", "auto") == {"STEPS": "auto", VALUES[option[2:]]: "5"}
    with pytest.raises(UsageError, match=rf"^{option} 5 with --iterations 8: leave one of the two out$"):
        settings(option, "5", "--iterations", "8")


@pytest.mark.parametrize(("option", "parameter"), SWITCHES.items())
def test_a_switch_is_a_parameter(option, parameter):
    assert settings(f"--{option}") == {parameter: "True"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data", "synthetic"), {"DATA_TYPE": "dummy"}),
        (("--data", "generated"), {"DATA_TYPE": "generated"}),
        (("--data", "real"), {"DATA_TYPE": "real"}),
        (("--normalization-location", "ipu"), {"NORMALIZATION_LOCATION": "device"}),
        (("--normalization-location", "none"), {"NORMALIZATION_LOCATION": "none"}),
        (("--numa-aware", "no"), {"NUMA_AWARE": "False"}),
        (("--random-weights",), {}),
        (("--pipeline-splits", "layer2", "layer3.0"), {"PIPELINE_SPLITS": "layer2 layer3.0"}),
        (("--device", "cpu"), {}),
    ],
)
def test_options_of_other_words_mean_these_parameters(words, expected):
    assert settings(*words) == expected


@pytest.mark.parametrize(
    ("words", "flags", "precision"),
    [
        (("--precision", "32.32"), AMX, "avx_fp32"),
        (("--precision", "16.16"), AMX, "amx_bfloat16"),
        (("--precision", "16.16"), AVX512_BF16, "avx_bfloat16"),
        (("--precision", "16.16"), AVX2, "avx_bfloat16"),
        (("--precision", "8.8"), AMX | {"amx_int8"}, "amx_int8"),
        (("--precision", "8.8"), AVX2, "avx_int8"),
        ((), AMX, "amx_bfloat16"),
        ((), AVX2, "avx_fp32"),
    ],
)
def test_a_precision_is_what_this_cpu_has_of_it(words, flags, precision):
    ((case, _),) = runs("--model", "resnet18", *words, flags=flags)
    assert case == f"test_{SLUG}_inference_throughput_{precision}_resnet18"


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ((), "cuda_float16"),
        (("--precision", "16.16"), "cuda_float16"),
        (("--precision", "16.16", "--half-type", "bfloat16"), "cuda_bfloat16"),
        (("--half-type", "bfloat16"), "cuda_bfloat16"),
        (("--precision", "32.32"), "cuda_fp32"),
    ],
)
def test_a_precision_on_a_gpu_is_no_matter_of_the_cpu(words, precision):
    for flags in (AVX2, AMX):
        ((case, _),) = runs("--model", "resnet18", "--device", "cuda", *words, flags=flags)
        assert case == f"test_{SLUG}_inference_throughput_{precision}_resnet18"


def test_16_bits_on_a_cpu_are_bfloat16():
    ((case, _),) = runs("--model", "resnet18", "--half-type", "bfloat16", flags=AVX512_BF16)
    assert "_avx_bfloat16_" in case
    for words in ((), ("--device", "cpu"), ("--precision", "16.16")):
        with pytest.raises(
            UsageError, match=r"^--half-type float16: networks run in it on a GPU only; give --device cuda"
        ):
            runs("--model", "resnet18", "--half-type", "float16", *words)
    with pytest.raises(UsageError, match=r"^--half-type float16 with --precision 32\.32: leave one of the two out$"):
        runs("--model", "resnet18", "--device", "cuda", "--half-type", "float16", "--precision", "32.32")


def run_line(tmp_path, code, *words):
    """Run a line where the driver of a GPU answers so; its cache is empty, and nothing is installed there."""
    driver = write_gpu_driver(tmp_path, code)
    environment = clean_environment(LD_LIBRARY_PATH=str(driver.parent), CNNBENCH_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-m", "cnnbench", "run", "--model", "resnet18", "--device", "cuda", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


def test_without_a_gpu_the_run_is_skipped_naming_what_was_looked_for(tmp_path):
    done = run_line(tmp_path, NO_DEVICE)
    assert done.returncode == 77
    assert "cuda_float16: needs an NVIDIA GPU, but the driver's libcuda.so.1 finds none that" in done.stderr
    assert not list(tmp_path.glob("logs-*"))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_that_has_no_gpu_build_is_skipped(tmp_path, engine):
    done = run_line(tmp_path, FOUND, "--engine", engine)
    assert done.returncode == 77
    assert f"ENGINE={engine}: runs on CPUs only, and cuda_float16 on a GPU; choose pytorch, inductor" in done.stderr


def test_the_plan_on_a_gpu_is_one_instance_with_the_build_for_gpus(tmp_path):
    done = run_line(tmp_path, FOUND, "--cuda-graphs", "--half-partial", "--engine", "inductor", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == f"test_{SLUG}_inference_throughput_cuda_float16_resnet18"
    assert {"PRECISION=cuda_float16", "CUDA_GRAPHS=True", "INSTANCES=1", "WARMUP_STEPS=50"} <= set(lines)
    assert len([line for line in lines if "cnnbench.worker" in line]) == 1
    assert "/environments/pytorch-cuda-cp3" in lines[-1]
    assert any("utilization was not measured" in line for line in lines)
    assert any(line.startswith("note: HALF_PARTIAL=True: cuBLAS may sum up float16") for line in lines)
    for words, note in (
        (("--precision", "32.32"), "HALF_PARTIAL=True has no effect: cuda_fp32 has no 16-bit numbers"),
    ):
        assert note in run_line(tmp_path, FOUND, "--half-partial", "--dry-run", *words).stdout


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet_b0", "EfficientNet-B0"])
def test_a_network_is_known_by_the_ways_it_is_written(name):
    ((case, _),) = runs("--model", name, "--mode", "latency")
    assert case == f"test_{SLUG}_inference_latency_avx_fp32_efficientnet_b0"


def test_batch_sizes_are_runs_of_their_own():
    found = [batch["BATCH_SIZE"] for _, batch in runs("--model", "resnet18", "--batch-size", "1", "4..6", "8..16..4")]
    assert found == ["1", "4", "5", "6", "8", "12", "16"]


def test_the_seven_configurations_are_there_and_the_line_wins():
    assert list(yaml.safe_load(CONFIGS.read_text())) == [
        "resnet50",
        "efficientnet-b0",
        "efficientnet-b4",
        "efficientnet-b0-g16-gn",
        "efficientnet-b4-g16-gn",
        "mobilenet-v3-small",
        "mobilenet-v3-large",
    ]
    ((case, found),) = runs("--config", "efficientnet-b0-g16-gn", "--batch-size", "2", "--norm-num-groups", "8")
    assert case.endswith("_efficientnet_b0")
    assert found == {
        "NORM_TYPE": "group",
        "NORM_NUM_GROUPS": "8",
        "ENABLE_FAST_GROUPNORM": "True",
        "EFFICIENTNET_EXPAND_RATIO": "4",
        "EFFICIENTNET_GROUP_DIM": "16",
        "DATA_TYPE": "generated",
        "BATCH_SIZE": "2",
    }


@pytest.mark.parametrize("config", yaml.safe_load(CONFIGS.read_text()))
def test_each_configuration_is_planned(config, capsys):
    assert main(["run", "--config", config, "--precision", "32.32", "--dry-run"]) == 0
    assert "DATA_TYPE=generated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "which network\\? give --model or --config; there are resnet18, "),
        (("--model", "vgg16"), "--model vgg16: no such network; there are resnet18, "),
        (("--config", "vgg16"), "--config vgg16: not in .*configs.yml; there are resnet50, efficientnet-b0"),
        (("--model", "resnet18", "--batch-size", "0"), "--batch-size 0: must be 1 or more, or a range"),
        (("--model", "resnet18", "--trials", "0"), "--trials 0: must be 1 to 1000"),
        (("--model", "resnet18", "--batch-size", "8..1"), "--batch-size 8..1: must go upwards"),
        (("--model", "resnet18", "--random-weights", "--weights", "w.pth"), "--random-weights with --weights w.pth"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(words, reason):
    with pytest.raises(UsageError, match=reason):
        read_request(words, AVX2)


@pytest.mark.parametrize(
    "words",
    [
        ["--norm-type", "group", "--norm-num-groups", "0"],
        ["--efficientnet-group-dim", "16"],
        ["--eight-bit-io"],
        ["--batch-size", "8", "--micro-batch-size", "3"],
        ["--norm-num-groups", "8"],
        ["--replicas", "4096"],
    ],
)
def test_options_that_contradict_each_other_end_with_2(words, capsys):
    assert main(["run", "--model", "resnet18", "--precision", "32.32", "--dry-run", *words]) == 2
    assert capsys.readouterr().err.startswith("cnnbench: ")


def test_a_value_that_no_run_could_have_is_refused_in_a_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "hosts").write_text("node1 slots=many\n")
    for name in ("cut.safetensors", "text.pth", "empty.pt", "pointer.safetensors"):
        (tmp_path / name).write_bytes(b"" if name == "empty.pt" else b"version https://git-lfs.github.com/spec/v1\n")
    write_checkpoint(tmp_path / "cut.safetensors")
    os.truncate(tmp_path / "cut.safetensors", (tmp_path / "cut.safetensors").stat().st_size - 1)
    refused = {
        "--norm-type group --norm-num-groups 7": "does not divide the channels of every norm of resnet50; use 1, 2, 4,",
        "--model efficientnet-b0 --norm-type group": "NORM_NUM_GROUPS=32: does not divide .*; use 1, 2, 4 or 8$",
        "--pipeline-splits layer9": "PIPELINE_SPLITS=layer9: no such layer of resnet50; it has conv1, .*, fc$",
        "--pipeline-splits layer3 layer2": "layer2 does not start after layer3",
        "--engine auto --pipeline-splits layer9": "ENGINE=auto: no engine can: .*PIPELINE_SPLITS=layer9: no such",
        "--weights none.pth": "WEIGHTS=.*none.pth: no such file; give a .safetensors, .npz, .pth or .pt file",
        "--weights file": "WEIGHTS=.*file: its format is not known by its name; give a .safetensors",
        "--weights cut.safetensors": r"not a whole safetensors file \(it has \d+ bytes, and its header tells of \d+\)",
        "--weights pointer.safetensors": r"not a whole safetensors file \(its header is cut off\); fetch it again",
        "--weights text.pth": "not a file of tensors alone that PyTorch wrote .*; save the network's",
        "--weights empty.pt": "not a file of tensors alone that PyTorch wrote .*; save the network's",
        "--num-mpi 1 --hostfile none": "HOSTFILE=.*none: no such file",
        "--num-mpi 1 --hostfile hosts": "HOSTFILE=.*hosts: 'node1 slots=many'; needed are lines such as",
        "--data real --dataset imagenet": "DATASET=imagenet: not staged; run `cnnbench stage imagenet`",
        "--engine inductor --model-cache-path file": "MODEL_CACHE_PATH=.*file: cannot be written to",
        "--engine inductor --model-cache-path /proc/none": "MODEL_CACHE_PATH=/proc/none: cannot be written to",
        "--logs-root file/logs": "--logs-root file/logs: cannot be written to",
        "--logs-root /proc/logs": "--logs-root /proc/logs: cannot be written to",
        "--timeout 0": "--timeout 0: must be more than 0",
        "--timeout nan": "--timeout nan: must be more than 0",
        "--engine tensorflow --data real --dataset imagenet": "DATASET=imagenet: not staged",
    }
    before = sorted(tmp_path.rglob("*"))
    for words, reason in refused.items():
        code = main(["run", "--model", "resnet50", "--precision", "32.32", "--dry-run", *words.split()])
        errors = capsys.readouterr().err
        assert (words, code) == (words, 2), errors
        assert re.search(reason, errors.strip()), f"{words}: {errors}"
    assert sorted(tmp_path.rglob("*")) == before


def test_values_that_a_run_can_have_pass_in_a_dry_run_and_leave_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "whole.safetensors")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    before = sorted(tmp_path.rglob("*"))
    for words in (
        "--weights whole.safetensors",
        "--weights zip.pth",
        "--weights old.pt",
        "--logs-root to/be/made",
        "--norm-type group",
        "--model efficientnet-b4 --norm-type group --norm-num-groups 8 --efficientnet-expand-ratio 4.3",
        "--dataset imagenet",
    ):
        code = main(["run", "--model", "resnet50", "--precision", "32.32", "--dry-run", *words.split()])
        output = capsys.readouterr()
        assert (words, code) == (words, 0), output.err
    assert "note: DATASET=imagenet has no effect with DATA_TYPE=dummy" in output.out
    assert sorted(tmp_path.rglob("*")) == before


def test_launch_shares_replicas_out_over_processes():
    own = ["--num-instances", "2", "--num-replicas", "4", "--numa-aware", "no"]
    request = read_launch_line([*own, "--", "run", "--model", "resnet18", "--numa-aware", "yes"], AVX2)
    assert request.runs[0][1] == {"INSTANCES": "2", "REPLICAS": "2", "NUMA_AWARE": "False"}
    with pytest.raises(UsageError, match="--num-replicas 3: must be a multiple of --num-instances 2"):
        read_launch_line(["--num-instances", "2", "--num-replicas", "3", "--", "run", "--model", "resnet18"], AVX2)
    with pytest.raises(UsageError, match="--num-instances 0: must be 1 or more"):
        read_launch_line(["--num-instances", "0", "--", "run", "--model", "resnet18"], AVX2)


def test_tensorflow_is_the_other_workloads_case(capsys):
    line = ["--model", "resnet50", "--engine", "tensorflow", "--precision", "32.32", "--batch-size", "8"]
    request = read_request(line, AVX2)
    assert request.workload.name == "ResNet50-TensorFlow-Xeon-Public"
    case = "test_resnet50v1_5_tensorflow_xeon_public_inference_throughput_avx_fp32"
    assert request.runs == ((case, {"BATCH_SIZE": "8"}),)
    with pytest.raises(UsageError, match="--engine tensorflow --model resnet18: its workload has resnet50"):
        read_request(["--model", "resnet18", "--engine", "tensorflow"], AVX2)
    assert main(["run", *line, "--norm-type", "group", "--dry-run"]) == 2
    assert "NORM_TYPE: no such parameter of this workload" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["efficientnet-b0", "resnet101", "resnext50"])
def test_int8_of_seeded_networks_that_could_not_be_judged_is_skipped(capsys, tmp_path, network):
    line = ["run", "--model", network, "--engine", "openvino", "--precision", "8.8", "--dry-run"]
    assert main(line) == 77
    assert "hang on differences that int8 does not keep, so that they could not be judged; give WEIGHTS" in (
        capsys.readouterr().err
    )
    main([*line, "--weights", str(tmp_path / "w.pth")])
    assert "give WEIGHTS" not in capsys.readouterr().err


def test_launch_for_the_minimum_latency_measures_latency():
    line = ["--minimum-latency", "--", "run", "--model", "resnet18", "--mode", "throughput"]
    ((case, _),) = read_launch_line(line, AVX2).runs
    assert "_latency_" in case


@pytest.mark.parametrize(("words", "instances"), [((), "1"), (("--num-instances", "2"), "2")])
def test_launched_replicas_are_all_there_are(words, instances):
    line = ["--num-replicas", "4", *words, "--", "run", "--model", "resnet18", "--num-instances", "7"]
    ((_, found),) = read_launch_line(line, AVX2).runs
    assert int(found["INSTANCES"]) * int(found["REPLICAS"]) == 4
    assert found["INSTANCES"] == instances


def test_launch_through_mpi():
    own = ["--launcher", "mpi", "--num-mpi", "2", "--hostfile", "hosts"]
    ((_, found),) = read_launch_line([*own, "--", "run", "--model", "resnet18"], AVX2).runs
    assert found == {"MPI": "True", "NUM_MPI": "2", "HOSTFILE": "hosts"}
    ((_, found),) = read_launch_line(["--launcher", "local", "--", "run", "--model", "resnet18"], AVX2).runs
    assert found == {}
    for option in ("--num-mpi", "--hostfile"):
        with pytest.raises(UsageError, match=f"--launcher local with {option} 2: give --launcher mpi"):
            read_launch_line(["--launcher", "local", option, "2", "--", "run", "--model", "resnet18"], AVX2)


def test_a_configuration_is_read_as_the_line_is(tmp_path):
    path = tmp_path / "configs.yml"
    path.write_text(
        "a: {numa-aware: yes, precision: 32.32, eight-bit-io: true, half-partial: false, batch-size: [1, 2]}\nb:\n"
    )
    words = read_config("a", path)
    assert words == ["--numa-aware", "yes", "--precision", "32.32", "--eight-bit-io", "--batch-size", "1", "2"]
    assert read_config("b", path) == []
    assert make_parser().parse_args(words).precision == "32.32"


def test_a_switch_of_a_configuration_can_be_turned_off():
    words = ("--config", "efficientnet-b0-g16-gn", "--norm-type", "batch", "--norm-num-groups", "auto")
    ((_, found),) = runs(*words, "--no-enable-fast-groupnorm")
    assert (found["ENABLE_FAST_GROUPNORM"], found["NORM_TYPE"]) == ("False", "batch")


def test_without_a_width_the_precision_is_one_that_the_engine_has():
    ((case, _),) = runs("--model", "resnet18", "--engine", "onnxruntime", flags=AMX)
    assert "_avx_fp32_" in case
    ((case, _),) = runs("--model", "resnet18", "--engine", "onnxruntime", "--precision", "16.16", flags=AMX)
    assert "_amx_bfloat16_" in case


@pytest.mark.parametrize(("command", "option"), [("run", "--iterations"), ("launch", "--num-replicas")])
def test_help_lists_the_options(command, option, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert option in capsys.readouterr().out


def test_launch_says_what_it_lacks(capsys):
    assert main(["launch", "--num-instances", "1"]) == 2
    assert "launch: what is to be launched?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [[sys.executable, str(DIRECTORY / "run_benchmark.py")], [sys.executable, "-m", "cnnbench", "run"]],
    ids=["script", "cnnbench run"],
)
def test_the_command_is_there_by_each_of_its_names(command, tmp_path):
    words = [*command, "--model", "resnet18", "--precision", "32.32", "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"test_{SLUG}_inference_throughput_avx_fp32_resnet18\n")
    assert list(tmp_path.iterdir()) == []


def test_the_workload_has_the_networks_that_there_are():
    assert load_workload(DIRECTORY).topologies == tuple(ARCHITECTURES)
    assert Path(DIRECTORY / "run_benchmark.py").stat().st_mode & 0o111
