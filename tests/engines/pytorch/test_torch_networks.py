import hashlib
import math
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cnnbench.base.errors import CnnbenchError, UsageError  # noqa: E402
from cnnbench.engines.pytorch.classifier import Classifier  # noqa: E402
from cnnbench.engines.pytorch.group_norm import FastGroupNorm, GroupNormAct  # noqa: E402
from cnnbench.engines.pytorch.layer_names import first_operations  # noqa: E402
from cnnbench.engines.pytorch.networks import build, count_macs, first_nodes, fold_norms, split  # noqa: E402
from cnnbench.engines.pytorch.prepare import export  # noqa: E402
from cnnbench.engines.pytorch.weights import load_weights, seed_weights  # noqa: E402
from cnnbench.inputs.networks import ARCHITECTURES, Network  # noqa: E402

PARAMETERS_BOUND, MACS_BOUND = 0.0, 0.01
"""Relative; torchvision prints the MACs of the small networks with two digits."""

NORMS = {"batch": 32, "group": 8, "none": 32}
"""Norm types, with a count of groups that divides every network's channels."""

torch.set_num_threads(1)  # two that share a busy processor spin


def shapes_only(network):
    """Build without memory or time: on the meta device."""
    with torch.device("meta"):
        return build(network)


def seeded(network, images):
    module = shapes_only(network).to_empty(device="cpu")  # whatever seeding forgets is then garbage
    seed_weights(module, images)
    return module


def images(count=4, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, size=size, mode="bilinear")


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def of_type(module, *types):
    return [layer for layer in module.modules() if isinstance(layer, types)]


def digest(module):
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()


@pytest.fixture(scope="module")
def resnet18():
    return seeded(Network("resnet18"), images())


class TestBuild:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_parameters_and_macs_are_the_published_ones(self, name):
        module, published = shapes_only(Network(name)), ARCHITECTURES[name]
        parameters = sum(parameter.numel() for parameter in module.parameters())
        assert parameters == pytest.approx(published.parameters, rel=PARAMETERS_BOUND)
        assert count_macs(module, published.image_size) / 1e9 == pytest.approx(published.gmacs, rel=MACS_BOUND)

    @pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b4"])
    def test_efficientnet_as_published_is_timms(self, name):
        module = shapes_only(Network(name, expand_ratio=6, group_dim=1))
        import timm

        with torch.device("meta"):
            theirs = timm.create_model(ARCHITECTURES[name].timm_name)
        assert list(shapes(module).items()) == list(shapes(theirs).items())
        assert [str(layer) for layer in of_type(module, nn.Conv2d)] == [
            str(layer) for layer in of_type(theirs, nn.Conv2d)
        ]

    @pytest.mark.parametrize("name", ["resnet18", "resnext50", "mobilenet_v3_small", "efficientnet_b0"])
    def test_the_norm_type_is_every_layers(self, name):
        batch, group, none = (shapes_only(Network(name, norm, groups)) for norm, groups in NORMS.items())
        norms = of_type(batch, nn.BatchNorm2d)
        assert not of_type(batch, nn.GroupNorm)
        assert [norm.num_channels for norm in of_type(group, nn.GroupNorm)] == [norm.num_features for norm in norms]
        assert {norm.num_groups for norm in of_type(group, nn.GroupNorm)} == {8}
        assert not of_type(group, nn.BatchNorm2d)
        assert not of_type(none, nn.GroupNorm, nn.BatchNorm2d)
        assert all(conv.bias is not None for conv in of_type(none, nn.Conv2d))
        assert count_macs(group, 64) == count_macs(none, 64) == count_macs(batch, 64)

    def test_group_norms_have_the_keys_of_batch_norms(self):
        batch = {key for key in shapes(shapes_only(Network("mobilenet_v3_small"))) if "running" not in key}
        fast = shapes(shapes_only(Network("mobilenet_v3_small", "group", 8, fast_groupnorm=True)))
        assert fast == shapes(shapes_only(Network("mobilenet_v3_small", "group", 8)))
        assert set(fast) == {key for key in batch if not key.endswith("num_batches_tracked")}

    def test_the_channels_of_all_norms_have_the_common_divisor_that_group_counts_are_checked_by(self):
        for name, architecture in ARCHITECTURES.items():
            ratios = (None, 1, 1.01, 4.3, 7.77, 16) if architecture.family == "efficientnet" else (None,)
            for ratio in ratios:
                norms = of_type(shapes_only(Network(name, expand_ratio=ratio)), nn.BatchNorm2d)
                found = math.gcd(*(norm.num_features for norm in norms))
                assert (name, ratio, found) == (name, ratio, architecture.common_channels)

    def test_group_dim_changes_only_the_depthwise_convolutions(self):
        plain, grouped = (shapes(shapes_only(Network("efficientnet_b0", group_dim=dim))) for dim in (None, 16))
        changed = {key for key in plain if plain[key] != grouped[key]}
        assert changed == {key for key in plain if key.endswith("conv_dw.weight")}
        assert {grouped[key][1] for key in changed} == {16}

    def test_group_dim_that_does_not_divide_takes_the_next_that_does(self):
        module = shapes_only(Network("efficientnet_b4", group_dim=16))
        sizes = {name: layer.in_channels // layer.groups for name, layer in module.named_modules() if "conv_dw" in name}
        assert {name for name, size in sizes.items() if size != 16} == {"blocks.0.1.conv_dw"}
        assert sizes["blocks.0.1.conv_dw"] == 24

    def test_expand_ratio_changes_only_the_inside_of_later_blocks(self):
        plain, narrow = (shapes_only(Network("efficientnet_b0", expand_ratio=ratio)) for ratio in (None, 4))
        changed = {key for key, shape in shapes(plain).items() if shape != shapes(narrow)[key]}
        assert changed
        assert all(key.startswith("blocks.") and not key.startswith("blocks.0.") for key in changed)
        expansions = [layer for name, layer in narrow.named_modules() if name.endswith("conv_pw") and "s.0" not in name]
        assert {conv.out_channels / conv.in_channels for conv in expansions} == {4}


class TestExport:
    def test_folded_norms_leave_answers_as_they_were(self):
        for name in ("resnet18", "resnext50", "mobilenet_v3_small", "efficientnet_b0"):
            module = seeded(Network(name), images())
            with torch.no_grad():
                wanted = module(images())
                fold_norms(module)
                torch.testing.assert_close(module(images()), wanted, atol=1e-4, rtol=1e-4)
            assert not of_type(module, nn.BatchNorm2d)
            assert all(conv.bias is not None for conv in of_type(module, nn.Conv2d))

    @pytest.mark.parametrize("norm_type", NORMS)
    def test_a_network_is_one_file_for_any_batch_with_the_operations_that_become_int8(self, tmp_path, norm_type):
        import onnx

        classifier = Classifier(seeded(Network("resnet18", norm_type, NORMS[norm_type]), images()), True).eval()
        export(classifier, torch.zeros(2, 64, 64, 3, dtype=torch.uint8), tmp_path / "network.onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
        model = onnx.load(tmp_path / "network.onnx")
        operations = Counter(node.op_type for node in model.graph.node)
        assert {name: operations[name] for name in ("Conv", "Gemm", "MaxPool", "GlobalAveragePool", "Softmax")} == {
            "Conv": 20,
            "Gemm": 1,
            "MaxPool": 1,
            "GlobalAveragePool": 1,
            "Softmax": 1,
        }
        assert operations["InstanceNormalization"] == (20 if norm_type == "group" else 0)
        assert not operations["BatchNormalization"]
        written = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        weights = [written[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
        for conv, weight in zip(of_type(classifier, nn.Conv2d), weights, strict=True):  # to the bit: int8 hangs on it
            assert torch.equal(torch.tensor(weight), conv.weight)
        (taken,), (given,) = model.graph.input, model.graph.output
        assert (taken.name, given.name) == ("images", "probabilities")
        assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [one.dim_value for one in taken.type.tensor_type.shape.dim] == [0, 64, 64, 3]
        assert not [node.name for node in model.graph.node if node.metadata_props]  # paths of this machine


class TestGroupNorm:
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("mean", [0, 3])
    def test_the_fast_one_agrees_with_pytorchs(self, mean, channels_last):
        plain, fast = (norm_type(4, 24, 1e-5, nn.SiLU()) for norm_type in (GroupNormAct, FastGroupNorm))
        nn.init.normal_(plain.weight, generator=torch.Generator().manual_seed(1))
        fast.load_state_dict(plain.state_dict())
        x = torch.randn(2, 24, 28, 28, generator=torch.Generator().manual_seed(2)) + mean
        x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        with torch.no_grad():
            expected = plain(x)
            assert torch.equal(fast(x), expected)
            torch.testing.assert_close(fast.act(fast.in_two_passes(x)), expected, atol=1e-4, rtol=0)
            compiled = torch.compile(fast, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), expected, atol=1e-4, rtol=0)

    def test_a_constant_input_is_finite(self):
        assert FastGroupNorm(4, 8, 1e-5, nn.ReLU()).in_two_passes(torch.full((1, 8, 7, 7), 1e3)).isfinite().all()


class TestSeedWeights:
    @pytest.mark.parametrize("norm_type", NORMS)
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_layer_answers_finite_numbers_and_images_differ(self, name, norm_type):
        module = seeded(Network(name, norm_type, NORMS[norm_type]), images(size=32))
        broken = []
        for path, layer in module.named_modules():
            layer.register_forward_hook(
                lambda _layer, _inputs, output, path=path: None if output.isfinite().all() else broken.append(path)
            )
        with torch.no_grad():
            logits = module(images(size=32))
        assert broken == []
        assert logits.shape == (4, 1000)
        assert logits.std(correction=0).item() == pytest.approx(4, rel=0.01)
        assert logits.mean(0).abs().max() < 0.01
        assert len(logits.argmax(1).unique()) > 1

    def test_they_are_reproducible_and_follow_the_seed(self):
        first, again, other = (shapes_only(Network("mobilenet_v3_small")).to_empty(device="cpu") for _ in range(3))
        for module, seed in ((first, 1), (again, 1), (other, 2)):
            torch.rand(5)  # the global generator is not read
            seed_weights(module, images(), seed)
        assert digest(first) == digest(again) != digest(other)

    def test_convolutions_without_norms_keep_unit_variance(self):
        module, deviations = seeded(Network("resnet18", "none"), images()), []
        module.layer2[0].conv1.register_forward_hook(lambda *call: deviations.append(call[-1].std().item()))
        with torch.no_grad():
            module(images())
        assert deviations == [pytest.approx(1, rel=0.01)]

    def test_bfloat16_answers_as_float32_at_the_end_of_50_blocks(self):
        module = seeded(Network("resnet152"), images())
        with torch.no_grad():
            wanted, rounded = module(images()), module.bfloat16()(images().bfloat16()).float()
        assert (wanted - rounded).std() < 0.1 * wanted.std()

    def test_one_image_is_too_few(self):
        with pytest.raises(CnnbenchError, match="1 images"):
            seed_weights(shapes_only(Network("resnet18")), images(1))


class TestLoadWeights:
    @pytest.fixture
    def other(self):
        return shapes_only(Network("resnet18")).to_empty(device="cpu")

    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
    @pytest.mark.parametrize("suffix", ["pth", "pt"])
    def test_pickles_are_read_wrapped_and_prefixed(self, resnet18, other, tmp_path, suffix, wrapper):
        weights = {f"module.{key}": value for key, value in resnet18.state_dict().items()}
        torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / f"weights.{suffix}")
        load_weights(other, tmp_path / f"weights.{suffix}")
        assert digest(other) == digest(resnet18)

    def test_safetensors_are_read(self, resnet18, other, tmp_path):
        self.save(resnet18.state_dict(), tmp_path)
        load_weights(other, tmp_path / "weights.safetensors")
        assert digest(other) == digest(resnet18)

    def test_arrays_of_numpy_are_read(self, resnet18, other, tmp_path):
        weights = {key: value.numpy() for key, value in resnet18.state_dict().items()}
        np.savez(tmp_path / "weights.npz", **weights)
        load_weights(other, tmp_path / "weights.npz")
        assert digest(other) == digest(resnet18)

    def test_counts_of_batches_may_lack(self, resnet18, other, tmp_path):
        weights = {key: value for key, value in resnet18.state_dict().items() if "num_batches" not in key}
        self.save(weights, tmp_path)
        load_weights(other, tmp_path / "weights.safetensors")
        assert torch.equal(other.fc.weight, resnet18.fc.weight)

    def test_other_keys_and_shapes_are_told_and_nothing_is_loaded(self, resnet18, other, tmp_path):
        weights = resnet18.state_dict()
        self.save(
            {key: value for key, value in weights.items() if not key.startswith("layer4")}
            | {"head.weight": torch.zeros(1), "fc.weight": torch.zeros(10, 512)},
            tmp_path,
        )
        before = digest(other)
        with pytest.raises(CnnbenchError) as raised:
            load_weights(other, tmp_path / "weights.safetensors")
        assert str(raised.value).startswith(f"WEIGHTS={tmp_path}/weights.safetensors: not the weights of this network")
        assert "25 missing: layer4.0.conv1.weight, layer4.0.bn1.weight, layer4.0.bn1.bias, ...;" in str(raised.value)
        assert "1 unexpected: head.weight; 1 misshapen: fc.weight (10 x 512, needed 1000 x 512);" in str(raised.value)
        assert "give a checkpoint of the same TOPOLOGY" in str(raised.value)
        assert digest(other) == before

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("none.pth", None, "no such file"),
            ("weights.bin", b"", "its format is not known by its name"),
            ("weights.safetensors", b"12", "not a whole safetensors file"),
            ("weights.npz", b"PK", "not a whole file of NumPy's arrays by name"),
            ("weights.pth", b"PK\3\4 and no more", "not a file of tensors alone"),
            ("weights.pt", b"", "not a file of tensors alone"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_told(self, other, tmp_path, name, content, message):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CnnbenchError, match=f"^WEIGHTS={tmp_path}/{name}: {message}.*; "):
            load_weights(other, tmp_path / name)

    @pytest.mark.parametrize("content", [{"epoch": 3}, [1], Network("resnet18")])
    def test_a_file_without_tensors_is_told(self, other, tmp_path, content):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(CnnbenchError, match=r"save the network's state_dict\(\) by itself$"):
            load_weights(other, tmp_path / "weights.pth")

    def save(self, weights, folder):
        from safetensors.torch import save_file

        save_file(weights, folder / "weights.safetensors")


class TestSplit:
    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            ("resnet18", ["layer2"]),
            ("resnet18", ["layer1.1", "layer2.1.bn2", "layer2.1.act2", "layer4", "fc"]),  # within shortcuts, too
            ("resnet18", []),
            ("mobilenet_v3_small", ["blocks.2.0.se", "conv_head"]),
            ("efficientnet_b0", ["blocks.4"]),
        ],
    )
    def test_the_stages_answer_together_as_the_whole(self, name, layers):
        module = seeded(Network(name), images())
        stages = split(module, layers)
        assert len(stages) == len(layers) + 1
        with torch.no_grad():
            expected, value = module(images(2, seed=1)), images(2, seed=1)
            for stage in stages:
                value = stage(value)
        assert torch.equal(value, expected)

    def test_each_stage_has_its_own_layers_and_shares_the_weights(self, resnet18):
        first, second = split(resnet18, ["layer3"])
        assert {name.split(".")[0] for name in shapes(first)} == {"conv1", "bn1", "layer1", "layer2"}
        assert {name.split(".")[0] for name in shapes(second)} == {"layer3", "layer4", "fc"}
        assert second.fc.weight is resnet18.fc.weight

    def test_the_layers_that_splits_are_checked_by_are_those_that_run(self):
        variants = [
            Network(name, norm_type, groups, **extra)
            for name, architecture in ARCHITECTURES.items()
            for norm_type, groups in NORMS.items()
            for extra in ({}, {"expand_ratio": 1, "group_dim": 16})[: 1 + (architecture.family == "efficientnet")]
        ]
        for network in variants:
            told, ran = first_operations(network.name), first_nodes(shapes_only(network))
            order = {index: number for number, index in enumerate(sorted(set(ran.values())))}
            assert {name: order[index] for name, index in ran.items()} == told, network

    @pytest.mark.parametrize("norm_type", ["group", "none"])
    def test_other_norms_are_split_alike(self, norm_type):
        network = Network("mobilenet_v3_small", norm_type, NORMS[norm_type], fast_groupnorm=norm_type == "group")
        module = seeded(network, images())
        first, second = split(module, ["blocks.3"])
        with torch.no_grad():
            assert torch.equal(second(first(images())), module(images()))

    def test_an_unknown_layer_is_told_with_the_known_ones(self, resnet18):
        message = r"^PIPELINE_SPLITS=layerX: no such layer of resnet18; it has conv1, bn1, .*layer1, layer1\.0, .*fc$"
        with pytest.raises(UsageError, match=message):
            split(resnet18, ["layer1", "layerX"])

    @pytest.mark.parametrize("layers", [["layer3", "layer2"], ["layer2", "layer2"], ["layer2", "layer2.0"], ["conv1"]])
    def test_an_empty_stage_is_refused(self, resnet18, layers):
        with pytest.raises(
            UsageError, match=rf"^PIPELINE_SPLITS={','.join(layers)}: {layers[-1]} does not start after"
        ):
            split(resnet18, layers)
