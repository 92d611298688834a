"""What samples prove of a precision: their interval, what it must reach, and what the engine's account adds."""

import numpy as np
import pytest

from cnnbench.cases.precisions import PRECISIONS
from cnnbench.proof.precision import PrecisionProof
from cnnbench.proof.samples import SampledProof, count_samples
from cnnbench.proof.verdict import judge_precision
from cnnbench.results.samples import HEADER, HEADER_BYTES, MAGIC, RECORD, Samples, read_records
from cnnbench.results.stats import Window, binomial_interval

FP32, BF16, INT8, AMX = (PRECISIONS[name] for name in ("avx_fp32", "avx_bfloat16", "avx_int8", "amx_bfloat16"))
FMA, SSE, VNNI = "FMA f32 256", "SSE multiply and add f32 128", "AVX512-VNNI int8 512"
BF16_512, AMX_BF16 = "AVX512-BF16 bf16 512", "AMX-BF16 tile"
CODE = bytes.fromhex("c4e26db8cb" * 3 + "75e0")
TOLD, FELL_BACK = PrecisionProof(1.0, {"brgconv:avx2 f32": 1.0}, []), PrecisionProof(0.2, {"ref:any f32": 0.8}, [])


def sampled(precision, classes, covered=1.0):
    return SampledProof(precision, classes, sum(classes.values()) + 100, covered)


@pytest.mark.parametrize(
    ("precision", "classes", "passed", "decided"),
    [
        (FP32, {FMA: 1000}, True, True),
        (FP32, {FMA: 72}, True, True),  # 0.95 ** 72 is below 2.5 %: the fewest that prove it
        (FP32, {FMA: 71}, False, False),
        (FP32, {FMA: 3}, False, False),
        (FP32, {}, False, False),
        (FP32, {SSE: 1000}, False, True),
        (FP32, {FMA: 900, SSE: 100}, True, True),  # a tenth of the time, a fortieth of the work
        (FP32, {FMA: 700, SSE: 300}, False, True),
        (FP32, {FMA: 960, BF16_512: 40}, False, True),  # little time, but wide instructions
        (BF16, {BF16_512: 930, FMA: 70}, True, True),
        (BF16, {FMA: 1000}, False, True),
        (INT8, {VNNI: 960, "AVX-512 FMA f32 512": 40}, True, True),
        (INT8, {"AVX-VNNI int8 256": 500}, True, True),
        (INT8, {"AVX2 int8 256": 1000}, False, True),
        (AMX, {AMX_BF16: 800, BF16_512: 200}, True, True),
        (AMX, {BF16_512: 1000}, False, True),
        (AMX, {AMX_BF16: 100, BF16_512: 900}, False, True),
    ],
)
def test_a_precision_is_proven_by_its_intervals_lower_end(precision, classes, passed, decided):
    found = sampled(precision, classes)
    assert (found.passed, found.decided) == (passed, decided)
    criterion = judge_precision(precision, None, found)
    assert (criterion.passed, criterion.severity) == (passed, "invalid")
    assert criterion.found.startswith("unproven by samples: ") is not decided
    assert ("measure for longer" in criterion.needed) is not decided
    assert f"of {sum(classes.values())} samples" in criterion.found


def test_what_was_not_sampled_is_not_proven():
    found = sampled(FP32, {FMA: 1000}, covered=0.5)
    assert (found.passed, found.decided) == (False, False)
    criterion = judge_precision(FP32, None, found)
    assert "only 50% of the CPU time was sampled" in criterion.found
    assert "90% of the CPU time" in criterion.needed


@pytest.mark.parametrize(
    ("classes", "told", "passed", "disagree"),
    [
        ({FMA: 1000}, TOLD, True, False),
        ({FMA: 1000}, FELL_BACK, False, True),
        ({SSE: 1000}, TOLD, False, True),
        ({SSE: 1000}, FELL_BACK, False, False),
        ({FMA: 5}, TOLD, True, False),  # too few samples say nothing: it rests on what the engine tells
        ({FMA: 5}, FELL_BACK, False, False),
    ],
)
def test_samples_and_the_engines_account_must_agree(classes, told, passed, disagree):
    criterion = judge_precision(FP32, told, sampled(FP32, classes))
    assert criterion.passed is passed
    assert criterion.found.endswith("; the two disagree") is disagree
    assert f"of {sum(classes.values())} samples" in criterion.found
    assert f"{told.share:.1%} of the multiply-accumulates" in criterion.found


DATA_TYPE_TOLD = PrecisionProof(1.0, {"instructions not told f32": 1.0}, [])
NO_TIMERS = SampledProof(FP32, {}, 0, 0.0, "it could not start its timers: Resource temporarily unavailable")


def test_an_account_of_data_types_alone_makes_up_for_samples_only_where_there_can_be_none():
    few = judge_precision(FP32, DATA_TYPE_TOLD, sampled(FP32, {FMA: 5}))
    assert not few.passed
    assert "measure for longer" in few.needed
    none = judge_precision(FP32, DATA_TYPE_TOLD, NO_TIMERS)
    assert none.passed
    assert none.found.startswith(f"not sampled: {NO_TIMERS.failure}; 100.0% of the multiply-accumulates ran as ")
    assert not judge_precision(FP32, FELL_BACK, NO_TIMERS).passed
    assert NO_TIMERS.facts == {"not sampled": NO_TIMERS.failure}


@pytest.mark.parametrize(("precision", "classes"), [(FP32, {}), (INT8, {"AVX2 int16 256": 2})])
def test_products_of_int16_tell_against_int8_and_nothing_of_others(precision, classes):
    widening = records([1, 2])  # vpmaddwd ymm1,ymm2,ymm3; vpaddd ymm4,ymm4,ymm1; and back
    code = bytes.fromhex("c5edf5cbc5ddfee175f6")
    widening["length"], widening["code"] = len(code), np.frombuffer(code.ljust(231, b"\0"), RECORD["code"])[0]
    found = count_samples(precision, [Samples(widening, 4_000_000, 2, 8_000_000, "")], Window(0, 9))
    assert (found.classes, found.total) == (classes, 2)
    assert not found.passed


def test_a_failure_of_one_process_is_told(tmp_path):
    Samples(np.empty(0, RECORD), 1, 0, 8_000_000, "", "no timers").save(tmp_path / "samples.npz")
    good = Samples(records([1, 2]), 4_000_000, 2, 8_000_000, "")
    found = count_samples(FP32, [good, Samples.load(tmp_path / "samples.npz")], Window(0, 9))
    assert (found.covered, found.failure, found.facts["not sampled"]) == (0.5, "no timers", "no timers")
    assert "only 50% of the CPU time was sampled: no timers" in judge_precision(FP32, None, found).found


def test_facts_of_a_result():
    facts = sampled(FP32, {FMA: 300, SSE: 100}).facts
    assert facts == {
        "dominant instructions": "FMA f32 256, 75.0% [70.5%, 79.2%] of the samples",
        "other instructions 1": "SSE multiply and add f32 128, 25.0% [20.8%, 29.5%] of the samples",
        "outside multiply-accumulates": "20.0% of 500 samples",
    }
    assert SampledProof(FP32, {}, 0, 0.0).facts == {}


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # From tables of the distribution: e.g. none of 10 leaves 1 - 0.025 ** (1 / 10) above.
    [(0, 0, 0, 1), (0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (5, 10, 0.1871, 0.8129), (81, 263, 0.2527, 0.3677)],
)
def test_an_exact_interval_of_a_share(successes, trials, low, high):
    assert binomial_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def records(times):
    made = np.zeros(len(times), RECORD)
    made["time_ns"], made["address"], made["length"] = times, 0x1000, len(CODE)
    made["code"] = np.frombuffer(CODE.ljust(RECORD["code"].itemsize, b"\0"), RECORD["code"])[0]
    return made


def test_only_samples_inside_the_window_count(tmp_path):
    kept = Samples(records([10, 20, 30, 40]), 4_000_000, 4, 16_000_000, "maps")
    kept.save(tmp_path / "samples.npz")
    found = count_samples(FP32, [Samples.load(tmp_path / "samples.npz")], Window(20, 30))
    assert (found.classes, found.total, found.covered) == ({FMA: 2}, 2, 1.0)


def test_of_a_full_file_the_cpu_time_counts_that_there_would_have_been():
    found = count_samples(FP32, [Samples(records([1, 2]), 4_000_000, 20, 80_000_000, "")], Window(0, 9))
    assert found.covered == pytest.approx(1)


def test_times_of_another_host_are_moved(tmp_path):
    Samples(records([100, 200]), 1, 2, 1, "").save(tmp_path / "samples.npz", offset_ns=-50)
    assert list(Samples.load(tmp_path / "samples.npz").records["time_ns"]) == [50, 150]


def test_the_samplers_own_file_is_read_and_another_refused(tmp_path):
    header = np.array([(MAGIC, 3, 4_000_000, 2)], HEADER)
    path = tmp_path / "samples"
    path.write_bytes(header.tobytes().ljust(HEADER_BYTES, b"\0") + records([1, 2]).tobytes() + bytes(RECORD.itemsize))
    found, period_ns, seen = read_records(path)
    assert (list(found["time_ns"]), period_ns, seen) == ([1, 2], 4_000_000, 2)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="no file of the sampler's"):
        read_records(path)
