"""Build the networks in PyTorch out of timm's, count their multiply-accumulates, and cut them into stages."""

import importlib.util
import operator
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnbench.engines.pytorch.group_norm import FastGroupNorm, GroupNormAct
from cnnbench.engines.pytorch.layer_names import check_splits
from cnnbench.inputs.networks import CLASSES, Network, check_network

EFFICIENTNET_SCALES = {"efficientnet_b0": (1.0, 1.0), "efficientnet_b4": (1.4, 1.8)}
"""Multipliers of channels and of blocks (Tan and Le 2019, arXiv:1905.11946)."""

PUBLISHED_EXPAND_RATIO, PUBLISHED_GROUP_DIM = 6, 1


def build(network: Network) -> nn.Module:
    """Return the network, in eval mode, float32, with timm's random weights: N x 3 x S x S to logits N x 1000.

    Norms of type "group" take the place, the epsilon, the activation and the keys of timm's batch norms. Without norms,
    each convolution gets a bias in their stead.
    """
    check_network(network)
    _define_operators()
    import timm

    if network.architecture.family == "efficientnet":
        module = _build_efficientnet(network)
    else:
        module = timm.create_model(network.architecture.timm_name, pretrained=False, num_classes=CLASSES)
    if network.norm_type == "group":
        _group_norms(module, network)
    elif network.norm_type == "none":
        _drop_norms(module)
    module.name = network.name
    return module.eval()


def count_macs(module: nn.Module, size: int) -> int:
    """Return the multiply-accumulates of one image of `size` x `size` pixels; nothing is computed."""
    shapes = {name: value.to("meta") for name, value in module.state_dict(keep_vars=True).items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(module, shapes, torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def split(module: nn.Module, layers: Sequence[str]) -> list[nn.Module]:
    """Cut the network before the first operation of each named layer, and return the stages, which share its weights.

    `layers` are module paths in the network's order, such as `layer2` or `blocks.4.0`. Each stage takes what the one
    before it returns: a tensor, or a tuple of those that are still needed where a cut crosses a shortcut. UsageError
    where a name is unknown, repeated or out of order.
    """
    check_splits(module.name, layers)
    graph = _Tracer().trace(module)
    nodes = _operations(graph)
    (images,) = graph.find_nodes(op="placeholder")
    (output,) = graph.find_nodes(op="output")
    first = _first_nodes(nodes)
    starts = [first[layer] for layer in layers]
    position = {node: index for index, node in enumerate(nodes)} | {images: -1}
    stages: list[nn.Module] = []
    for start, end in pairwise([0, *starts, len(nodes)]):
        taken = [images] if start == 0 else _crossing(position, output, start)
        given = _crossing(position, output, end)
        stages.append(fx.GraphModule(module, _stage_graph(taken, nodes[start:end], given)))
    return stages


def first_nodes(module: nn.Module) -> dict[str, int]:
    """Return the number of the first operation of each layer, as the network runs."""
    return _first_nodes(_operations(_Tracer().trace(module)))


@torch.no_grad()
def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, which gets a bias; an activation stays."""
    graph = _Tracer().trace(module)
    norms = _batch_norms(module)
    for node in _operations(graph):
        if node.target in norms:
            (before,) = node.all_input_nodes
            conv, norm = module.get_submodule(str(before.target)), norms[str(node.target)]
            assert isinstance(conv, nn.Conv2d)
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            bias = 0 if conv.bias is None else conv.bias
            conv.weight *= scale.reshape(-1, 1, 1, 1)
            conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
            module.set_submodule(str(node.target), _activation(norm))


@cache
def _define_operators() -> torch.library.Library | None:
    """Declare what torchvision declares when its own operators are there, so that it and timm can be imported.

    PyPI's torchvision is built for CUDA: beside a PyTorch for CPUs its library cannot be loaded, and its import then
    fails for want of two schemas that no network here uses. They go with the returned library, so it is kept.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:  # as torchvision does, which goes on without it as far as its next line
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def _build_efficientnet(network: Network) -> nn.Module:
    """Return timm's EfficientNet with another expand ratio and channels per group, which its own entries fix."""
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    channels, depth = EFFICIENTNET_SCALES[network.name]
    ratio = PUBLISHED_EXPAND_RATIO if network.expand_ratio is None else network.expand_ratio
    blocks = [
        ["ds_r1_k3_s1_e1_c16_se0.25"],
        [f"ir_r2_k3_s2_e{ratio:g}_c24_se0.25"],
        [f"ir_r2_k5_s2_e{ratio:g}_c40_se0.25"],
        [f"ir_r3_k3_s2_e{ratio:g}_c80_se0.25"],
        [f"ir_r3_k5_s1_e{ratio:g}_c112_se0.25"],
        [f"ir_r4_k5_s2_e{ratio:g}_c192_se0.25"],
        [f"ir_r1_k3_s1_e{ratio:g}_c320_se0.25"],
    ]
    scaled = partial(round_channels, multiplier=channels)
    module = EfficientNet(
        decode_arch_def(blocks, depth),
        num_classes=CLASSES,
        num_features=scaled(1280),
        round_chs_fn=scaled,
        act_layer=nn.SiLU,
    )
    if network.group_dim not in (None, PUBLISHED_GROUP_DIM):
        _group_depthwise(module, network.group_dim)
    return module


def _group_depthwise(module: nn.Module, group_dim: int) -> None:
    """Give the depthwise convolutions `group_dim` channels a group.

    Where that does not divide the channels, as 16 does not the 24 of efficientnet_b4's second block, it is the next
    number that does: Graphcore's count of groups, channels // group_dim, wherever that can be built.
    """
    for name, conv in list(module.named_modules()):
        if name.rpartition(".")[2] != "conv_dw":
            continue
        groups = max(conv.in_channels // group_dim, 1)
        while conv.in_channels % groups:
            groups -= 1
        grouped = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            groups=groups,
            bias=conv.bias is not None,
        )
        module.set_submodule(name, grouped)


def _batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: norm for name, norm in module.named_modules() if isinstance(norm, nn.BatchNorm2d)}


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what timm's norm applies to its own result, if anything."""
    return getattr(norm, "act", nn.Identity())


def _group_norms(module: nn.Module, network: Network) -> None:
    norm_type = FastGroupNorm if network.fast_groupnorm else GroupNormAct
    for name, norm in _batch_norms(module).items():
        grouped = norm_type(network.norm_num_groups, norm.num_features, norm.eps, _activation(norm))
        module.set_submodule(name, grouped)


def _drop_norms(module: nn.Module) -> None:
    for name, norm in _batch_norms(module).items():
        module.set_submodule(name, _activation(norm))
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))


class _Tracer(fx.Tracer):
    """A tracer that keeps every norm whole, whoever's it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)) or super().is_leaf_module(m, module_qualified_name)


def _operations(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op not in ("placeholder", "output")]


def _first_nodes(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """Return the index of each layer's first node."""
    first: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            first.setdefault(path, index)
    return first


def _crossing(position: dict[fx.Node, int], output: fx.Node, cut: int) -> list[fx.Node]:
    """Return the values made before the cut that something after it reads, in the order they are made."""
    after = position | {output: len(position)}
    return [node for node, at in position.items() if at < cut and any(after[user] >= cut for user in node.users)]


def _stage_graph(taken: Sequence[fx.Node], nodes: Sequence[fx.Node], given: Sequence[fx.Node]) -> fx.Graph:
    """Return the graph of one stage: one input, a tuple where several values are taken, and likewise one output."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    inputs = (
        [value] if len(taken) == 1 else [graph.call_function(operator.getitem, (value, i)) for i in range(len(taken))]
    )
    copies = dict(zip(taken, inputs, strict=True))
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    results: tuple[Any, ...] = tuple(copies[node] for node in given)
    graph.output(results[0] if len(results) == 1 else results)
    return graph
