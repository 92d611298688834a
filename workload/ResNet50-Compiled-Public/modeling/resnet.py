"""Define what is compiled: timm's ResNet between what an image needs and a softmax."""

from pathlib import Path

import torch
from torch import nn

from cnnbench.engines.pytorch.classifier import Classifier
from cnnbench.engines.pytorch.networks import build
from cnnbench.engines.pytorch.weights import load_weights
from cnnbench.inputs.networks import Network


def resnet(weights: Path, name: str = "resnet50") -> nn.Module:
    """Return a network in eager mode: images N x 224 x 224 x 3, normalised, to probabilities N x 1000.

    `weights`: a state dict with timm's names. Raises CnnbenchError for one that is not the network's.
    """
    network = build(Network(name))
    load_weights(network, weights)
    return Classifier(network.to(memory_format=torch.channels_last), normalize_inside=False).eval()
