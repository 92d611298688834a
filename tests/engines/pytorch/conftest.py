"""A small network made ready as staging makes it, for tests run by a Python that has PyTorch."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest

from cnnbench.inputs.networks import Network

NETWORK, SIZE = Network("resnet18"), 64


@pytest.fixture(scope="session")
def images():
    """Four images that differ (float32, 4 x SIZE x SIZE x 3)."""
    import torch

    coarse = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())


@pytest.fixture(scope="session")
def prepared(images, tmp_path_factory):
    """Return the network's directory, its answers to the images in float32 on the CPU, and its MACs for all of them."""
    import torch
    from safetensors.torch import save_file

    from cnnbench.engines.pytorch.classifier import Classifier
    from cnnbench.engines.pytorch.networks import build, count_macs
    from cnnbench.engines.pytorch.weights import seed_weights

    directory, module = tmp_path_factory.mktemp("prepared"), build(NETWORK)
    classifier = Classifier(module, normalize_inside=False)
    seed_weights(module, classifier.take(torch.from_numpy(images)))
    request = {"network": asdict(NETWORK), "normalize_inside": False}
    (directory / "network.json").write_text(json.dumps(request))
    save_file(module.state_dict(), directory / "weights.safetensors")
    with torch.no_grad():
        reference = classifier(torch.from_numpy(images)).numpy()
    return directory, reference, len(images) * count_macs(module, SIZE)


@pytest.fixture(autouse=True)
def loaded_more_than_once(monkeypatch):
    """Let one process load several backends, which a worker never does: PyTorch lets this be set once."""
    if torch := sys.modules.get("torch"):  # not where the tests beside this file start a Python that has it
        monkeypatch.setattr(torch, "set_num_interop_threads", lambda count: None)


@pytest.fixture
def check_answers(images, prepared):
    """Load a backend, and check that it answers as float32 does, whatever came before, and in the precision's type."""
    from cnnbench.cases.precisions import PRECISIONS
    from cnnbench.engines.interface import LoadSpec
    from cnnbench.engines.pytorch import PyTorchOptions
    from cnnbench.proof.precision import judge_trace
    from cnnbench.proof.trace import TracedStep

    directory, reference, macs = prepared

    def check(backend, precision, options=None, **settings):
        of = PRECISIONS[precision]
        settings |= {
            "threads": 1,
            "callers": 1,
            "verbose": False,
            "on_gpu": of.on_gpu,
            "options": options or PyTorchOptions(),
        }
        backend.load(LoadSpec(directory, of.data_type, **settings))
        bound, other = of.softmax_bound, np.ascontiguousarray(images[::-1])
        steps = ((images, reference), (other, reference[::-1]), (other, reference[::-1]), (images, reference))
        for batch, wanted in steps:
            answers = backend.infer(batch)
            assert answers.dtype == np.float32
            assert np.abs(answers - wanted).max() <= bound
        for part in (slice(2), slice(2, 4)):
            assert np.abs(backend.infer(images[part]) - reference[part]).max() <= bound
        backend.infer(images)
        step = TracedStep(tuple(backend.layers()), ())
        assert judge_trace(of, step, macs).share == pytest.approx(1, abs=0.01)

    return check
