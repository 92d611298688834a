"""PyTorch's Inductor with freezing: fp32, bfloat16 weights, and int8 by PT2E with the x86 quantiser of torchao."""

import os
from pathlib import Path

import numpy as np
import torch
import torch._inductor.config as inductor
import torchao
from peer_worker import PeerSpec
from torch import nn
from torch.nn import functional

from cnnbench.engines.tensorflow.resnet50 import BLOCKS, EPSILON, STEM, Conv

CALIBRATION_IMAGES = 100
"""Of the calibration part, for PT2E: it runs them eagerly, before each load."""

Weights = dict[str, np.ndarray]


class _ConvNorm(nn.Sequential):
    """A convolution with its BatchNorm; PyTorch pads both sides alike, as the network's explicit Pads do."""

    def __init__(self, conv: Conv, weights: Weights) -> None:
        convolution = nn.Conv2d(
            conv.inputs, conv.filters, conv.kernel, conv.stride, padding=(conv.kernel - 1) // 2, bias=False
        )
        convolution.weight.data = torch.from_numpy(weights[f"{conv.name}/kernel"].transpose(3, 2, 0, 1).copy())
        norm = nn.BatchNorm2d(conv.filters, eps=EPSILON)
        norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var = (
            torch.from_numpy(weights[f"{conv.name}/BatchNorm/{name}"]) for name in ("gamma", "beta", "mean", "variance")
        )
        super().__init__(convolution, norm)


class _Block(nn.Module):
    """A residual block of three convolutions."""

    def __init__(self, convs: tuple[Conv | None, Conv, Conv, Conv], weights: Weights) -> None:
        super().__init__()
        shortcut, *rest = convs
        self.shortcut = nn.Identity() if shortcut is None else _ConvNorm(shortcut, weights)
        self.conv1, self.conv2, self.conv3 = (_ConvNorm(conv, weights) for conv in rest if conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        residual = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        return functional.relu(self.conv3(residual) + self.shortcut(x))


class ResNet50(nn.Module):
    """The network with the weights of the frozen graph: images N x 3 x 224 x 224 to logits N x 1001."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stem = _ConvNorm(STEM, weights)
        self.blocks = nn.Sequential(*(_Block(block, weights) for block in BLOCKS))
        kernel, bias = weights["resnet50/dense/kernel"], weights["resnet50/dense/bias"]
        self.head = nn.Linear(*kernel.shape)
        self.head.weight.data, self.head.bias.data = torch.from_numpy(kernel.T.copy()), torch.from_numpy(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits. TensorFlow's pooling pads at the end only, which is ceil_mode."""
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, ceil_mode=True)
        return self.head(self.blocks(x).mean((2, 3)))


class Inductor:
    """The compiled network."""

    def __init__(self, spec: PeerSpec) -> None:
        torch.set_num_threads(len(spec.cpus))
        inductor.freezing = True
        inductor.compile_threads = 1  # no helper processes that outlive the compilation
        artefacts = Path(spec.artefacts)
        name = "inductor-bfloat32" if spec.data_type == "bfloat32" else "inductor"  # its key knows no math mode
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(artefacts.parent / name)  # compiled once, not once a boot
        with np.load(artefacts / "weights.npz") as weights:
            network = ResNet50(dict(weights)).eval().to(memory_format=torch.channels_last)
        self._type = torch.bfloat16 if spec.data_type == "bfloat16" else torch.float32
        if spec.data_type == "int8":
            network = _quantise(network, np.load(artefacts / "calibration.npy", mmap_mode="r"), spec.batch_size)
        else:
            network = network.to(self._type)
        self._compiled = torch.compile(network)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the probabilities of one batch; N x H x W x C is PyTorch's channels_last as it stands."""
        with torch.no_grad():
            images = torch.from_numpy(batch).permute(0, 3, 1, 2).to(self._type)
            return torch.softmax(self._compiled(images).float(), 1).numpy()

    def executed(self) -> dict[str, float]:
        """Leave it to oneDNN's trace."""
        return {}

    def versions(self) -> str:
        """Return the versions."""
        return f"PyTorch {torch.__version__}, torchao {torchao.__version__}"


def _quantise(network: nn.Module, images: np.ndarray, batch_size: int) -> nn.Module:
    """Return the network quantised after training by PT2E, static and per channel, for batches of this size."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def batches() -> list[torch.Tensor]:
        starts = range(0, CALIBRATION_IMAGES, batch_size)
        chosen = (np.arange(at, at + batch_size) % CALIBRATION_IMAGES for at in starts)
        return [torch.from_numpy(images[rows]).permute(0, 3, 1, 2) for rows in chosen]

    with torch.no_grad():
        samples = batches()
        exported = torch.export.export(network, (samples[0],)).module()
        quantiser = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantiser)
        for sample in samples:
            prepared(sample)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
    return converted


def load(spec: PeerSpec) -> Inductor:
    """Return the engine, loaded."""
    return Inductor(spec)
