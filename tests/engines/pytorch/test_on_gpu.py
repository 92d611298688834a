"""The engines of PyTorch on an NVIDIA GPU; run by a Python with PyTorch for GPUs, and skipped without a GPU."""

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cnnbench.engines.interface import LoadSpec  # noqa: E402
from cnnbench.engines.pytorch import PyTorchOptions  # noqa: E402
from cnnbench.engines.pytorch.backend import EagerBackend, InductorBackend  # noqa: E402
from cnnbench.engines.pytorch.cuda import DeviceInput, GraphedCall  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here")


WAYS = [
    *itertools.product([EagerBackend], [False, True], ["dummy", "generated", "real"]),
    (InductorBackend, False, "dummy"),
    (InductorBackend, True, "generated"),
]


@pytest.mark.parametrize(("backend_class", "cuda_graphs", "data_type"), WAYS)
@pytest.mark.parametrize("precision", ["cuda_fp32", "cuda_float16", "cuda_bfloat16"])
def test_it_answers_as_the_cpu_does_in_the_data_type_asked_for(
    check_answers, precision, backend_class, cuda_graphs, data_type
):
    backend = backend_class()
    check_answers(backend, precision, PyTorchOptions(cuda_graphs=cuda_graphs), data_type=data_type)
    told = backend.describe()
    assert told["GPU"] == torch.cuda.get_device_name()
    assert told["CUDA"] == torch.version.cuda
    backend.close()


def test_generated_batches_are_pinned_where_they_are_and_unpinned_in_the_end():
    way, whole = DeviceInput("generated"), np.ones((4, 2, 2, 3), dtype=np.float32)
    assert (way.take(whole[2:]).cpu() == 1).all()
    assert torch.from_numpy(whole).is_pinned()
    whole[:] = 2
    assert (way.take(whole[2:]).cpu() == 2).all()
    way.close()
    assert not torch.from_numpy(whole).is_pinned()


def test_a_recorded_call_is_replayed_and_not_called_again():
    calls = []

    def double(x):
        calls.append(x.shape)
        return 2 * x

    graphed = GraphedCall(double, kept=True)
    first, second = (torch.full((3,), value, device="cuda") for value in (1.0, 2.0))
    assert graphed(first).tolist() == [2.0] * 3
    recorded = len(calls)
    for x in (second, first, first, second):
        assert torch.equal(graphed(x), 2 * x)
    assert len(calls) == recorded
    assert torch.equal(first, torch.ones(3, device="cuda"))


def test_a_profile_shows_the_gpus_kernels(prepared, images, tmp_path):
    backend = EagerBackend()
    options = PyTorchOptions(profile=True)
    backend.load(LoadSpec(prepared[0], "float16", threads=1, callers=1, verbose=False, on_gpu=True, options=options))
    backend.profile(images, tmp_path / "profile.json")
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
