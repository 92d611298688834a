"""Recorded traces held against each precision: what is proven, what fell back, and how it reads."""

import pytest

from checkout import ROOT
from cnnbench.cases.precisions import PRECISIONS, REQUIRED_SHARE
from cnnbench.engines.layers import UNTOLD, Primitive
from cnnbench.proof.precision import FALLBACKS_SHOWN, judge_trace
from cnnbench.proof.trace import TracedStep, parse_verbose
from cnnbench.proof.verdict import judge_precision

TRACES = ROOT / "tests" / "traces"
NETWORK_MACS = 4_089_186_304
WITH_SETS = {name: one for name, one in PRECISIONS.items() if not one.computes}
"""The precisions that name their instruction set, or a GPU."""


def step_of(*lines):
    return TracedStep(tuple(primitive for primitive in parse_verbose(lines) if primitive.is_layer), ())


def step_in(name):
    return step_of(*(TRACES / name).read_text().splitlines())


def product(implementation, source, weights, attributes="", shape="mb1ic8oc8"):
    tensors = f"src:{source}::blocked:ab::f0 wei:{weights}:a:any::f0 dst:f32::blocked:ab::f0"
    return (
        f"onednn_verbose,v1,primitive,exec,cpu,inner_product,{implementation},forward_inference,{tensors},"
        f"{attributes},,{shape},0.5"
    )


def test_a_whole_trace_on_the_right_instructions_is_proof():
    proof = judge_trace(PRECISIONS["avx_fp32"], step_in("itex-fp32-network.log"), NETWORK_MACS)
    assert proof.share == 1.0
    assert proof.fallbacks == []
    assert list(proof.implementations) == [
        "brgconv_1x1:avx512_core f32",
        "brgconv:avx512_core f32",
        "brg:avx512_core f32",
    ]
    assert sum(proof.implementations.values()) == pytest.approx(1.0)
    assert proof.facts == {"dominant implementation": "brgconv_1x1:avx512_core f32, 51.8% of the multiply-accumulates"}


@pytest.mark.parametrize(
    ("trace", "proven"),
    [
        ("itex-fp32-network.log", {"avx_fp32"}),
        ("itex-fp32-avx2.log", {"avx_fp32"}),
        ("itex-fp32-graph.log", {"avx_fp32"}),
        ("itex-bfloat16-avx.log", {"avx_bfloat16"}),
        ("itex-bfloat16-amx.log", {"amx_bfloat16"}),
        ("itex-bfloat32-amx.log", {"amx_bfloat32"}),
        ("itex-int8-vnni.log", {"avx_int8"}),
        ("itex-int8-avx2-vnni.log", {"avx_int8"}),
        ("itex-int8-avx2.log", set()),
        ("itex-int8-amx.log", {"amx_int8"}),
        ("stock-fp32-avx.log", {"avx_fp32"}),
        ("stock-fp32-avx2.log", {"avx_fp32"}),
        ("stock-fp32-sse41.log", set()),
        ("stock-bfloat16-avx.log", {"avx_bfloat16"}),
        ("stock-bfloat16-amx.log", {"amx_bfloat16"}),
        ("stock-bfloat32-amx.log", {"amx_bfloat32"}),
        ("stock-int8-vnni.log", {"avx_int8"}),
        ("stock-int8-amx.log", {"amx_int8"}),
        ("stock-int8-avx2.log", set()),
        ("written-compiled-partition.log", {"avx_fp32"}),
    ],
)
def test_a_trace_proves_its_own_precision_and_no_other(trace, proven):
    step = step_in(trace)
    needed = sum(layer.macs for layer in step.layers)
    shares = {name: judge_trace(precision, step, needed).share for name, precision in WITH_SETS.items()}
    assert {name for name, share in shares.items() if share >= REQUIRED_SHARE} == proven
    assert all(share < 0.02 for name, share in shares.items() if name not in proven)


def test_int8_capped_at_avx2_is_invalid_and_names_what_ran():
    step = step_in("itex-int8-avx2.log")
    needed = sum(layer.macs for layer in step.layers)
    criterion = judge_precision(PRECISIONS["avx_int8"], judge_trace(PRECISIONS["avx_int8"], step, needed), None)
    assert (criterion.passed, criterion.severity) == (False, "invalid")
    assert criterion.found.startswith("0.0% of the multiply-accumulates ran as avx_int8 (")
    assert "jit_uni_int8_1x1:avx2 s8 " in criterion.found


@pytest.mark.parametrize(
    ("implementation", "types", "attributes", "proven"),
    [
        ("brgconv:avx512_core_vnni", ("u8", "s8"), "", {"avx_int8"}),
        ("brgconv:avx512_core_amx", ("s8", "s8"), "", {"amx_int8"}),
        ("brgconv:avx512_core_amx_int8", ("s8", "s8"), "", {"amx_int8"}),
        ("brgconv:avx10_1_512_amx", ("u8", "s8"), "", {"amx_int8"}),
        ("brgconv:avx10_2_512_amx_2", ("u8", "s8"), "", {"amx_int8"}),
        ("brgconv:avx2_vnni", ("u8", "s8"), "", {"avx_int8"}),
        ("jit_uni_int8:avx2", ("u8", "s8"), "", set()),
        ("brgconv:avx512_core_bf16", ("bf16", "bf16"), "", {"avx_bfloat16"}),
        ("brgconv:avx512_core_bf16", ("bf16", "f32"), "", set()),
        ("brgconv:avx512_core_fp16", ("f16", "f16"), "", set()),
        ("jit:avx2", ("f32", "f32"), "", {"avx_fp32"}),
        ("jit:avx2", ("f32", "f32"), "attr-fpmath:strict", {"avx_fp32"}),
        ("brgemm:avx512_core_bf16", ("f32", "f32"), "attr-scratchpad:user attr-fpmath:bf16", set()),
        ("brgconv:avx512_core_amx", ("f32", "f32"), "attr-fpmath:bf16", {"amx_bfloat32"}),
        ("brgconv:avx512_core_amx", ("f32", "f32"), "attr-fpmath:tf32", set()),
        ("brgconv:avx512_core_amx", ("f32", "f32"), "", set()),
        ("jit:sse41", ("f32", "f32"), "", set()),
        ("gemm:ref", ("f32", "f32"), "", set()),
        ("ref:any", ("bf16", "bf16"), "", set()),
    ],
)
def test_instructions_types_and_arithmetic_must_be_the_precisions(implementation, types, attributes, proven):
    step = step_of(product(implementation, *types, attributes))
    assert {name for name, precision in WITH_SETS.items() if judge_trace(precision, step, 64).share} == proven


def test_work_that_onednn_never_saw_counts_against_the_share():
    step = step_in("itex-fp32-network.log")
    half = TracedStep(step.layers[::2], ())
    proof = judge_trace(PRECISIONS["avx_fp32"], half, NETWORK_MACS)
    assert proof.share == sum(layer.macs for layer in half.layers) / NETWORK_MACS
    assert 0.3 < proof.share < 0.7


def test_an_empty_trace_proves_nothing():
    proof = judge_trace(PRECISIONS["avx_fp32"], TracedStep((), ()), NETWORK_MACS)
    assert (proof.share, proof.implementations, proof.fallbacks, proof.facts) == (0.0, {}, [], {})


def test_more_work_than_the_graph_needs_shows():
    assert judge_trace(PRECISIONS["avx_fp32"], step_in("stock-fp32-avx.log"), 1000).share > 1000


def test_the_layers_that_fell_back_are_named_the_largest_share_first():
    step = step_of(
        product("brgemm:avx512_core", "f32", "f32"),
        product("jit:avx2", "bf16", "bf16"),
        product("jit:sse41", "f32", "f32", shape="mb4ic8oc8"),
        product("brgemm:avx512_core", "f32", "f32"),
        product("brgemm:avx512_core_bf16", "bf16", "bf16"),
    )
    proof = judge_trace(PRECISIONS["avx_bfloat16"], step, 8 * 64)
    assert proof.share == 0.125
    assert proof.fallbacks == [
        "1 x inner_product mb4ic8oc8 on jit:sse41 f32, 50.00%",
        "2 x inner_product mb1ic8oc8 on brgemm:avx512_core f32, 25.00%",
        "1 x inner_product mb1ic8oc8 on jit:avx2 bf16, 12.50%",
    ]
    assert proof.facts["fell back 1"] == proof.fallbacks[0]


def test_of_many_layers_that_fell_back_the_rest_is_counted():
    extents = range(1, FALLBACKS_SHOWN + 4)
    step = step_of(*(product("jit:sse41", "f32", "f32", shape=f"mb{extent}ic1oc1") for extent in extents))
    lines = judge_trace(PRECISIONS["avx_fp32"], step, sum(extents)).fallbacks
    assert len(lines) == FALLBACKS_SHOWN + 1
    assert lines[-1] == f"and 3 more, {(1 + 2 + 3) / sum(extents):.2%} together"


def test_of_layers_whose_engine_does_not_tell_the_instructions_the_type_counts_and_the_text_says_so():
    told = [Primitive("Conv", UNTOLD, kind, kind, kind, "", "", 100, 0.0) for kind in ("f32", "f32", "other")]
    proof = judge_trace(PRECISIONS["avx_fp32"], TracedStep(tuple(told), ()), 300)
    assert proof.share == pytest.approx(2 / 3)
    assert not proof.instructions_told
    assert (
        "66.7% of the multiply-accumulates ran as avx_fp32's data type"
        in judge_precision(PRECISIONS["avx_fp32"], proof, None).found
    )
