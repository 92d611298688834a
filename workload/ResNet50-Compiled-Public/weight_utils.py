"""Bring timm's weights of ResNet-50 to the names and form of the compiled network, with NumPy alone.

    python weight_utils.py WEIGHTS OUTPUT.npz

The compiled network has each batch norm folded into the convolution before it, which gets a bias in its stead.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

EPSILON = 1e-5
"""Of timm's batch norms."""
UNUSED = "num_batches_tracked"
"""What only training reads."""
SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a state dict by their keys: of NumPy, of safetensors, or, where PyTorch is, of that."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix in (".pt", ".pth"):
        import torch

        return {key: value.numpy() for key, value in torch.load(path, weights_only=True).items()}
    raise ValueError(f"{path}: its format is not known by its name; give one of {', '.join(SUFFIXES)}")


def norm_of(convolution: str) -> str:
    """Return the name of the batch norm that follows a convolution: conv1 has bn1, downsample.0 downsample.1."""
    head, _, last = convolution.rpartition(".")
    follows = "1" if last == "0" else last.replace("conv", "bn")
    return f"{head}.{follows}" if head else follows


def fold(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights of the compiled network; raise ValueError naming what is missing of the state, or surplus.

    Whether they are all that a network has, and of its shapes, is found when they are put into it.
    """
    left = {key: value for key, value in state.items() if not key.endswith(UNUSED)}
    folded = {f"network.fc.{name}": left.pop(f"fc.{name}") for name in ("weight", "bias") if f"fc.{name}" in left}
    missing = [f"fc.{name}" for name in ("weight", "bias") if f"network.fc.{name}" not in folded]
    for key in [key for key, value in left.items() if value.ndim == 4]:
        convolution = key.removesuffix(".weight")
        parts = [f"{norm_of(convolution)}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        if lacking := [part for part in parts if part not in left]:
            missing += lacking
            continue
        weight, (gamma, beta, mean, variance) = left.pop(key), (left.pop(part) for part in parts)
        scale = gamma / np.sqrt(variance + np.float32(EPSILON))
        folded[f"network.{convolution}.weight"] = weight * scale[:, None, None, None]
        folded[f"network.{convolution}.bias"] = beta - mean * scale
    if missing or left:
        raise ValueError(f"not ResNet-50's weights by timm's names: missing {missing[:3]}, surplus {sorted(left)[:3]}")
    return folded


def main() -> int:
    """Convert a file; return the exit code."""
    if len(sys.argv) != 3 or not sys.argv[2].endswith(".npz"):
        sys.exit("weight_utils.py: needed WEIGHTS OUTPUT.npz")
    source, destination = map(Path, sys.argv[1:])
    try:
        folded = fold(read_state_dict(source))
        np.savez(destination, **folded)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{source}: {error}")
    print(f"{destination}: {len(folded)} arrays, {destination.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
