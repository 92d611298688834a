"""The classes of multiply-accumulates: bytes as GNU's assembler makes them, alone and in loops as engines have them."""

import pytest

from cnnbench.proof.instructions import classify, rate

RET = "c3"
INSTRUCTIONS = {
    "62f26d48b8cb": "AVX-512 FMA f32 512",  # vfmadd231ps zmm1,zmm2,zmm3
    "62f26d58b808": "AVX-512 FMA f32 512",  # vfmadd231ps zmm1,zmm2,[rax]{1to16}
    "c4e26db8cb": "FMA f32 256",  # vfmadd231ps ymm1,ymm2,ymm3
    "c4e26da8cb": "",  # vfmadd213ps ymm1,ymm2,ymm3: a step of a polynomial
    "c4e269b9cb": "FMA f32 scalar",  # vfmadd231ss xmm1,xmm2,xmm3
    "62f66d48b8cb": "AVX512-FP16 f16 512",  # vfmadd231ph zmm1,zmm2,zmm3
    "62f26e4852cb": "AVX512-BF16 bf16 512",  # vdpbf16ps zmm1,zmm2,zmm3
    "62f26d4850cb": "AVX512-VNNI int8 512",  # vpdpbusd zmm1,zmm2,zmm3
    "c4e26d50cb": "AVX-VNNI int8 256",  # {vex} vpdpbusd ymm1,ymm2,ymm3
    "c4e26f50cb": "AVX-VNNI-INT8 int8 256",  # vpdpbssd ymm1,ymm2,ymm3
    "c4e26d04cb": "AVX2 int8 256",  # vpmaddubsw ymm1,ymm2,ymm3
    "62f26d4804cb": "AVX512BW int8 512",  # vpmaddubsw zmm1,zmm2,zmm3
    "660f3804ca": "SSE int8 128",  # pmaddubsw xmm1,xmm2
    "c4e2635eca": "AMX-INT8 tile",  # tdpbssd tmm1,tmm2,tmm3
    "c4e2625cca": "AMX-BF16 tile",  # tdpbf16ps tmm1,tmm2,tmm3
    "c4e2635cca": "AMX-FP16 tile",  # tdpfp16ps tmm1,tmm2,tmm3
    "0f59ca": "",  # mulps xmm1,xmm2: a product alone
    "c5ec59cb": "",  # vmulps ymm1,ymm2,ymm3
    "90": "",  # nop
}


def at(code: str) -> str:
    return classify(bytes.fromhex(code), 0x1000)


def test_an_instruction_has_its_class(subtests):
    for code, expected in INSTRUCTIONS.items():
        with subtests.test(code):
            assert at(code + RET) == expected


LOAD = "c5fc1000"  # vmovups ymm0,[rax]
FMA = "c4e26db8cb"
STORE = "c5fc1109"  # vmovups [rcx],ymm1
BACK = "75e0"  # jnz backwards
MADD_BYTES, MADD_WORDS = "c4e26d04cb", "c5edf5cb"  # vpmaddubsw, vpmaddwd ymm1,ymm2,ymm3
SSE_LOOP = "0f59e2" + "0f58cc" + BACK  # mulps xmm4,xmm2; addps xmm1,xmm4
SSE_BIAS = "0f59ca" + "0f58cb" + BACK  # mulps xmm1,xmm2; addps xmm1,xmm3: one number times another, plus a third


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (LOAD + FMA * 3 + BACK, "FMA f32 256"),  # the processor waits at the load; the loop is one of products
        (LOAD + FMA + STORE + BACK, ""),  # what BatchNorm does: each product is stored
        (FMA + STORE + BACK, ""),
        (LOAD + FMA * 3 + STORE + BACK, "FMA f32 256"),  # three products to a store
        (BACK + FMA, ""),  # what follows the loop is not of it
        (RET + FMA, ""),
        (LOAD + "62f26d4850cb" * 2 + FMA + BACK, "AVX512-VNNI int8 512"),  # the most frequent one
        (SSE_LOOP, "SSE multiply and add f32 128"),
        (SSE_BIAS, ""),
        ("c5dc59e2" + "c5f458cc" + BACK, "AVX multiply and add f32 256"),  # vmulps ymm4,..; vaddps ymm1,ymm1,ymm4
        ("f30f59e2" + "f30f58cc" + BACK, "SSE multiply and add f32 scalar"),  # mulss xmm4,xmm2; addss xmm1,xmm4
        (MADD_BYTES + MADD_WORDS + BACK, "AVX2 int8 256"),  # both are steps of int8's sum
        (MADD_WORDS + MADD_BYTES + BACK, "AVX2 int8 256"),
        (MADD_WORDS + "c5ddfee1" + BACK, "AVX2 int16 256"),  # widened before, or a JPEG decoder's
        ("c4e2625cca" + STORE * 3 + BACK, "AMX-BF16 tile"),  # tdpbf16ps between rows of the tile before
        ("", ""),
        ("06", ""),  # no instruction in 64-bit code
        (FMA[:6], ""),  # cut off by the end of its page
    ],
)
def test_it_is_the_loop_that_counts(code, expected):
    assert at(code) == expected


def test_wide_instructions_do_more_than_narrow_ones():
    falling = ["AMX-INT8 tile", "AMX-BF16 tile", "AVX512-VNNI int8 512", "AVX512-BF16 bf16 512"]
    falling += ["AVX-512 FMA f32 512", "FMA f32 256", "AVX multiply and add f32 256", "SSE multiply and add f32 128"]
    falling += ["FMA f32 scalar", "SSE multiply and add f32 scalar"]
    rates = [rate(name) for name in falling]
    assert rates == sorted(rates, reverse=True)
    assert (rate("AVX512-VNNI int8 512"), rate("AVX2 int8 256"), rate("FMA f32 256")) == (64, 32 / 3, 8)
