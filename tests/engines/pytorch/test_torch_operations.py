"""What an engine of PyTorch's says that it computes, on CPU tensors; run by the Python that has PyTorch."""

import pytest

torch = pytest.importorskip("torch")

from cnnbench.cases.precisions import PRECISIONS  # noqa: E402
from cnnbench.engines.pytorch.classifier import Classifier  # noqa: E402
from cnnbench.engines.pytorch.networks import build, count_macs  # noqa: E402
from cnnbench.engines.pytorch.operations import computed_layers  # noqa: E402
from cnnbench.inputs.networks import Network  # noqa: E402
from cnnbench.proof.precision import judge_trace  # noqa: E402
from cnnbench.proof.trace import TracedStep  # noqa: E402

SIZE, IMAGES = 64, 2

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v3_small", "resnext50"])
def network(request):
    module = build(Network(request.param))
    module.macs = IMAGES * count_macs(module, SIZE)
    return module


def classifier(network, data_type):
    return Classifier(network.to(dtype=data_type, memory_format=torch.channels_last), normalize_inside=True).eval()


def share(precision, layers, macs):
    return judge_trace(PRECISIONS[precision], TracedStep(tuple(layers), ()), macs).share


@pytest.mark.parametrize(
    ("data_type", "proven", "refuted"),
    [
        (torch.float32, "cuda_fp32", "cuda_float16"),
        (torch.bfloat16, "cuda_bfloat16", "cuda_float16"),
        (torch.float16, "cuda_float16", "cuda_fp32"),
    ],
)
def test_a_network_computes_all_of_its_macs_in_its_data_type(network, data_type, proven, refuted):
    layers = computed_layers(classifier(network, data_type), torch.rand(IMAGES, SIZE, SIZE, 3))
    assert sum(layer.macs for layer in layers) == network.macs
    assert share(proven, layers, network.macs) == 1
    assert share(refuted, layers, network.macs) == 0
    assert {layer.kind for layer in layers} <= {"convolution", "matmul"}


def test_a_layer_left_in_float32_counts_against_the_precision():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 1))
    network[0].bfloat16()
    layers = computed_layers(lambda x: network[1](network[0](x.bfloat16()).float()), torch.rand(1, 3, 10, 10))
    assert [(layer.weights_type, layer.macs) for layer in layers] == [("bf16", 8 * 8 * 8 * 27), ("f32", 8 * 8 * 8 * 8)]
    assert [layer.shape for layer in layers] == ["1x3x10x10:8x3x3x3", "1x8x8x8:8x8x1x1"]
    assert share("cuda_bfloat16", layers, sum(layer.macs for layer in layers)) == pytest.approx(27 / 35)


@pytest.mark.parametrize("bias", [True, False])
def test_stride_padding_dilation_groups_and_matrices_are_counted(bias):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=bias),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 5 * 2, 7, bias=bias),
    )
    convolution, product = computed_layers(network, torch.rand(3, 4, 10, 10))
    assert convolution.macs == 3 * (5 * 2) * 6 * (4 // 2 * 3 * 5)
    assert product.macs == 3 * 60 * 7


def test_compiled_code_is_what_is_told_and_not_the_network_it_is_made_of(monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # which would leave it to oneDNN's own operations
    monkeypatch.setattr(inductor, "freezing", True)
    monkeypatch.setattr(inductor, "compile_threads", 1)
    blocks = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    network = torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(4 * 8 * 8, 5)).eval()
    compiled = torch.compile(network)
    images = torch.rand(2, 3, 10, 10)
    with torch.no_grad():
        compiled(images)
    with torch.compiler.set_stance("fail_on_recompile"):  # an error, too, if the network itself were run
        layers = computed_layers(compiled, images)
    assert sorted(layer.macs for layer in layers) == sorted([2 * 64 * 8 * 27, 2 * 64 * 4 * 8, 2 * 256 * 5])
    assert {layer.weights_type for layer in layers} == {"f32"}
