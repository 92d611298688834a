"""Define what is compiled: timm's ResNet-50 with what an image needs before it, and a softmax behind."""

from pathlib import Path

import torch
from torch import nn

from cnnbench.engines.pytorch.classifier import Classifier
from cnnbench.engines.pytorch.networks import build
from cnnbench.engines.pytorch.weights import load_weights
from cnnbench.inputs.networks import Network


def resnet50(weights: Path) -> nn.Module:
    """Return ResNet-50 in eager mode: images N x 224 x 224 x 3, normalised, to probabilities N x 1000."""
    network = build(Network("resnet50"))
    load_weights(network, weights)
    return Classifier(network.to(memory_format=torch.channels_last), normalize_inside=False).eval()
