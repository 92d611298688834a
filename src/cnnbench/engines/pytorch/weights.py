"""Give a network of PyTorch its weights: from a checkpoint, or seeded ones that need none."""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cnnbench.base.errors import CnnbenchError
from cnnbench.inputs.model_file import check_checkpoint

WRAPPERS = ("state_dict_ema", "state_dict", "model")
"""Keys under which training programs keep the weights, the averaged ones first: they are the ones to evaluate."""

PARALLEL_PREFIX = "module."
"""What DataParallel puts before every key."""

SHOWN = 3
NORMS = (nn.BatchNorm2d, nn.GroupNorm)

BRANCH_DEVIATION = 0.1
"""Of what a seeded residual branch adds to its shortcut: at 1, rounding grows from block to block, and at the end of 50
of them bfloat16's answers are no longer those of float32."""

GATE = ".se.conv_expand"
"""Timm's name of the convolution whose sigmoid multiplies the channels of a squeeze-and-excitation block."""

GATE_DEVIATION = 0.2
"""Of what a squeeze-and-excitation's sigmoid reads, without norms: at 1, its products grow apart between images."""

LOGIT_DEVIATION = 4.0
"""Of the seeded networks' logits: top-1 of 1000 classes then holds a few tenths of the softmax."""


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint (safetensors, NumPy's .npz, or PyTorch's .pth or .pt) into the network, in its own type.

    CnnbenchError, the network unchanged, where the file is missing or cannot be read, or where its keys and shapes are
    not the network's. A count of batches, which only training reads, may lack.
    """
    found = _read_checkpoint(path)
    wanted = module.state_dict()
    problems = {
        "missing": [key for key in wanted if key not in found and not key.endswith(".num_batches_tracked")],
        "unexpected": [key for key in found if key not in wanted],
        "misshapen": [
            f"{key} ({_shape(found[key])}, needed {_shape(value)})"
            for key, value in wanted.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
        raise CnnbenchError(
            f"WEIGHTS={path}: not the weights of this network, whose keys are timm's: {listed}; give a checkpoint of"
            " the same TOPOLOGY, NORM_TYPE and EFFICIENTNET_* parameters"
        )
    module.load_state_dict(found, strict=False)


def seed_weights(module: nn.Module, images: torch.Tensor, seed: int = 1) -> None:
    """Give the network reproducible random weights whose answers differ between images, as a trained one's do.

    Convolutions start as He et al. 2015 (arXiv:1502.01852) have it. Then one pass over the images (float32, N x 3 x S x
    S, two or more) keeps the activations in scale: batch norms take the moments they see; in a network without norms,
    each convolution is scaled to unit variance (Mishkin and Matas 2015, arXiv:1511.06422) and its bias centres its
    channels. Last, the classifier is scaled and shifted so that over the images each class's logits have zero mean, and
    all of them the standard deviation `LOGIT_DEVIATION`. Reproducible by the byte on the same build, CPU and threads.
    """
    if len(images) < 2:
        raise CnnbenchError(f"{len(images)} images to seed the weights on: needed are 2 or more that differ; give them")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():  # in the order of construction, which is fixed
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                fan_in = layer.weight[0].numel()
                layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, NORMS):
                layer.weight.fill_(1)
                layer.bias.zero_()
        for norm in _last_of_branches(module, NORMS):
            norm.weight.fill_(BRANCH_DEVIATION)
        _calibrate(module, images)
        _scale_classifier(module, images)


def _shape(value: torch.Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by their keys, without what training wrapped around them."""
    check_checkpoint(path)
    weights = _READERS.get(path.suffix, _read_pickle)(path)
    return {key.removeprefix(PARALLEL_PREFIX): value for key, value in weights.items()}


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CnnbenchError(f"WEIGHTS={path}: not a whole safetensors file ({error}); fetch it again") from error


def _read_arrays(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CnnbenchError(f"WEIGHTS={path}: not NumPy's arrays of numbers by name ({error})") from error


def _read_pickle(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CnnbenchError(
            f"WEIGHTS={path}: not a file of tensors alone that PyTorch wrote ({reason}); save the network's"
            " state_dict() by itself"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CnnbenchError(
            f"WEIGHTS={path}: holds no tensors by key, neither at its top nor under {', '.join(WRAPPERS)}; save the"
            " network's state_dict() by itself"
        )
    return content


_READERS: Mapping[str, Callable[[Path], Mapping[str, torch.Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_arrays,
}


def _last_of_branches(module: nn.Module, kinds: type | tuple[type, ...]) -> list[nn.Module]:
    """Return the last layer of these kinds of each residual branch; a shortcut's own lie a level below."""
    blocks = [block for block in module.modules() if block is not module and getattr(block, "has_skip", True)]
    layers = [[layer for layer in block.children() if isinstance(layer, kinds)] for block in blocks]
    return [found[-1] for found in layers if len(found) > 1]


def _calibrate(module: nn.Module, images: torch.Tensor) -> None:
    """Set what depends on the activations, by one pass in which each layer already reads what it will."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches, so that the first counts whole
        norm.train()
    hooks = []
    if not any(isinstance(layer, NORMS) for layer in module.modules()):
        hooks = [layer.register_forward_hook(scale) for layer, scale in _scales(module).items()]
    module(images)
    for hook in hooks:
        hook.remove()
    module.eval()


def _scales(module: nn.Module) -> dict[nn.Module, Callable[..., torch.Tensor]]:
    """Return a forward hook for each convolution, which scales its weights to the deviation it is to have."""
    deviations = {layer: 1.0 for layer in module.modules() if isinstance(layer, nn.Conv2d)}
    for layer in _last_of_branches(module, nn.Conv2d):
        deviations[layer] = BRANCH_DEVIATION
    for name, layer in module.named_modules():
        if name.endswith(GATE):
            deviations[layer] = GATE_DEVIATION
    return {layer: partial(_scale, deviation) for layer, deviation in deviations.items()}


def _scale(deviation: float, conv: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Centre a convolution's channels by its bias, then scale it, and return what it answers from now on."""
    centred = output - output.mean((0, 2, 3), keepdim=True)
    scale = deviation / centred.std()
    conv.weight.mul_(scale)
    conv.bias.copy_((conv.bias - output.mean((0, 2, 3))) * scale)
    return centred * scale


def _scale_classifier(module: nn.Module, images: torch.Tensor) -> None:
    classifier = module.get_classifier()
    features: list[torch.Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0].double()))
    module(images)
    hook.remove()
    mean = features[0].mean(0)
    weight = classifier.weight.double()
    weight *= LOGIT_DEVIATION / ((features[0] - mean) @ weight.T).std(correction=0)
    classifier.weight.copy_(weight)
    classifier.bias.copy_(-weight @ mean)
