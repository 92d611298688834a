"""oneDNN traces of real runs (tests/data, cut down) and a CPU's flags, judged against each precision.

The traces are of ResNet50 at batch size 1: ITEX 2.15 brings oneDNN 3.3, stock TensorFlow 2.21 oneDNN 3.7.
"""

from pathlib import Path

import pytest

from cnnbench.errors import SkippedError
from cnnbench.host import CpuInfo
from cnnbench.isa import PRECISIONS, REQUIRED_SHARE, best_precision, judge_trace, parse_verbose, require

DATA = Path(__file__).parent / "data"
STEM_MACS = 64 * 112 * 112 * 3 * 7 * 7
NETWORK_MACS = 4_089_186_304
TRACES = sorted(path.name for path in DATA.glob("onednn-*.log"))

AVX2_CPU = frozenset({"avx2", "fma"})
ICE_LAKE = AVX2_CPU | {"avx512f", "avx512_vnni"}
ZEN4 = ICE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN4 | {"amx_tile", "amx_bf16", "amx_int8"}


def read_trace(name):
    return parse_verbose((DATA / name).read_text().splitlines())


def one_line(shape, kind="convolution", tensors="src:f32::blocked:acdb::f0 wei:f32:a:blocked:Acdb64a::f0"):
    return f"onednn_verbose,v1,primitive,exec,cpu,{kind},jit:avx512_core,forward_training,{tensors},,,{shape},0.5"


@pytest.mark.parametrize("name", TRACES)
def test_the_convolutions_and_products_of_a_trace_are_read(name):
    primitives = read_trace(name)
    kinds = [line.split(",exec,cpu,")[1].split(",")[0] for line in (DATA / name).open() if ",exec,cpu," in line]
    assert len(primitives) == sum(kind in ("convolution", "matmul", "inner_product") for kind in kinds) >= 7
    assert {"convolution", "reorder", "pooling"} < set(kinds) or "network" in name
    assert all(primitive.macs > 0 for primitive in primitives)
    expected_type = "bf16" if name.endswith("bf16.log") else "f32"
    assert {(p.source_type, p.weights_type) for p in primitives} == {(expected_type, expected_type)}


@pytest.mark.parametrize(
    ("name", "stem", "product"),
    [
        ("onednn-3.3-fp32-network.log", "brgconv:avx512_core", "brg:avx512_core"),
        ("onednn-3.3-amx-bf32.log", "brgconv:avx512_core_amx", "brg:avx512_core"),
        ("onednn-3.7-fp32.log", "brg_conv_fwd:avx512_core", "brgemm:avx512_core"),
        ("onednn-3.7-bf16.log", "brg_conv_fwd:avx512_core_bf16", "brgemm:avx512_core_bf16"),
        ("onednn-3.7-amx-bf16.log", "brg_conv_fwd:avx10_1_512_amx", "brgemm:avx10_1_512_amx"),
    ],
)
def test_the_first_and_the_last_layer_of_resnet50(name, stem, product):
    first, *_, last = read_trace(name)
    assert (first.implementation, first.macs) == (stem, 118_013_952)
    assert (last.implementation, last.macs) == (product, 2048 * 1001)


def test_a_whole_network_is_as_large_as_it_is_known_to_be():
    primitives = read_trace("onednn-3.3-fp32-network.log")
    assert len(primitives) == 54
    assert sum(primitive.macs for primitive in primitives) == NETWORK_MACS


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
        ("matmul", "1x2048:2048x1001", 2048 * 1001),
        ("matmul", "25x2048:2048x1001:25x1001", 25 * 2048 * 1001),
        ("matmul", "8x16x32:8x32x64", 8 * 16 * 32 * 64),
        ("matmul", "nonsense", 0),
        ("convolution", "nonsense", 0),
    ],
)
def test_multiply_accumulates_by_shape(kind, shape, macs):
    (primitive,) = parse_verbose([one_line(shape, kind)])
    assert primitive.macs == macs


STEM_SHAPE = "alg:convolution_direct,mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3"


@pytest.mark.parametrize(
    "line",
    [
        f"dnnl_verbose,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"src_f32::blocked:abcd:f0 wei_f32::blocked:Acdb16a:f0 bia_f32::blocked:a:f0 dst_f32::blocked:aBcd16b:f0,,"
        f"{STEM_SHAPE},0.71",
        f"onednn_verbose,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"src_f32::blocked:abcd:f0 wei_f32::blocked:Acdb16a:f0 bia_f32::blocked:a:f0 dst_f32::blocked:aBcd16b:f0,,"
        f"{STEM_SHAPE},0.71",
        f"onednn_verbose,1693533460193.346924,primitive,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"src_f32::blocked:abcd::f0 wei_f32:a:blocked:Acdb16a::f0 dst_f32::blocked:aBcd16b::f0,,{STEM_SHAPE},0.71",
        f"  onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core,forward_inference,"
        f"src:f32::blocked:abcd::f0 wei:f32:a:blocked:Acdb16a::f0 dst:f32::blocked:aBcd16b::f0,,{STEM_SHAPE},0.71\r\n",
    ],
    ids=["2.x dnnl", "2.x onednn", "3.x with timestamps", "3.7"],
)
def test_the_documented_formats_of_other_versions(line):
    (primitive,) = parse_verbose([line])
    assert primitive.implementation == "jit:avx512_core"
    assert (primitive.source_type, primitive.weights_type, primitive.macs) == ("f32", "f32", STEM_MACS)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello, world",
        "onednn_verbose,info,oneDNN v3.3.0 (commit 08fea71aff4c273e34579e86396405f95d34aa74)",
        "onednn_verbose,v1,primitive,exec",
        "onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core",
        one_line("64x3x7x7", "reorder"),
        one_line("mb1").replace(",exec,", ",create:cache_miss,"),
        one_line("mb1").replace("onednn_verbose", "somebody_else"),
    ],
)
def test_other_lines_are_not_work(line):
    assert parse_verbose([line]) == []


def test_the_int8_types_are_told_apart():
    (primitive,) = parse_verbose([one_line("mb1ic8oc8", "inner_product", "src:u8::blocked:ab::f0 wei:s8::any::f0")])
    assert (primitive.source_type, primitive.weights_type) == ("u8", "s8")


def test_a_whole_trace_on_the_right_instructions_is_proof():
    proof = judge_trace(PRECISIONS["avx_fp32"], read_trace("onednn-3.3-fp32-network.log"), NETWORK_MACS)
    assert proof.share == 1.0
    assert list(proof.implementations) == [
        "brgconv_1x1:avx512_core f32",
        "brgconv:avx512_core f32",
        "brg:avx512_core f32",
    ]
    assert sum(proof.implementations.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("trace", "proven"),
    [
        ("onednn-3.3-fp32-network.log", {"avx_fp32"}),
        ("onednn-3.7-fp32.log", {"avx_fp32"}),
        ("onednn-3.7-bf16.log", {"avx_bfloat16"}),
        ("onednn-3.7-amx-bf16.log", {"amx_bfloat16"}),
        ("onednn-3.3-amx-bf32.log", {"amx_bfloat32"}),
    ],
)
def test_a_trace_proves_its_own_precision_and_no_other(trace, proven):
    primitives = read_trace(trace)
    needed = sum(primitive.macs for primitive in primitives)
    shares = {name: judge_trace(precision, primitives, needed).share for name, precision in PRECISIONS.items()}
    assert {name for name, share in shares.items() if share >= REQUIRED_SHARE} == proven
    assert all(share < 0.01 for name, share in shares.items() if name not in proven)


@pytest.mark.parametrize(
    ("implementation", "types", "proven"),
    [
        ("brgconv:avx512_core_vnni", ("u8", "s8"), {"avx_int8"}),
        ("brgconv:avx512_core_amx", ("s8", "s8"), {"amx_int8"}),
        ("brgconv:avx10_1_512_amx", ("u8", "s8"), {"amx_int8"}),
        ("brgconv:avx512_core_bf16", ("bf16", "bf16"), {"avx_bfloat16"}),
        ("brgconv:avx512_core_bf16", ("bf16", "f32"), set()),
        ("brgconv:avx512_core_fp16", ("f16", "f16"), set()),
        ("jit:avx2", ("f32", "f32"), {"avx_fp32"}),
        ("jit:sse41", ("f32", "f32"), set()),
        ("gemm:ref", ("f32", "f32"), set()),
        ("ref:any", ("bf16", "bf16"), set()),
    ],
)
def test_instructions_and_both_types_must_be_the_precisions(implementation, types, proven):
    line = one_line("mb1ic8oc8", "inner_product", f"src:{types[0]}::blocked:ab::f0 wei:{types[1]}:a:any::f0")
    primitives = parse_verbose([line.replace("jit:avx512_core", implementation)])
    assert {name for name, precision in PRECISIONS.items() if judge_trace(precision, primitives, 64).share} == proven


def test_work_that_onednn_never_saw_counts_against_the_share():
    primitives = read_trace("onednn-3.3-fp32-network.log")[::2]
    seen = sum(primitive.macs for primitive in primitives)
    proof = judge_trace(PRECISIONS["avx_fp32"], primitives, NETWORK_MACS)
    assert proof.share == seen / NETWORK_MACS
    assert 0.3 < proof.share < 0.7


def test_an_empty_trace_proves_nothing():
    proof = judge_trace(PRECISIONS["avx_fp32"], [], NETWORK_MACS)
    assert (proof.share, proof.implementations) == (0.0, {})


def test_more_work_than_the_graph_needs_shows():
    assert judge_trace(PRECISIONS["avx_fp32"], read_trace("onednn-3.7-fp32.log"), 1000).share > 1000


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("avx_fp32", AVX2_CPU),
        ("avx_fp32", SAPPHIRE_RAPIDS),
        ("avx_bfloat16", ZEN4),
        ("avx_bfloat16", SAPPHIRE_RAPIDS),
    ],
)
def test_a_cpu_that_has_what_a_precision_needs_runs_it(precision, flags):
    require(PRECISIONS[precision], flags)


@pytest.mark.parametrize(
    ("precision", "flags", "reason"),
    [
        ("avx_fp32", frozenset(), "avx_fp32: this CPU lacks avx2 and fma"),
        ("avx_fp32", frozenset({"avx2"}), "avx_fp32: this CPU lacks fma"),
        ("avx_bfloat16", ICE_LAKE, "avx_bfloat16: this CPU lacks avx512_bf16"),
        ("amx_int8", ICE_LAKE, "amx_int8: this CPU lacks amx_int8 and amx_tile"),
    ],
)
def test_a_precision_that_cannot_run_is_skipped_with_its_reason(precision, flags, reason):
    with pytest.raises(SkippedError) as raised:
        require(PRECISIONS[precision], flags)
    assert str(raised.value) == reason
    assert raised.value.exit_code == 77


@pytest.mark.parametrize(
    ("vendor", "flags", "best"),
    [
        ("AuthenticAMD", ZEN4, "avx_bfloat16"),
        ("AuthenticAMD", AVX2_CPU, "avx_fp32"),
        ("GenuineIntel", SAPPHIRE_RAPIDS, "avx_fp32"),
        (None, AVX2_CPU, "avx_fp32"),
    ],
)
def test_the_best_precision_of_a_cpu(vendor, flags, best):
    assert best_precision(CpuInfo(vendor=vendor, flags=flags)) == best


def test_a_cpu_without_avx2_has_no_precision():
    with pytest.raises(SkippedError, match="at least AVX2 and FMA"):
        best_precision(CpuInfo(vendor="GenuineIntel", flags=frozenset({"avx"})))
