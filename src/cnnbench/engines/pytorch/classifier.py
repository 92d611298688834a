"""Put before a network what turns handed-over images into its input, and behind it the softmax."""

import torch
from torch import nn

from cnnbench.inputs.networks import IMAGENET_MEAN, IMAGENET_STD

DATA_TYPES = {
    "fp32": torch.float32,
    "bfloat32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Of the network, by the types of number; bfloat32 is float32 that oneDNN may compute in bfloat16."""


class Classifier(nn.Module):
    """A network with its input's handling: images N x size x size x 3 to probabilities (float32, N x classes).

    What arrives with the colours last is the network's channels-last input as it stands; nothing is copied for that.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, network: nn.Module, normalize_inside: bool) -> None:
        super().__init__()
        self.network, self._normalize = network, normalize_inside
        self._data_type = next(network.parameters()).dtype
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def take(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's input, N x 3 x size x size."""
        pixels = images.permute(0, 3, 1, 2)
        if self._normalize:
            pixels = (pixels - self.mean) / self.deviation
        return pixels.to(self._data_type)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities."""
        return torch.softmax(self.network(self.take(images)).float(), 1)
