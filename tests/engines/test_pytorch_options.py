"""What PyTorch's own options are refused with, and noted of: no PyTorch is needed to tell."""

from dataclasses import replace

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.engines.pytorch import PyTorchOptions, check
from cnnbench.engines.registry import Conditions

ON_CPU = Conditions("avx_bfloat16", "bfloat16", on_gpu=False, replicas=1, threads=4, network="resnet18")
ON_GPU = Conditions("cuda_float16", "float16", on_gpu=True, replicas=1, threads=4, network="resnet18")
THREE_STAGES = "PIPELINE_SPLITS=layer1 layer2: "


def test_options_that_do_not_go_with_a_case_are_refused_and_the_others_pass():
    stages = {"pipeline_splits": "layer1 layer2"}
    refused = [
        ({"cuda_graphs": True}, ON_CPU, r"^CUDA_GRAPHS=True: avx_bfloat16 runs on the CPU; choose"),
        (stages, ON_GPU, f"^{THREE_STAGES}stages work on cores of their own, and cuda_float16 runs on one GPU"),
        (stages | {"profile": True}, ON_CPU, f"^{THREE_STAGES}PROFILE=True sees one thread alone"),
        (stages, replace(ON_CPU, replicas=2), f"^{THREE_STAGES}takes all cores of a process, but REPLICAS=2"),
        (
            {"pipeline_splits": "layer9"},
            ON_CPU,
            r"^PIPELINE_SPLITS=layer9: no such layer of resnet18; it has conv1, .*fc$",
        ),
        ({"pipeline_splits": "layer2 layer1"}, ON_CPU, "layer1 does not start after layer2, so that the stage before"),
        ({"pipeline_splits": "conv1"}, ON_CPU, "conv1 does not start after the first layer, so that the stage before"),
        (stages, replace(ON_CPU, threads=1), f"^{THREE_STAGES}3 stages, but an instance has 1 core; raise"),
    ]
    for options, conditions, reason in refused:
        with pytest.raises(UsageError, match=reason):
            check(PyTorchOptions(**options), conditions)
    for options, conditions in (({"cuda_graphs": True}, ON_GPU), (stages, ON_CPU), ({"profile": True}, ON_CPU)):
        assert check(PyTorchOptions(**options), conditions) == []


def test_half_partial_is_noted_for_what_it_does():
    of_float32 = replace(ON_GPU, precision="cuda_fp32", number_type="fp32")
    notes = [check(PyTorchOptions(half_partial=True), one) for one in (ON_CPU, of_float32, ON_GPU)]
    assert [note.split(":")[0] for (note,) in notes] == [
        "HALF_PARTIAL=True has no effect",
        "HALF_PARTIAL=True has no effect",
        "HALF_PARTIAL=True",
    ]
    assert "cuBLAS may sum up float16 matrix products in 16 bits" in notes[2][0]
