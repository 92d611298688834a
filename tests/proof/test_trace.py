"""oneDNN traces of real runs (traces/, cut down) as they are read: primitives, partitions, steps."""

import re

import pytest

from checkout import ROOT
from cnnbench.base.errors import InvalidMeasurementError
from cnnbench.engines.layers import COMPILED, MULTIPLYING, write_layers
from cnnbench.proof.trace import parse_verbose, read_steps, read_trace

TRACES = ROOT / "tests" / "traces"
NAMES = sorted(path.name for path in TRACES.glob("*.log"))
STEPPED = [name for name in NAMES if "\ncnnbench_trace,step,1\n" in (TRACES / name).read_text()]
STEM_MACS = 64 * 112 * 112 * 3 * 7 * 7
NETWORK_MACS = 4_089_186_304


def lines_of(name):
    return (TRACES / name).read_text().splitlines(keepends=True)


def layers_of(name):
    return [primitive for primitive in parse_verbose(lines_of(name)) if primitive.is_layer]


def one_line(shape, kind="convolution", tensors="src:f32::blocked:acdb::f0 wei:f32:a:blocked:Acdb64a::f0"):
    return f"onednn_verbose,v1,primitive,exec,cpu,{kind},jit:avx512_core,forward_training,{tensors},,,{shape},0.5"


def marked(*steps):
    return [line for number, step in enumerate(steps) for line in (f"cnnbench_trace,step,{number + 1}\n", *step)]


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_a_trace_is_read_once(name):
    executed = [line.split(",exec,cpu,")[1].split(",")[0] for line in lines_of(name) if ",exec,cpu," in line]
    layers = [layer for layer in layers_of(name) if layer.kind != COMPILED]
    assert len(layers) == sum(kind in MULTIPLYING for kind in executed) >= 1
    assert all(layer.macs > 0 and layer.time_ms > 0 and layer.shape for layer in layers)


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_says_where_it_is_from(name):
    assert lines_of(name)[0].startswith("# oneDNN ")
    assert ("not recorded" in lines_of(name)[0]) == name.startswith("written-")


@pytest.mark.parametrize(
    ("name", "stem", "types", "product"),
    [
        ("itex-fp32-network.log", "brgconv:avx512_core", "f32 f32 f32", "brg:avx512_core"),
        ("itex-fp32-avx2.log", "brgconv:avx2", "f32 f32 f32", "gemm:jit:f32"),
        ("itex-fp32-graph.log", "brgconv:avx512_core", "f32 f32 f32", "brg:avx512_core"),
        ("itex-bfloat16-avx.log", "brgconv:avx512_core_bf16", "bf16 bf16 bf16", "brg:avx512_core_bf16"),
        ("itex-bfloat16-amx.log", "brgconv:avx512_core_amx", "bf16 bf16 bf16", "brg:avx512_core_amx"),
        ("itex-bfloat32-amx.log", "brgconv:avx512_core_amx", "f32 f32 f32 computed in bf16", "brg:avx512_core"),
        ("itex-int8-vnni.log", "brgconv:avx512_core_vnni", "s8 s8 u8", "brg:avx512_core_vnni"),
        ("itex-int8-amx.log", "brgconv:avx512_core_amx", "s8 s8 u8", "brg:avx512_core_amx"),
        ("itex-int8-avx2.log", "jit_uni_int8:avx2", "s8 s8 u8", "gemm:jit"),
        ("itex-int8-avx2-vnni.log", "brgconv:avx2_vnni", "s8 s8 u8", "brg:avx2_vnni"),
        ("stock-fp32-avx.log", "brg_conv_fwd:avx512_core", "f32 f32 f32", "brgemm:avx512_core"),
        ("stock-fp32-avx2.log", "brg_conv_fwd:avx2", "f32 f32 f32", "brgemm:avx2"),
        ("stock-bfloat16-avx.log", "brg_conv_fwd:avx512_core_bf16", "bf16 bf16 bf16", "brgemm:avx512_core_bf16"),
        ("stock-bfloat16-amx.log", "brg_conv_fwd:avx10_1_512_amx", "bf16 bf16 bf16", "brgemm:avx10_1_512_amx"),
        (
            "stock-bfloat32-amx.log",
            "brg_conv_fwd:avx10_1_512_amx",
            "f32 f32 f32 computed in bf16",
            "brgemm:avx512_core",
        ),
        ("written-2.x.log", "jit:avx512_core", "f32 f32 f32", "gemm:jit"),
    ],
)
def test_the_first_and_the_last_layer_of_resnet50(name, stem, types, product):
    first, *_, last = layers_of(name)
    assert (first.implementation, first.types, first.macs) == (stem, types, STEM_MACS)
    assert (last.implementation, last.macs) == (product, 2048 * 1001)


def test_a_whole_network_is_as_large_as_it_is_known_to_be():
    layers = layers_of("itex-fp32-network.log")
    assert len(layers) == 54
    assert sum(layer.macs for layer in layers) == NETWORK_MACS


@pytest.mark.parametrize(
    ("kind", "shape", "macs"),
    [
        ("convolution", "mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3", STEM_MACS),
        ("convolution", "mb32_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3", 32 * STEM_MACS),
        ("convolution", "mb1_ic64oc256_ih56oh56kh1sh1dh0ph0_iw56ow56kw1sw1dw0pw0", 56 * 56 * 64 * 256),
        ("convolution", "g32mb1_ic128oc128_ih56oh56kh3sh1dh0ph1_iw56ow56kw3sw1dw0pw1", 56 * 56 * 128 * 4 * 9),
        ("convolution", "g64mb2_ic64oc64_ih56oh28kh3sh2dh0ph1_iw56ow28kw3sw2dw0pw1", 2 * 28 * 28 * 64 * 9),
        ("inner_product", "mb8ic2048oc1001", 8 * 2048 * 1001),
        ("inner_product", "mb8_ic2048_oc1001", 8 * 2048 * 1001),
        ("inner_product", "mb8ic512ih7iw7oc4096", 8 * 512 * 7 * 7 * 4096),
        ("matmul", "1x2048:2048x1001", 2048 * 1001),
        ("matmul", "25x2048:2048x1001:25x1001", 25 * 2048 * 1001),
        ("matmul", "8x16x32:8x32x64", 8 * 16 * 32 * 64),
        ("matmul", "nonsense", 0),
        ("inner_product", "nonsense", 0),
        ("convolution", "nonsense", 0),
    ],
)
def test_multiply_accumulates_by_shape(kind, shape, macs):
    (primitive,) = parse_verbose([one_line(shape, kind)])
    assert primitive.macs == macs


TENSORS_2 = "src_f32::blocked:abcd:f0 wei_f32::blocked:Acdb16a:f0 bia_f32::blocked:a:f0 dst_f32::blocked:aBcd16b:f0"
TENSORS_3 = TENSORS_2.replace(":f0", "::f0")
REST = ",alg:convolution_direct,mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3,0.71"


@pytest.mark.parametrize(
    "line",
    [
        f"dnnl_verbose,exec,cpu,convolution,jit:avx512_core,forward_inference,{TENSORS_2},{REST}",
        f"onednn_verbose,exec,cpu,convolution,jit:avx512_core,forward_inference,{TENSORS_2},{REST}",
        f"onednn_verbose,1693533460193.346924,primitive,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"{TENSORS_3},{REST}",
        f"onednn_verbose,v1,1693533460193.346924,primitive,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"{TENSORS_3},{REST}",
        f"  onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"{TENSORS_3.replace('_f32', ':f32')},attr-fpmath:strict:true{REST}\r\n",
    ],
    ids=["2.x dnnl", "2.x onednn", "3.3 stamped", "3.7 stamped", "3.7"],
)
def test_the_formats_of_all_versions(line):
    (primitive,) = parse_verbose([line])
    assert (primitive.kind, primitive.implementation) == ("convolution", "jit:avx512_core")
    assert (primitive.types, primitive.macs, primitive.time_ms) == ("f32 f32 f32", STEM_MACS, 0.71)
    assert primitive.partition == ""


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello, world",
        "onednn_verbose,info,oneDNN v3.3.0 (commit 08fea71aff4c273e34579e86396405f95d34aa74)",
        "onednn_verbose,v1,primitive,exec",
        "onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core",
        "onednn_verbose,1693533460193.346924,graph,exec,cpu,100005,convolution_post_ops",
        "onednn_verbose,1693533460193.346924,graph,exec,cpu,100005,mlp,a;b,,in,strict,,compiler_backend",
        one_line("mb1").rpartition(",")[0],
        one_line("mb1").rpartition("0.5")[0],
        one_line("mb1").replace(",exec,", ",create:cache_miss,"),
        one_line("mb1").replace("onednn_verbose", "somebody_else"),
    ],
)
def test_other_and_cut_lines_are_not_work(line):
    assert parse_verbose([line]) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("itex-int8")])
def test_a_partition_counts_by_its_primitives_and_not_again(name):
    step = read_steps(lines_of(name))
    assert {layer.kind for layer in step.layers} == {"convolution", "matmul"}
    assert {layer.partition for layer in step.layers} == {
        "quantized_convolution_post_ops",
        "quantized_residual_conv_blocks",
        "quantized_matmul_post_ops",
    }
    assert step.layers[0].partition == "quantized_convolution_post_ops"
    assert step.layers[-1].partition == "quantized_matmul_post_ops"


def test_without_time_stamps_no_partition_is_told_and_nothing_counts_twice():
    stamped = lines_of("itex-int8-vnni.log")
    plain = [re.sub(r",\d{13}\.\d+,", ",", line) for line in stamped]
    told, untold = read_steps(stamped).layers, read_steps(plain).layers
    assert [layer.macs for layer in untold] == [layer.macs for layer in told]
    assert {layer.partition for layer in untold} == {""}


def test_a_partition_that_was_compiled_whole_is_a_layer_of_unknown_work():
    convolution, partition = read_steps(lines_of("written-compiled-partition.log")).layers
    assert (convolution.kind, convolution.partition, convolution.macs) == ("convolution", "", STEM_MACS)
    assert (partition.kind, partition.implementation, partition.partition) == (COMPILED, "compiler_backend", "mlp")
    assert (partition.shape, partition.macs) == ("3 operations from dense/MatMul to dense/Relu", 0)


@pytest.mark.parametrize("name", [name for name in STEPPED if not name.startswith("written-")])
def test_what_comes_before_the_first_step_is_warm_up(name):
    step = read_steps(lines_of(name))
    everything = parse_verbose(lines_of(name))
    steps = sum(line.startswith("cnnbench_trace") for line in lines_of(name))
    executed = len(step.layers) + sum(other.count for other in step.others)
    assert len(everything) > steps * executed > 0


def test_times_are_medians_over_the_steps_of_layers_and_means_of_the_rest():
    convolution, reorder = one_line("1x8:8x8", "matmul"), one_line("64x3x7x7", "reorder")
    timed = [
        [convolution.replace(",0.5", f",{time}") + "\n", reorder.replace(",0.5", f",{time}") + "\n"]
        for time in (9, 2, 1)
    ]
    timed[0].append(timed[0][1])
    step = read_steps([convolution + "\n", *marked(*timed)])
    assert [layer.time_ms for layer in step.layers] == [2.0]
    ((kind, count, time_ms),) = [(other.kind, other.count, other.time_ms) for other in step.others]
    assert (kind, count, time_ms) == ("reorder", 4 / 3, pytest.approx(7.0))
    assert step.time_ms == pytest.approx(9.0)


@pytest.mark.parametrize(
    "other",
    [[], [one_line("1x8:8x9", "matmul")], [one_line("1x8:8x8", "matmul").replace("avx512_core", "avx2")]],
    ids=["none", "another shape", "another implementation"],
)
def test_steps_that_run_different_layers_tell_nothing(other):
    same = [one_line("1x8:8x8", "matmul")]
    with pytest.raises(InvalidMeasurementError, match="step 3 ran other layers than step 1"):
        read_steps(marked(same, same, other))


def test_an_output_without_steps_has_no_layers():
    assert read_steps(lines_of("itex-fp32-network.log")).layers == ()


MKL_BANNER = (
    "MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture {}, Lnx 2.45GHz lp64 "
    "gnu_thread\n"
)
MKL_PRODUCT = (
    "MKL_VERBOSE SGEMM(T,N,96,784,64,0x7ffce24500c0,0x56476f57f680,64,0x56476f633800,64,0x7ffce24500e0,0x56476f664880,"
    "96) 655.41us CNR:OFF Dyn:0 FastMM:1 TID:0  NThr:1\n"
)


@pytest.mark.parametrize(
    ("architecture", "implementation"),
    [
        ("Intel(R) Architecture processors", "mkl_sgemm"),
        ("Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors", "mkl_sgemm:avx2"),
        (
            "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512) with support for INT8 enabled processors",
            "mkl_sgemm:avx512_core",
        ),
    ],
)
def test_a_matrix_product_of_mkl_is_a_layer_on_what_its_first_line_names(architecture, implementation):
    step = read_steps([MKL_BANNER.format(architecture), *marked([MKL_PRODUCT], [MKL_PRODUCT])])
    (layer,) = step.layers
    assert (layer.kind, layer.implementation, layer.macs) == ("matmul", implementation, 96 * 784 * 64)
    assert (layer.source_type, layer.weights_type, layer.shape) == ("f32", "f32", "96x64:64x784")
    assert layer.time_ms == pytest.approx(0.65541)


@pytest.mark.parametrize(("text", "time_ms"), [("21.75ms", 21.75), ("1.5s", 1500), ("830ns", 0.00083)])
def test_mkls_times_are_read_in_each_unit(text, time_ms):
    (product,) = parse_verbose([MKL_PRODUCT.replace("655.41us", text)])
    assert product.time_ms == pytest.approx(time_ms)


def test_layers_that_an_engine_told_itself_are_read_back_before_any_trace(tmp_path):
    layers = layers_of("stock-fp32-avx2.log")[:3]
    (tmp_path / "output.log").write_text("".join(marked(["no trace\n"])))
    assert read_trace(tmp_path).layers == ()
    write_layers(layers, tmp_path)
    assert list(read_trace(tmp_path).layers) == layers
