import dataclasses
import json

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.inputs.networks import ARCHITECTURES, Network, check_network


def test_a_network_survives_json():
    network = Network("efficientnet_b0", norm_type="group", norm_num_groups=4, fast_groupnorm=True, group_dim=16)
    assert Network(**json.loads(json.dumps(dataclasses.asdict(network)))) == network


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_published_network_is_accepted(name):
    check_network(Network(name))
    check_network(Network(name, norm_type="none"))
    check_network(Network(name, norm_type="group", norm_num_groups=8, fast_groupnorm=True))


def test_efficientnet_is_accepted_as_graphcore_has_it():
    check_network(Network("efficientnet_b4", "group", 4, fast_groupnorm=True, expand_ratio=4, group_dim=16))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network("resnet51"), r"MODEL=resnet51: no such network; use one of resnet18, .*resnext101$"),
        (Network("resnet50", norm_type="layer"), r"NORM_TYPE=layer: must be one of batch, group, none$"),
        (Network("resnet50", norm_type="group", norm_num_groups=0), r"NORM_NUM_GROUPS=0: must be 1 or more$"),
        (
            Network("resnet50", "group", 7),
            r"NORM_NUM_GROUPS=7: does not divide the channels of every norm of resnet50; use 1, 2, 4, 8, 16, 32 or 64$",
        ),
        (Network("efficientnet_b0", "group"), r"NORM_NUM_GROUPS=32: does not divide .*; use 1, 2, 4 or 8$"),
        (Network("resnet50", norm_num_groups=4), r"NORM_NUM_GROUPS=4: needs NORM_TYPE=group, .* NORM_TYPE=batch; .*"),
        (Network("resnet50", "none", fast_groupnorm=True), r"ENABLE_FAST_GROUPNORM=true: needs NORM_TYPE=group, .*"),
        (
            Network("resnet50", expand_ratio=4),
            r"EFFICIENTNET_EXPAND_RATIO=4: only efficientnet_b0 and efficientnet_b4 have it, and this is resnet50; "
            r"leave it out$",
        ),
        (Network("mobilenet_v3_small", group_dim=16), r"EFFICIENTNET_GROUP_DIM=16: only .* mobilenet_v3_small; .*"),
        (Network("efficientnet_b0", group_dim=0), r"EFFICIENTNET_GROUP_DIM=0: must be 1 or more$"),
        (Network("efficientnet_b0", expand_ratio=0.5), r"EFFICIENTNET_EXPAND_RATIO=0.5: must be 1 or more$"),
        (Network("efficientnet_b0", expand_ratio=float("nan")), r"EFFICIENTNET_EXPAND_RATIO=nan: must be 1 or more$"),
    ],
)
def test_a_contradiction_is_told_with_what_to_do(network, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        check_network(network)
