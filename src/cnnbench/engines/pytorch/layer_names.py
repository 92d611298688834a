"""Know the layers of timm's networks by name, in the order they run, without PyTorch: where a network can be cut."""

from collections.abc import Sequence
from functools import cache

from cnnbench.base.errors import UsageError

RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
    "resnext50": ("bottleneck", (3, 4, 6, 3)),
    "resnext101": ("bottleneck", (3, 4, 23, 3)),
}
"""The kind of the blocks, and how many there are in each stage."""

MOBILE = {
    "mobilenet_v3_small": "separable+se inverted*2 inverted+se*3 inverted+se*2 inverted+se*3 plain",
    "mobilenet_v3_large": "separable+skip inverted*2 inverted+se*3 inverted*4 inverted+se*2 inverted+se*3 plain",
    "efficientnet_b0": "separable+se inverted+se*2 inverted+se*2 inverted+se*3 inverted+se*3 inverted+se*4 inverted+se",
    "efficientnet_b4": "separable+se*2 inverted+se*4 inverted+se*4 inverted+se*6 inverted+se*6 inverted+se*8 "
    "inverted+se*2",
}
"""The stages: the kind of their blocks, what these have besides, and how many there are; all but the first skip."""

BLOCKS = {
    "basic": "conv1 bn1 drop_block act1 aa conv2 bn2 {down} act2",
    "bottleneck": "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 {down} act3",
    "separable": "conv_dw bn1 aa se {se} conv_pw bn2 {skip}",
    "inverted": "conv_pw bn1 conv_dw bn2 aa se {se} conv_pwl bn3 {skip}",
    "plain": "conv bn1 aa",
}
PARTS = {
    "down": "downsample.0 downsample.1",
    "se": "se.conv_reduce se.act1 se.conv_expand se.gate",
    "skip": "drop_path",
}
POOL = "global_pool.pool global_pool.flatten"


def check_splits(network: str, layers: Sequence[str]) -> None:
    """Raise UsageError unless a network can be cut before each of the layers, in this order."""
    first, before = first_operations(network), 0
    for number, layer in enumerate(layers):
        if layer not in first:
            known = [name for name in first if name.count(".") < 2]
            raise UsageError(f"PIPELINE_SPLITS={layer}: no such layer of {network}; it has {', '.join(known)}")
        if first[layer] <= before:
            after = f"after {layers[number - 1]}" if number else "after the first layer"
            raise UsageError(
                f"PIPELINE_SPLITS={','.join(layers)}: {layer} does not start {after}, so that the stage before it"
                " would be empty; give each layer once, in the network's order"
            )
        before = first[layer]


@cache
def first_operations(network: str) -> dict[str, int]:
    """Return the layers of a network, in order, each with the number of the first operation that is its own."""
    operations = _resnet(*RESNETS[network]) if network in RESNETS else _mobile(network)
    found: dict[str, int] = {}
    for number, operation in enumerate(operations):
        words = operation.split(".")
        for length in range(1, len(words) + 1):
            found.setdefault(".".join(words[:length]), number)
    return found


def _resnet(kind: str, stages: Sequence[int]) -> list[str]:
    names = ["conv1", "bn1", "act1", "maxpool"]
    for stage, blocks in enumerate(stages, start=1):
        for block in range(blocks):
            widened = block == 0 and (stage > 1 or kind == "bottleneck")
            names += _block(f"layer{stage}.{block}", kind, {"down"} if widened else set())
    return [*names, *POOL.split(), "fc"]


def _mobile(network: str) -> list[str]:
    names = ["conv_stem", "bn1"]
    for stage, text in enumerate(MOBILE[network].split()):
        words, _, count = text.partition("*")
        kind, *parts = words.split("+")
        for block in range(int(count or 1)):
            names += _block(f"blocks.{stage}.{block}", kind, {*parts, "skip"} if block else set(parts))
    if network.startswith("efficientnet"):
        return [*names, "conv_head", "bn2", *POOL.split(), "classifier"]
    return [*names, *POOL.split(), *["conv_head", "norm_head", "act2", "flatten", "classifier"]]


def _block(path: str, kind: str, parts: set[str]) -> list[str]:
    names = BLOCKS[kind].format(**{part: text if part in parts else "" for part, text in PARTS.items()})
    return [f"{path}.{name}" for name in names.split()]
