"""A CPU's flags, held against what each precision needs."""

import pytest

from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.cases.precisions import PRECISIONS, fit_to_cpu, require
from cnnbench.machine.host import find_gpu_obstacle

AVX2_CPU = frozenset({"avx2", "fma"})
SIERRA_FOREST = AVX2_CPU | {"avx_vnni"}
ICE_LAKE = AVX2_CPU | {"avx512f", "avx512_vnni"}
ZEN4 = ICE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN4 | {"avx_vnni", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"}


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("avx_fp32", AVX2_CPU),
        ("avx_fp32", SAPPHIRE_RAPIDS),
        ("avx_bfloat16", ZEN4),
        ("avx_bfloat16", SAPPHIRE_RAPIDS),
        ("amx_bfloat16", SAPPHIRE_RAPIDS),
        ("amx_bfloat32", SAPPHIRE_RAPIDS),
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
        ("amx_bfloat16", ZEN4, "amx_bfloat16: this CPU lacks amx_bf16 and amx_tile"),
        ("amx_bfloat32", ZEN4, "amx_bfloat32: this CPU lacks amx_bf16 and amx_tile"),
        ("amx_bfloat32", SAPPHIRE_RAPIDS - {"amx_bf16"}, "amx_bfloat32: this CPU lacks amx_bf16"),
        ("amx_int8", ICE_LAKE, "amx_int8: this CPU lacks amx_int8 and amx_tile"),
    ],
)
def test_a_precision_that_cannot_run_is_skipped_with_its_reason_or_forced_an_error(precision, flags, reason):
    with pytest.raises(SkippedError) as skipped:
        require(PRECISIONS[precision], flags)
    assert str(skipped.value) == reason
    assert skipped.value.exit_code == 77
    with pytest.raises(CnnbenchError) as forced:
        require(PRECISIONS[precision], flags, force=True)
    assert str(forced.value).startswith(f"{reason}; FORCE=True ")
    assert forced.value.exit_code == 1


@pytest.mark.parametrize("name", [name for name, precision in PRECISIONS.items() if precision.on_gpu])
def test_a_gpus_precision_needs_no_cpu_flag_and_hides_none(name):
    assert fit_to_cpu(PRECISIONS[name], AVX2_CPU).max_isa == "ALL"
    if obstacle := find_gpu_obstacle():
        with pytest.raises(SkippedError) as skipped:
            require(PRECISIONS[name], SAPPHIRE_RAPIDS)
        assert str(skipped.value) == f"{name}: needs an NVIDIA GPU, but {obstacle}"
        assert skipped.value.exit_code == 77
    else:
        require(PRECISIONS[name], frozenset())


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name.startswith("avx_")])
def test_avx_precisions_are_capped_below_amx_and_hide_nothing_else(name):
    assert fit_to_cpu(PRECISIONS[name], SAPPHIRE_RAPIDS).max_isa == "AVX512_CORE_BF16"
    assert fit_to_cpu(PRECISIONS[name], SIERRA_FOREST).max_isa == "AVX2_VNNI_2"
