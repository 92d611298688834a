"""What the workload's own images hold and say, as test.sh has made them with the tag `test`."""

import ast
import json

import pytest

from checkout import WORKLOAD
from cnnbench.cases.workload import load_workload
from cnnbench.run.images import ImageOptions, plan_images
from container_engine import ask as ask_engine

IMAGES = plan_images(WORKLOAD, load_workload(WORKLOAD), ImageOptions(release="test"))
CACHE = "/opt/cnnbench/cache"

pytestmark = pytest.mark.container


def ask(*arguments):
    done = ask_engine(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True, scope="module")
def _images(engine):
    missing = [build.reference for build in IMAGES.values() if not ask("images", "--quiet", build.reference)]
    if missing:
        pytest.skip(f"no image {missing[0]}: test.sh makes it")


def files_of(role, directory):
    command = ("run", "--rm", "--network", "none", "--entrypoint", "find", IMAGES[role].reference)
    return ask(*command, directory, "-type", "f").splitlines()


def test_the_six_images_have_the_names_of_the_document():
    assert {build.reference.removesuffix(":test") for build in IMAGES.values()} == {
        "resnet50v1_5-tensorflow-inference-dataset",
        "resnet50v1_5-tensorflow-model",
        "resnet50v1_5-tensorflow-benchmark",
        "ai-resnet50v1_5-tensorflow-intel-public-inference-dummy",
        "ai-resnet50v1_5-tensorflow-intel-public-inference-real",
        "ai-resnet50v1_5-tensorflow-intel-public-inference-sgx",
    }


@pytest.mark.parametrize("role", IMAGES)
def test_an_image_says_what_it_is_made_of_and_is_not_roots(role):
    (image,) = json.loads(ask("image", "inspect", IMAGES[role].reference))
    labels = image["Config"]["Labels"]
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
    bill = json.loads(labels["cnnbench.bom"])
    assert bill["base_image"] == labels["org.opencontainers.image.base.name"]
    assert bill["python"]["tensorflow-itex.lock"]["intel-extension-for-tensorflow"] == "2.15.0.0"
    assert set(bill["artefacts"]) == {"cnnbench-procedural-1", "resnet50v1_5-embedded", "int8 graphs"}
    assert bill["artefacts"]["int8 graphs"].startswith("made with tensorflow-quantizer.lock sha256:")
    assert image["Config"]["User"] not in ("", "root", "0")


def test_the_dummy_image_has_no_data_set():
    assert [path.rpartition("/")[2] for path in files_of("dummy", f"{CACHE}/datasets")] == ["manifest.json"] * 3
    assert not [path for path in files_of("dummy", CACHE) if path.endswith((".jpg", ".jpeg", ".JPEG", ".tar"))]


def test_the_real_image_has_the_drawn_data_set_and_the_dummys_model():
    images = [path for path in files_of("real", f"{CACHE}/datasets") if path.endswith(".jpg")]
    assert len([path for path in images if "validation" in path]) == 1000
    for directory in ("models", "prepared"):
        assert files_of("real", f"{CACHE}/{directory}") == files_of("dummy", f"{CACHE}/{directory}")


def test_the_engines_in_the_image_are_those_of_its_bill():
    script = "import sys, importlib.metadata as m; print({d.name.lower(): d.version for d in m.distributions()})"
    (image,) = json.loads(ask("image", "inspect", IMAGES["dummy"].reference))
    bill = json.loads(image["Config"]["Labels"]["cnnbench.bom"])
    for lock, packages in bill["python"].items():
        name = lock.removesuffix(".lock")
        environment = f"{CACHE}/environments/{name}-*" if name.startswith("tensorflow") else "/opt/cnnbench/.venv"
        found = ask(
            *("run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGES["dummy"].reference, "-c"),
            f'{environment}/bin/python -c "{script}"',
        )
        installed = ast.literal_eval(found)
        for name, version in packages.items():
            assert installed.get(name.lower(), installed.get(name.lower().replace("-", "_"))) == version, name


def test_an_image_that_cases_run_in_is_no_larger_than_a_network_likes():
    for role in ("dummy", "real", "sgx"):
        size = int(ask("image", "inspect", "--format", "{{.Size}}", IMAGES[role].reference))
        assert size < 2.5e9, role


def test_an_image_has_no_headers_static_libraries_or_tests():
    for directory in (f"{CACHE}/environments", "/opt/cnnbench/.venv"):
        files = files_of("dummy", directory)
        assert any(path.endswith(".so") for path in files)
        assert not [path for path in files if path.endswith(".a") or "/include/" in path or "/tests/" in path]
