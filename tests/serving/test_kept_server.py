"""A repository that is exported, and a server of it that is kept until it is told to end."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from null_workload import PATIENCE_S
from triton_server import MODEL, OBSTACLE, ask, assert_nothing_left, export, serving, wait_until_ready

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
    pytest.mark.usefixtures("pytorch_python"),
]


@pytest.fixture(scope="module")
def exported(engine_cache, tmp_path_factory):
    """A repository that `triton export` has written."""
    directory = tmp_path_factory.mktemp("exported") / "models"
    export(directory, "--engine=openvino", "--instances=1")
    return directory


def test_what_is_exported_is_served_until_a_signal_and_refuses_what_is_no_request_of_it(exported, engine_cache):
    network = exported / MODEL / "1" / "network"
    with serving(exported) as server:
        grpc, http, _ = wait_until_ready(server)
        for protocol, address in (("grpc", grpc), ("http", http)):
            told, (_, answers) = ask(engine_cache, address, network / "check_images.npy", protocol)
            assert "batch-size must be <= 8" in told[0]
            assert "unexpected shape for input 'images'" in told[1]
            assert np.argmax(answers, 1).tolist() == np.load(network / "reference.npy")[:4].argmax(1).tolist()
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0
    assert_nothing_left(server.pid)


def _break_config(models):
    (models / MODEL / "config.pbtxt").write_text("max_batch_size: many")


def _break_model(models):
    (models / MODEL / "1" / "network" / "network.onnx").write_bytes(b"no network")


def _forget_models(models):
    (models / "cnnbench.json").unlink()


@pytest.mark.parametrize(
    ("damage", "code", "reason"),
    [
        (_break_config, 1, "Triton Server did not start: .*(max_batch_size|config)"),
        (_break_model, 1, "Triton Server did not start: "),
        (_forget_models, 2, "models: no export wrote this: it has no cnnbench.json; `cnnbench triton export` writes"),
        (shutil.rmtree, 2, "models: no such directory; `cnnbench triton export --output` makes one"),
    ],
)
def test_a_repository_that_is_broken_is_not_served(exported, tmp_path, damage, code, reason):
    models = shutil.copytree(exported, tmp_path / "models")
    damage(models)
    with serving(models) as server:
        _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == code, errors
    assert re.search(reason, errors), errors
    if code == 1:
        assert Path(re.search(r"; its log: (\S+)", errors)[1]).is_file()
    assert_nothing_left(server.pid)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ("--server-image", "any"),
            "--server-image any: the models of {} are this program's engine, whose Python environment no other image "
            "has; export them with --backend onnxruntime or openvino",
        ),
        (("--server-image", "any", "--server", "/any"), "argument --server: not allowed with argument --server-image"),
        (("--server", "/no/such"), "--server /no/such: no program; needed is `tritonserver`"),
    ],
)
def test_a_server_that_cannot_have_the_models_is_refused(exported, options, reason):
    with serving(exported, *options) as server:
        _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 2
    assert reason.format(exported) in errors
    assert "Traceback" not in errors


def test_an_export_does_not_overwrite_what_is_another(tmp_path):
    (tmp_path / "mine").write_text("")
    assert "has other files in it" in export(tmp_path, "--engine=openvino", code=2)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--concurrency=4", "CONCURRENCY: is of what asks a server, and is not exported; leave it out"),
        ("--request_rate=5", "REQUEST_RATE: is of what asks"),
        ("--shared_memory", "SHARED_MEMORY: is of what asks"),
        ("--scenario=Offline", "SCENARIO: is of what asks"),
        ("--grpc_port=8001", "GRPC_PORT: is of cases; give `serve --grpc-port` instead"),
        ("--model_repository=/tmp", "MODEL_REPOSITORY: is of cases; give --output instead"),
    ],
)
def test_what_a_server_has_not_is_not_exported(tmp_path, option, reason):
    assert reason in export(tmp_path / "models", "--engine=openvino", option, code=2)
    assert not (tmp_path / "models").exists()
