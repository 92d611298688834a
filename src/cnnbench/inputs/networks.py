"""Name the networks that engines can be handed, and check how one is to be built.

Nothing of PyTorch is imported: the controller reads this too.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from cnnbench.base.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in 0 to 1, over ImageNet's training images: what every network's input is normalised by."""

CLASSES = 1000

NormType = Literal["batch", "group", "none"]
Interpolation = Literal["bilinear", "bicubic"]

DEFAULT_NUM_GROUPS = 32
"""Of group norm, as Wu and He 2018 (arXiv:1803.08494) recommend."""


@dataclass(frozen=True)
class Architecture:
    """One published network.

    `timm_name` is timm's name of it. `parameters` and `gmacs` (1e9 multiply-accumulates of one image) are those that
    torchvision publishes, `num_params` and `_ops` of its IMAGENET1K_V1 weights; the papers round theirs.
    `common_channels`: the largest number that divides the channels of every norm, whatever the expand ratio.
    `image_size` is the input's side in pixels; `crop_share` is that side over the shorter side of the image before the
    centre crop, which is resized by `interpolation`.
    """

    timm_name: str
    family: Literal["resnet", "mobilenet", "efficientnet", "resnext"]
    parameters: int
    gmacs: float
    common_channels: int
    image_size: int = 224
    crop_share: float = 0.875
    interpolation: Interpolation = "bilinear"


ARCHITECTURES = {
    "resnet18": Architecture("resnet18", "resnet", 11_689_512, 1.814, 64),
    "resnet34": Architecture("resnet34", "resnet", 21_797_672, 3.664, 64),
    "resnet50": Architecture("resnet50", "resnet", 25_557_032, 4.089, 64),
    "resnet101": Architecture("resnet101", "resnet", 44_549_160, 7.801, 64),
    "resnet152": Architecture("resnet152", "resnet", 60_192_808, 11.514, 64),
    "mobilenet_v3_small": Architecture(
        "mobilenetv3_small_100", "mobilenet", 2_542_856, 0.057, 8, interpolation="bicubic"
    ),
    "mobilenet_v3_large": Architecture(
        "mobilenetv3_large_100", "mobilenet", 5_483_032, 0.217, 8, interpolation="bicubic"
    ),
    "efficientnet_b0": Architecture("efficientnet_b0", "efficientnet", 5_288_548, 0.386, 8, interpolation="bicubic"),
    "efficientnet_b4": Architecture(  # the authors' evaluation resizes to 32 pixels more than the crop
        "efficientnet_b4", "efficientnet", 19_341_616, 4.394, 8, 380, 380 / 412, "bicubic"
    ),
    "resnext50": Architecture("resnext50_32x4d", "resnext", 25_028_904, 4.23, 64),
    "resnext101": Architecture("resnext101_32x8d", "resnext", 88_791_336, 16.414, 64),
}


EMBEDDED = "resnet50v1_5"
"""The network of the embedded graph: ResNet50 with the stride of a downsampling block in its 3 x 3 convolution."""

TOPOLOGIES = (EMBEDDED, *ARCHITECTURES)
"""What TOPOLOGY may be."""


@dataclass(frozen=True)
class ImageForm:
    """What an engine is handed of an image: a square of `size` pixels a side, RGB, the last axis being the colours.

    `crop_share`: the part of the scaled image's shorter side that the square is. `interpolation`: bilinear or bicubic.
    `as_bytes`: uint8, else float32. `normalized`: whether ImageNet's mean and deviation have been taken off it.
    """

    size: int
    crop_share: float
    interpolation: str
    as_bytes: bool
    normalized: bool

    @property
    def image_bytes(self) -> int:
        """How large an image is."""
        return self.size * self.size * 3 * (1 if self.as_bytes else 4)


@dataclass(frozen=True)
class Network:
    """What is to be built; `dataclasses.asdict` is its JSON, and `Network(**fields)` reads that back.

    `expand_ratio` (of the MBConv blocks beyond the first stage) and `group_dim` (channels in a group of their depthwise
    convolutions) are EfficientNet's only; None is as published, 6 and 1.
    """

    name: str
    norm_type: NormType = "batch"
    norm_num_groups: int = DEFAULT_NUM_GROUPS
    fast_groupnorm: bool = False
    expand_ratio: float | None = None
    group_dim: int | None = None

    @property
    def architecture(self) -> Architecture:
        """Return the published network that this is, or derives from."""
        return ARCHITECTURES[self.name]


def check_network(network: Network) -> None:
    """Raise UsageError where the fields name no network or contradict each other.

    A group count must divide the channels of every norm: a smaller one for some layers would be another network than
    was asked for.
    """
    if network.name not in ARCHITECTURES:
        raise UsageError(f"MODEL={network.name}: no such network; use one of {', '.join(ARCHITECTURES)}")
    if network.norm_type not in get_args(NormType):
        raise UsageError(f"NORM_TYPE={network.norm_type}: must be one of {', '.join(get_args(NormType))}")
    if network.norm_num_groups < 1:
        raise UsageError(f"NORM_NUM_GROUPS={network.norm_num_groups}: must be 1 or more")
    if network.norm_type != "group":
        instead = f"needs NORM_TYPE=group, and this is NORM_TYPE={network.norm_type}; set that, or leave this out"
        if network.norm_num_groups != DEFAULT_NUM_GROUPS:
            raise UsageError(f"NORM_NUM_GROUPS={network.norm_num_groups}: {instead}")
        if network.fast_groupnorm:
            raise UsageError(f"ENABLE_FAST_GROUPNORM=true: {instead}")
    elif (common := network.architecture.common_channels) % network.norm_num_groups:
        *usable, most = [str(count) for count in range(1, common + 1) if common % count == 0]
        raise UsageError(
            f"NORM_NUM_GROUPS={network.norm_num_groups}: does not divide the channels of every norm of {network.name}; "
            f"use {', '.join(usable)} or {most}"
        )
    _check_efficientnet(network)


def _check_efficientnet(network: Network) -> None:
    owners = [name for name, architecture in ARCHITECTURES.items() if architecture.family == "efficientnet"]
    options = {"EFFICIENTNET_EXPAND_RATIO": network.expand_ratio, "EFFICIENTNET_GROUP_DIM": network.group_dim}
    for parameter, value in options.items():
        if value is None:
            continue
        if network.name not in owners:
            raise UsageError(
                f"{parameter}={value:g}: only {' and '.join(owners)} have it, and this is {network.name}; leave it out"
            )
        if not 1 <= value < float("inf"):
            raise UsageError(f"{parameter}={value:g}: must be 1 or more")
