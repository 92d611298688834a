"""What runs on a GPU, as far as it runs on CPU tensors; run by the Python that has PyTorch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cnnbench.engines.interface import LoadSpec  # noqa: E402
from cnnbench.engines.pytorch import PyTorchOptions  # noqa: E402
from cnnbench.engines.pytorch.backend import EagerBackend  # noqa: E402
from cnnbench.engines.pytorch.cuda import DeviceInput, set_arithmetic  # noqa: E402


class OnCpuTensors(EagerBackend):
    """The engine that takes the memory of this machine for a GPU's."""

    gpu = "cpu"


@pytest.mark.parametrize("data_type", ["dummy", "real"])
@pytest.mark.parametrize("precision", ["cuda_fp32", "cuda_float16", "cuda_bfloat16"])
def test_a_cuda_precision_answers_as_float32_does_and_is_told_from_what_was_started(
    check_answers, precision, data_type
):
    backend = OnCpuTensors()
    check_answers(backend, precision, data_type=data_type)
    backend.close()


def test_a_cpus_precision_leaves_the_proof_to_the_traces(prepared, images):
    backend = EagerBackend()
    backend.load(LoadSpec(prepared[0], "fp32", threads=1, callers=1, verbose=False, options=PyTorchOptions()))
    assert np.abs(backend.infer(images) - prepared[1]).max() < 1e-4
    assert backend.layers() is None


def batch(value, size=4):
    return np.full((size, 2, 2, 3), value, dtype=np.float32)


def test_a_dummy_batch_stays_where_it_was_put_and_others_have_their_own_place():
    way, first, second = DeviceInput("dummy", "meta"), batch(1), batch(2)
    kept = way.take(first)
    assert way.take(first) is kept
    assert way.take(first[:]) is kept  # another view of the same memory
    assert way.take(second) is not kept
    assert way.take(first[:2]) is not way.take(first[2:])
    assert way.take(first[:2]).shape == (2, 2, 2, 3)


def test_a_dummy_batch_whose_memory_is_given_back_is_not_taken_for_the_next_one():
    way = DeviceInput("dummy", "cpu")
    for value in range(20):  # each in memory that the one before it would have left
        assert (way.take(batch(value)) == value).all()


def test_real_batches_of_one_size_are_copied_to_one_place():
    way = DeviceInput("real", "cpu")
    first = way.take(batch(1))
    assert (first == 1).all()
    assert way.take(batch(2)) is first
    assert (first == 2).all()
    assert way.take(batch(3, size=1)).shape == (1, 2, 2, 3)
    way.close()


@pytest.mark.parametrize("half_partial", [False, True])
def test_float32_is_float32_and_16_bits_are_summed_up_as_asked_for(half_partial):
    set_arithmetic(half_partial)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is half_partial
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is half_partial
    assert torch.backends.cuda.matmul.allow_fp16_accumulation is half_partial
