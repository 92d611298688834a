"""Which images a workload has, how each is made and out of what; fake engines are small programs."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from checkout import ROOT
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.workload import ImageNames, load_workload
from cnnbench.cli.main import main
from cnnbench.run.images import (
    IMAGE_PYTHON,
    ImageBuild,
    ImageOptions,
    _pinned,
    bill_of_materials,
    build_command,
    build_image,
    image_labels,
    inference_image,
    plan_images,
)

DIRECTORY = ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public"
WORKLOAD = load_workload(DIRECTORY)
NULL = WORKLOAD.model_copy(update={"engine": "null"})
NETWORKS = load_workload(ROOT / "workload" / "CNN-PyTorch-Public")
SERVED = load_workload(ROOT / "workload" / "CNN-Triton-Public")


def test_images_come_after_those_that_they_are_made_of():
    builds = plan_images(DIRECTORY, WORKLOAD, ImageOptions())
    roles = list(builds)
    assert roles == ["benchmark", "inference-dataset", "model", "dummy", "real", "sgx"]
    for role, build in builds.items():
        assert all(roles.index(one) < roles.index(role) for one in build.needs)


def test_an_engine_without_models_has_no_images_of_them():
    builds = plan_images(DIRECTORY, NULL, ImageOptions())
    assert list(builds) == ["benchmark", "dummy"]
    assert builds["benchmark"].arguments["ENVIRONMENTS"] == ""
    assert set(builds["dummy"].arguments) == {"BENCHMARK_IMAGE"}


def test_networks_are_prepared_in_their_containers_which_have_all_their_engines():
    builds = plan_images(ROOT / "workload" / NETWORKS.name, NETWORKS, ImageOptions(models="resnet50_v1"))
    assert list(builds) == ["benchmark", "inference-dataset", "dummy", "real"]
    assert builds["benchmark"].arguments["ENVIRONMENTS"].split() == [
        "pytorch-cpu=https://download.pytorch.org/whl/cpu",
        "onnxruntime-cpu",
        "openvino-cpu",
        "loadgen",
    ]
    bill = bill_of_materials(NETWORKS, ImageOptions())
    locks = ["installer", "controller", "pytorch-cpu", "onnxruntime-cpu", "openvino-cpu", "loadgen"]
    assert set(bill.python) == {f"{name}.lock" for name in locks}
    assert set(bill.artefacts) == {"cnnbench-procedural-1"}


@pytest.mark.parametrize(("data_type", "role"), [("dummy", "dummy"), ("generated", "dummy"), ("real", "real")])
def test_the_image_of_a_case_has_the_data_that_it_reads(data_type, role):
    name = inference_image(NETWORKS, data_type, False, ImageOptions())
    assert name == f"ai-cnn-pytorch-public-inference-{role}:latest"


@pytest.mark.parametrize(("more", "has"), [("", ["itex"]), ("zentf stock", ["itex", "stock", "zentf"])])
def test_an_image_has_the_build_that_cases_choose_and_those_that_are_asked_for(more, has):
    benchmark = plan_images(DIRECTORY, WORKLOAD, ImageOptions(more_variants=more))["benchmark"]
    environments = [f"tensorflow-{variant}" for variant in has]
    assert benchmark.arguments["ENVIRONMENTS"].split() == environments
    locks = bill_of_materials(WORKLOAD, ImageOptions(more_variants=more)).python
    assert set(locks) == {"installer.lock", "controller.lock", *(f"{name}.lock" for name in environments)}


@pytest.mark.parametrize(
    ("workload", "chosen", "has"),
    [
        (NETWORKS, "", ["pytorch-cpu", "onnxruntime-cpu", "openvino-cpu", "loadgen"]),
        (NETWORKS, "onnxruntime", ["onnxruntime-cpu", "loadgen"]),
        (NETWORKS, "openvino onnxruntime", ["onnxruntime-cpu", "openvino-cpu", "loadgen"]),
        (SERVED, "openvino", ["openvino-cpu", "loadgen", "triton-server", "triton-client", "perf-analyzer"]),
        (WORKLOAD, "onnxruntime", ["tensorflow-itex"]),
    ],
)
def test_an_image_has_the_engines_that_are_asked_for_where_its_cases_run_on_them(workload, chosen, has):
    assert set(ImageOptions(engines=chosen).choose_environments(workload)) == set(has)


@pytest.mark.parametrize("workload", [WORKLOAD, NETWORKS], ids=lambda workload: workload.name)
def test_every_argument_of_a_build_is_one_of_its_dockerfile(workload):
    for build in plan_images(ROOT / "workload" / workload.name, workload, ImageOptions(base_image="base:1")).values():
        declared = {
            line.split()[1].partition("=")[0]
            for line in (ROOT / build.dockerfile).read_text().splitlines()
            if line.startswith("ARG ")
        }
        assert set(build.arguments) <= declared, build.role


def test_names_have_the_registry_and_the_release_everywhere():
    builds = plan_images(DIRECTORY, WORKLOAD, ImageOptions(registry="host:5000/team", release="v1"))
    made = {build.reference for build in builds.values()}
    assert all(name.startswith("host:5000/team/") and name.endswith(":v1") for name in made)
    for build in builds.values():
        used = {value for name, value in build.arguments.items() if name.endswith("_IMAGE")}
        assert used <= made
    assert inference_image(WORKLOAD, "real", False, ImageOptions(release="v1")) == (
        "ai-resnet50v1_5-tensorflow-intel-public-inference-real:v1"
    )


def test_a_workload_without_images_runs_natively_only():
    with pytest.raises(UsageError, match="declares no images"):
        plan_images(DIRECTORY, WORKLOAD.model_copy(update={"images": None}), ImageOptions())


def test_the_data_set_is_sent_for_two_images_and_only_when_it_is_local():
    for source, sent in {"embedded": "dataset/README.md", "local": "dataset", "url": "dataset/README.md"}.items():
        builds = plan_images(DIRECTORY, WORKLOAD, ImageOptions(dataset_from=source))
        assert {role for role, one in builds.items() if sent in one.context} == {"inference-dataset", "model"}
        assert {one.arguments.get("DATASET_FROM") for one in builds.values()} == {None, source}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": "a b"}, "RELEASE=a b: must be a tag"),
        ({"release": ""}, "RELEASE="),
        ({"release": "-x"}, "RELEASE=-x"),
        ({"release": "x" * 129}, "at most 128"),
        ({"registry": "https://host"}, "REGISTRY=https://host: must be a host"),
        ({"registry": "host:5000/"}, "REGISTRY=host:5000/"),
        ({"registry": "host:port"}, "REGISTRY=host:port"),
        ({"dataset_from": "tape"}, "DATASET_FROM=tape: must be one of embedded, local, url"),
        ({"more_variants": "zentf fast"}, "MORE_VARIANTS=zentf fast: fast is not known; there are cpu, "),
        ({"engines": "onnxruntime caffe"}, "ENGINES=onnxruntime caffe: caffe is not known; there are "),
        ({"models": "resnet50_v1 vgg"}, "MODELS=resnet50_v1 vgg: vgg is not known; there are imagenet2012-val, "),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(UsageError) as caught:
        ImageOptions(**options).check()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options", [{}, {"registry": "localhost:5000"}, {"registry": "r.example/a/b"}, {"release": "v1.0-rc_1"}]
)
def test_a_good_option_is_accepted(options):
    ImageOptions(**options).check()


BUILD = ImageBuild("dummy", "harness:1", "Dockerfile.2.benchmark", "dummy", ("src",), {"ENGINE": "null"})


def test_the_build_command(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "http://secret@proxy")
    command = build_command(BUILD, ["podman", "--remote"], {"a": "b c"}, tmp_path)
    assert command == [
        *("podman", "--remote", "build", "--force-rm"),
        *("--file", f"{tmp_path}/Dockerfile.2.benchmark", "--tag", "harness:1"),
        *("--target", "dummy", "--build-arg", "ENGINE=null", "--build-arg", "https_proxy"),
        *("--label", "a=b c", str(tmp_path)),
    ]


@pytest.fixture
def engine(tmp_path):
    """An engine that lists the context it is sent, and fails when told to."""
    program = tmp_path / "engine"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "if sys.argv[1] == 'image': print(1000)\n"
        "if sys.argv[1] != 'build': sys.exit()\n"
        "context = pathlib.Path(sys.argv[-1])\n"
        "for path in sorted(context.rglob('*')): print(path.relative_to(context), path.is_symlink())\n"
        "sys.exit(9 if 'ENGINE=broken' in sys.argv else 0)\n"
    )
    program.chmod(0o755)
    return [str(program)]


def test_a_context_has_the_declared_files_only(engine, tmp_path):
    line = build_image(BUILD, engine, {}, tmp_path / "image.log")
    assert line.startswith("harness:1: 1.0 kB, ")
    sent = dict(line.split() for line in (tmp_path / "image.log").read_text().splitlines())
    top = {Path(name).parts[0] for name in sent}
    assert top == {"Dockerfile.2.benchmark", "src"}
    assert "src/cnnbench/run/images.py" in sent
    assert not any("__pycache__" in name for name in sent)
    assert not (tmp_path / "context-dummy").exists()


def test_what_a_link_leads_to_is_sent(engine, tmp_path, monkeypatch):
    (tmp_path / "archive.tar").touch()
    (tmp_path / "checkout" / "dataset").mkdir(parents=True)
    (tmp_path / "checkout" / "dataset" / "ILSVRC2012_img_val.tar").symlink_to(tmp_path / "archive.tar")
    (tmp_path / "checkout" / "Dockerfile").touch()
    monkeypatch.setattr("cnnbench.run.images.REPOSITORY", tmp_path / "checkout")
    build_image(ImageBuild("x", "x:1", "Dockerfile", "", ("dataset",), {}), engine, {}, tmp_path / "image.log")
    assert "dataset/ILSVRC2012_img_val.tar False" in (tmp_path / "image.log").read_text().splitlines()


def test_a_failed_build_shows_its_last_lines_and_names_its_log(engine, tmp_path):
    broken = ImageBuild("dummy", "harness:1", "Dockerfile.2.benchmark", "", ("src",), {"ENGINE": "broken"})
    with pytest.raises(CnnbenchError, match="failed with exit code 9:") as caught:
        build_image(broken, engine, {}, tmp_path / "image.log")
    assert str(caught.value).endswith(f"log: {tmp_path}/image.log")
    assert not (tmp_path / "context-dummy").exists()


def test_only_packages_for_the_images_python_are_pinned(tmp_path):
    lock = tmp_path / "x.lock"
    lock.write_text(
        "# a comment\n"
        "numpy==2.1.0 \\\n    --hash=sha256:00\n"
        "tomli==2.0 ; python_version < '3.11' \\\n    --hash=sha256:00\n"
        "old==1.0 ; python_full_version >= '3.11.2' and python_version < '3.12'\n"
        "    # via numpy\n"
    )
    assert IMAGE_PYTHON["python_version"] == "3.11"
    assert _pinned(lock) == {"numpy": "2.1.0", "old": "1.0"}


def test_the_bill_of_materials_is_what_the_files_pin():
    bill = bill_of_materials(WORKLOAD, ImageOptions())
    assert bill.base_image.startswith("debian:bookworm-")
    assert set(bill.debian) == {"python3", "python3-venv"}
    assert set(bill.python) == {"installer.lock", "controller.lock", "tensorflow-itex.lock"}
    assert bill.python["tensorflow-itex.lock"]["tensorflow-cpu"].startswith("2.15.")
    assert set(bill.artefacts) == {"cnnbench-procedural-1", "resnet50v1_5-embedded", "int8 graphs"}
    assert bill.artefacts["int8 graphs"].startswith("made with tensorflow-quantizer.lock sha256:")
    more = bill_of_materials(WORKLOAD, ImageOptions(dataset_from="local", models="resnet50_v1")).artefacts
    assert more["resnet50_v1"].startswith("md5:7b94a2da")
    assert more["imagenet2012-val"].startswith("sha256:c7e06a6c")
    assert "controller.lock: numpy " in "\n".join(bill.lines())
    assert bill_of_materials(WORKLOAD, ImageOptions(base_image="mine:1")).base_image == "mine:1"


def test_labels_have_the_commit_and_the_bill_of_materials():
    labels = image_labels(WORKLOAD, BUILD, bill_of_materials(WORKLOAD, ImageOptions()))
    assert labels["cnnbench.workload"] == WORKLOAD.name
    assert set(json.loads(labels["cnnbench.bom"])) == {"base_image", "debian", "python", "artefacts"}
    assert {"title", "version", "revision", "base.name"} <= {
        name.removeprefix("org.opencontainers.image.") for name in labels
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "--release", "a b"], 2, "RELEASE=a b"),
        (["build", "nothing", "--log", "x"], 2, "needs a ROLE out of benchmark, inference-dataset"),
        (["push", "--container-cli", "no-such-engine"], 1, "no-such-engine: not found; install it"),
        (["push", "--container-cli", "docker 'x"], 2, "--container-cli docker 'x: No closing quotation"),
        (["push", "--container-cli", ""], 2, "--container-cli : names no program"),
        (["push", "--container-cli", "false"], 1, f"{shlex.quote('false')} push"),
    ],
)
def test_what_the_command_line_refuses(capsys, arguments, code, message):
    assert main(["image", *arguments, "--workload", str(DIRECTORY)]) == code
    assert message in capsys.readouterr().err


def test_a_name_must_be_one_of_an_image():
    with pytest.raises(ValueError, match="pattern"):
        ImageNames(parts="Harness", inference="x")
